//! Names that are not UTF-8: bytes to the guest's kernel, and themselves all the way.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest};

/// A request about a file whose path is in percent-encoded bytes.
async fn ask(nest: &Nest, method: Method, id: &str, rest: &str, body: &'static str) -> Answer {
    let request = nest.request(method, &format!("/v1/sandboxes/{id}/files{rest}"));
    Answer::of(request.body(body)).await
}

fn bytes(entry: &Value, field: &str) -> Vec<u8> {
    match entry[format!("{field}_base64")].as_str() {
        Some(base64) => BASE64_STANDARD.decode(base64).unwrap(),
        None => entry[field].as_str().unwrap().as_bytes().to_vec(),
    }
}

#[actix_web::test]
async fn names_that_are_not_utf8_are_told_apart_and_reached() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("dir");
    // Two names, one text.
    for (name, content) in [("bad%FF", "one"), ("bad%FE", "two")] {
        let answer = ask(&nest, Method::PUT, &id, &format!("?path={dir}/{name}"), content).await;
        assert_eq!(answer.status, 200, "{answer:?}");
    }
    ask(&nest, Method::PUT, &id, &format!("?path={dir}/good"), "three").await;
    let list = async || ask(&nest, Method::GET, &id, &format!("/list?path={dir}"), "").await.json();
    let entries = list().await["entries"].as_array().unwrap().clone();
    let names: Vec<_> = entries.iter().map(|entry| bytes(entry, "name")).collect();
    assert_eq!(names, [b"bad\xfe".to_vec(), b"bad\xff".to_vec(), b"good".to_vec()]);
    assert_eq!((&entries[0]["name"], entries[2].get("name_base64")), (&json!("bad\u{fffd}"), None));
    assert_eq!(bytes(&entries[1], "path"), [dir.as_bytes(), b"/bad\xff"].concat());

    let read = |rest: String| ask_owned(&nest, &id, rest);
    assert_eq!(read(format!("?path={dir}/bad%FF")).await.body, b"one".as_slice());
    assert_eq!(read(format!("?path={dir}/bad%FE")).await.body, b"two".as_slice());
    let stat = read(format!("/stat?path={dir}/bad%FE")).await.json();
    assert_eq!(bytes(&stat, "name"), b"bad\xfe");
    let archive = read(format!("/archive?path={dir}")).await.body;
    assert!(archive.windows(4).any(|bytes| bytes == b"bad\xff"));

    // In JSON as what answers say.
    let post = async |what: &str, body: Value| {
        nest.post(&format!("/v1/sandboxes/{id}/files/{what}"), body).await
    };
    let raw = |name: &[u8]| BASE64_STANDARD.encode([dir.as_bytes(), b"/", name].concat());
    let body = json!({ "path_base64": raw(b"bad\xff") });
    assert_eq!(post("read", body).await.body, b"one".as_slice());
    let made = post("mkdir", json!({ "path_base64": raw(b"d\xc3") })).await.json();
    assert_eq!(bytes(&made, "name"), b"d\xc3");
    let better = format!("{dir}/better");
    let body = json!({ "source_base64": raw(b"bad\xff"), "destination": better });
    assert_eq!(post("move", body).await.json()["name"], "better");
    for (body, word) in [
        (json!({}), "missing field `path`"),
        (json!({ "path": "a", "path_base64": "YQ==" }), "two ways"),
        (json!({ "path_base64": "?" }), "base64"),
        (json!({ "path_base64": "AA==" }), "NUL"),
    ] {
        let message = post("read", body).await.error(400, "invalid_request");
        assert!(message.contains(word), "{message}");
    }

    // What is gone is that very one.
    for (name, left) in [("bad%EF%BF%BD", 4), ("bad%FE", 3), ("d%C3", 2), ("d%C3", 2)] {
        let answer = ask(&nest, Method::DELETE, &id, &format!("?path={dir}/{name}"), "").await;
        assert_eq!(answer.status, 204, "{name}");
        assert_eq!(list().await["entries"].as_array().unwrap().len(), left, "{name}");
    }
}

async fn ask_owned(nest: &Nest, id: &str, rest: String) -> Answer {
    ask(nest, Method::GET, id, &rest, "").await
}
