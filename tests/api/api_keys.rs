//! API keys are made, listed and deleted.

use nestbox::http::API_KEY_HEADER;
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest};

async fn list(nest: &Nest) -> Vec<Value> {
    let answer = nest.get("/v1/api-keys").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["api_keys"].as_array().unwrap().clone()
}

async fn status_with(nest: &Nest, key: &str) -> u16 {
    let request = nest.anonymous(Method::GET, "/v1/sandboxes").header(API_KEY_HEADER, key);
    Answer::of(request).await.status
}

#[actix_web::test]
async fn a_key_is_shown_once_works_and_stops_working_when_deleted() {
    let nest = Nest::start().await;
    let answer = nest.post("/v1/api-keys", json!({"name": "ci"})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let made = answer.json();
    let (id, key) = (made["id"].as_str().unwrap(), made["key"].as_str().unwrap());
    assert!(key.starts_with("nb_") && key.len() > 40, "{key}");
    assert_eq!(status_with(&nest, key).await, 200);

    let keys = list(&nest).await;
    assert_eq!(keys.len(), 2);
    assert_eq!((&keys[0]["name"], &keys[1]["name"]), (&json!("test"), &json!("ci")));
    assert!(key.starts_with(keys[1]["prefix"].as_str().unwrap()));
    assert!(keys[1]["last_used_at"].is_string(), "it was used: {}", keys[1]);
    assert!(!json!(keys).to_string().contains(key), "a list does not show keys");

    assert_eq!(nest.delete(&format!("/v1/api-keys/{id}")).await.status, 204);
    assert_eq!(status_with(&nest, key).await, 401);
    assert_eq!(list(&nest).await.len(), 1);
    nest.delete(&format!("/v1/api-keys/{id}")).await.error(404, "not_found");
}

#[actix_web::test]
async fn the_last_key_cannot_be_deleted() {
    let nest = Nest::start().await;
    let only = list(&nest).await[0]["id"].as_str().unwrap().to_owned();
    let message = nest.delete(&format!("/v1/api-keys/{only}")).await.error(409, "conflict");
    assert!(message.contains("last"), "{message}");
    assert_eq!(list(&nest).await.len(), 1);
}

#[actix_web::test]
async fn of_two_deletes_of_the_last_two_keys_at_once_one_is_refused() {
    let nest = Nest::start().await;
    nest.post("/v1/api-keys", json!({"name": "second"})).await;
    let both: Vec<_> = list(&nest)
        .await
        .iter()
        .map(|key| format!("/v1/api-keys/{}", key["id"].as_str().unwrap()))
        .map(|path| nest.begin(nest.request(Method::DELETE, &path)))
        .collect();
    let mut removed = 0;
    for answer in both {
        removed += usize::from(answer.await.unwrap().status == 204);
    }
    assert_eq!(removed, 1, "somebody can still come in");
}

#[actix_web::test]
async fn a_name_is_one_to_a_hundred_characters() {
    let nest = Nest::start().await;
    for name in ["", &"n".repeat(101), "a\0b"] {
        nest.post("/v1/api-keys", json!({"name": name})).await.error(400, "invalid_request");
    }
    nest.post("/v1/api-keys", json!({})).await.error(400, "invalid_request");
    let answer = nest.post("/v1/api-keys", json!({"name": "\u{fc}".repeat(100)})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}
