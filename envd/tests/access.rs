//! Tokens, signatures, `POST /init`, `GET /metrics`, `GET /health`.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde_json::json;
use sha2::{Digest, Sha256};
use support::{Agent, is_root};

const TOKEN: &str = "a secret";

fn secured() -> Agent {
    let agent = Agent::fresh();
    assert_eq!(agent.init(json!({ "accessToken": TOKEN })).status, 204);
    agent
}

/// A signature as SDKs make it, encoded for a URL.
fn sign(text: &str) -> String {
    let signature = STANDARD_NO_PAD.encode(Sha256::digest(text));
    format!("v1_{}", signature.replace('+', "%2B").replace('/', "%2F"))
}

#[test]
fn without_the_token_only_the_health_check_answers() {
    let mut agent = secured();
    let check = |agent: &Agent, expected: u16| {
        for target in ["/metrics", "/envs", "/files?path=/etc/passwd", "/nothing"] {
            let status = agent.get(target).status;
            assert_eq!(status == 401, expected == 401, "{target} {status}");
        }
        assert_eq!(agent.init(json!({})).status, if expected == 401 { 401 } else { 204 });
    };
    check(&agent, 401);
    assert_eq!(agent.get("/health").status, 204);
    let error = agent.call("process.Process/List", json!({})).unwrap_err();
    assert_eq!(error, ("unauthenticated".to_owned(), "missing access token".to_owned()));
    for wrong in ["", "a secre", "a secret!", "A SECRET"] {
        agent.set_header("X-Access-Token", wrong);
        check(&agent, 401);
        assert_eq!(agent.get("/envs").refusal(), (401, "invalid access token".to_owned()));
    }
    agent.set_header("X-Access-Token", TOKEN);
    check(&agent, 200);
    assert_eq!(agent.call("process.Process/List", json!({})).unwrap(), json!({}));
}

#[test]
fn before_it_has_a_token_an_agent_does_nothing_for_anybody() {
    let mut agent = Agent::fresh();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("planted").display().to_string();
    let file = format!("/files?path={path}&username=root");
    let archive = format!("/files/archive?path={}&username=root", dir.path().display());
    let octets = [("Content-Type", "application/octet-stream")];
    let start = json!({ "process": { "cmd": "/bin/touch", "args": [path] } });
    let refused = |agent: &Agent| {
        for target in ["/metrics", "/envs", "/init", "/sync", "/ports/1", "/nothing", &archive] {
            assert_eq!(agent.get(target).status, 401, "{target}");
        }
        assert_eq!(agent.get("/files?path=/etc/passwd").refusal().0, 401);
        assert_eq!(agent.http("POST", &file, &octets, b"x").refusal().0, 401);
        assert_eq!(agent.http("PUT", &archive, &[], &[0; 1024]).refusal().0, 401);
        assert_eq!(agent.http("POST", "/sync", &[], b"").refusal().0, 401);
        // A signature that is made with no token opens nothing either.
        let signature = sign(&format!("{path}:write:root:"));
        let signed = format!("{file}&signature={signature}");
        assert_eq!(agent.http("POST", &signed, &octets, b"x").refusal().0, 401);
        for method in ["process.Process/List", "filesystem.Filesystem/ListDir", "any.Thing/AtAll"] {
            assert_eq!(agent.call(method, json!({})).unwrap_err().0, "unauthenticated");
        }
        let body = support::envelope(&start);
        let rpc = [("Content-Type", "application/connect+json"), ("Connect-Protocol-Version", "1")];
        assert_eq!(agent.http("POST", "/process.Process/Start", &rpc, &body).status, 401);
        assert!(!std::path::Path::new(&path).exists(), "nothing was planted");
    };
    refused(&agent);
    for token in ["", "x", TOKEN] {
        agent.set_header("X-Access-Token", token);
        refused(&agent);
    }
    agent.remove_header("X-Access-Token");
    assert_eq!(agent.get("/health").status, 204);
    // Nor can it be told anything before, which would be forgotten then, or not.
    let envs = json!({ "envVars": { "A": "1" }, "defaultUser": "root" });
    assert_eq!(agent.init(envs).refusal().0, 400);
    assert_eq!(agent.init(json!({ "accessToken": "" })).refusal().0, 400);
    refused(&agent);
    assert_eq!(agent.init(json!({ "accessToken": TOKEN })).status, 204);
    agent.set_header("X-Access-Token", TOKEN);
    assert_eq!(agent.get("/envs").json(), json!({}));
}

#[test]
fn a_token_is_replaced_only_by_who_has_it() {
    let mut agent = secured();
    assert_eq!(agent.init(json!({ "accessToken": "mine" })).status, 401);
    agent.set_header("X-Access-Token", TOKEN);
    assert_eq!(agent.init(json!({ "accessToken": "" })).refusal().0, 400);
    assert_eq!(agent.init(json!({ "accessToken": "next" })).status, 204);
    assert_eq!(agent.get("/envs").status, 401);
    agent.set_header("X-Access-Token", "next");
    assert_eq!(agent.get("/envs").status, 200);
}

