//! Requests that are to cost the agent more than they cost the caller.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::io::Write;

use serde_json::json;
use support::{Agent, Reply};

const JSON: (&str, &str) = ("Content-Type", "application/json");
const STREAM: (&str, &str) = ("Content-Type", "application/connect+json");
const VERSION: (&str, &str) = ("Connect-Protocol-Version", "1");

/// By how much any of them may make the agent larger.
const GROWTH_KIB: u64 = 32 << 10;

fn peak_is_near(agent: &Agent, before: u64, what: &str) {
    let grown = agent.memory_kib("VmHWM").saturating_sub(before);
    assert!(grown < GROWTH_KIB, "{what:.40}: {grown} KiB more");
}

#[test]
fn bombs_of_json_are_refused_and_cost_little() {
    let agent = Agent::start();
    let before = agent.memory_kib("VmRSS");
    let many = |item: &str, count: usize| format!("[{}{item}]", format!("{item},").repeat(count));
    for bomb in [
        "[".repeat(1_000_000),
        "{\"process\":".repeat(200_000),
        format!("{{\"process\":{}", "{\"x\":".repeat(100_000)),
        format!("{{\"process\":{{\"args\":{}}}}}", many("{}", 300_000)),
        format!("{{\"path\":\"{}\"}}", "\\u0000".repeat(300_000)),
        format!("{{\"depth\":1{}}}", "0".repeat(1_000_000)),
        "\"".to_owned() + &"\\u".repeat(900_000),
    ] {
        for method in ["process.Process/SendSignal", "filesystem.Filesystem/ListDir"] {
            let reply =
                agent.http("POST", &format!("/{method}"), &[JSON, VERSION], bomb.as_bytes());
            // A field that is not known is no mistake, whatever is in it.
            let is_list = bomb.starts_with("{\"process\":{\"args\"") && method.ends_with("ListDir");
            let is_refused = (400..500).contains(&reply.status);
            assert!(is_refused || is_list, "{method} {bomb:.40}: {}", reply.status);
            assert!(reply.body.len() < 2000 || is_list, "{method} {bomb:.40}");
        }
        let reply = agent.http("POST", "/init", &[JSON], bomb.as_bytes());
        // What is not known of is no business of the agent's.
        assert!([204, 400].contains(&reply.status), "{bomb:.40}: {}", reply.status);
        peak_is_near(&agent, before, &bomb);
    }
    assert_eq!(agent.shell("echo on").text(), "on\n");
}

#[test]
fn lengths_that_lie_are_not_made_room_for() {
    let agent = Agent::start();
    let before = agent.memory_kib("VmRSS");
    for (flags, length) in [(0, u32::MAX), (0, 1 << 30), (2, u32::MAX), (1, 1 << 20)] {
        let mut body = vec![flags];
        body.extend(u32::to_be_bytes(length));
        body.extend([b'{'; 1000]);
        let target = "/process.Process/Start";
        let reply = agent.http("POST", target, &[STREAM, VERSION], &body);
        assert!(String::from_utf8_lossy(&reply.body).contains("error"), "{flags} {length}");
        peak_is_near(&agent, before, "an envelope");
    }
    // A body that is never sent is never made room for either.
    let waiting: Vec<_> = ["/init", "/files?path=/nowhere/x", "/filesystem.Filesystem/Stat"]
        .iter()
        .map(|target| agent.begin("POST", target, &[("Content-Length", "1099511627776"), JSON]))
        .collect();
    assert_eq!(agent.get("/envs").status, 200);
    peak_is_near(&agent, before, "a body that does not come");
    drop(waiting);
}

#[test]
fn what_an_agent_is_told_at_first_has_an_end() {
    let agent = Agent::fresh();
    let before = agent.memory_kib("VmRSS");
    let mut stream = agent.begin("POST", "/init", &[("Transfer-Encoding", "chunked"), JSON]);
    let chunk = [b"100000\r\n".as_slice(), &[b' '; 1 << 20], b"\r\n"].concat();
    // It may have closed the connection before it has all of it.
    let sent = (0..100).take_while(|_| stream.write_all(&chunk).is_ok()).count();
    assert!(sent < 100, "it takes all of it");
    peak_is_near(&agent, before, "an identity");
    assert_eq!(agent.init(json!({ "accessToken": "x" })).status, 204);
    let told = agent.begin("POST", "/init", &[("Content-Length", "104857600"), JSON]);
    assert_eq!(Reply::read(told).status, 401);
}
