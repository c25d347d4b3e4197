//! `GET /ports/{port}`: servers that listen on the loopback.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use support::{Agent, Body};

const ASK: [(&str, &str); 2] = [("Connection", "upgrade"), ("Upgrade", "tcp")];

/// The end of a head.
const END: &[u8] = b"\r\n\r\n";

/// A connection to a port, and the status that it began with.
fn connect(agent: &Agent, port: u16) -> (u16, TcpStream) {
    let mut stream = agent.begin("GET", &format!("/ports/{port}"), &ASK);
    let mut head = Vec::new();
    while !head.ends_with(END) {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer in time");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), stream)
}

#[test]
fn bytes_pass_both_ways_until_each_side_has_said_all() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let agent = Agent::start();
        let listener = TcpListener::bind(address).unwrap();
        let (status, mut caller) = connect(&agent, listener.local_addr().unwrap().port());
        assert_eq!(status, 101, "{address}");
        let (mut server, from) = listener.accept().unwrap();
        assert!(from.ip().is_loopback());
        // The server speaks first, as those of mail do; more than any buffer on the way holds.
        let much = vec![7; 8 << 20];
        let sent = much.clone();
        let speaking = std::thread::spawn(move || {
            server.write_all(&sent).unwrap();
            server.shutdown(Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).unwrap();
            heard
        });
        let mut heard = Vec::new();
        caller.read_to_end(&mut heard).unwrap();
        assert!(heard == much, "{} bytes came", heard.len());
        // It can still be spoken to.
        caller.write_all(b"goodbye").unwrap();
        caller.shutdown(Shutdown::Write).unwrap();
        assert_eq!(speaking.join().unwrap(), b"goodbye");
    }
}

#[test]
fn a_caller_that_leaves_ends_the_connection() {
    let agent = Agent::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (_, caller) = connect(&agent, listener.local_addr().unwrap().port());
    let (mut server, _) = listener.accept().unwrap();
    drop(caller);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
}

#[test]
fn what_cannot_be_reached_is_refused_in_words() {
    let agent = Agent::start();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let refused = format!("/ports/{port}");
    let (status, _, mut body) = Body::read_head(agent.begin("GET", &refused, &ASK));
    let mut text = String::new();
    body.read_to_string(&mut text).unwrap();
    assert_eq!(status, 502);
    assert!(text.contains(&format!("nothing takes connections on port {port}")), "{text}");
    assert_eq!(agent.get(&refused).refusal().0, 400);
    for nonsense in ["/ports/65536", "/ports/http", "/ports/-1"] {
        assert_eq!(agent.get(nonsense).status, 400, "{nonsense}");
    }
}

#[test]
fn nobody_connects_without_the_token() {
    let agent = Agent::start();
    assert_eq!(agent.init(serde_json::json!({ "accessToken": "a secret" })).status, 204);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    assert_eq!(connect(&agent, listener.local_addr().unwrap().port()).0, 401);
}
