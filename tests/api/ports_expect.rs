//! `Expect: 100-continue`: whether a server in a sandbox wants a body is for that server to say.

use std::os::fd::AsRawFd;
use std::time::Duration;

use actix_web::rt::time::timeout;
use nestbox::http::Ports;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::nest::{DOMAIN, Nest, PATIENCE};
use crate::ports::{OK, Server, below, head, name};

const CONTINUE: &str = "HTTP/1.1 100 Continue\r\n\r\n";
const EXPECTS: &str = "Expect: 100-continue";

/// A client whose every byte the test says and hears.
struct Client(TcpStream);

impl Client {
    /// Sends this, and keeps the connection.
    async fn begin(nest: &Nest, said: &str) -> Self {
        let address = nest.url.trim_start_matches("http://");
        let mut client = Self(TcpStream::connect(address).await.unwrap());
        client.say(said.as_bytes()).await;
        client
    }

    async fn say(&mut self, bytes: &[u8]) {
        timeout(PATIENCE, self.0.write_all(bytes)).await.expect("in time").unwrap();
    }

    /// What comes, up to this.
    async fn hears(&mut self, end: &str) -> String {
        let mut heard = Vec::new();
        while !heard.ends_with(end.as_bytes()) {
            let byte = timeout(PATIENCE, self.0.read_u8()).await;
            match byte.unwrap_or_else(|_| panic!("more than {:?}", text(&heard))) {
                Ok(byte) => heard.push(byte),
                Err(error) => panic!("{error} after {:?}", text(&heard)),
            }
        }
        text(&heard)
    }