#[test]
fn a_signature_opens_one_file_for_one_purpose() {
    let agent = secured();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f").display().to_string();
    let url = |signature: &str| format!("/files?path={path}&username=root&signature={signature}");
    let (read, write) =
        (sign(&format!("{path}:read:root:{TOKEN}")), sign(&format!("{path}:write:root:{TOKEN}")));
    let octets = [("Content-Type", "application/octet-stream")];
    assert_eq!(agent.http("POST", &url(&write), &octets, b"signed").status, 200);
    assert_eq!(agent.get(&url(&read)).body, b"signed");
    let wrong = (401, "invalid signature".to_owned());
    assert_eq!(agent.get(&url(&write)).refusal(), wrong);
    assert_eq!(agent.http("POST", &url(&read), &octets, b"x").refusal(), wrong);
    assert_eq!(agent.get(&url("v1_nonsense")).refusal(), wrong);
    let other = url(&read).replace("/f&", "/g&");
    assert_eq!(agent.get(&other).refusal(), wrong);
    assert_eq!(agent.get(&format!("/files?path={path}&username=root")).refusal().0, 401);
    // A signature is no token.
    assert_eq!(agent.get(&format!("/envs?signature={read}")).status, 401);
}

#[test]
fn a_signature_with_a_time_ends_then() {
    let agent = secured();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let get = |signed: u64, sent: u64| {
        let signature = sign(&format!("/etc/hostname:read:root:{TOKEN}:{signed}"));
        agent.get(&format!(
            "/files?path=/etc/hostname&username=root&signature={signature}&signature_expiration={sent}"
        ))
    };
    assert_eq!(get(now + 60, now + 60).status, 200);
    let late = (401, "signature is already expired".to_owned());
    assert_eq!(get(now - 60, now - 60).refusal(), late);
    assert_eq!(get(now - 60, now + 60).refusal(), (401, "invalid signature".to_owned()));
}

#[test]
fn init_changes_all_or_nothing() {
    let agent = Agent::start();
    let good = json!({ "envVars": { "A": "1" } });
    assert_eq!(agent.init(good).status, 204);
    let broken = [
        json!({ "envVars": { "A": "2" }, "timestamp": "yesterday" }),
        json!({ "envVars": { "A": "2" }, "defaultWorkdir": "relative" }),
        json!({ "envVars": { "A": "2" }, "hostname": "two words" }),
        json!({ "envVars": { "A": "2" }, "nameservers": ["not an address"] }),
        json!({ "envVars": { "A": "2" }, "entropy": "%" }),
        json!({ "envVars": { "A": 2 } }),
    ];
    for request in broken {
        assert_eq!(agent.init(request.clone()).refusal().0, 400, "{request}");
    }
    assert_eq!(agent.init(json!({ "defaultUser": "no-such-user" })).refusal().0, 401);
    let json = [("Content-Type", "application/json")];
    assert_eq!(agent.http("POST", "/init", &json, b"{").refusal().0, 400);
    assert_eq!(agent.get("/envs").json(), json!({ "A": "1" }));
    // What the SDKs' own service sends besides is not ours to refuse.
    assert_eq!(agent.init(json!({ "lifecycleID": "x", "hostname": null })).status, 204);
}

#[test]
fn init_on_a_host_leaves_the_host_alone() {
    let agent = Agent::start();
    let before = std::fs::read_to_string("/etc/hosts").unwrap();
    let request = json!({
        "timestamp": "2001-01-01T00:00:00.5Z", "hostname": "nestbox-test",
        "nameservers": ["192.0.2.1"], "entropy": "AAAA"
    });
    assert_eq!(agent.init(request).status, 204);
    assert!(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() > 1_700_000_000);
    assert_ne!(nix::unistd::gethostname().unwrap(), "nestbox-test");
    assert_eq!(std::fs::read_to_string("/etc/hosts").unwrap(), before);
}

#[test]
fn defaults_hold_for_requests_that_name_nothing() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start();
    agent.remove_header("Authorization");
    assert_eq!(
        agent.init(json!({ "defaultUser": "nobody", "defaultWorkdir": "/usr" })).status,
        204
    );
    let done = agent.shell("id -un; pwd");
    assert_eq!(done.text(), "nobody\n/usr\n");
    let entry = agent.call("filesystem.Filesystem/Stat", json!({ "path": "" })).unwrap();
    assert_eq!(entry["entry"]["path"], "/usr");
}

#[test]
fn metrics_are_numbers_that_fit_together() {
    let agent = Agent::start();
    let metrics = agent.get("/metrics").json();
    let number = |name: &str| metrics[name].as_f64().unwrap();
    assert!(number("cpu_count") >= 1.0);
    assert!((0.0..=100.0).contains(&number("cpu_used_pct")));
    for kind in ["mem", "disk"] {
        let (used, total) = (number(&format!("{kind}_used")), number(&format!("{kind}_total")));
        assert!(used > 0.0 && used <= total, "{metrics}");
    }
    assert_eq!(number("mem_total_mib"), (number("mem_total") / 1_048_576.0).floor());
    assert!(number("ts") > 1_700_000_000.0);
}
