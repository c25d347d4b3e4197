//! What of a server's answer a client gets.

use actix_web::rt;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::nest::Nest;
use crate::ports::{Server, head};

#[actix_web::test]
async fn an_answer_that_cannot_be_passed_on_is_refused_and_a_long_head_is_not() {
    let nest = Nest::start().await;
    let mut server = Server::listen().await;
    let id = nest.create(json!({})).await;
    let path = format!("/v1/sandboxes/{id}/ports/{}/", server.port);
    for coding in ["gzip, chunked", "gzip\r\nTransfer-Encoding: chunked", "identity"] {
        let asking = rt::spawn(nest.request(Method::GET, &path).send());
        let mut connection = server.connection().await;
        head(&mut connection).await;
        let answer =
            format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n2\r\nab\r\n0\r\n\r\n");
        connection.write_all(answer.as_bytes()).await.unwrap();
        drop(connection);
        assert_eq!(asking.await.unwrap().unwrap().status(), 502, "{coding}");
    }
    // Interim answers and trailers are left out, and nothing else is.
    let address = nest.url.trim_start_matches("http://");
    let mut client = TcpStream::connect(address).await.unwrap();
    let key = &nest.key;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nX-API-Key: {key}\r\nConnection: close\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    let mut connection = server.connection().await;
    head(&mut connection).await;
    let lines: String = (0..300).map(|n| format!("X-{n}: {n}\r\n")).collect();
    let answer = format!(
        "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n{lines}Trailer: X-Sum\r\n\
         Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nX-Sum: 1\r\n\r\n"
    );
    connection.write_all(answer.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    let lower = answer.to_lowercase();
    assert!(lower.starts_with("http/1.1 200 ") && lower.contains("\r\nx-299: 299\r\n"), "{answer}");
    assert!(lower.ends_with("2\r\nab\r\n0\r\n\r\n"), "{answer}");
    assert!(!lower.contains("link:") && !lower.contains("trailer:"), "{answer}");
}
