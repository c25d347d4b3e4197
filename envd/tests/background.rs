//! `background.Background`: what runs on whoever follows it, and what is kept of it.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Agent, Events, eventually, is_root};

fn start(agent: &Agent, request: Value) -> Result<u64, (String, String)> {
    let started = agent.call("background.Background/Start", request)?;
    Ok(started["pid"].as_u64().expect("a pid"))
}

fn start_shell(agent: &Agent, script: &str) -> u64 {
    start(agent, json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script] } })).unwrap()
}

fn listed(agent: &Agent, pid: u64) -> Value {
    let list = agent.call("background.Background/List", json!({})).unwrap();
    let found = list["processes"].as_array().unwrap().iter().find(|one| one["pid"] == pid);
    found.expect("it is listed").clone()
}

fn follow(agent: &Agent, mut request: Value, pid: u64) -> Events {
    request["process"] = json!({ "pid": pid });
    let mut events = agent.stream("background.Background/Follow", request);
    let first = events.next().unwrap().unwrap();
    assert_eq!(first["event"]["start"]["pid"], pid);
    events
}

/// 64-bit numbers are strings in JSON.
fn number(value: &Value) -> u64 {
    value.as_str().map_or(0, |text| text.parse().unwrap())
}

/// Follows to the end: output of all streams, its last number, what was lost, the end.
fn finish(events: Events) -> (Vec<u8>, u64, u64, Value) {
    let (mut output, mut seq, mut lost) = (Vec::new(), 0, 0);
    for message in events {
        let event = &message.unwrap()["event"];
        if !event["end"].is_null() {
            return (output, seq, lost, event["end"].clone());
        }
        lost += number(&event["lost"]["bytes"]);
        if !event["output"].is_null() {
            seq = number(&event["output"]["seq"]);
            for stream in ["stdout", "stderr", "pty"] {
                let data = event["output"]["data"][stream].as_str().unwrap_or_default();
                output.extend(STANDARD.decode(data).unwrap());
            }
        }
    }
    panic!("no end");
}

#[test]
fn output_is_kept_for_whoever_comes_later() {
    let agent = Agent::start();
    let pid = start_shell(&agent, "printf abc; printf def >&2; exit 3");
    eventually("it ends", || !listed(&agent, pid)["end"].is_null());
    let (output, seq, lost, end) = finish(follow(&agent, json!({}), pid));
    assert_eq!((output.len(), seq, lost, &end["exitCode"]), (6, 6, 0, &json!(3)));
    let (output, ..) = finish(follow(&agent, json!({ "after": "4" }), pid));
    assert_eq!(output.len(), 2);
    let (output, ..) = finish(follow(&agent, json!({ "tail": "1" }), pid));
    assert_eq!(output.len(), 1);
    let (output, ..) = finish(follow(&agent, json!({ "tail": "100" }), pid));
    assert_eq!(output.len(), 6);
}

#[test]
fn the_other_service_reaches_the_same_processes() {
    let agent = Agent::start();
    let pid = start(&agent, json!({ "process": { "cmd": "cat" }, "tag": "both" })).unwrap();
    let list = agent.call("process.Process/List", json!({})).unwrap();
    assert_eq!(
        (&list["processes"][0]["pid"], &list["processes"][0]["tag"]),
        (&json!(pid), &json!("both"))
    );
    let mut connected =
        agent.stream("process.Process/Connect", json!({ "process": { "tag": "both" } }));
    connected.next().unwrap().unwrap();
    let input =
        json!({ "process": { "pid": pid }, "input": { "stdin": STANDARD.encode("hello") } });
    agent.call("process.Process/SendInput", input).unwrap();
    assert_eq!(connected.until_output(5).text(), "hello");
    agent.call("process.Process/CloseStdin", json!({ "process": { "pid": pid } })).unwrap();
    let (output, _, _, end) = finish(follow(&agent, json!({}), pid));
    assert_eq!((output.as_slice(), &end["exited"]), (&b"hello"[..], &json!(true)));
    assert_eq!(connected.finish().code(), 0);
    // Which is for those that run, whoever started them; the record stays.
    assert_eq!(agent.call("process.Process/List", json!({})).unwrap()["processes"], Value::Null);
    assert_eq!(listed(&agent, pid)["tag"], "both");
}

#[test]
fn the_environment_of_a_process_is_not_listed() {
    let agent = Agent::start();
    let process = json!({ "cmd": "printenv", "args": ["A"], "envs": { "A": "secret" } });
    let pid = start(&agent, json!({ "process": process })).unwrap();
    let (output, ..) = finish(follow(&agent, json!({}), pid));
    assert_eq!(output, b"secret\n");
    assert!(!listed(&agent, pid).to_string().contains("secret"));
}

