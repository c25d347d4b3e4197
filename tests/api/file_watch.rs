//! Directories that are watched.

use std::fs;
use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::exec_stream::{UNKNOWN, upgrade};
use crate::nest::{Answer, Nest};
use crate::socket::{Said, Socket};

fn watch_path(id: &str, dir: &str, recursive: bool) -> String {
    format!("/v1/sandboxes/{id}/files/watch?path={dir}&recursive={recursive}")
}

/// A watch that is in place.
async fn watch(nest: &Nest, id: &str, dir: &str, recursive: bool) -> Socket {
    let path = watch_path(id, dir, recursive);
    let mut socket = Socket::open(&nest.url, &path, &nest.key, None).await;
    assert_eq!(socket.next().await, Said::Message(json!({"type": "start"})));
    socket
}

async fn heard(socket: &mut Socket) -> Value {
    match socket.next().await {
        Said::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

/// Waits for a change; others that the kernel tells of besides are passed over.
async fn hears(socket: &mut Socket, kind: &str, name: &str) -> Value {
    loop {
        let message = heard(socket).await;
        if message["type"] == kind && message["name"] == name {
            return message;
        }
    }
}

#[actix_web::test]
async fn each_change_is_told_with_what_is_there_then() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("watched");
    fs::create_dir_all(format!("{dir}/below")).unwrap();
    let mut socket = watch(&nest, &id, &dir, false).await;
    nest.sh(&id, &format!("printf hello > {dir}/note")).await;
    let created = hears(&mut socket, "create", "note").await;
    assert_eq!(created["entry"]["path"], json!(format!("{dir}/note")), "{created}");
    assert_eq!(hears(&mut socket, "write", "note").await["entry"]["size"], 5);
    // Below is not watched: the next that is heard is what follows.
    nest.sh(&id, &format!("touch {dir}/below/unseen; chmod 600 {dir}/note")).await;
    let changed = hears(&mut socket, "chmod", "note").await;
    assert_eq!(changed["entry"]["mode"], 0o600);
    nest.sh(&id, &format!("mv {dir}/note {dir}/other; rm {dir}/other")).await;
    assert_eq!(hears(&mut socket, "rename", "note").await.get("entry"), None);
    hears(&mut socket, "create", "other").await;
    assert_eq!(hears(&mut socket, "remove", "other").await.get("entry"), None);
    socket.close().await;
}

#[actix_web::test]
async fn all_below_is_watched_if_asked_for_also_what_comes_later() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("watched");
    fs::create_dir_all(&dir).unwrap();
    let mut socket = watch(&nest, &id, &dir, true).await;
    nest.sh(&id, &format!("mkdir -p {dir}/a/b")).await;
    hears(&mut socket, "create", "a").await;
    hears(&mut socket, "create", "a/b").await;
    nest.sh(&id, &format!("echo x > {dir}/a/b/c")).await;
    hears(&mut socket, "write", "a/b/c").await;
    // An upload is heard of once it is there, under its own name.
    let upload = nest.request(Method::PUT, &format!("/v1/sandboxes/{id}/files"));
    let upload = upload.query(&[("path", format!("{dir}/up"))]).body("up");
    assert_eq!(Answer::of(upload).await.status, StatusCode::OK);
    let message = heard(&mut socket).await;
    assert_eq!((&message["name"], &message["entry"]["size"]), (&json!("up"), &json!(2)));
}

#[actix_web::test]
async fn who_reads_too_slowly_is_told_that_changes_are_lost() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("watched");
    fs::create_dir_all(&dir).unwrap();
    let path = watch_path(&id, &dir, false);
    let mut socket = Socket::open(&nest.url, &path, &nest.key, Some(4096)).await;
    assert_eq!(socket.next().await, Said::Message(json!({"type": "start"})));
    // More than agent, daemon and sockets hold of it together: nothing is read meanwhile.
    let line = format!("cd {dir}; for i in 1 2 3; do seq 30000 | xargs touch; done");
    nest.sh(&id, &line).await;
    let told = loop {
        match socket.next().await {
            Said::Message(message) if message["type"] == "error" => break message,
            Said::Message(_) => {}
            other => panic!("{other:?}"),
        }
    };
    assert!(told["message"].as_str().unwrap().contains("lost"), "{told}");
    assert!(matches!(socket.next().await, Said::Closed(1013, _)));
}

#[actix_web::test]
async fn a_watch_ends_with_its_sandbox_and_says_why() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("watched");
    fs::create_dir_all(&dir).unwrap();
    let socket = watch(&nest, &id, &dir, false).await;
    assert_eq!(nest.pause(&id).await.status, 200);
    assert_eq!(socket.close_code().await, 4001);
    assert_eq!(nest.resume(&id).await.status, 200);
    let socket = watch(&nest, &id, &dir, false).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(socket.close_code().await, 4002);
}

#[actix_web::test]
async fn a_message_to_a_watch_is_one_too_many() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = watch(&nest, &id, &nest.path(""), false).await;
    socket.send(json!({"type": "stop"})).await;
    assert_eq!(socket.close_code().await, 1008);
}

#[actix_web::test]
async fn what_cannot_be_watched_is_refused_before_the_upgrade() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let file = nest.path("file");
    fs::write(Path::new(&file), "x").unwrap();
    let ask = async |id: &str, query: &[(&str, &str)]| {
        let path = format!("/v1/sandboxes/{id}/files/watch");
        Answer::of(upgrade(nest.request(Method::GET, &path)).query(query)).await
    };
    ask(&id, &[("path", &nest.path("missing"))]).await.error(404, "not_found");
    ask(UNKNOWN, &[("path", "/")]).await.error(404, "not_found");
    for query in [
        &[("path", file.as_str())] as &[(&str, &str)],
        &[("path", "")],
        &[("path", "a\0b")],
        &[("path", &"x".repeat(5000))],
        &[("path", "/"), ("recursive", "yes")],
        &[("path", "/"), ("depth", "1")],
        &[],
    ] {
        ask(&id, query).await.error(400, "invalid_request");
    }
    let plain = nest.get(&watch_path(&id, "/", false)).await;
    assert!(plain.error(400, "invalid_request").contains("WebSocket"));
}
