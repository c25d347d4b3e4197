//! Whoever owns a name can have it lead here, after a browser has loaded a page from it. Under such a
//! name nothing is answered.

use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::nest::{Answer, DOMAIN, Nest};
use crate::ports::{OK, Server, name};

/// Pages, documents, the API, and what is nowhere.
const PATHS: [&str; 8] = [
    "/test",
    "/test/js/main.js",
    "/docs/",
    "/openapi.json",
    "/health",
    "/metrics",
    "/v1/sandboxes",
    "/nowhere",
];

#[actix_web::test]
async fn under_a_name_that_is_not_its_own_nothing_is_answered() {
    let nest = Nest::start().await;
    for host in [
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        &format!("evil.{DOMAIN}"),
        &format!("8000-short.{DOMAIN}"),
        &format!("{DOMAIN}.evil.example"),
    ] {
        for path in PATHS {
            for method in [Method::GET, Method::POST, Method::OPTIONS] {
                // Not even to who has a key: then it is a name to be told of.
                let request = nest.request(method, path).header("host", host);
                let message = Answer::of(request).await.error(421, "misdirected");
                assert!(message.contains("--host-name"), "{message}");
                assert!(message.contains("NESTBOX_HOST_NAMES"), "{message}");
            }
        }
    }
}

#[actix_web::test]
async fn under_its_own_names_and_any_address_all_is_answered() {
    let nest = Nest::start().await;
    let port = nest.url.rsplit_once(':').unwrap().1.to_owned();
    for host in [
        format!("localhost:{port}"),
        format!("LOCALHOST:{port}"),
        format!("127.0.0.1:{port}"),
        format!("[::1]:{port}"),
        // By a tunnel, and behind another address.
        "localhost:9999".to_owned(),
        "192.0.2.1".to_owned(),
        DOMAIN.to_owned(),
        format!("{}.:80", DOMAIN.to_ascii_uppercase()),
    ] {
        for path in ["/test", "/health", "/v1/sandboxes"] {
            let request = nest.request(Method::GET, path).header("host", &host);
            assert_eq!(Answer::of(request).await.status, 200, "{host} {path}");
        }
    }
}

#[actix_web::test]
async fn names_of_servers_in_sandboxes_lead_to_them() {
    let nest = Nest::start().await;
    let (port, _heads) = Server::answering(OK).await;
    let id = nest.create(json!({"public_ports": [port]})).await;
    let answer = Answer::of(nest.by_name(Method::GET, &id, port, "/")).await;
    assert_eq!((answer.status, &answer.body[..]), (200, &b"hi"[..]));
    let request = nest.anonymous(Method::GET, "/").header("host", name(&id, 49983));
    assert_eq!(Answer::of(request).await.status, 400, "it is ours, and says what is wrong");
}

/// Sends a request as it is, and gives the first line of the answer.
async fn raw(nest: &Nest, request: &str) -> String {
    let mut stream = TcpStream::connect(nest.url.trim_start_matches("http://")).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[actix_web::test]
async fn a_name_is_found_wherever_a_request_says_it() {
    let nest = Nest::start().await;
    for request in [
        "GET http://evil.example/test HTTP/1.1\r\nHost: localhost\r\n",
        "GET /test HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n",
        "GET /test HTTP/1.1\r\nHost: \r\n",
        "GET /test HTTP/1.1\r\nHost: localhost@evil.example\r\n",
    ] {
        let answer = raw(&nest, &format!("{request}Connection: close\r\n\r\n")).await;
        let refused = answer.contains(" 421 ") || answer.contains(" 400 ");
        assert!(refused, "{request}: {answer}");
    }
    let answer = raw(&nest, "GET /health HTTP/1.0\r\n\r\n").await;
    assert!(answer.contains(" 200 "), "what has no name is no browser's: {answer}");
}

#[actix_web::test]
async fn what_comes_through_the_socket_may_have_any_name() {
    let nest = Nest::start().await;
    let path = nest.dir.path().join(nestbox::startup::SOCKET_FILE);
    let mut stream = UnixStream::connect(path).await.unwrap();
    let request = "GET /health HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}
