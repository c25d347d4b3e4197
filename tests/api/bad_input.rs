//! Requests that make no sense get an error that says why, in one form.

use nestbox::http::JSON_LIMIT;
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest};

const UNKNOWN: &str = "aaaaaaaaaaaaaaaaaaaa";

#[actix_web::test]
async fn an_unknown_field_is_refused_and_named() {
    let nest = Nest::start().await;
    for (path, body) in [
        ("/v1/sandboxes".to_owned(), json!({"cpus": 1})),
        (format!("/v1/sandboxes/{UNKNOWN}/exec"), json!({"cmd": "true", "cpus": 1})),
        (format!("/v1/sandboxes/{UNKNOWN}/files/read"), json!({"path": "/x", "cpus": 1})),
        (format!("/v1/sandboxes/{UNKNOWN}/files/mkdir"), json!({"path": "/x", "cpus": 1})),
        (
            format!("/v1/sandboxes/{UNKNOWN}/files/move"),
            json!({"source": "/x", "destination": "/y", "cpus": 1}),
        ),
        (format!("/v1/sandboxes/{UNKNOWN}/pause"), json!({"cpus": 1})),
        (format!("/v1/sandboxes/{UNKNOWN}/resume"), json!({"cpus": 1})),
        (format!("/v1/sandboxes/{UNKNOWN}/fork"), json!({"cpus": 1})),
        ("/v1/snapshots".to_owned(), json!({"sandbox_id": UNKNOWN, "name": "x", "cpus": 1})),
        ("/v1/api-keys".to_owned(), json!({"name": "x", "cpus": 1})),
    ] {
        let message = nest.post(&path, body).await.error(400, "invalid_request");
        assert!(message.contains("cpus"), "{path}: {message}");
    }
}

#[actix_web::test]
async fn an_unknown_parameter_is_refused_and_named() {
    let nest = Nest::start().await;
    for (path, body) in [
        ("/v1/sandboxes".to_owned(), json!({})),
        (format!("/v1/sandboxes/{UNKNOWN}/pause"), json!({})),
        (format!("/v1/sandboxes/{UNKNOWN}/resume"), json!({})),
        (format!("/v1/sandboxes/{UNKNOWN}/fork"), json!({})),
    ] {
        for (query, word) in [("color=red", "color"), ("trace=yes", "true"), ("trace", "true")] {
            let answer = nest.post(&format!("{path}?{query}"), body.clone()).await;
            let message = answer.error(400, "invalid_request");
            assert!(message.contains(word), "{path}?{query}: {message}");
        }
    }
    assert_eq!(nest.machines.boots(), 0);
}

#[actix_web::test]
async fn what_is_wrong_in_a_url_is_said_in_words_of_the_api() {
    let nest = Nest::start().await;
    for (path, word) in [
        ("/v1/sandboxes/no-id".to_owned(), "id"),
        (format!("/v1/sandboxes/{UNKNOWN}/processes/-1/stream"), "process"),
        (format!("/v1/sandboxes/{UNKNOWN}/files/stat?path=/&depth=1"), "depth"),
    ] {
        let message = nest.get(&path).await.error(400, "invalid_request");
        assert!(message.contains(word) && !message.contains("deserialize"), "{path}: {message}");
    }
}

#[actix_web::test]
async fn a_wrong_type_is_refused() {
    let nest = Nest::start().await;
    for body in [
        json!({"vcpus": "two"}),
        json!({"vcpus": -1}),
        json!({"vcpus": 1.5}),
        json!({"memory_mb": 4294967296u64}),
        json!({"template": 7}),
        json!({"envs": {"A": 1}}),
        json!({"envs": ["A=1"]}),
        json!({"metadata": "a=b"}),
        json!({"timeout_sec": "10"}),
        json!([]),
        json!("debian"),
        Value::Null,
    ] {
        nest.post("/v1/sandboxes", body.clone()).await.error(400, "invalid_request");
    }
    assert_eq!(nest.machines.boots(), 0);
}

#[actix_web::test]
async fn a_body_that_is_no_json_is_refused() {
    let nest = Nest::start().await;
    for body in ["", "{", "{\"vcpus\": 1,}", "\u{0}", "{} {}"] {
        let request = nest.request(Method::POST, "/v1/sandboxes");
        let request = request.header("content-type", "application/json").body(body);
        Answer::of(request).await.error(400, "invalid_request");
    }
    let request = nest.request(Method::POST, "/v1/sandboxes");
    let request = request.header("content-type", "application/json").body(vec![0xff, 0xfe]);
    Answer::of(request).await.error(400, "invalid_request");
}

