//! Terminals: typed at, resized, left and come back to.

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use crate::exec_stream::{UNKNOWN, ends, upgrade};
use crate::nest::{Answer, Nest, eventually, process_lives};
use crate::processes::{follow, list, start};
use crate::socket::{Said, Socket};

use nestbox::http::MESSAGE_LIMIT;
use reqwest::Method;

fn path(id: &str) -> String {
    format!("/v1/sandboxes/{id}/pty")
}

async fn open(nest: &Nest, id: &str) -> Socket {
    Socket::open(&nest.url, &path(id), &nest.key, None).await
}

/// A terminal that runs something or a shell; its first message has been heard.
async fn terminal(nest: &Nest, id: &str, mut start: Value) -> (Socket, i32) {
    start["type"] = json!("start");
    let mut socket = open(nest, id).await;
    socket.send(start).await;
    let pid = socket.started().await;
    (socket, pid)
}

async fn connect(nest: &Nest, id: &str, mut connect: Value) -> Socket {
    connect["type"] = json!("connect");
    let mut socket = open(nest, id).await;
    socket.send(connect).await;
    socket.started().await;
    socket
}

async fn type_in(socket: &mut Socket, text: &str) {
    socket.send(json!({"type": "input", "data": text})).await;
}

#[actix_web::test]
async fn a_shell_is_typed_at_and_ends_with_its_exit_code() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"envs": {"A": "sandbox"}})).await;
    let (mut socket, pid) =
        terminal(&nest, &id, json!({"envs": {"PS1": "> "}, "cols": 100, "rows": 30})).await;
    type_in(&mut socket, "echo $A-$TERM-$((6 * 7)); stty size; tty\r").await;
    let shown = socket.shows("/dev/pts").await;
    assert!(shown.contains("sandbox-xterm-256color-42\r\n30 100\r\n/dev/pts"), "{shown:?}");
    let listed = &list(&nest, &id).await[0];
    assert_eq!((&listed["pid"], &listed["terminal"]), (&json!(pid), &json!(true)));
    socket.send(json!({"type": "input", "data": "ZXhpdCA1DQ==", "encoding": "base64"})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.exit_code, rest.code(), rest.seq), (Some(5), Some(1000), None));
    assert!(rest.stdout.is_empty() && rest.stderr.is_empty(), "a terminal has one stream");
}

#[actix_web::test]
async fn any_program_runs_on_a_terminal() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (start, shown, code) in [
        (json!({"cmd": "test -t 0 && test -t 2 && stty size"}), "24 80\r\n", 0),
        (json!({"cmd": "printf", "args": ["%s|", "$HOME", "a b"]}), "$HOME|a b|", 0),
        (json!({"cmd": "pwd; echo $B", "cwd": "/usr", "envs": {"B": "b"}}), "/usr\r\nb\r\n", 0),
        (json!({"cmd": "echo $TERM", "envs": {"TERM": "dumb"}}), "dumb\r\n", 0),
        (json!({"cmd": "stty size", "cols": 7}), "24 7\r\n", 0),
        (json!({"cmd": "kill -9 $$"}), "", 137),
    ] {
        let (mut socket, _) = terminal(&nest, &id, start.clone()).await;
        let rest = socket.rest().await;
        assert_eq!((rest.terminal_text().as_str(), rest.exit_code), (shown, Some(code)), "{start}");
    }
}

#[actix_web::test]
async fn a_program_is_told_of_a_new_size_and_of_what_is_typed_to_interrupt_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; echo on; \
                while :; do sleep 0.05; done";
    let (mut socket, _) = terminal(&nest, &id, json!({"cmd": line})).await;
    socket.shows("on").await;
    socket.send(json!({"type": "resize", "cols": 132, "rows": 43})).await;
    socket.shows("43 132").await;
    type_in(&mut socket, "\u{3}").await;
    let rest = socket.rest().await;
    assert!(rest.terminal_text().contains("interrupted"), "{rest:?}");
    assert_eq!(rest.exit_code, Some(3));
}

