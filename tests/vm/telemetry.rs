//! Traces for a collector.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::{Options, eventually, in_a_lab};

/// The first line of each request, and its body.
type Requests = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// A collector that takes what it is sent; gives its URL.
fn collector() -> (String, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let taken = Arc::new(Mutex::new(Vec::new()));
    let all = taken.clone();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("a connection");
            let mut seen = Vec::new();
            let mut piece = [0; 4096];
            let (head, length) = loop {
                let size = connection.read(&mut piece).expect("it is sent");
                assert!(size > 0, "a request has a head");
                seen.extend_from_slice(&piece[..size]);
                if let Some(at) = seen.windows(4).position(|end| end == b"\r\n\r\n") {
                    let head = String::from_utf8(seen[..at].to_vec()).expect("text");
                    let length = head.lines().find_map(|line| {
                        let (name, value) = line.split_once(": ")?;
                        name.eq_ignore_ascii_case("content-length").then(|| value.parse().ok())?
                    });
                    seen.drain(..at + 4);
                    break (head, length.unwrap_or(0));
                }
            };
            while seen.len() < length {
                let size = connection.read(&mut piece).expect("the rest");
                seen.extend_from_slice(&piece[..size]);
            }
            let line = head.lines().next().expect("a line").to_owned();
            all.lock().expect("a lock").push((line, seen));
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
            connection.write_all(answer).expect("it is heard");
        }
    });
    (url, taken)
}

/// A name as Protocol Buffers write it, which is not a part of a longer one.
fn named(name: &str) -> Vec<u8> {
    let length = u8::try_from(name.len()).expect("a short name");
    [&[length], name.as_bytes()].concat()
}

fn options(endpoint: &str) -> Options {
    Options { flags: vec!["--otlp-endpoint".to_owned(), endpoint.to_owned()], ..Options::default() }
}

#[test]
fn a_collector_gets_what_was_done_with_which_sandbox() {
    in_a_lab(1, async |lab| {
        let (url, taken) = collector();
        let mut daemon = lab.daemon_with(options(&url)).await;
        let sandbox = daemon.create().await;
        sandbox.sh("true").await;
        let path = format!("/v1/sandboxes/{}/exec", sandbox.id);
        // The request, and the steps of what it led to.
        let told = async || {
            let taken = taken.lock().expect("a lock");
            let has_all = |texts: &[&[u8]]| {
                taken.iter().any(|(line, body)| {
                    let has = |text: &&[u8]| body.windows(text.len()).any(|part| part == *text);
                    line == "POST /v1/traces HTTP/1.1" && texts.iter().all(has)
                })
            };
            // What has ended is sent every few seconds, so that steps of one create may come apart.
            has_all(&["request_id", &path].map(str::as_bytes))
                && has_all(&[&named("create"), sandbox.id.as_bytes()])
                && ["directory", "init"].iter().all(|step| has_all(&[&named(step)]))
        };
        eventually("the collector has the request and its steps", told).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_collector_that_is_away_holds_nothing_up() {
    in_a_lab(1, async |lab| {
        // One that takes connections and says nothing.
        let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", silent.local_addr().expect("an address"));
        let mut daemon = lab.daemon_with(options(&url)).await;
        let sandbox = daemon.create().await;
        let began = Instant::now();
        for _ in 0..20 {
            assert!(daemon.get(&format!("/v1/sandboxes/{}", sandbox.id)).await.status == 200);
        }
        // Each would wait ten seconds, if it waited.
        assert!(began.elapsed() < Duration::from_secs(100), "{:?}", began.elapsed());
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