/// Without names a body would mean its fields in their order, which nobody is told.
#[actix_web::test]
async fn a_body_without_names_is_refused_everywhere() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let of = |route: &str| format!("/v1/sandboxes/{id}/{route}");
    let policy = json!(["deny", [], []]);
    for (method, path, body) in [
        (Method::POST, "/v1/sandboxes".to_owned(), json!(["debian"])),
        (Method::POST, "/v1/sandboxes".to_owned(), json!({ "network": policy })),
        (Method::POST, "/v1/api-keys".to_owned(), json!(["a name"])),
        (Method::POST, "/v1/snapshots".to_owned(), json!([id, "a-name", false])),
        (Method::PUT, of("network"), policy),
        (Method::POST, of("exec"), json!(["true"])),
        (Method::POST, of("pause"), json!([])),
        (Method::POST, of("resume"), json!([])),
        (Method::POST, of("fork"), json!([1])),
        (Method::POST, of("files/stream/read"), json!(["/etc/hostname"])),
        (Method::POST, of("files/mkdir"), json!(["/tmp/new"])),
        (Method::POST, of("files/move"), json!(["/tmp/a", "/tmp/b"])),
    ] {
        let message =
            Answer::of(nest.request(method, &path).json(&body)).await.error(400, "invalid_request");
        assert!(message.contains("expected an object"), "{path}: {message}");
    }
    assert_eq!(nest.get(&format!("/v1/sandboxes/{id}")).await.json()["state"], "running");
}

#[actix_web::test]
async fn a_wrong_content_type_is_refused_and_the_right_one_named() {
    let nest = Nest::start().await;
    for kind in [Some("text/plain"), Some("application/x-www-form-urlencoded"), None] {
        let mut request = nest.request(Method::POST, "/v1/sandboxes").body("{}");
        if let Some(kind) = kind {
            request = request.header("content-type", kind);
        }
        let message = Answer::of(request).await.error(400, "invalid_request");
        assert!(message.contains("application/json"), "{message}");
    }
}

#[actix_web::test]
async fn a_body_over_the_limit_is_refused_whether_its_length_is_told_or_not() {
    let nest = Nest::start().await;
    let text = format!("{{\"cmd\":\"{}\"}}", "x".repeat(JSON_LIMIT));
    let path = format!("/v1/sandboxes/{UNKNOWN}/exec");
    let told = nest.request(Method::POST, &path).header("content-type", "application/json");
    let message = Answer::of(told.body(text.clone())).await.error(413, "too_large");
    assert!(message.contains(&JSON_LIMIT.to_string()), "{message}");

    let pieces: Vec<std::io::Result<String>> = text
        .as_bytes()
        .chunks(64 << 10)
        .map(|piece| Ok(String::from_utf8_lossy(piece).into_owned()))
        .collect();
    let body = reqwest::Body::wrap_stream(futures::stream::iter(pieces));
    let untold = nest.request(Method::POST, &path).header("content-type", "application/json");
    Answer::of(untold.body(body)).await.error(413, "too_large");
}

