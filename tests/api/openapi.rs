//! The description of the API, and the pages that show it. Whether the server keeps to it under
//! arbitrary requests: `contract`.

use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest};

const METHODS: [Method; 4] = [Method::GET, Method::POST, Method::PUT, Method::DELETE];

/// A path with something in the place of each name.
fn filled(path: &str) -> String {
    let sandbox = path.contains("/sandboxes/");
    path.replace("{id}", if sandbox { "aaaaaaaaaaaaaaaaaaaa" } else { "none" })
        .replace("{process}", "1")
        .replace("{port}", "8000")
        .replace("{name}", "none")
        .replace("{path}", "index.html")
}

async fn load(nest: &Nest, path: &str) -> Answer {
    Answer::of(nest.anonymous(Method::GET, path)).await
}

async fn document(nest: &Nest) -> Value {
    let answer = load(nest, "/openapi.json").await;
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    answer.json()
}

#[actix_web::test]
async fn the_document_is_served_in_both_forms_without_a_key() {
    let nest = Nest::start().await;
    let document = document(&nest).await;
    let yaml = load(&nest, "/openapi.yaml").await;
    assert_eq!((yaml.status, yaml.header("content-type")), (200, Some("application/yaml")));
    let yaml = String::from_utf8(yaml.body.to_vec()).unwrap();
    assert!(yaml.starts_with("openapi: 3.1"), "{}", &yaml[..20]);
    let paths = document["paths"].as_object().unwrap();
    for path in paths.keys() {
        assert!(yaml.contains(&format!("\n  {path}:\n")), "{path}");
    }
    assert_eq!(document["components"]["securitySchemes"]["api_key"]["name"], "X-API-Key");
}

#[actix_web::test]
async fn the_server_takes_the_methods_of_the_document_and_no_others() {
    let nest = Nest::start().await;
    let document = document(&nest).await;
    for (path, item) in document["paths"].as_object().unwrap() {
        let item = item.as_object().unwrap();
        let mut allowed = Vec::new();
        for method in METHODS {
            let answer = Answer::of(nest.request(method.clone(), &filled(path))).await;
            let Some(operation) = item.get(&method.as_str().to_lowercase()) else {
                answer.error(405, "method_not_allowed");
                allowed.push(answer.header("allow").unwrap().to_owned());
                continue;
            };
            assert_ne!(answer.status, 405, "{method} {path}");
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            assert!(!text.contains("nothing at this path"), "{method} {path}: {text}");
            let responses = &operation["responses"];
            let status = answer.status.to_string();
            let known = responses.get(&status).or(responses.get("default"));
            assert!(known.is_some(), "{method} {path} answers {status}: {text}");
        }
        let described: Vec<_> = item.keys().map(|method| method.to_uppercase()).collect();
        for allowed in allowed {
            let mut allowed: Vec<_> = allowed.split(", ").map(str::to_owned).collect();
            let mut described = described.clone();
            allowed.sort();
            described.sort();
            assert_eq!(allowed, described, "{path}");
        }
    }
}

#[actix_web::test]
async fn what_needs_a_key_says_so_in_the_document() {
    let nest = Nest::start().await;
    for (path, item) in document(&nest).await["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let method: Method = method.to_uppercase().parse().unwrap();
            let status = Answer::of(nest.anonymous(method.clone(), &filled(path))).await.status;
            let secured = operation.get("security").is_some();
            assert_eq!(status == 401, secured, "{method} {path} answers {status} without a key");
        }
    }
}

#[actix_web::test]
async fn the_pages_for_people_load_nothing_from_elsewhere() {
    let nest = Nest::start().await;
    let client = reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).build();
    let moved = client.unwrap().get(format!("{}/docs", nest.url)).send().await.unwrap();
    assert_eq!(
        (moved.status().as_u16(), &moved.headers()["location"]),
        (308, &"docs/".parse().unwrap())
    );
    let page = load(&nest, "/docs/").await;
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html")));
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
    let html = std::str::from_utf8(&page.body).unwrap();
    assert!(!html.contains("//"), "the page names another server");
    let mut files = 0;
    for attribute in ["src=\"", "href=\""] {
        for rest in html.split(attribute).skip(1) {
            let path = rest.split('"').next().unwrap().trim_start_matches("./");
            let file = load(&nest, &format!("/docs/{path}")).await;
            assert_eq!(
                (file.status, file.header("x-content-type-options")),
                (200, Some("nosniff"))
            );
            assert!(!file.body.is_empty(), "{path}");
            files += 1;
        }
    }
    assert!(files >= 6, "only {files} files are loaded: the test does not find them");
    let packed = nest.anonymous(Method::GET, "/docs/").header("accept-encoding", "br, gzip");
    let packed = Answer::of(packed).await;
    assert_eq!(packed.header("content-encoding"), Some("gzip"));
    assert!(page.header("content-encoding").is_none() && packed.body.starts_with(b"\x1f\x8b"));
    let refused = nest.anonymous(Method::GET, "/docs/").header("accept-encoding", "gzip;q=0");
    assert_eq!(Answer::of(refused).await.header("content-encoding"), None);
    let start = load(&nest, "/docs/swagger-initializer.js").await;
    let start = std::str::from_utf8(&start.body).unwrap().to_owned();
    assert!(start.contains("../openapi.json") && !start.contains("://"), "{start}");
    load(&nest, "/docs/none.js").await.error(404, "not_found");
}

/// A schema in the place of a reference to one.
fn resolved<'a>(document: &'a Value, schema: &'a Value) -> &'a Value {
    match schema["$ref"].as_str() {
        Some(path) => document.pointer(path.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

fn takes_null(schema: &Value) -> bool {
    let is_null = |kind: &Value| kind == "null";
    let kinds = &schema["type"];
    let among = |key: &str| schema[key].as_array().into_iter().flatten().any(takes_null);
    is_null(kinds)
        || kinds.as_array().into_iter().flatten().any(is_null)
        || among("oneOf")
        || among("anyOf")
}

#[actix_web::test]
async fn a_field_that_may_be_left_out_may_be_null() {
    let nest = Nest::start().await;
    let document = document(&nest).await;
    let mut optional = 0;
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let body = &operation["requestBody"]["content"]["application/json"]["schema"];
            let mut schemas = vec![resolved(&document, body)];
            schemas.extend(body["oneOf"].as_array().into_iter().flatten());
            for schema in schemas {
                let schema = resolved(&document, schema);
                let required = schema["required"].as_array();
                for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                    if required.is_some_and(|required| required.contains(&json!(name))) {
                        continue;
                    }
                    optional += 1;
                    let property = resolved(&document, property);
                    assert!(takes_null(property), "{method} {path}: {name} is {property}");
                }
            }
        }
    }
    assert!(optional > 20, "{optional}");
    let create = json!({"template": null, "vcpus": null, "envs": null, "metadata": null,
        "public_ports": null, "timeout_sec": null, "lease_sec": null, "rate_limits": null,
        "network": {"default": null, "allow": null, "deny": ["192.0.2.0/24"]}});
    let id = nest.create(create).await;
    let exec = json!({"cmd": "echo out", "args": null, "envs": null, "cwd": null, "user": null,
        "timeout_sec": null, "background": null, "tag": null});
    let answer = nest.post(&format!("/v1/sandboxes/{id}/exec"), exec).await;
    assert_eq!(answer.json()["stdout"], "out\n", "{answer:?}");
}
