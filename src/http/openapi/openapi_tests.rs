use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;

/// Served to browsers, and no part of the API.
const PAGES: [&str; 4] = ["/test", "/test/{path}", "/docs", "/docs/{path}"];

/// Where anything of a server's in a sandbox is: takes any method, so no macro registers it.
const PROXIES: [&str; 2] =
    ["/v1/sandboxes/{id}/ports/{port}", "/v1/sandboxes/{id}/ports/{port}/{path}"];

/// A method, and a path without the prefix that most have.
type Route = (String, String);

fn value() -> Value {
    serde_json::from_slice(&DOCUMENT.json).unwrap()
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let below = |path: PathBuf| if path.is_dir() { sources(&path) } else { vec![path] };
    let files = entries.flat_map(below);
    files.filter(|path| path.extension().is_some_and(|end| end == "rs")).collect()
}

/// The routes that the macros in a source register.
fn routes_of(source: &str) -> impl Iterator<Item = Route> {
    source.lines().filter_map(|line| {
        let (method, rest) = line.trim().strip_prefix("#[")?.split_once("(\"")?;
        let known = ["get", "post", "put", "delete", "head", "patch", "options", "route"];
        let path = rest.split('"').next()?.replace(":.*}", "}");
        known.contains(&method).then(|| (method.to_uppercase(), path))
    })
}

fn routes_in_source() -> BTreeSet<Route> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    let texts = sources(&root).into_iter().map(|path| std::fs::read_to_string(path).unwrap());
    let routes = texts.flat_map(|text| routes_of(&text).collect::<Vec<_>>());
    routes.filter(|(_, path)| !PAGES.contains(&path.as_str())).collect()
}

fn routes_in(document: &Value) -> BTreeSet<Route> {
    let paths = document["paths"].as_object().unwrap();
    let own = paths.iter().filter(|(path, _)| !PROXIES.contains(&path.as_str()));
    let routes = own.flat_map(|(path, item)| {
        let path = path.strip_prefix("/v1").unwrap_or(path).to_owned();
        let methods = item.as_object().unwrap().keys();
        methods.map(move |method| (method.to_uppercase(), path.clone()))
    });
    routes.collect()
}

#[test]
fn the_document_has_exactly_the_routes_that_are_in_the_source() {
    let (source, document) = (routes_in_source(), routes_in(&value()));
    let undescribed: Vec<_> = source.difference(&document).collect();
    let invented: Vec<_> = document.difference(&source).collect();
    assert!(undescribed.is_empty(), "put these into `Routes` with `add`: {undescribed:?}");
    assert!(invented.is_empty(), "no macro registers these: {invented:?}");
    assert!(source.len() > 40, "only {} routes were seen", source.len());
    for path in PROXIES {
        assert_eq!(value()["paths"][path].as_object().unwrap().len(), 7, "{path}");
    }
}

#[test]
fn a_route_is_seen_in_a_source_however_it_is_registered() {
    let seen = |source: &str| routes_of(source).collect::<Vec<_>>();
    let route = |method: &str, path: &str| (method.to_owned(), path.to_owned());
    assert_eq!(seen("    #[get(\"/a/{b}\")]\nasync fn c() {}"), [route("GET", "/a/{b}")]);
    assert_eq!(seen("#[put(\"/a/{b:.*}\", wrap = \"x\")]"), [route("PUT", "/a/{b}")]);
    assert_eq!(seen("#[derive(\"/a\")]\n// get(\"/a\")"), []);
    let mut document = value();
    document["paths"].as_object_mut().unwrap().remove("/v1/sandboxes/{id}/fork");
    let (source, document) = (routes_in_source(), routes_in(&document));
    let missing: Vec<_> = source.difference(&document).collect();
    assert_eq!(missing, [&route("POST", "/sandboxes/{id}/fork")]);
}

#[test]
fn routes_are_registered_in_one_place() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/http");
    for path in sources(&root) {
        let name = path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned();
        // The scope of the API, the table, the last word on a path, and names of servers.
        let known = ["mod.rs", "openapi/routes.rs", "error.rs", "ports/mod.rs"];
        let text = std::fs::read_to_string(&path).unwrap();
        let own = [".service(", "web::resource(", ".route("].iter().any(|way| text.contains(way));
        assert!(!own || known.contains(&name.as_str()) || name.ends_with("_tests.rs"), "{name}");
    }
}