#[actix_web::test]
async fn bombs_of_json_are_refused_at_once_and_cost_little() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let deep = |open: &str, close: &str, depth: usize| open.repeat(depth) + &close.repeat(depth);
    let many = |item: &str, count: usize| format!("[{}{item}]", format!("{item},").repeat(count));
    let fields: String = (0..100_000).map(|n| format!("\"{n}\":\"\",")).collect();
    let bombs = [
        format!("{{\"cmd\":{}}}", deep("[", "]", 500_000)),
        deep("{\"cmd\":", "}", 200_000),
        format!("{{\"cmd\":\"true\",\"args\":{}}}", many("{}", 500_000)),
        format!("{{\"cmd\":\"true\",\"args\":{}}}", many("[[]]", 300_000)),
        format!("{{{fields}\"cmd\":\"true\"}}"),
        format!("{{\"cmd\":\"true\",\"envs\":{{{fields}\"=\":\"\"}}}}"),
        format!("{{\"cmd\":\"{}\"}}", "\\u0000".repeat(300_000)),
        format!("{{\"cmd\":1{}}}", "0".repeat(1_000_000)),
        format!("{{\"cmd\":1e{}}}", "9".repeat(1_000_000)),
        "\"".to_owned() + &"\\u".repeat(900_000),
    ];
    for bomb in bombs {
        let path = format!("/v1/sandboxes/{id}/exec");
        let request = nest.request(Method::POST, &path).header("content-type", "application/json");
        let answer = Answer::of(request.body(bomb.clone())).await;
        assert!([400, 413].contains(&answer.status), "{bomb:.40}: {answer:?}");
        let said = answer.json().to_string();
        assert!(said.len() < 2000, "{bomb:.40}: {said:.300}");
    }
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn an_id_that_is_no_id_is_malformed_and_an_unknown_one_is_not_found() {
    let nest = Nest::start().await;
    for (method, tail, body) in [
        (Method::GET, "", None),
        (Method::DELETE, "", None),
        (Method::POST, "/exec", Some(json!({"cmd": "true"}))),
        (Method::POST, "/files/read", Some(json!({"path": "/x"}))),
        (Method::GET, "/files?path=/x", None),
        (Method::PUT, "/files?path=/x", None),
        (Method::DELETE, "/files?path=/x", None),
        (Method::GET, "/files/archive?path=/x", None),
        (Method::PUT, "/files/archive?path=/x", None),
        (Method::GET, "/files/list?path=/x", None),
        (Method::GET, "/files/stat?path=/x", None),
        (Method::POST, "/files/mkdir", Some(json!({"path": "/x"}))),
        (Method::POST, "/files/move", Some(json!({"source": "/x", "destination": "/y"}))),
        (Method::POST, "/pause", None),
        (Method::POST, "/resume", None),
        (Method::POST, "/fork", None),
    ] {
        let send = async |id: &str| {
            let mut request = nest.request(method.clone(), &format!("/v1/sandboxes/{id}{tail}"));
            if let Some(body) = &body {
                request = request.json(body);
            }
            Answer::of(request).await
        };
        for bad in
            ["x", "1aaaaaaaaaaaaaaaaaaa", "AAAAAAAAAAAAAAAAAAAA", "..%2F..%2Fetc%2Fpasswd00", "%00"]
        {
            send(bad).await.error(400, "invalid_request");
        }
        let message = send(UNKNOWN).await.error(404, "not_found");
        assert!(message.contains(UNKNOWN), "{message}");
    }
}

#[actix_web::test]
async fn an_unknown_path_is_not_found_in_the_same_form() {
    let nest = Nest::start().await;
    for path in [
        "/",
        "/v1",
        "/v1/",
        "/v1/nothing",
        "/v2/sandboxes",
        "/v1/sandboxes/x/y/z",
        "/../etc/passwd",
    ] {
        nest.get(path).await.error(404, "not_found");
    }
}

#[actix_web::test]
async fn a_wrong_method_is_refused_in_the_same_form() {
    let nest = Nest::start().await;
    for (method, path) in [
        (Method::PUT, "/v1/sandboxes".to_owned()),
        (Method::PATCH, "/v1/sandboxes".to_owned()),
        (Method::POST, format!("/v1/sandboxes/{UNKNOWN}")),
        (Method::GET, format!("/v1/sandboxes/{UNKNOWN}/exec")),
        (Method::GET, format!("/v1/sandboxes/{UNKNOWN}/files/read")),
        (Method::PUT, format!("/v1/sandboxes/{UNKNOWN}/files/write")),
        (Method::GET, format!("/v1/sandboxes/{UNKNOWN}/files/stream/read")),
        (Method::PUT, format!("/v1/sandboxes/{UNKNOWN}/files/stream/write")),
        (Method::POST, format!("/v1/sandboxes/{UNKNOWN}/files")),
        (Method::POST, format!("/v1/sandboxes/{UNKNOWN}/files/archive")),
        (Method::POST, format!("/v1/sandboxes/{UNKNOWN}/files/list")),
        (Method::POST, format!("/v1/sandboxes/{UNKNOWN}/files/stat")),
        (Method::GET, format!("/v1/sandboxes/{UNKNOWN}/files/mkdir")),
        (Method::PUT, format!("/v1/sandboxes/{UNKNOWN}/files/move")),
        (Method::GET, format!("/v1/sandboxes/{UNKNOWN}/pause")),
        (Method::PUT, format!("/v1/sandboxes/{UNKNOWN}/resume")),
        (Method::DELETE, format!("/v1/sandboxes/{UNKNOWN}/fork")),
        (Method::PUT, "/v1/snapshots".to_owned()),
        (Method::POST, "/v1/snapshots/some".to_owned()),
        (Method::PATCH, "/v1/api-keys".to_owned()),
        (Method::GET, "/v1/api-keys/some".to_owned()),
        (Method::POST, "/health".to_owned()),
        (Method::POST, "/metrics".to_owned()),
    ] {
        let answer = Answer::of(nest.request(method.clone(), &path)).await;
        assert_eq!(answer.status, 405, "{method} {path}");
        answer.error(405, "method_not_allowed");
        let allowed = answer.header("allow").expect("the right methods are named");
        assert!(!allowed.contains(method.as_str()), "{method} {path}: {allowed}");
    }
}

