//! Commands that are followed over a WebSocket: what they say, what they are told, how it ends.

use std::time::{Duration, Instant};

use nestbox::http::{Heartbeat, MESSAGE_LIMIT};
use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::Frame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::{Data, OpCode};

use crate::nest::{Answer, Nest, eventually, process_lives};
use crate::socket::{Said, Socket};

const UNKNOWN: &str = "aaaaaaaaaaaaaaaaaaaa";

async fn open(nest: &Nest, id: &str) -> Socket {
    Socket::open(&nest.url, &path(id), &nest.key, None).await
}

fn path(id: &str) -> String {
    format!("/v1/sandboxes/{id}/exec/stream")
}

/// As a WebSocket client would ask.
fn upgrade(request: RequestBuilder) -> RequestBuilder {
    request
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
}

async fn ends(pid: i32) {
    eventually("the command ends", async || (!process_lives(pid)).then_some(())).await;
}

#[actix_web::test]
async fn output_comes_as_it_is_written_and_then_the_exit_code() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("echo one; read x; echo two >&2; read x; exit 3").await;
    assert!(process_lives(pid));
    assert_eq!(socket.next().await, Said::Message(json!({"type": "stdout", "data": "one\n"})));
    socket.send(json!({"type": "stdin", "data": "\n"})).await;
    assert_eq!(socket.next().await, Said::Message(json!({"type": "stderr", "data": "two\n"})));
    socket.send(json!({"type": "stdin", "data": "\n"})).await;
    assert_eq!(socket.next().await, Said::Message(json!({"type": "exit", "exit_code": 3})));
    assert_eq!(socket.next().await, Said::Closed(1000, String::new()));
    assert_eq!(socket.next().await, Said::Nothing);
}

#[actix_web::test]
async fn a_command_is_started_as_by_a_plain_exec() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"envs": {"A": "sandbox"}})).await;
    for (start, stdout, code) in [
        (json!({"cmd": "printf", "args": ["%s|", "$HOME", "a b", ""]}), "$HOME|a b||", 0),
        (
            json!({"cmd": "echo $A $B; pwd", "envs": {"B": "b"}, "cwd": "/usr"}),
            "sandbox b\n/usr\n",
            0,
        ),
        (json!({"cmd": "kill -9 $$"}), "", 137),
        (json!({"cmd": "/no/such/command", "args": []}), "", 127),
        (json!({"cmd": "/etc/passwd", "args": []}), "", 126),
    ] {
        let mut message = start.clone();
        message["type"] = json!("start");
        let mut socket = open(&nest, &id).await;
        socket.send(message).await;
        if !(126..=127).contains(&code) {
            socket.started().await;
        }
        let rest = socket.rest().await;
        assert_eq!((rest.text().as_str(), rest.exit_code), (stdout, Some(code)), "{start}");
        assert_eq!(rest.code(), Some(1000), "{start}");
        assert_eq!(rest.stderr.is_empty(), code == 0 || code == 137, "{start}");
    }
}

#[actix_web::test]
async fn a_command_that_cannot_be_started_so_is_the_callers_mistake() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (start, word) in [
        (json!({"cmd": "true", "cwd": "/no/such/dir"}), "/no/such/dir"),
        (json!({"cmd": "true", "user": "no-such-user"}), "no-such-user"),
        (json!({"cmd": ""}), "empty"),
        (json!({"cmd": "a\0b"}), "NUL"),
        (json!({"cmd": "true", "envs": {"A=B": "x"}}), "variable"),
    ] {
        let mut message = start.clone();
        message["type"] = json!("start");
        let mut socket = open(&nest, &id).await;
        socket.send(message).await;
        let rest = socket.rest().await;
        assert_eq!((rest.code(), rest.exit_code), (Some(1008), None), "{start}");
        assert!(rest.errors[0].contains(word), "{:?}", rest.errors);
        assert_eq!(rest.closed.unwrap().1, rest.errors[0], "the reason says it too");
    }
}

