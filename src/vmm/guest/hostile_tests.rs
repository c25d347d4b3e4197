//! The client against whoever has put himself in an agent's place.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::*;
use crate::domain::exec::Exec;
use crate::domain::file::{FileRange, Reach};
use crate::domain::process::ProcessRef;

/// No call takes longer, however long an answer is.
const PATIENCE: Duration = Duration::from_secs(30);

/// By how much a call may make the daemon larger.
const GROWTH_MIB: u64 = 32;

/// What is sent of an answer without an end, at most: what takes all of it has no limit.
const ENDLESS: usize = 400 << 20;

/// An answer: its beginning, and what follows again and again.
#[derive(Clone)]
struct Said {
    name: &'static str,
    first: Vec<u8>,
    then: Vec<u8>,
}

fn said(name: &'static str, first: impl AsRef<[u8]>, then: impl AsRef<[u8]>) -> Said {
    Said { name, first: first.as_ref().to_vec(), then: then.as_ref().to_vec() }
}

/// The head of an answer with a body in chunks.
fn head(status: &str, kind: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n")
}

fn chunk(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

/// An answer whose body is this.
fn whole(name: &'static str, status: &str, kind: &str, body: &[u8]) -> Said {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n");
    said(name, [head.as_bytes(), body].concat(), "")
}

/// A message of a stream.
fn envelope(flags: u8, length: u32, body: &[u8]) -> Vec<u8> {
    [&[flags][..], &length.to_be_bytes(), body].concat()
}

const UNARY: &str = "application/proto";
const STREAM: &str = "application/connect+proto";
const OK: &str = "200 OK";

/// Answers that are no success, whatever was asked.
fn refusals() -> Vec<Said> {
    let huge = "HTTP/1.1 500 X\r\nContent-Length: 2684354560\r\n\r\n";
    let block = [b'x'; 1 << 16];
    let deep = "[".repeat(60_000);
    let details = format!("{{\"code\":\"internal\",\"details\":[{}{{}}]}}", "{},".repeat(20_000));
    vec![
        said("an error of 2.5 GB", huge, block),
        said("an error in endless chunks", head("404 X", "application/json"), chunk(&block)),
        said("an endless header", "HTTP/1.1 200 OK\r\nX: ", block),
        said("endless headers", "HTTP/1.1 200 OK\r\n", "X: x\r\n".repeat(1000)),
        said("an endless status line", "HTTP/1.1 200 ", block),
        said("no HTTP", "220 smtp.example ESMTP\r\n", ""),
        said("nothing", "", ""),
        said(
            "two lengths",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
            "",
        ),
        said("a negative length", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", ""),
        whole("an error that is nested deeply", "500 X", "application/json", deep.as_bytes()),
        whole("an error with many details", "500 X", "application/json", details.as_bytes()),
        whole("an error of a terminal", "409 X", "text/plain", b"\x1b]0;owned\x07\xe2\x80\xae"),
    ]
}

/// Answers that begin like a success.
fn successes() -> Vec<Said> {
    // To who reads messages: of an unknown kind, and each of 2 GB.
    let block = [b'x'; 1 << 16];
    let extension = format!("1;{}", "x".repeat(1 << 20));
    let entries = [0x0a_u8, 0].repeat(2_000_000);
    let unknown = [0xa0_u8, 0x06, 0].repeat(1_000_000);
    let end = format!("{{\"metadata\":{{\"a\":[{}\"\"]}}}}", "\"\",".repeat(60_000));
    let many = envelope(2, u32::try_from(end.len()).expect("short"), end.as_bytes());
    vec![
        said(
            "a switch of protocols",
            "HTTP/1.1 101 X\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
            block,
        ),
        said("endless chunks of a message", head(OK, UNARY), chunk(&block)),
        said("endless chunks of a stream", head(OK, STREAM), chunk(&block)),
        said("a message of 4 GiB", head(OK, STREAM), chunk(&envelope(0, u32::MAX, &block))),
        said("an end of 4 GiB", head(OK, STREAM), chunk(&envelope(2, u32::MAX, &block))),
        said("a compressed message", head(OK, STREAM), chunk(&envelope(1, 100, &[0x1f; 100]))),
        said("endless trailers", head(OK, STREAM) + "0\r\n", "X: x\r\n".repeat(1000)),
        said("an endless extension", head(OK, STREAM) + &extension, extension.clone()),
        said("a chunk of 2^64 bytes", head(OK, UNARY) + "ffffffffffffffff\r\n", block),
        said("a chunk of 2^68 bytes", head(OK, UNARY) + "10000000000000000\r\n", block),
        said(
            "gzip",
            head(OK, UNARY).replace("\r\n\r\n", "\r\nContent-Encoding: gzip\r\n\r\n"),
            chunk(&[0x1f; 1 << 16]),
        ),
        whole("millions of empty entries", OK, UNARY, &entries),
        whole("a million fields that nobody knows", OK, UNARY, &unknown),
        whole("a page", OK, "text/html", b"<html>"),
        whole("an end with much to say", OK, STREAM, &many),
        whole("half a message", OK, STREAM, &envelope(0, 10, b"half")),
        whole("keepalives only", OK, STREAM, &envelope(0, 4, &[0x0a, 2, 0x22, 0]).repeat(1000)),
        said("a body that breaks off", "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf", ""),
        said(
            "a file of 2^63 bytes",
            "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775807\r\n\r\n",
            block,
        ),
    ]
}

/// Gives every caller this answer.
async fn answer_all(said: Said) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its number");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer_one(stream, said.clone()));
        }
    });
    address
}

