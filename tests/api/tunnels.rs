//! Connections to servers in sandboxes over WebSockets.

use std::time::Duration;

use actix_web::rt;
use futures::{SinkExt, StreamExt};
use nestbox::http::Heartbeat;
use reqwest::Method;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::exec_stream::upgrade;
use crate::nest::{Answer, Nest, eventually};
use crate::ports::Server;

type Socket = WebSocketStream<TcpStream>;

fn path(id: &str, port: u16) -> String {
    format!("/v1/sandboxes/{id}/tunnels/{port}")
}

async fn open(nest: &Nest, id: &str, port: u16) -> Socket {
    let address = nest.url.strip_prefix("http://").unwrap();
    let url = format!("ws://{address}{}", path(id, port));
    let mut request = url.into_client_request().unwrap();
    request.headers_mut().insert("x-api-key", nest.key.parse().unwrap());
    let stream = TcpStream::connect(address).await.unwrap();
    tokio_tungstenite::client_async(request, stream).await.unwrap().0
}

async fn say(socket: &mut Socket, bytes: &[u8]) {
    socket.send(Message::binary(bytes.to_vec())).await.unwrap();
}

/// The bytes up to the empty message or the close frame, and the code of that.
async fn rest(socket: &mut Socket) -> (Vec<u8>, Option<u16>) {
    let mut bytes = Vec::new();
    while let Some(Ok(message)) = socket.next().await {
        match message {
            Message::Binary(piece) if piece.is_empty() => return (bytes, None),
            Message::Binary(piece) => bytes.extend(piece),
            Message::Close(frame) => return (bytes, frame.map(|frame| frame.code.into())),
            Message::Ping(_) | Message::Pong(_) => {}
            other => panic!("{other:?}"),
        }
    }
    (bytes, None)
}

#[actix_web::test]
async fn bytes_pass_both_ways_and_each_direction_ends_by_itself() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let mut socket = open(&nest, &id, server.port).await;
    let mut connection = server.connection().await;
    // The server speaks first, as many do.
    connection.write_all(b"\0\xff220 hello\r\n").await.unwrap();
    let Message::Binary(hello) = socket.next().await.unwrap().unwrap() else { panic!("bytes") };
    assert_eq!(&hello[..], b"\0\xff220 hello\r\n");
    say(&mut socket, b"ask").await;
    say(&mut socket, b" more").await;
    say(&mut socket, b"").await;
    let mut asked = Vec::new();
    connection.read_to_end(&mut asked).await.unwrap();
    assert_eq!(asked, b"ask more");
    // The other direction goes on.
    let long = vec![7; 1_000_000];
    let (written, told) = futures::join!(connection.write_all(&long), async {
        let mut told = Vec::new();
        while told.len() < long.len() {
            if let Message::Binary(piece) = socket.next().await.unwrap().unwrap() {
                told.extend(piece);
            }
        }
        told
    });
    written.unwrap();
    assert!(told == long);
    drop(connection);
    assert_eq!(rest(&mut socket).await, (vec![], None));
    assert_eq!(rest(&mut socket).await, (vec![], Some(1000)));
}

#[actix_web::test]
async fn several_connections_do_not_disturb_each_other() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let mut all = Vec::new();
    for number in 0..5u8 {
        let socket = open(&nest, &id, server.port).await;
        all.push((number, socket, server.connection().await));
    }
    for (number, socket, connection) in &mut all {
        say(socket, &[*number]).await;
        assert_eq!(connection.read_u8().await.unwrap(), *number);
    }
    let (_, gone, mut its) = all.remove(2);
    drop(gone);
    assert_eq!(its.read(&mut [0]).await.unwrap_or(0), 0, "a client that vanishes is let go");
    for (number, socket, connection) in &mut all {
        connection.write_all(&[*number]).await.unwrap();
        let Message::Binary(piece) = socket.next().await.unwrap().unwrap() else { panic!("bytes") };
        assert_eq!(&piece[..], [*number]);
    }
}