/// Visits every object below `value`, with where it is.
fn walk(value: &Value, at: &str, visit: &mut impl FnMut(&str, &Value)) {
    match value {
        Value::Object(fields) => {
            visit(at, value);
            let inner = fields.iter().filter(|(name, _)| !name.starts_with("example"));
            inner.for_each(|(name, field)| walk(field, &format!("{at}/{name}"), visit));
        }
        Value::Array(items) => items
            .iter()
            .enumerate()
            .for_each(|(index, item)| walk(item, &format!("{at}/{index}"), visit)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// What a reference leads to, or the value itself.
fn resolved<'a>(document: &'a Value, value: &'a Value) -> &'a Value {
    let Some(reference) = value.get("$ref").and_then(Value::as_str) else { return value };
    let found = document.pointer(reference.strip_prefix('#').unwrap());
    found.unwrap_or_else(|| panic!("{reference} leads nowhere"))
}

fn is_described(document: &Value, value: &Value) -> bool {
    let text = |value: &Value| value["description"].as_str().is_some_and(|text| !text.is_empty());
    let choices = ["oneOf", "allOf"].iter().filter_map(|choice| value[choice].as_array()).flatten();
    let mut choices = choices.map(|choice| resolved(document, choice));
    text(value) || text(resolved(document, value)) || choices.any(text)
}

#[test]
fn everything_in_the_document_is_described_and_leads_somewhere() {
    let document = value();
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"), "{}", document["openapi"]);
    let (mut ids, mut fields, mut lacking) = (BTreeSet::new(), 0, Vec::new());
    walk(&document, "", &mut |at, value| {
        resolved(&document, value);
        for (name, field) in value["properties"].as_object().into_iter().flatten() {
            fields += 1;
            let tells_itself = name == "type" && field.get("enum").is_some();
            if !tells_itself && !is_described(&document, field) {
                lacking.push(format!("{at}: {name}"));
            }
        }
        for parameter in value["parameters"].as_array().into_iter().flatten() {
            if !is_described(&document, parameter) {
                lacking.push(format!("{at}: {}", parameter["name"]));
            }
        }
        if let Some(id) = value.get("operationId").and_then(Value::as_str) {
            assert!(ids.insert(id.to_owned()), "two operations are called {id}");
            assert!(value["summary"].as_str().is_some_and(|text| !text.is_empty()), "{id}");
            for (status, response) in value["responses"].as_object().unwrap() {
                if !is_described(&document, response) {
                    lacking.push(format!("{id}: {status}"));
                }
            }
        }
    });
    assert!(lacking.is_empty(), "not described: {lacking:#?}");
    assert!(ids.len() > 40 && fields > 100, "only {} and {fields} were seen", ids.len());
}

/// Whether people are shown what a value of this schema looks like.
fn has_example(document: &Value, schema: &Value) -> bool {
    let schema = resolved(document, schema);
    let list = |name: &str| schema[name].as_array().cloned().unwrap_or_default();
    let has = |inner: &Value| has_example(document, inner);
    if schema.get("example").is_some() || !list("examples").is_empty() {
        return true;
    }
    match (schema.get("items"), schema.get("properties")) {
        (Some(items), _) => has(items),
        (None, Some(fields)) => {
            let nullable = |field: &Value| {
                let kinds = field["type"].as_array().cloned().unwrap_or_default();
                kinds.contains(&"null".into())
            };
            fields.as_object().unwrap().values().all(|field| nullable(field) || has(field))
        }
        (None, None) if !list("allOf").is_empty() => list("allOf").iter().all(has),
        (None, None) => list("oneOf").iter().any(has),
    }
}

#[test]
fn every_json_body_has_an_example() {
    let document = value();
    let (mut bodies, mut lacking) = (0, BTreeSet::new());
    walk(&document, "", &mut |at, value| {
        let Some(content) = value.get("content") else { return };
        let Some(json) = content.get("application/json") else { return };
        bodies += 1;
        let shown = json.get("example").or(json.get("examples")).is_some();
        // The document itself has no example of a document.
        if !shown && !has_example(&document, &json["schema"]) && !at.contains("/openapi.json/") {
            lacking.insert(at.to_owned());
        }
    });
    assert!(lacking.is_empty(), "without an example: {lacking:#?}");
    assert!(bodies > 40, "only {bodies} bodies were seen");
}
