//! Followed commands whose clients send nonsense, do not read, do not answer, or vanish.

use std::time::Duration;

use nestbox::http::{Heartbeat, MESSAGE_LIMIT};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::exec_stream::{ends, open, path, stands_still};
use crate::nest::{Nest, eventually};
use crate::socket::{Said, Socket};

#[actix_web::test]
async fn a_message_that_makes_no_sense_ends_the_session_and_says_why() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let text = |text: &str| Message::text(text.to_owned());
    let raw = Frame::message(vec![0xff, 0xfe], OpCode::Data(Data::Text), true);
    for (message, word) in [
        (text(r#"{"type":"stdin","data":"x"}"#), "start"),
        (text(r#"{"type":"stop"}"#), "start"),
        (text(r#"{"type":"signal","signal":"SIGINT"}"#), "start"),
        (text(r#"{"type":"signal","signal":"SIGSEGV"}"#), "SIGSEGV"),
        (text(r#"{"type":"pty"}"#), "pty"),
        (text(r#"{"cmd":"true"}"#), "type"),
        (text(r#"{"type":"start","cmd":"true","color":1}"#), "color"),
        (text(r#"{"type":"start","cmd":["true"]}"#), "string"),
        (text(r#"{"type":"start"}"#), "cmd"),
        (text(r#"{"type":"stdin","data":"?","encoding":"base64"}"#), "base64"),
        (text("{"), "EOF"),
        (text(""), "EOF"),
        (text("[]"), "message"),
        (Message::Frame(raw), "message"),
        (Message::binary(vec![0u8, 255, 1]), "JSON"),
        (Message::binary(br#"{"type":"start","cmd":"true"}"#.to_vec()), "JSON"),
    ] {
        let mut socket = open(&nest, &id).await;
        socket.send_raw(message.clone()).await;
        let rest = socket.rest().await;
        assert_eq!(rest.code(), Some(1008), "{message:?}: {rest:?}");
        assert!(rest.errors[0].contains(word), "{message:?}: {:?}", rest.errors);
    }
    assert_eq!(nest.sh(&id, "echo on").await, "on\n", "the sandbox is as before");
}

#[actix_web::test]
async fn a_second_start_ends_the_first_command() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("sleep 1000").await;
    socket.send(json!({"type": "start", "cmd": "true"})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.code(), rest.exit_code), (Some(1008), None));
    assert!(rest.errors[0].contains("already"), "{:?}", rest.errors);
    ends(pid).await;
}

#[actix_web::test]
async fn a_message_may_come_in_pieces_but_not_be_too_big() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let piece = |text: &str, code, last| {
        Message::Frame(Frame::message(text.as_bytes().to_vec(), OpCode::Data(code), last))
    };
    let mut socket = open(&nest, &id).await;
    socket.send_raw(piece(r#"{"type":"start","#, Data::Text, false)).await;
    socket.send_raw(piece(r#""cmd":"echo "#, Data::Continue, false)).await;
    socket.send_raw(piece(r#"whole"}"#, Data::Continue, true)).await;
    socket.started().await;
    assert_eq!(socket.rest().await.text(), "whole\n");

    let long = "x".repeat(MESSAGE_LIMIT);
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("sleep 1000").await;
    socket.send(json!({"type": "stdin", "data": long})).await;
    let rest = socket.rest().await;
    assert_eq!(rest.code(), Some(1009), "{rest:?}");
    assert!(rest.errors[0].contains(&MESSAGE_LIMIT.to_string()), "{:?}", rest.errors);
    ends(pid).await;

    let mut socket = open(&nest, &id).await;
    for code in [Data::Text, Data::Continue, Data::Continue] {
        socket.send_raw(piece(&long[..MESSAGE_LIMIT / 2], code, false)).await;
    }
    assert_eq!(socket.rest().await.code(), Some(1009));
}

#[actix_web::test]
async fn a_client_that_leaves_takes_its_command_along() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "trap '' HUP TERM; sleep 1000 & wait";
    let mut socket = open(&nest, &id).await;
    let pid = socket.start(line).await;
    socket.vanish();
    ends(pid).await;

    let mut socket = open(&nest, &id).await;
    let pid = socket.start(line).await;
    let rest = socket.close().await;
    assert_eq!((rest.code(), rest.exit_code), (Some(1000), None));
    ends(pid).await;

    // Also in the middle of a flood, and of input that the command does not read.
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("exec yes").await;
    for _ in 0..6 {
        socket.send(json!({"type": "stdin", "data": "x".repeat(100_000)})).await;
    }
    socket.vanish();
    ends(pid).await;
    assert_eq!(nest.sandbox(&id).await["state"], Value::from("running"));
}

/// A daemon that does not wait long for a client.
async fn impatient() -> Nest {
    let limit = Duration::from_secs(2);
    Nest::with_heartbeat(Heartbeat { period: Duration::from_millis(200), limit }).await
}

#[actix_web::test]
async fn a_client_that_never_reads_is_given_up() {
    let nest = impatient().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("exec yes").await;
    ends(pid).await;
    // Who begins to read at the last moment is still told why; this one does not.
    actix_web::rt::time::sleep(Duration::from_secs(1)).await;
    let rest = socket.rest().await;
    assert_eq!(rest.exit_code, None);
    assert!(!rest.stdout.is_empty());
    assert_eq!(rest.closed, None, "what waited to be sent was given up, the close frame too");
}

#[actix_web::test]
async fn a_client_that_answers_no_pings_is_given_up_and_told_so() {
    let nest = impatient().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("sleep 1000").await;
    ends(pid).await;
    assert_eq!(socket.rest().await.code(), Some(4003));
}

#[actix_web::test]
async fn a_quiet_command_is_kept_as_long_as_its_client_answers() {
    let nest = impatient().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("sleep 5; echo on").await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().as_str(), rest.code()), ("on\n", Some(1000)));
}

#[actix_web::test]
async fn a_client_that_never_starts_anything_is_told_to_go() {
    let nest = impatient().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    let rest = socket.rest().await;
    assert_eq!(rest.code(), Some(1008));
    assert!(rest.errors[0].contains("start"), "{:?}", rest.errors);
}

/// Memory is the whole process's, so the work is done in a process of its own.
#[test]
fn a_slow_reader_of_100_mb_costs_no_memory() {
    let alone = "exec_trouble::one_hundred_megabytes_alone";
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", alone, "--ignored", "--test-threads", "1"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[actix_web::test]
#[ignore = "run in a process of its own by another test"]
async fn one_hundred_megabytes_alone() {
    const SIZE: usize = 100_000_000;
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("true").await;
    socket.rest().await;
    let before = peak_mib();
    let mut socket = Socket::open(&nest.url, &path(&id), &nest.key, Some(1 << 16)).await;
    let pid = socket.start(&format!("exec head -c {SIZE} /dev/zero")).await;
    eventually("it stands still", async || stands_still(pid).await.then_some(())).await;
    let mut received = 0;
    loop {
        match socket.next().await {
            Said::Message(message) if message["type"] == "stdout" => {
                received += crate::socket::data(&message).len();
            }
            Said::Message(message) => assert_eq!(message["exit_code"], 0),
            Said::Closed(code, _) => assert_eq!(code, 1000),
            Said::Nothing => break,
        }
    }
    assert_eq!(received, SIZE);
    let grown = peak_mib() - before;
    assert!(grown < 30, "grew by {grown} MiB");
}

/// The most memory that this process ever had resident.
pub fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
