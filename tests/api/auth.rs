//! Who may ask.

use nestbox::http::API_KEY_HEADER;
use reqwest::Method;
use serde_json::json;

use crate::exec_stream::{path, upgrade};
use crate::nest::{Answer, Nest};
use crate::socket::Socket;

const ID: &str = "aaaaaaaaaaaaaaaaaaaa";

/// Every route but `/health`.
fn routes() -> Vec<(Method, String)> {
    vec![
        (Method::POST, "/v1/sandboxes".to_owned()),
        (Method::GET, "/v1/sandboxes".to_owned()),
        (Method::GET, format!("/v1/sandboxes/{ID}")),
        (Method::DELETE, format!("/v1/sandboxes/{ID}")),
        (Method::POST, format!("/v1/sandboxes/{ID}/exec")),
        (Method::GET, format!("/v1/sandboxes/{ID}/exec/stream")),
        (Method::GET, format!("/v1/sandboxes/{ID}/processes")),
        (Method::DELETE, format!("/v1/sandboxes/{ID}/processes/1")),
        (Method::GET, format!("/v1/sandboxes/{ID}/processes/web/stream")),
        (Method::GET, format!("/v1/sandboxes/{ID}/pty")),
        (Method::POST, format!("/v1/sandboxes/{ID}/files/read")),
        (Method::POST, format!("/v1/sandboxes/{ID}/files/write")),
        (Method::POST, format!("/v1/sandboxes/{ID}/pause")),
        (Method::POST, format!("/v1/sandboxes/{ID}/resume")),
        (Method::POST, format!("/v1/sandboxes/{ID}/fork")),
        (Method::POST, "/v1/snapshots".to_owned()),
        (Method::GET, "/v1/snapshots".to_owned()),
        (Method::GET, "/v1/snapshots/some".to_owned()),
        (Method::DELETE, "/v1/snapshots/some".to_owned()),
        (Method::GET, "/v1/api-keys".to_owned()),
        (Method::POST, "/v1/api-keys".to_owned()),
        (Method::DELETE, format!("/v1/api-keys/{ID}")),
        (Method::GET, "/metrics".to_owned()),
    ]
}

#[actix_web::test]
async fn every_route_but_health_needs_a_key() {
    let nest = Nest::start().await;
    for (method, path) in routes() {
        let answer = Answer::of(nest.anonymous(method.clone(), &path)).await;
        let message = answer.error(401, "unauthorized");
        assert!(message.contains("X-API-Key"), "{method} {path}: {message}");
    }
    let health = Answer::of(nest.anonymous(Method::GET, "/health")).await;
    assert_eq!((health.status, &health.json()["status"]), (200, &json!("ok")));
}

#[actix_web::test]
async fn a_wrong_key_opens_no_route() {
    let nest = Nest::start().await;
    let almost = format!("{}0", nest.key);
    for (method, path) in routes() {
        for key in ["nb_wrong", "", "\u{e4}", almost.as_str()] {
            let request = nest.anonymous(method.clone(), &path).header(API_KEY_HEADER, key);
            Answer::of(request).await.error(401, "unauthorized");
        }
    }
}

#[actix_web::test]
async fn a_stranger_learns_nothing_from_bad_requests() {
    let nest = Nest::start().await;
    let large = "x".repeat(nestbox::http::JSON_LIMIT + 1);
    for (method, path, body) in [
        (Method::POST, "/v1/sandboxes", "no json"),
        (Method::POST, "/v1/sandboxes", large.as_str()),
        (Method::GET, "/v1/sandboxes/no-id", ""),
        (Method::GET, "/v1/sandboxes?state=nonsense", ""),
        (Method::POST, "/v1/sandboxes/no-id/exec", "{}"),
        (Method::POST, "/v1/api-keys", "{}"),
    ] {
        let request = nest
            .anonymous(method.clone(), path)
            .header("content-type", "application/json")
            .body(body.to_owned());
        Answer::of(request).await.error(401, "unauthorized");
    }
}

#[actix_web::test]
async fn a_browser_offers_its_key_as_a_subprotocol_and_is_answered_with_another() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = Socket::open_as_browser(&nest.url, &path(&id), &nest.key).await;
    socket.start("echo on").await;
    assert_eq!(socket.rest().await.text(), "on\n");

    let offer = async |offer: String| {
        let request = nest.anonymous(Method::GET, &path(&id));
        Answer::of(upgrade(request).header("sec-websocket-protocol", offer)).await
    };
    for wrong in ["nestbox, nestbox.key.nb_wrong", "nestbox, nestbox.key.", "nestbox"] {
        offer(wrong.to_owned()).await.error(401, "unauthorized");
    }
    let alone = offer(format!("nestbox.key.{}", nest.key)).await;
    let message = alone.error(400, "invalid_request");
    assert!(message.contains("beside") && !message.contains(&nest.key), "{message}");
    assert!(!format!("{:?}", alone.headers).contains(&nest.key));
}

#[actix_web::test]
async fn a_key_among_subprotocols_opens_nothing_but_websockets() {
    let nest = Nest::start().await;
    let offer = format!("nestbox, nestbox.key.{}", nest.key);
    let request = nest.anonymous(Method::GET, "/v1/sandboxes");
    Answer::of(request.header("sec-websocket-protocol", offer)).await.error(401, "unauthorized");
}