#[test]
fn a_terminal_without_a_command_logs_its_user_in() {
    let agent = Agent::start();
    let size = json!({ "size": { "cols": 100, "rows": 40 } });
    let pid = start(&agent, json!({ "pty": size })).unwrap();
    let info = listed(&agent, pid);
    assert_eq!((&info["config"]["args"], &info["terminal"]), (&json!(["-l"]), &json!(true)));
    assert!(info["config"]["cmd"].as_str().unwrap().starts_with('/'), "{info}");
    let line =
        STANDARD.encode("stty size; echo $TERM; shopt -q login_shell && echo login; exit 4\n");
    let input = json!({ "process": { "pid": pid }, "input": { "pty": line } });
    agent.call("process.Process/SendInput", input).unwrap();
    let (output, _, _, end) = finish(follow(&agent, json!({}), pid));
    let text = String::from_utf8_lossy(&output).into_owned();
    for expected in ["40 100\r\n", "xterm-256color\r\n"] {
        assert!(text.contains(expected), "{expected:?} in {text:?}");
    }
    assert_eq!(end["exitCode"], 4, "{text:?}");

    if is_root() {
        // Who has no shell gets one all the same: it was asked for.
        let mut agent = agent;
        agent.set_user("nobody");
        let pid = start(&agent, json!({ "pty": size })).unwrap();
        let cmd = listed(&agent, pid)["config"]["cmd"].clone();
        assert!(["/bin/bash", "/bin/sh"].contains(&cmd.as_str().unwrap()), "{cmd}");
    }
}

#[test]
fn a_terminal_waits_for_its_reader_and_nothing_of_it_is_lost() {
    // More than sockets hold.
    const SIZE: usize = 30_000_000;
    let agent = Agent::start();
    // It begins once it is followed: nobody is waited for before that.
    let script = format!("stty raw -echo; echo r; head -c 1 >/dev/null; head -c {SIZE} /dev/zero");
    let process = json!({ "cmd": "/bin/sh", "args": ["-c", script] });
    let pid = start(&agent, json!({ "process": process, "pty": {} })).unwrap();
    eventually("it is ready", || number(&listed(&agent, pid)["nextSeq"]) == 3);
    let events = follow(&agent, json!({}), pid);
    let input = json!({ "process": { "pid": pid }, "input": { "pty": STANDARD.encode("x") } });
    agent.call("process.Process/SendInput", input).unwrap();
    let written = || number(&listed(&agent, pid)["nextSeq"]);
    let mut before = 0;
    eventually("it stands still", || {
        std::thread::sleep(Duration::from_secs(1));
        let now = written();
        std::mem::replace(&mut before, now) == now
    });
    assert!((4..SIZE as u64).contains(&before), "{before}");
    let (output, seq, lost, _) = finish(events);
    assert_eq!((output.len(), seq, lost), (SIZE + 2, SIZE as u64 + 2, 0));
}

#[test]
fn a_stop_hangs_a_terminal_up_and_kills_what_does_not_listen() {
    let agent = Agent::start();
    let stop = |pid: u64| {
        agent.call("background.Background/Stop", json!({ "process": { "pid": pid } })).unwrap();
        listed(&agent, pid)["end"]["status"].clone()
    };
    let pid = start(&agent, json!({ "pty": {} })).unwrap();
    assert_ne!(stop(pid), "signal: killed", "shells go when their terminal does");
    let pid = start_shell(&agent, "trap '' TERM; while :; do sleep 1; done");
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(stop(pid), "signal: killed");
    assert_eq!(stop(pid), "signal: killed", "it has ended already");
}

#[test]
fn mistakes_are_told_apart() {
    let agent = Agent::start();
    let code = |method: &str, request: Value| {
        agent.call(&format!("background.Background/{method}"), request).unwrap_err().0
    };
    assert_eq!(code("Start", json!({})), "invalid_argument");
    assert_eq!(code("Start", json!({ "process": { "cmd": "/no/such" } })), "not_found");
    assert_eq!(code("Stop", json!({})), "invalid_argument");
    assert_eq!(code("Stop", json!({ "process": { "pid": 1 } })), "not_found");
    let process = json!({ "cmd": "sleep", "args": ["1000"] });
    let pid = start(&agent, json!({ "process": process, "tag": "a" })).unwrap();
    assert_eq!(code("Start", json!({ "process": process, "tag": "a" })), "already_exists");
    let refused = |request| {
        let mut events = agent.stream("background.Background/Follow", request);
        events.next().unwrap().unwrap_err().0
    };
    assert_eq!(refused(json!({ "process": { "tag": "b" } })), "not_found");
    assert_eq!(refused(json!({ "process": { "pid": pid }, "after": "1" })), "invalid_argument");
}