#[actix_web::test]
async fn a_terminal_stays_when_its_client_leaves_and_can_be_come_back_to() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "while read x; do echo got $x $(stty size); done";
    let (mut socket, pid) = terminal(&nest, &id, json!({"cmd": line, "tag": "main"})).await;
    type_in(&mut socket, "one\r").await;
    socket.shows("got one 24 80").await;
    socket.vanish();

    let mut socket = connect(&nest, &id, json!({"tag": "main", "cols": 90, "rows": 20})).await;
    // Who comes back sees what was shown last.
    socket.shows("got one 24 80").await;
    type_in(&mut socket, "two\r").await;
    socket.shows("got two 20 90").await;
    let rest = socket.close().await;
    assert_eq!((rest.code(), rest.exit_code), (Some(1000), None));

    // Two at once see the same.
    let mut first = connect(&nest, &id, json!({"pid": pid})).await;
    let mut second = connect(&nest, &id, json!({"tag": "main"})).await;
    type_in(&mut first, "three\r").await;
    for socket in [&mut first, &mut second] {
        socket.shows("got three 20 90").await;
    }
    first.send(json!({"type": "stop"})).await;
    for socket in [&mut first, &mut second] {
        let rest = socket.rest().await;
        assert_eq!((rest.exit_code, rest.code()), (Some(129), Some(1000)), "it was hung up");
    }
    ends(pid).await;
    let mut late = connect(&nest, &id, json!({"pid": pid})).await;
    let rest = late.rest().await;
    assert!(rest.terminal_text().contains("got three"), "{rest:?}");
    assert_eq!(rest.exit_code, Some(129));
}

#[actix_web::test]
async fn a_terminal_of_a_sandbox_that_is_paused_is_closed_and_is_there_after_the_resume() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (mut socket, pid) =
        terminal(&nest, &id, json!({"cmd": "cat", "args": [], "tag": "t"})).await;
    let mut waiting = open(&nest, &id).await;
    type_in(&mut socket, "before\r").await;
    socket.shows("before\r\nbefore").await;
    assert_eq!(nest.pause(&id).await.status, 200);
    for socket in [&mut socket, &mut waiting] {
        let rest = socket.rest().await;
        assert_eq!((rest.code(), rest.exit_code), (Some(4001), None), "{:?}", rest.errors);
    }
    let request = upgrade(nest.request(Method::GET, &path(&id)));
    let message = Answer::of(request).await.error(409, "invalid_state");
    assert!(message.contains("resume it first"), "{message}");

    assert_eq!(nest.resume(&id).await.status, 200);
    let nest = nest.restart().await;
    let mut socket = connect(&nest, &id, json!({"tag": "t"})).await;
    socket.shows("before\r\nbefore").await;
    type_in(&mut socket, "after\r").await;
    socket.shows("after\r\nafter").await;
    assert!(process_lives(pid));
    socket.send(json!({"type": "stop"})).await;
    assert_eq!(socket.rest().await.exit_code, Some(129));
    nest.destroy(&id).await;
}