#[actix_web::test]
async fn input_of_any_bytes_reaches_the_command_until_its_end() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("cat").await;
    socket.send(json!({"type": "stdin", "data": "gr\u{fc}n"})).await;
    socket.stdout("gr\u{fc}n").await;
    socket.send(json!({"type": "stdin", "data": "/wA=", "encoding": "base64"})).await;
    let bytes = json!({"type": "stdout", "data": "/wA=", "encoding": "base64"});
    assert_eq!(socket.next().await, Said::Message(bytes));
    socket.send(json!({"type": "stdin", "data": "end", "eof": true})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().as_str(), rest.exit_code), ("end", Some(0)));
}

#[actix_web::test]
async fn more_input_than_fits_anywhere_arrives_whole() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("sleep 0.5; wc -c").await;
    for _ in 0..8 {
        socket.send(json!({"type": "stdin", "data": "x".repeat(1_000_000)})).await;
    }
    socket.send(json!({"type": "stdin", "eof": true})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().trim(), rest.exit_code), ("8000000", Some(0)));
}

#[actix_web::test]
async fn input_to_a_command_that_has_closed_it_is_an_error_and_no_end() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket
        .start("exec <&-; echo closed; trap 'echo on; exit 4' USR1; while :; do sleep 0.1; done")
        .await;
    socket.stdout("closed\n").await;
    socket.send(json!({"type": "stdin", "data": "x"})).await;
    let Said::Message(error) = socket.next().await else { panic!("no message") };
    assert_eq!(error["type"], "error");
    assert!(error["message"].as_str().unwrap().contains("closed"), "{error}");
    socket.send(json!({"type": "signal", "signal": "SIGUSR1"})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().as_str(), rest.exit_code), ("on\n", Some(4)));
}

#[actix_web::test]
async fn signals_reach_the_command() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (signal, code) in [("SIGINT", 130), ("SIGTERM", 143), ("SIGKILL", 137), ("SIGHUP", 129)] {
        let mut socket = open(&nest, &id).await;
        socket.send(json!({"type": "start", "cmd": "sleep", "args": ["1000"]})).await;
        socket.started().await;
        socket.send(json!({"type": "signal", "signal": signal})).await;
        let rest = socket.rest().await;
        assert_eq!((rest.exit_code, rest.code()), (Some(code), Some(1000)), "{signal}");
    }
}

#[actix_web::test]
async fn stop_asks_first_and_kills_then() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("trap 'echo bye; exit 7' TERM; echo on; while :; do sleep 0.1; done").await;
    socket.stdout("on\n").await;
    socket.send(json!({"type": "stop"})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().as_str(), rest.exit_code), ("bye\n", Some(7)));

    let mut socket = open(&nest, &id).await;
    let pid = socket.start("trap '' TERM; echo on; while :; do sleep 1; done").await;
    socket.stdout("on\n").await;
    let asked = Instant::now();
    socket.send(json!({"type": "stop"})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.exit_code, rest.code()), (Some(137), Some(1000)));
    assert!(asked.elapsed() > Duration::from_secs(4), "{:?}", asked.elapsed());
    ends(pid).await;
}

#[actix_web::test]
async fn stop_overtakes_input_and_output_that_wait() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = Socket::open(&nest.url, &path(&id), &nest.key, Some(1 << 16)).await;
    let pid = socket.start("exec yes").await;
    // It reads none of it, and nobody reads what it prints.
    for _ in 0..3 {
        socket.send(json!({"type": "stdin", "data": "x".repeat(100_000)})).await;
    }
    eventually("it stands still", async || stands_still(pid).await.then_some(())).await;
    socket.send(json!({"type": "stop"})).await;
    ends(pid).await;
    let rest = socket.rest().await;
    assert_eq!((rest.exit_code, rest.code()), (Some(143), Some(1000)));
    assert!(rest.stdout.chunks(2).all(|line| line == b"y\n"), "nothing is missing in the middle");
}