async fn answer_one(mut stream: TcpStream, said: Said) -> std::io::Result<()> {
    let mut asked = Vec::new();
    while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
        if stream.read_buf(&mut asked).await? == 0 {
            return Ok(());
        }
    }
    stream.write_all(&said.first).await?;
    let times = ENDLESS.checked_div(said.then.len()).unwrap_or(0);
    for _ in 0..times {
        stream.write_all(&said.then).await?;
    }
    Ok(())
}

/// What a caller may want of an agent.
const CALLS: [&str; 20] = [
    "init",
    "claim",
    "set_clock",
    "sync",
    "read_file",
    "write_file",
    "read_archive",
    "write_archive",
    "stat",
    "list",
    "make_dir",
    "move_file",
    "remove",
    "exec",
    "start_background",
    "list_background",
    "stop_background",
    "listen",
    "watch",
    "connect",
];

async fn call(agent: &Agent, name: &str) -> Result<(), AgentError> {
    let process = ProcessRef::Pid(1);
    let exec = || Exec { cmd: "true".to_owned(), output_limit: 8 << 20, ..Exec::default() };
    let nothing = || futures::stream::iter([Ok(bytes::Bytes::from_static(b"x"))]);
    let limit = Duration::from_secs(5);
    match name {
        "init" => agent.init(&Identity::default(), Duration::from_millis(100)).await,
        "claim" => agent.claim().await,
        "set_clock" => agent.set_clock().await,
        "sync" => agent.sync().await,
        "read_file" => {
            drain(agent.read_file(&"/x".into(), None, &FileRange::default()).await?).await;
            Ok(())
        }
        "read_archive" => {
            drain(agent.read_archive(&"/x".into(), None).await?).await;
            Ok(())
        }
        "write_file" => agent.write_file(&"/x".into(), None, None, nothing()).await,
        "write_archive" => agent.write_archive(&"/x".into(), None, nothing()).await.map(drop),
        "stat" => agent.stat(&"/x".into(), None).await.map(drop),
        "list" => agent.list(&"/x".into(), 1, None).await.map(drop),
        "make_dir" => agent.make_dir(&"/x".into(), None).await.map(drop),
        "move_file" => agent.move_file(&"/x".into(), &"/y".into(), None).await.map(drop),
        "remove" => agent.remove(&"/x".into(), None).await,
        "exec" => agent.exec(exec(), &CancellationToken::new()).await.map(drop),
        "start_background" => agent.start_background(exec(), None, None).await.map(drop),
        "list_background" => agent.list_background().await.map(drop),
        "stop_background" => agent.stop_background(&process).await,
        "listen" => agent.listen(&process, Begin::After(0)).await.map(drop),
        "watch" => agent.watch(&"/x".into(), Reach::Below, None).await.map(drop),
        // Nobody listens there, so it is the agent who is asked.
        "connect" => agent.connect("1".parse().expect("a port"), limit).await.map(drop),
        other => unreachable!("{other}"),
    }
}

/// Takes a file as a slow client would who has enough at some point.
async fn drain(file: FileStream) {
    let mut stream = Box::pin(file.into_stream());
    let mut taken = 0;
    while taken < 40 << 20
        && let Some(Ok(piece)) = stream.next().await
    {
        assert!(piece.len() <= 1 << 20, "{} bytes at once", piece.len());
        taken += piece.len();
    }
}