#[actix_web::test]
async fn a_message_that_makes_no_sense_ends_the_session_but_not_the_terminal() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let text = |text: &str| Message::text(text.to_owned());
    for (message, word) in [
        (text(r#"{"type":"input","data":"x"}"#), "start or connect"),
        (text(r#"{"type":"resize","cols":80,"rows":24}"#), "start or connect"),
        (text(r#"{"type":"stop"}"#), "start or connect"),
        (text(r#"{"type":"stdin","data":"x"}"#), "stdin"),
        (text(r#"{"type":"start","color":1}"#), "color"),
        (text(r#"{"type":"start","args":["x"]}"#), "args"),
        (text(r#"{"type":"start","cmd":""}"#), "empty"),
        (text(r#"{"type":"start","cols":0,"rows":24}"#), "1 to 4096"),
        (text(r#"{"type":"start","cols":80,"rows":100000}"#), "1 to 4096"),
        (text(r#"{"type":"start","cols":-1}"#), "-1"),
        (text(r#"{"type":"start","tag":"1"}"#), "a tag matches"),
        (text(r#"{"type":"start","tag":"a/b"}"#), "a tag matches"),
        (text(r#"{"type":"start","user":"no-such-user"}"#), "no-such-user"),
        (text(r#"{"type":"start","cwd":"/no/such/dir"}"#), "/no/such/dir"),
        (text(r#"{"type":"start","cmd":"/no/such/program","args":[]}"#), "not found"),
        (text(r#"{"type":"connect"}"#), "by its tag or by its pid"),
        (text(r#"{"type":"connect","tag":"a","pid":1}"#), "by its tag or by its pid"),
        (text(r#"{"type":"connect","tag":"none"}"#), "no process none"),
        (text(r#"{"type":"connect","pid":4294967295}"#), "no process 4294967295"),
        (text(r#"{"type":"connect","pid":"x"}"#), "x"),
        (text("{"), "EOF"),
        (Message::binary(vec![1]), "JSON"),
    ] {
        let mut socket = open(&nest, &id).await;
        socket.send_raw(message.clone()).await;
        let rest = socket.rest().await;
        assert_eq!(rest.code(), Some(1008), "{message:?}: {rest:?}");
        assert!(rest.errors[0].contains(word), "{message:?}: {:?}", rest.errors);
    }
    assert_eq!(list(&nest, &id).await, Vec::<Value>::new(), "nothing was started");

    let (_kept, pid) = terminal(&nest, &id, json!({"tag": "main"})).await;
    for (message, code, word) in [
        (text(r#"{"type":"start"}"#), 1008, "already"),
        (text(r#"{"type":"connect","tag":"main"}"#), 1008, "already"),
        (text(r#"{"type":"resize","cols":0,"rows":24}"#), 1008, "1 to 4096"),
        (text(r#"{"type":"resize","cols":80,"rows":0}"#), 1008, "1 to 4096"),
        (text(r#"{"type":"resize","cols":100000,"rows":100000}"#), 1008, "1 to 4096"),
        (text(r#"{"type":"resize","cols":80}"#), 1008, "rows"),
        (text(r#"{"type":"input"}"#), 1008, "data"),
        (text(r#"{"type":"input","data":"?","encoding":"base64"}"#), 1008, "base64"),
        (text(r#"{"type":"signal","signal":"SIGINT"}"#), 1008, "signal"),
        (text(&"x".repeat(MESSAGE_LIMIT + 1)), 1009, "at most"),
    ] {
        let mut socket = connect(&nest, &id, json!({"tag": "main"})).await;
        socket.send_raw(message.clone()).await;
        let rest = socket.rest().await;
        assert_eq!(rest.code(), Some(code), "{message:?}: {rest:?}");
        assert!(rest.errors[0].contains(word), "{message:?}: {:?}", rest.errors);
    }
    assert!(process_lives(pid));
    let mut socket = open(&nest, &id).await;
    socket.send(json!({"type": "start", "tag": "main"})).await;
    let rest = socket.rest().await;
    assert_eq!(rest.code(), Some(1008));
    assert!(rest.errors[0].contains("has the tag main"), "{:?}", rest.errors);
}

#[actix_web::test]
async fn what_has_no_terminal_is_no_terminal() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let pid = start(&nest, &id, "sleep 1000").await;
    let mut socket = open(&nest, &id).await;
    socket.send(json!({"type": "connect", "pid": pid})).await;
    let rest = socket.rest().await;
    assert_eq!(rest.code(), Some(1008));
    assert!(rest.errors[0].contains("has no terminal"), "{:?}", rest.errors);

    // The other way round it can be done: what is typed and shown is numbered there.
    let (mut socket, pid) = terminal(&nest, &id, json!({"cmd": "cat", "args": []})).await;
    let mut stream = follow(&nest, &id, pid, None).await;
    stream.send(json!({"type": "stdin", "data": "hi\r"})).await;
    assert!(stream.shows("hi\r\nhi\r\n").await.starts_with("hi"));
    socket.shows("hi\r\nhi\r\n").await;
    stream.send(json!({"type": "stdin", "eof": true})).await;
    let Said::Message(error) = stream.next().await else { panic!("no message") };
    assert!(error["message"].as_str().unwrap().contains("Ctrl-D"), "{error}");
}

#[actix_web::test]
async fn who_may_not_is_told_so_before_the_upgrade() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let ask = async |id: &str| Answer::of(upgrade(nest.request(Method::GET, &path(id)))).await;
    ask(UNKNOWN).await.error(404, "not_found");
    ask("no-id").await.error(400, "invalid_request");
    nest.get(&path(&id)).await.error(400, "invalid_request");
    let answer = nest.post(&path(&id), json!({})).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET"));
    nest.destroy(&id).await;
    ask(&id).await.error(409, "invalid_state");
}

#[actix_web::test]
async fn a_terminal_waits_for_a_client_that_reads_slowly_and_not_for_one_that_has_left() {
    // More than sockets hold.
    const SIZE: usize = 30_000_000;
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = format!("stty raw; head -c {SIZE} /dev/zero | tr '\\0' x; sleep 1000");
    let mut slow = Socket::open(&nest.url, &path(&id), &nest.key, Some(1 << 16)).await;
    slow.send(json!({"type": "start", "cmd": line})).await;
    let pid = slow.started().await;
    let written = async || list(&nest, &id).await[0]["next_seq"].as_u64().unwrap() - 1;
    let mut before = 0;
    eventually("it stands still", async || {
        actix_web::rt::time::sleep(std::time::Duration::from_secs(1)).await;
        let now = written().await;
        (std::mem::replace(&mut before, now) == now).then_some(())
    })
    .await;
    assert!((1..SIZE as u64).contains(&before), "{before} bytes are written");
    let seen = slow.until(|seen| seen.terminal.len() >= SIZE).await;
    assert_eq!((seen.terminal.len(), seen.errors.len()), (SIZE, 0), "nothing is lost");
    slow.vanish();

    let mut gone = open(&nest, &id).await;
    gone.send(json!({"type": "start", "cmd": line})).await;
    gone.started().await;
    gone.vanish();
    eventually("the other one goes on", async || {
        (list(&nest, &id).await[1]["next_seq"] == SIZE as u64 + 1).then_some(())
    })
    .await;
    assert!(process_lives(pid));
}