/// Whether a process uses no processor time.
async fn stands_still(pid: i32) -> bool {
    let used = || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<String> =
            stat.rsplit_once(')').unwrap().1.split_whitespace().map(str::to_owned).collect();
        (fields[11].clone(), fields[12].clone())
    };
    let before = used();
    actix_web::rt::time::sleep(Duration::from_millis(500)).await;
    used() == before
}

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
async fn who_may_not_is_told_so_before_the_upgrade() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let ask = async |id: &str| Answer::of(upgrade(nest.request(Method::GET, &path(id)))).await;
    ask(UNKNOWN).await.error(404, "not_found");
    ask("no-id").await.error(400, "invalid_request");
    let keyless = upgrade(nest.anonymous(Method::GET, &path(&id)));
    Answer::of(keyless).await.error(401, "unauthorized");

    let message = nest.get(&path(&id)).await.error(400, "invalid_request");
    assert!(message.contains("WebSocket"), "{message}");
    let answer = nest.post(&path(&id), json!({})).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET"));

    assert_eq!(nest.pause(&id).await.status, 200);
    let message = ask(&id).await.error(409, "invalid_state");
    assert!(message.contains("resume it first"), "{message}");
    nest.destroy(&id).await;
    let message = ask(&id).await.error(409, "invalid_state");
    assert!(message.contains("stopped"), "{message}");
}

#[actix_web::test]
async fn a_pause_closes_the_session_and_the_command_goes_on_after_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut waiting = open(&nest, &id).await;
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("sleep 1000").await;
    assert_eq!(nest.pause(&id).await.status, 200);
    for socket in [&mut socket, &mut waiting] {
        let rest = socket.rest().await;
        assert_eq!((rest.code(), rest.exit_code), (Some(4001), None));
        assert!(rest.errors[0].contains("became pausing"), "{:?}", rest.errors);
    }
    assert_eq!(nest.resume(&id).await.status, 200);
    assert!(process_lives(pid));
    assert_eq!(nest.sh(&id, &format!("kill -0 {pid} && echo on")).await, "on\n");
}

#[actix_web::test]
async fn the_end_of_a_sandbox_closes_its_sessions_and_says_how_it_ended() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("sleep 1000").await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    let rest = socket.rest().await;
    assert_eq!(rest.code(), Some(4002), "{rest:?}");

    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("sleep 1000").await;
    nest.kill_vm(&id);
    let rest = socket.rest().await;
    assert_eq!(rest.code(), Some(1011), "{rest:?}");
    assert!(rest.errors[0].contains("SIGKILL"), "{:?}", rest.errors);
}

#[actix_web::test]
async fn sessions_are_told_that_the_daemon_ends() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = open(&nest, &id).await;
    let pid = socket.start("sleep 1000").await;
    nest.sockets.end_all();
    assert_eq!(socket.rest().await.code(), Some(1001));
    ends(pid).await;
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

#[actix_web::test]
async fn a_followed_command_keeps_its_sandbox_alive() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 2})).await;
    let mut socket = open(&nest, &id).await;
    socket.start("sleep 4; echo on").await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().as_str(), rest.exit_code), ("on\n", Some(0)));
    assert_eq!(nest.state(&id).await, "running", "the end of the command counts");
    nest.becomes(&id, "stopped").await;
}

#[actix_web::test]
async fn sessions_of_one_sandbox_do_not_wait_for_each_other() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut stuck = open(&nest, &id).await;
    stuck.start("exec yes").await;
    for _ in 0..3 {
        let mut socket = open(&nest, &id).await;
        socket.start("echo quick").await;
        assert_eq!(socket.rest().await.text(), "quick\n");
    }
}

/// Memory is the whole process's, so the work is done in a process of its own.
#[test]
fn a_slow_reader_of_100_mb_costs_no_memory() {
    let alone = "exec_stream::one_hundred_megabytes_alone";
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
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}