#[actix_web::test]
async fn what_cannot_be_connected_is_answered_before_the_upgrade() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let ask = async |path: &str| Answer::of(upgrade(nest.request(Method::GET, path))).await;
    let message = ask(&path(&id, closed)).await.error(502, "agent_error");
    assert!(message.contains("nothing listens"), "{message}");
    for port in ["0", "65536", "49983", "http"] {
        let path = format!("/v1/sandboxes/{id}/tunnels/{port}");
        ask(&path).await.error(400, "invalid_request");
    }
    ask(&path("aaaaaaaaaaaaaaaaaaaa", 80)).await.error(404, "not_found");
    nest.get(&path(&id, closed)).await.error(400, "invalid_request");
    nest.post(&path(&id, closed), json!({})).await.error(405, "method_not_allowed");
    let stranger = upgrade(nest.anonymous(Method::GET, &path(&id, closed)));
    Answer::of(stranger).await.error(401, "unauthorized");
    assert_eq!(nest.pause(&id).await.status, 200);
    ask(&path(&id, closed)).await.error(409, "invalid_state");
}

#[actix_web::test]
async fn a_connection_ends_with_a_code_that_says_why() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;

    let mut socket = open(&nest, &id, server.port).await;
    socket.send(Message::text("bytes?")).await.unwrap();
    assert_eq!(rest(&mut socket).await.1, Some(1008));
    let mut socket = open(&nest, &id, server.port).await;
    say(&mut socket, b"").await;
    say(&mut socket, b"after the end").await;
    assert_eq!(rest(&mut socket).await.1, Some(1008));

    let mut socket = open(&nest, &id, server.port).await;
    server.connection().await;
    server.connection().await;
    let mut connection = server.connection().await;
    say(&mut socket, b"x").await;
    assert_eq!(connection.read_u8().await.unwrap(), b'x');
    connection.set_zero_linger().unwrap();
    drop(connection);
    assert_eq!(rest(&mut socket).await.1, Some(1011), "it was cut");

    let mut socket = open(&nest, &id, server.port).await;
    let mut connection = server.connection().await;
    assert_eq!(nest.pause(&id).await.status, 200);
    assert_eq!(rest(&mut socket).await.1, Some(4001));
    assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(nest.resume(&id).await.status, 200);

    let mut socket = open(&nest, &id, server.port).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(rest(&mut socket).await.1, Some(4002));

    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id, server.port).await;
    nest.sockets.end_all();
    assert_eq!(rest(&mut socket).await.1, Some(1001));
}

#[actix_web::test]
async fn a_client_that_gives_no_sign_of_life_is_let_go() {
    let limit = Duration::from_secs(2);
    let nest = Nest::with_heartbeat(Heartbeat { period: limit / 10, limit }).await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let mut socket = open(&nest, &id, server.port).await;
    let mut connection = server.connection().await;
    // Pings are not answered while nobody reads.
    assert_eq!(connection.read(&mut [0]).await.unwrap_or(0), 0);
    assert_eq!(rest(&mut socket).await.1, Some(4003));

    // One that answers stays, however little passes.
    let mut socket = open(&nest, &id, server.port).await;
    let mut connection = server.connection().await;
    let answering = rt::spawn(async move { rest(&mut socket).await });
    rt::time::sleep(limit * 2).await;
    connection.write_all(b"on").await.unwrap();
    drop(connection);
    assert_eq!(answering.await.unwrap().0, b"on");
}

#[actix_web::test]
async fn a_client_that_takes_nothing_makes_the_server_wait() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut server = Server::listen().await;
    let mut socket = open(&nest, &id, server.port).await;
    let mut connection = server.connection().await;
    let sent = std::rc::Rc::new(std::cell::Cell::new(0));
    let counter = sent.clone();
    let size = 60_000_000;
    rt::spawn(async move {
        while counter.get() < size {
            connection.write_all(&[7; 10_000]).await.unwrap();
            counter.set(counter.get() + 10_000);
        }
    });
    eventually("it stands still", async || {
        let before = sent.get();
        rt::time::sleep(Duration::from_millis(500)).await;
        (before > 0 && before == sent.get()).then_some(())
    })
    .await;
    assert!(sent.get() < size / 2, "{} bytes are on their way", sent.get());
    assert_eq!(rest(&mut socket).await.0.len(), size);
}