/// What a caller gets to read of an error.
fn is_fit(error: &AgentError) -> bool {
    let texts = [error.to_string(), crate::chain(error).to_string()];
    texts.iter().all(|text| text.len() <= 5 << 10 && !text.chars().any(char::is_control))
}

#[tokio::test]
async fn no_redirect_is_followed_wherever_it_leads() {
    let canary = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = canary.local_addr().expect("its number").port();
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    tokio::spawn(async move {
        while canary.accept().await.is_ok() {
            count.fetch_add(1, Ordering::SeqCst);
        }
    });
    for status in [300, 301, 302, 303, 304, 305, 307, 308] {
        let head = format!(
            "HTTP/1.1 {status} X\r\nLocation: http://127.0.0.1:{port}/\r\nContent-Length: 0\r\n\r\n"
        );
        let agent = Agent::new(answer_all(said("", head, "")).await, "token");
        assert!(agent.wait_until_healthy(Duration::ZERO).await.is_err(), "{status}");
        for name in CALLS {
            let error = call(&agent, name).await.expect_err(name);
            let failed = match &error {
                AgentError::Failed { .. } | AgentError::Unreachable { .. } => true,
                // The server has closed a connection that was kept, until the time was over.
                AgentError::Silent { .. } => name == "init",
                _ => false,
            };
            assert!(failed && is_fit(&error), "{name} {status}: {error:?}");
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "the host went where the guest said");
}

/// Memory is the whole process's, so the work is done in a process of its own.
#[test]
fn whatever_is_answered_costs_little_memory_and_time() {
    let alone = "vmm::guest::hostile_tests::whatever_is_answered_alone";
    let output = std::process::Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", alone, "--ignored", "--nocapture", "--test-threads", "1"])
        .output()
        .expect("it starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

#[tokio::test]
#[ignore = "run in a process of its own by another test"]
async fn whatever_is_answered_alone() {
    for (refused, answers) in [(true, refusals()), (false, successes())] {
        for answer in answers {
            let what = answer.name;
            let agent = Agent::new(answer_all(answer).await, "token");
            for name in CALLS {
                let before = start_measuring();
                let outcome = timeout(PATIENCE, call(&agent, name)).await;
                let outcome = outcome.unwrap_or_else(|_| panic!("{name} still waits for {what}"));
                if let Err(error) = &outcome {
                    assert!(is_fit(error), "{name}, {what}: {error:?}");
                }
                assert!(!refused || outcome.is_err(), "{name} takes {what} for a success");
                let grown = memory_mib("VmHWM:").saturating_sub(before);
                assert!(grown < GROWTH_MIB, "{name}, {what}: grew by {grown} MiB");
            }
        }
    }
}

/// Has the kernel forget the peak: proc(5), `clear_refs`.
fn start_measuring() -> u64 {
    std::fs::write("/proc/self/clear_refs", "5").expect("it can be forgotten");
    memory_mib("VmRSS:")
}

fn memory_mib(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a status");
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
}

#[tokio::test]
async fn an_error_that_trickles_in_is_cut_short() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let agent = Agent::new(listener.local_addr().expect("its number"), "token");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut asked = Vec::new();
                while !asked.windows(4).any(|end| end == b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut asked).await, Ok(1..)) {
                        return;
                    }
                }
                let head = "HTTP/1.1 507 X\r\nContent-Length: 1000000\r\n\r\n";
                let mut sent = stream.write_all(head.as_bytes()).await;
                // Never silent for long.
                while sent.is_ok() {
                    sleep(Duration::from_millis(100)).await;
                    sent = stream.write_all(b"x").await;
                }
            });
        }
    });
    let names = ["claim", "set_clock", "sync", "read_file", "write_file", "read_archive"];
    let calls = names.map(|name| timeout(PATIENCE, call(&agent, name)));
    for outcome in futures::future::join_all(calls).await {
        let error = outcome.expect("it has an end").expect_err("a refusal");
        assert!(matches!(&error, AgentError::NoSpace { .. }) && is_fit(&error), "{error:?}");
    }
}

#[tokio::test]
async fn a_process_that_writes_more_than_a_pipe_holds_at_once_is_an_agents_invention() {
    // A start, and then output in one message of a megabyte.
    let start = envelope(0, 6, &[0x0a, 4, 0x0a, 2, 0x08, 1]);
    let body = [start, envelope(0, 1 << 20, &[0; 1 << 20])].concat();
    let agent = Agent::new(answer_all(whole("", OK, STREAM, &body)).await, "token");
    let error = call(&agent, "exec").await.expect_err("too much");
    assert!(matches!(error, AgentError::Unreachable { .. }), "{error:?}");
}