    /// Asks the kernel: nothing has come that was not taken.
    fn has_heard_nothing(&self) {
        let mut waiting = [0; 200];
        let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.0.as_raw_fd(), &mut waiting, flags) {
            Err(Errno::EAGAIN) => {}
            other => panic!("{other:?}: {:?}", text(&waiting)),
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The heads of one request by name, by path, and by path in other letters, which these lines are part of.
fn ways(nest: &Nest, id: &str, port: u16, lines: &str) -> [String; 3] {
    let host = name(id, port);
    let (path, key) = (below(id, port), &nest.key);
    let lines = format!("X-API-Key: {key}\r\n{lines}\r\n\r\n");
    let by_path = format!("POST {path}/x HTTP/1.1\r\nHost: localhost\r\n{lines}");
    let by_name = format!("POST /x HTTP/1.1\r\nHost: {host}\r\n{lines}");
    let encoded = by_path.replace("/ports/", "/%70orts/");
    [by_name, by_path, encoded]
}

async fn nest_and_server() -> (Nest, Server, String) {
    let nest = Nest::start().await;
    let server = Server::listen().await;
    let id = nest.create(json!({"public_ports": [server.port]})).await;
    (nest, server, id)
}

/// What a server says comes up to here, and is one answer.
async fn is_answered(client: &mut Client, status: &str) -> String {
    let answer = client.hears("\r\n\r\nhi").await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
    assert_eq!(answer.matches("HTTP/1.").count(), 1, "{answer}");
    answer
}

/// Nothing more comes on a connection, and it ends.
async fn is_cut(mut connection: TcpStream) {
    let mut rest = Vec::new();
    let _ = timeout(PATIENCE, connection.read_to_end(&mut rest)).await.expect("in time");
    assert_eq!(text(&rest), "");
}

#[actix_web::test]
async fn a_client_is_told_to_go_on_by_the_server_and_by_nobody_else() {
    let (nest, mut server, id) = nest_and_server().await;
    let framings = [("Content-Length: 4", "body"), ("Transfer-Encoding: chunked", "4\r\nbody\r\n")];
    for (framing, body) in framings {
        for request in ways(&nest, &id, server.port, &format!("{EXPECTS}\r\n{framing}")) {
            let mut client = Client::begin(&nest, &request).await;
            // The connection is good for a second one.
            for _ in 0..2 {
                let mut connection = server.connection().await;
                let seen = head(&mut connection).await.to_lowercase();
                assert!(seen.contains("\r\nexpect: 100-continue\r\n"), "{seen}");
                client.has_heard_nothing();
                let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
                connection.write_all(format!("{hints}{CONTINUE}").as_bytes()).await.unwrap();
                assert_eq!(client.hears("\r\n\r\n").await, CONTINUE);
                client.say(body.as_bytes()).await;
                let mut got = vec![0; body.len()];
                connection.read_exact(&mut got).await.unwrap();
                assert_eq!(text(&got), body);
                client.has_heard_nothing();
                if framing.contains("chunked") {
                    client.say(b"0\r\n\r\n").await;
                    connection.read_exact(&mut [0; 5]).await.unwrap();
                }
                connection.write_all(OK.as_bytes()).await.unwrap();
                is_answered(&mut client, "200 ").await;
                client.say(request.as_bytes()).await;
            }
            drop(server.connection().await);
        }
    }
}

#[actix_web::test]
async fn a_server_refuses_a_body_before_it_is_sent() {
    let (nest, mut server, id) = nest_and_server().await;
    let mut stay = Vec::new();
    for status in ["401 Unauthorized", "413 Too Large", "417 No", "200 OK"] {
        for framing in ["Content-Length: 4", "Transfer-Encoding: chunked"] {
            for request in ways(&nest, &id, server.port, &format!("{EXPECTS}\r\n{framing}")) {
                let mut client = Client::begin(&nest, &request).await;
                let mut connection = server.connection().await;
                head(&mut connection).await;
                let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nhi");
                connection.write_all(answer.as_bytes()).await.unwrap();
                let answer = is_answered(&mut client, &status[..4]).await;
                // What comes next could be the body or another request.
                assert!(answer.contains("\r\nconnection: close\r\n"), "{answer}");
                is_cut(connection).await;
                stay.push(client);
            }
        }
    }
    // Clients that do not take the hint.
    for client in stay {
        is_cut(client.0).await;
    }
}

#[actix_web::test]
async fn a_client_that_does_not_wait_is_not_held_up_nor_one_that_has_waited_enough() {
    const SIZE: usize = 300_000;
    let (nest, mut server, id) = nest_and_server().await;
    let lines = format!("{EXPECTS}\r\nContent-Length: {SIZE}");
    let body = vec![b'x'; SIZE];
    for request in ways(&nest, &id, server.port, &lines) {
        for said_late in ["", CONTINUE] {
            let mut client = Client::begin(&nest, &request).await;
            let mut connection = server.connection().await;
            head(&mut connection).await;
            client.has_heard_nothing();
            // The server takes all of it and has said nothing yet.
            let mut got = vec![0; SIZE];
            let taken = async { connection.read_exact(&mut got).await.unwrap() };
            futures::join!(client.say(&body), async { timeout(PATIENCE, taken).await.unwrap() });
            assert!(got == body);
            client.has_heard_nothing();
            connection.write_all(format!("{said_late}{OK}").as_bytes()).await.unwrap();
            if !said_late.is_empty() {
                assert_eq!(client.hears("\r\n\r\n").await, CONTINUE);
            }
            is_answered(&mut client, "200 ").await;
        }
    }
}

#[actix_web::test]
async fn what_the_daemon_refuses_is_not_asked_for_before() {
    let nest = Nest::start().await;
    let mut server = Server::listen().await;
    let id = nest.create(json!({})).await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let lines = format!("{EXPECTS}\r\nContent-Length: 4");
    let [private, ..] = ways(&nest, &id, server.port, &lines);
    let [_, dead, _] = ways(&nest, &id, nobody, &lines);
    for (request, status) in [(private, "401"), (dead, "502")] {
        let mut client = Client::begin(&nest, &request).await;
        let answer = client.hears("}}").await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert!(server.is_alone());
}

#[actix_web::test]
async fn a_server_that_says_nothing_is_waited_for_no_longer_than_any_other() {
    let limit = Duration::from_millis(300);
    let nest = Nest::with_ports(Ports { answer_limit: limit, ..Ports::new(DOMAIN) }).await;
    let mut server = Server::listen().await;
    let id = nest.create(json!({"public_ports": [server.port]})).await;
    for request in ways(&nest, &id, server.port, &format!("{EXPECTS}\r\nContent-Length: 4")) {
        let mut client = Client::begin(&nest, &request).await;
        let mut connection = server.connection().await;
        head(&mut connection).await;
        let answer = client.hears("}}").await;
        assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
        is_cut(connection).await;
    }
}

#[actix_web::test]
async fn a_client_that_leaves_while_it_waits_is_not_waited_for() {
    let (nest, mut server, id) = nest_and_server().await;
    for request in ways(&nest, &id, server.port, &format!("{EXPECTS}\r\nContent-Length: 4")) {
        for told in [false, true] {
            let mut client = Client::begin(&nest, &request).await;
            let mut connection = server.connection().await;
            head(&mut connection).await;
            if told {
                connection.write_all(CONTINUE.as_bytes()).await.unwrap();
                assert_eq!(client.hears("\r\n\r\n").await, CONTINUE);
            }
            drop(client);
            is_cut(connection).await;
        }
    }
}

#[actix_web::test]
async fn other_expectations_are_the_servers_too_and_an_old_client_has_none() {
    let (nest, mut server, id) = nest_and_server().await;
    let [request, ..] = ways(&nest, &id, server.port, "Expect: cake\r\nContent-Length: 4");
    let [old, ..] = ways(&nest, &id, server.port, &format!("{EXPECTS}\r\nContent-Length: 4"));
    let old = old.replace(" HTTP/1.1\r\n", " HTTP/1.0\r\n");
    for (request, expected) in [(request, "\r\nexpect: cake\r\n"), (old, "")] {
        let mut client = Client::begin(&nest, &format!("{request}body")).await;
        let mut connection = server.connection().await;
        let seen = head(&mut connection).await.to_lowercase();
        assert_eq!(seen.contains("\r\nexpect:"), !expected.is_empty(), "{seen}");
        assert!(seen.contains(expected), "{seen}");
        connection.write_all(format!("{CONTINUE}{OK}").as_bytes()).await.unwrap();
        let answer = client.hears("\r\n\r\nhi").await;
        assert!(answer.starts_with("HTTP/1.") && answer[8..].starts_with(" 200 "), "{answer}");
    }
}

#[actix_web::test]
async fn a_websocket_with_an_expectation_is_one() {
    let (nest, mut server, id) = nest_and_server().await;
    let lines = format!(
        "{EXPECTS}\r\nConnection: upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    );
    let agrees = "HTTP/1.1 101 Yes\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nthere";
    for request in ways(&nest, &id, server.port, &lines) {
        let request = request.replacen("POST", "GET", 1);
        for before in ["", CONTINUE] {
            let mut client = Client::begin(&nest, &request).await;
            let mut connection = server.connection().await;
            head(&mut connection).await;
            connection.write_all(format!("{before}{agrees}").as_bytes()).await.unwrap();
            let heard = client.hears("there").await;
            let answer = heard.strip_prefix(before).expect(&heard);
            assert!(answer.starts_with("HTTP/1.1 101 "), "{heard}");
            client.say(b"back").await;
            let mut got = [0; 4];
            timeout(PATIENCE, connection.read_exact(&mut got)).await.unwrap().unwrap();
            assert_eq!(text(&got), "back");
        }
    }
}

#[actix_web::test]
async fn the_daemon_goes_on_telling_clients_of_its_own() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (path, key) = (nest.path("told"), &nest.key);
    let request = format!(
        "PUT /v1/sandboxes/{id}/files?path={path} HTTP/1.1\r\nHost: localhost\r\nX-API-Key: {key}\r\n\
         {EXPECTS}\r\nContent-Length: 4\r\n\r\n"
    );
    let mut client = Client::begin(&nest, &request).await;
    assert_eq!(client.hears("\r\n\r\n").await, CONTINUE);
    client.say(b"body").await;
    let answer = client.hears("\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "body");
}
