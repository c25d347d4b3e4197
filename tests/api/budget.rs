//! Connections without a key: however many there are, whoever has one gets in.

use std::time::Duration;

use actix_web::rt::time::timeout;
use futures::future::join_all;
use nestbox::http::Budget;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::nest::{Answer, Nest, PATIENCE, eventually, small};
use crate::ports::{Server, head, name};

const BUDGET: Budget = Budget { all: 24, strangers: 8 };

async fn connect(nest: &Nest) -> TcpStream {
    TcpStream::connect(nest.url.trim_start_matches("http://")).await.unwrap()
}

/// Whether the other end has hung up; what it has sent before does not matter.
async fn is_over(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    timeout(Duration::from_millis(1), stream.read_to_end(&mut rest)).await.is_ok()
}

async fn metric(nest: &Nest, name: &str) -> u64 {
    let text = String::from_utf8(nest.get("/metrics").await.body.to_vec()).unwrap();
    let line = text.lines().find(|line| line.starts_with(name)).expect(name);
    line.rsplit_once(' ').unwrap().1.parse().unwrap()
}

#[actix_web::test]
async fn idle_connections_without_a_key_make_room_for_others() {
    let nest = Nest::with_budget(BUDGET).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(connect(&nest).await);
    }
    // All but the last few are cut, and at once: not when they have been idle for long.
    eventually("all but the budget are cut", async || {
        let over = join_all(idle.iter_mut().map(is_over)).await;
        (over.iter().filter(|over| **over).count() >= 100 - BUDGET.strangers).then_some(())
    })
    .await;
    // A client with a key, which is a stranger for a moment, is served while they go on coming.
    let created = nest.post("/v1/sandboxes", small(json!({}))).await;
    assert_eq!(created.status, 201, "{created:?}");
    assert!(metric(&nest, "nestbox_http_connections_cut_total").await >= 92);
    assert!(metric(&nest, "nestbox_http_connections{kind=\"stranger\"}").await <= 8);
    let open = metric(&nest, "nestbox_open_fds ").await;
    assert!(open > 0 && open < metric(&nest, "nestbox_max_fds ").await);
}

#[actix_web::test]
async fn what_is_under_way_for_a_key_survives_a_flood() {
    let nest = Nest::with_budget(BUDGET).await;
    let id = nest.create(json!({})).await;
    let go = nest.path("go");
    let body = json!({"cmd": format!("until [ -e {go} ]; do sleep 0.01; done; echo done")});
    let running = nest.begin_exec(&id, &body);
    eventually("the command runs", async || {
        (metric(&nest, "nestbox_http_connections{kind=\"known\"}").await >= 2).then_some(())
    })
    .await;
    let mut flood = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(&nest).await;
        // With the beginning of a request, which never goes on.
        let _ = stream.write_all(b"GET /health HTTP/1.1\r\nX-Slow: ").await;
        flood.push(stream);
    }
    std::fs::write(go, "").unwrap();
    let answer = running.await.unwrap();
    assert_eq!((answer.status, &answer.json()["stdout"]), (200, &json!("done\n")));
    assert_eq!(nest.get("/v1/sandboxes").await.status, 200);
}

#[actix_web::test]
async fn a_key_that_is_wrong_makes_nobody_known() {
    let nest = Nest::with_budget(BUDGET).await;
    let mut all = Vec::new();
    for _ in 0..20 {
        let mut stream = connect(&nest).await;
        let request = "GET /v1/sandboxes HTTP/1.1\r\nHost: localhost\r\nX-API-Key: nb_no\r\n\r\n";
        let _ = stream.write_all(request.as_bytes()).await;
        all.push(stream);
    }
    eventually("those beyond the budget are cut", async || {
        let over = join_all(all.iter_mut().map(is_over)).await;
        (over.iter().filter(|over| **over).count() >= 12).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn who_takes_forever_for_a_request_is_cut() {
    let nest = Nest::start().await;
    let mut slow = connect(&nest).await;
    let begun = std::time::Instant::now();
    let mut bytes = "GET /health HTTP/1.1\r\nX-Slow: ".bytes().chain(std::iter::repeat(b'x'));
    // A byte now and then, so that it is never idle.
    while slow.write_all(&[bytes.next().unwrap()]).await.is_ok() && !is_over(&mut slow).await {
        assert!(begun.elapsed() < PATIENCE, "it goes on for ever");
        actix_web::rt::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(begun.elapsed() > Duration::from_secs(2), "a slow client has some time");
}

#[actix_web::test]
async fn a_visitor_with_a_sandboxs_token_is_no_stranger() {
    let nest = Nest::with_budget(BUDGET).await;
    let id = nest.create(json!({})).await;
    let token = nest.ports_token(&id).await;
    let mut server = Server::listen().await;
    let host = name(&id, server.port);
    let request = nest.anonymous(reqwest::Method::GET, "/").header("host", host);
    let visit = nest.begin(request.header("x-sandbox-token", token));
    let mut inside = server.connection().await;
    head(&mut inside).await;
    let mut flood = Vec::new();
    for _ in 0..50 {
        flood.push(connect(&nest).await);
    }
    eventually("the flood is cut", async || {
        let over = join_all(flood.iter_mut().map(is_over)).await;
        (over.iter().filter(|over| **over).count() >= 40).then_some(())
    })
    .await;
    inside.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi").await.unwrap();
    let answer: Answer = visit.await.unwrap();
    assert_eq!((answer.status, &answer.body[..]), (200, &b"hi"[..]));
}