#[actix_web::test]
async fn an_unknown_template_is_not_found_and_said_by_name() {
    let nest = Nest::start().await;
    let message = nest.post("/v1/sandboxes", json!({"template": "windows"})).await;
    let message = message.error(404, "not_found");
    assert!(message.contains("windows") && message.contains("image ls"), "{message}");
    assert_eq!(nest.machines.boots(), 0);
}

/// F24: names of templates become paths.
#[actix_web::test]
async fn a_template_name_that_leaves_its_directory_is_refused() {
    let nest = Nest::start().await;
    let long = "a".repeat(64);
    for name in [
        "..",
        ".",
        "../debian",
        "debian/../debian",
        "/etc/passwd",
        "debian/",
        "a/b",
        "a\\b",
        "debian\0",
        "%2e%2e",
        "",
        " debian",
        "Debian",
        "-debian",
        ".debian",
        "d\u{e9}bian",
        &long,
    ] {
        let answer = nest.post("/v1/sandboxes", json!({"template": name})).await;
        answer.error(400, "invalid_request");
    }
    assert_eq!(nest.machines.boots(), 0);
}

#[actix_web::test]
async fn a_shape_that_the_host_can_never_have_is_refused_with_the_range() {
    let nest = Nest::start().await;
    for (body, word) in [
        (json!({"vcpus": 0}), "1 to 2"),
        (json!({"vcpus": 3}), "1 to 2"),
        (json!({"vcpus": u32::MAX}), "1 to 2"),
        (json!({"memory_mb": 0}), "from 128"),
        (json!({"memory_mb": 127}), "from 128"),
        (json!({"memory_mb": u32::MAX}), "from 128"),
    ] {
        let message = nest.post("/v1/sandboxes", body).await.error(400, "invalid_request");
        assert!(message.contains(word), "{message}");
    }
    assert_eq!(nest.machines.boots(), 0);
}

#[actix_web::test]
async fn a_timeout_of_zero_is_refused() {
    let nest = Nest::start().await;
    let answer = nest.post("/v1/sandboxes", json!({"timeout_sec": 0})).await;
    assert!(answer.error(400, "invalid_request").contains("timeout_sec"));
}

#[actix_web::test]
async fn labels_and_variables_stay_small_and_printable() {
    let nest = Nest::start().await;
    let many: serde_json::Map<String, Value> =
        (0..129).map(|n| (format!("k{n}"), json!("v"))).collect();
    let large = "v".repeat(33 << 10);
    for entries in [json!(many), json!({"a": large}), json!({"a": "\0"}), json!({"a\0": "b"})] {
        for field in ["envs", "metadata"] {
            let answer = nest.post("/v1/sandboxes", json!({field: entries})).await;
            let message = answer.error(400, "invalid_request");
            assert!(message.contains(field) || message.contains("variable"), "{message}");
        }
    }
    for name in ["", "A=B"] {
        let answer = nest.post("/v1/sandboxes", json!({"envs": {name: "x"}})).await;
        answer.error(400, "invalid_request");
    }
}

#[actix_web::test]
async fn head_is_what_get_would_answer_without_the_body() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let missing = "/v1/sandboxes/aaaaaaaaaaaaaaaaaaaa".to_owned();
    for path in [
        format!("/v1/sandboxes/{id}"),
        "/v1/sandboxes".into(),
        "/health".into(),
        "/openapi.json".into(),
        missing,
    ] {
        let get = nest.get(&path).await;
        let head = Answer::of(nest.request(Method::HEAD, &path)).await;
        assert_eq!((head.status, head.body.len()), (get.status, 0), "{path}");
        assert_eq!(head.header("content-type"), get.header("content-type"), "{path}");
        assert_eq!(head.header("content-length"), get.header("content-length"), "{path}");
    }
    nest.anonymous(Method::HEAD, "/v1/sandboxes")
        .send()
        .await
        .unwrap()
        .error_for_status()
        .unwrap_err();
    let post_only =
        Answer::of(nest.request(Method::HEAD, &format!("/v1/sandboxes/{id}/pause"))).await;
    assert_eq!(post_only.status, 405);
}

#[actix_web::test]
async fn a_body_that_is_missing_or_cut_is_told_so_in_plain_words() {
    let nest = Nest::start().await;
    for body in ["", "{\"template\": "] {
        let request = nest.request(Method::POST, "/v1/sandboxes");
        let request = request.header("content-type", "application/json").body(body);
        let message = Answer::of(request).await.error(400, "invalid_request");
        assert_eq!(message, "the body ends within its JSON, or there is none: send an object");
    }
}
