//! F13: a create that is sent again makes nothing new.

use nestbox::vmm::simulated::{Fault, Mode, Step};
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest, small};

async fn create(nest: &Nest, key: &str, body: Value) -> Answer {
    let request = nest.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", key);
    Answer::of(request.json(&small(body))).await
}

#[actix_web::test]
async fn the_same_key_gives_the_same_sandbox_back() {
    let nest = Nest::start().await;
    let first = create(&nest, "order-1", json!({"metadata": {"a": "b"}})).await;
    let again = create(&nest, "order-1", json!({"metadata": {"a": "b"}})).await;
    assert_eq!((first.status, again.status), (201, 201), "{again:?}");
    assert_eq!(first.json(), again.json());
    assert_eq!(nest.machines.boots(), 1);
    let other = create(&nest, "order-2", json!({"metadata": {"a": "b"}})).await;
    assert_ne!(first.json()["id"], other.json()["id"]);
}

#[actix_web::test]
async fn eight_requests_with_one_key_at_once_make_one_sandbox() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let body = small(json!({}));
    let request = || nest.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", "once");
    let all: Vec<_> = (0..8).map(|_| nest.begin(request().json(&body))).collect();
    nest.machines.held(Step::Boot).await.succeed();
    let mut ids = std::collections::BTreeSet::new();
    for answer in all {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
        let made = answer.json();
        assert_eq!(made["state"], "running", "an answer waits for the start");
        ids.insert(made["id"].as_str().unwrap().to_owned());
    }
    assert_eq!((ids.len(), nest.machines.boots()), (1, 1));
}

#[actix_web::test]
async fn the_same_key_for_another_request_is_a_conflict() {
    let nest = Nest::start().await;
    let first = create(&nest, "k", json!({})).await.json();
    let message = create(&nest, "k", json!({"vcpus": 2})).await.error(409, "conflict");
    assert!(message.contains(first["id"].as_str().unwrap()), "{message}");
    assert_eq!(nest.machines.boots(), 1);
}

#[actix_web::test]
async fn the_order_of_fields_and_white_space_do_not_matter() {
    let nest = Nest::start().await;
    let send = async |text: &str| {
        let request = nest.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", "k");
        let request = request.header("content-type", "application/json").body(text.to_owned());
        Answer::of(request).await.json()["id"].clone()
    };
    let first = send(r#"{"vcpus":1,"memory_mb":128}"#).await;
    assert_eq!(send(r#"{ "memory_mb": 128, "vcpus": 1 }"#).await, first);
}

#[actix_web::test]
async fn a_create_that_failed_frees_its_key() {
    let nest = Nest::start().await;
    let failing = Mode::Failing { times: 1, fault: Fault::EndedEarly };
    nest.machines.set_mode(Step::Boot, failing);
    create(&nest, "k", json!({})).await.error(502, "agent_error");
    let again = create(&nest, "k", json!({})).await;
    assert_eq!(again.status, 201, "{again:?}");
    assert_eq!(again.json()["state"], "running");
}

#[actix_web::test]
async fn a_key_belongs_to_its_api_key() {
    let mut nest = Nest::start().await;
    let first = create(&nest, "k", json!({})).await.json();
    nest.key = nest.control.create_key("other").await.unwrap().secret;
    let second = create(&nest, "k", json!({})).await.json();
    assert_ne!(first["id"], second["id"]);
}

#[actix_web::test]
async fn a_key_that_is_none_is_refused() {
    let nest = Nest::start().await;
    let long = "k".repeat(256);
    for key in ["", "\u{e4}", &long] {
        create(&nest, key, json!({})).await.error(400, "invalid_request");
    }
    assert_eq!(nest.machines.boots(), 0);
}
