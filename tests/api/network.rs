//! What sandboxes may reach, as the API takes, keeps and shows it. Nothing is enforced in simulated
//! machines: `tests/network` and `tests/vm` see to that.

use nestbox::vmm::simulated::{Mode, Step};
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest};

const UNKNOWN: &str = "aaaaaaaaaaaaaaaaaaaa";

async fn put(nest: &Nest, id: &str, policy: Value) -> Answer {
    Answer::of(nest.request(Method::PUT, &format!("/v1/sandboxes/{id}/network")).json(&policy))
        .await
}

async fn network(nest: &Nest, id: &str) -> Value {
    let answer = nest.get(&format!("/v1/sandboxes/{id}/network")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

fn open() -> Value {
    json!({ "default": "allow", "allow": [], "deny": [] })
}

#[actix_web::test]
async fn a_sandbox_reaches_everything_unless_it_was_created_otherwise() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    assert_eq!(network(&nest, &id).await, open());
    let policy = json!({ "allow": ["*.Example.com", "10.0.0.0/8"] });
    let id = nest.create(json!({ "network": policy })).await;
    let shown = json!({ "default": "deny", "allow": ["10.0.0.0/8", "*.example.com"], "deny": [] });
    assert_eq!(network(&nest, &id).await, shown);
    let off = nest.create(json!({ "network": { "default": "deny" } })).await;
    let shown = json!({ "default": "deny", "allow": [], "deny": [] });
    assert_eq!(network(&nest, &off).await, shown);
}

#[actix_web::test]
async fn a_policy_is_replaced_as_a_whole_and_outlives_pause_and_restart() {
    let nest = Nest::start().await;
    let id = nest.create(json!({ "network": { "deny": ["10.0.0.0/8"] } })).await;
    let replaced = json!({ "default": "deny", "allow": ["1.1.1.1"], "deny": [] });
    let answer = put(&nest, &id, replaced.clone()).await;
    assert_eq!((answer.status, answer.json()), (200, replaced.clone()));
    assert_eq!(network(&nest, &id).await, replaced);

    assert_eq!(nest.pause(&id).await.status, 200);
    assert_eq!(network(&nest, &id).await, replaced);
    assert_eq!(put(&nest, &id, json!({})).await.status, 200);
    assert_eq!(network(&nest, &id).await, open());
    assert_eq!(nest.resume(&id).await.status, 200);
    assert_eq!(network(&nest, &id).await, open());

    assert_eq!(put(&nest, &id, replaced.clone()).await.status, 200);
    let nest = nest.restart().await;
    assert_eq!(network(&nest, &id).await, replaced);
    // Of one that is gone it is known what it was last allowed.
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(network(&nest, &id).await, replaced);
    put(&nest, &id, json!({})).await.error(409, "invalid_state");
}

#[actix_web::test]
async fn children_have_their_parents_policy_and_then_their_own() {
    let nest = Nest::start().await;
    let policy = json!({ "default": "deny", "allow": ["example.com"], "deny": ["1.2.3.4"] });
    let parent = nest.create(json!({})).await;
    assert_eq!(put(&nest, &parent, policy.clone()).await.status, 200);
    let children = nest.fork(&parent, 2).await;
    for child in &children {
        assert_eq!(network(&nest, child).await, policy);
    }
    assert_eq!(put(&nest, &children[0], json!({})).await.status, 200);
    assert_eq!(network(&nest, &children[1]).await, policy);
    assert_eq!(network(&nest, &parent).await, policy);
}

#[actix_web::test]
async fn what_is_created_from_a_snapshot_reaches_what_its_create_says() {
    let nest = Nest::start().await;
    let id = nest.create(json!({ "network": { "default": "deny" } })).await;
    assert_eq!(nest.snapshot(&id, "kept").await.status, 201);
    let copy = nest.create(json!({ "template": "kept" })).await;
    assert_eq!(network(&nest, &copy).await, open());
}

#[actix_web::test]
async fn bad_policies_are_refused_everywhere_and_change_nothing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({ "network": { "deny": ["1.2.3.4"] } })).await;
    let before = network(&nest, &id).await;
    let many: Vec<_> = (0..129).map(|n| format!("a{n}.example.com")).collect();
    for (policy, words) in [
        (json!({ "deny": ["10.0.0.0/33"] }), "is no rule"),
        (json!({ "deny": ["10.1.2.3/8"] }), "lies in is 10.0.0.0/8"),
        (json!({ "deny": ["2001:db8::/32"] }), "IPv6"),
        (json!({ "deny": ["https://example.com"] }), "is no rule"),
        (json!({ "deny": ["*"] }), "is no rule"),
        (json!({ "deny": ["ü.example"] }), "xn--"),
        (json!({ "deny": "10.0.0.0/8" }), "expected a sequence"),
        (json!({ "deny": many }), "at most 128"),
        (json!({ "default": "off" }), "unknown variant"),
        (json!({ "default": "allow", "allow": ["1.2.3.4"] }), "changes nothing"),
        (json!({ "allowed": [] }), "unknown field"),
    ] {
        let message = put(&nest, &id, policy.clone()).await.error(400, "invalid_request");
        assert!(message.contains(words), "{policy}: {message}");
        let created = nest.post("/v1/sandboxes", json!({ "network": policy })).await;
        let message = created.error(400, "invalid_request");
        assert!(message.contains(words), "{policy}: {message}");
    }
    assert_eq!(network(&nest, &id).await, before);
    assert_eq!(nest.machines.boots(), 1);
}

#[actix_web::test]
async fn a_policy_belongs_to_a_sandbox_that_is_there() {
    let nest = Nest::start().await;
    nest.get(&format!("/v1/sandboxes/{UNKNOWN}/network")).await.error(404, "not_found");
    put(&nest, UNKNOWN, json!({})).await.error(404, "not_found");
    let path = format!("/v1/sandboxes/{UNKNOWN}/network");
    let answer = nest.post(&path, json!({})).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("Allow"), Some("GET, PUT"));
    let anonymous = Answer::of(nest.anonymous(Method::GET, &path)).await;
    anonymous.error(401, "unauthorized");
}

#[actix_web::test]
async fn a_policy_is_not_changed_while_the_sandbox_is_captured() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let snapshot = nest.begin_snapshot(&id, "kept");
    let held = nest.machines.held(Step::Capture).await;
    let message = put(&nest, &id, json!({ "default": "deny" })).await.error(409, "invalid_state");
    assert!(message.contains("snapshot"), "{message}");
    held.succeed();
    assert_eq!(snapshot.await.unwrap().status, 201);
    assert_eq!(put(&nest, &id, json!({ "default": "deny" })).await.status, 200);
}

#[actix_web::test]
async fn an_idempotent_create_with_another_policy_is_another_request() {
    let nest = Nest::start().await;
    let create = |network: Value| {
        let request = nest.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", "one");
        Answer::of(request.json(&json!({ "memory_mb": 128, "network": network })))
    };
    let first = create(json!({ "deny": ["1.2.3.4", "a.b"] })).await;
    assert_eq!(first.status, 201, "{first:?}");
    let again = create(json!({ "default": "allow", "deny": ["A.b", "1.2.3.4"] })).await;
    assert_eq!(again.json()["id"], first.json()["id"]);
    create(json!({ "deny": ["1.2.3.4"] })).await.error(409, "conflict");
}
