//! `process.Process`: standard input and terminals.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use std::io::Write;
use support::{Agent, Reply, envelope};

fn cat(agent: &Agent) -> (u64, support::Events) {
    agent.start_process(json!({ "process": { "cmd": "cat" } }))
}

fn input(pid: u64, kind: &str, text: &str) -> Value {
    json!({ "process": { "pid": pid }, "input": { kind: STANDARD.encode(text) } })
}

fn refused(result: Result<Value, (String, String)>) -> String {
    result.unwrap_err().0
}

#[test]
fn input_reaches_the_process_until_it_is_closed() {
    let agent = Agent::start();
    let (pid, events) = cat(&agent);
    agent.call("process.Process/SendInput", input(pid, "stdin", "one ")).unwrap();
    agent.call("process.Process/SendInput", input(pid, "stdin", "two")).unwrap();
    let close = json!({ "process": { "pid": pid } });
    agent.call("process.Process/CloseStdin", close.clone()).unwrap();
    assert_eq!(events.finish().text(), "one two");
}

#[test]
fn closed_input_takes_nothing_more_and_closes_again_without_harm() {
    let agent = Agent::start();
    let (pid, _events) =
        agent.start_process(json!({ "process": { "cmd": "sleep", "args": ["100"] } }));
    let close = json!({ "process": { "pid": pid } });
    agent.call("process.Process/CloseStdin", close.clone()).unwrap();
    agent.call("process.Process/CloseStdin", close).unwrap();
    let late = agent.call("process.Process/SendInput", input(pid, "stdin", "x"));
    assert_eq!(refused(late), "failed_precondition");
}

#[test]
fn a_process_without_input_reads_end_of_file() {
    let agent = Agent::start();
    let done = agent.run(json!({ "process": { "cmd": "cat" }, "stdin": false }));
    assert_eq!((done.text().as_str(), done.code()), ("", 0));
}

#[test]
fn input_of_the_wrong_kind_is_refused() {
    let agent = Agent::start();
    let (pid, _events) = cat(&agent);
    let pty = agent.call("process.Process/SendInput", input(pid, "pty", "x"));
    assert_eq!(refused(pty), "failed_precondition");
    let nothing = agent.call("process.Process/SendInput", json!({ "process": { "pid": pid } }));
    assert_eq!(refused(nothing), "invalid_argument");
    let resize = json!({ "process": { "pid": pid }, "pty": { "size": { "cols": 1, "rows": 1 } } });
    assert_eq!(refused(agent.call("process.Process/Update", resize)), "failed_precondition");
}

#[test]
fn input_that_is_not_read_waits_and_ends_with_the_process() {
    let agent = Agent::start();
    let (pid, _events) =
        agent.start_process(json!({ "process": { "cmd": "sleep", "args": ["0.7"] } }));
    let big = "x".repeat(1_000_000);
    let result = agent.call("process.Process/SendInput", input(pid, "stdin", &big));
    let code = refused(result);
    assert!(["not_found", "failed_precondition"].contains(&code.as_str()), "{code}");
}

fn stream_input(agent: &Agent, messages: &[Value]) -> Value {
    let body: Vec<u8> = messages.iter().flat_map(envelope).collect();
    let length = body.len().to_string();
    let headers = [
        ("Content-Type", "application/connect+json"),
        ("Connect-Protocol-Version", "1"),
        ("Content-Length", length.as_str()),
    ];
    let mut stream = agent.begin("POST", "/process.Process/StreamInput", &headers);
    stream.write_all(&body).unwrap();
    let reply = Reply::read(stream);
    // The last envelope tells how it went.
    let end = reply.body.windows(2).rposition(|pair| pair == [2, 0]).unwrap();
    serde_json::from_slice(&reply.body[end + 5..]).unwrap()
}

#[test]
fn a_stream_of_input_names_its_process_first() {
    let agent = Agent::start();
    let (pid, mut events) = cat(&agent);
    let start = json!({ "start": { "process": { "pid": pid } } });
    let data = |text: &str| json!({ "data": { "input": { "stdin": STANDARD.encode(text) } } });
    let end =
        stream_input(&agent, &[start.clone(), data("a"), json!({ "keepalive": {} }), data("b")]);
    assert_eq!(end.get("error"), None, "{end}");
    assert_eq!(events.until_output(2).text(), "ab");
    assert_eq!(stream_input(&agent, &[data("c")])["error"]["code"], "invalid_argument");
    assert_eq!(stream_input(&agent, &[start.clone(), start])["error"]["code"], "invalid_argument");
    let unknown = json!({ "start": { "process": { "pid": 999_999 } } });
    assert_eq!(stream_input(&agent, &[unknown])["error"]["code"], "not_found");
}

#[test]
fn a_terminal_has_the_size_it_was_given_and_can_be_resized() {
    let agent = Agent::start();
    let size = |cols: u32, rows: u32| json!({ "size": { "cols": cols, "rows": rows } });
    let script = "stty size; read line; stty size; tty; echo term=$TERM";
    let request =
        json!({ "process": { "cmd": "sh", "args": ["-c", script] }, "pty": size(101, 33) });
    let (pid, mut events) = agent.start_process(request);
    let mut seen = events.until_output("33 101\r\n".len());
    assert_eq!(seen.terminal_text(), "33 101\r\n");
    let resize = json!({ "process": { "pid": pid }, "pty": size(120, 40) });
    agent.call("process.Process/Update", resize).unwrap();
    agent.call("process.Process/SendInput", input(pid, "pty", "\n")).unwrap();
    while events.add_next(&mut seen) {}
    let text = seen.terminal_text();
    assert!(text.contains("40 120\r\n"), "{text}");
    assert!(text.contains("/dev/pts/") && text.ends_with("term=xterm-256color\r\n"), "{text}");
}

#[test]
fn a_terminal_echoes_and_its_interrupt_key_works() {
    let agent = Agent::start();
    let pty = json!({ "size": { "cols": 80, "rows": 24 } });
    let request = json!({ "process": { "cmd": "cat" }, "pty": pty });
    let (pid, mut events) = agent.start_process(request);
    agent.call("process.Process/SendInput", input(pid, "pty", "hi\n")).unwrap();
    let seen = events.until_output("hi\r\nhi\r\n".len());
    assert_eq!(seen.terminal_text(), "hi\r\nhi\r\n");
    let stdin = agent.call("process.Process/SendInput", input(pid, "stdin", "x"));
    assert_eq!(refused(stdin), "failed_precondition");
    let close = agent.call("process.Process/CloseStdin", json!({ "process": { "pid": pid } }));
    assert_eq!(refused(close), "failed_precondition");
    agent.call("process.Process/SendInput", input(pid, "pty", "\u{3}")).unwrap();
    assert_eq!(events.finish().end["status"], "signal: interrupt");
}

#[test]
fn a_terminal_without_a_size_has_the_usual_one() {
    let agent = Agent::start();
    let done = agent.run(json!({ "process": { "cmd": "stty", "args": ["size"] }, "pty": {} }));
    assert_eq!(done.terminal_text(), "24 80\r\n");
}

#[test]
fn all_output_of_a_terminal_comes_before_the_end() {
    let agent = Agent::start();
    let script = "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done";
    let done = agent.run(json!({
        "process": { "cmd": "sh", "args": ["-c", script] }, "pty": {}
    }));
    let text = done.terminal_text();
    assert_eq!(text.lines().count(), 2000);
    assert!(text.ends_with("line 1999\r\n"));
}
