//! Commands that are followed over a WebSocket: what they say, what they are told, how it ends.

use std::time::{Duration, Instant};

use reqwest::{Method, RequestBuilder};
use serde_json::json;

use crate::nest::{Answer, Nest, eventually, process_lives};
use crate::socket::{Said, Socket};

const UNKNOWN: &str = "aaaaaaaaaaaaaaaaaaaa";

pub async fn open(nest: &Nest, id: &str) -> Socket {
    Socket::open(&nest.url, &path(id), &nest.key, None).await
}

pub fn path(id: &str) -> String {
    format!("/v1/sandboxes/{id}/exec/stream")
}

/// As a WebSocket client would ask.
pub fn upgrade(request: RequestBuilder) -> RequestBuilder {
    request
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-version", "13")
        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
}

pub async fn ends(pid: i32) {
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

/// Whether a process uses no processor time.
pub async fn stands_still(pid: i32) -> bool {
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
