//! Commands that take all that there is of a guest, beside which it can still be controlled.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Sandbox, eventually, in_a_lab};

/// What takes longer is out of control. In software it takes some tenths of a second.
const CONTROL: Duration = Duration::from_secs(10);
/// How the most processes come about. It says so whenever there is no other one to be had.
const BOMB: &str = "b() { b | b & }; b; sleep 1000";

async fn start(sandbox: &Sandbox, body: Value) {
    sandbox.try_exec(body).await.expect(200);
}

/// How many bytes a process has written.
async fn written(sandbox: &Sandbox, tag: &str) -> u64 {
    let list = sandbox.get("/processes").await.expect(200);
    let processes = list["processes"].as_array().expect("a list").iter();
    let next = processes.filter(|process| process["tag"] == tag && process["state"] == "running");
    next.map(|process| process["next_seq"].as_u64().expect("a number")).sum()
}

async fn in_time<T>(what: &str, work: impl Future<Output = T>) -> T {
    let started = Instant::now();
    let done = work.await;
    let taken = started.elapsed();
    eprintln!("{what} took {taken:?}");
    assert!(taken < CONTROL, "{what} took {taken:?}");
    done
}

/// Starts something, lists it and ends it, each in time.
async fn is_in_control(sandbox: &Sandbox, beside: &str, tags: &[&str]) {
    for _ in 0..3 {
        let what = format!("a command beside {beside}");
        in_time(&what, sandbox.exec(json!({ "cmd": "true", "timeout_sec": 60 }))).await;
        let what = format!("a list beside {beside}");
        in_time(&what, sandbox.get("/processes")).await.expect(200);
    }
    for tag in tags {
        let what = format!("the end of {tag} beside {beside}");
        let path = format!("/processes/{tag}");
        in_time(&what, sandbox.delete(&path)).await.expect(204);
    }
}

#[test]
fn what_floods_a_guest_leaves_its_host_in_control() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create_with(json!({ "memory_mb": 256, "vcpus": 1 })).await;
        for (tag, line) in [("yes", "exec yes"), ("both", "yes & exec yes >&2")] {
            start(&sandbox, json!({ "cmd": line, "background": true, "tag": tag })).await;
        }
        let mut terminal = sandbox.socket("/pty").await;
        terminal.send(json!({ "type": "start", "cmd": "yes", "tag": "terminal" })).await;
        terminal.started().await;
        is_in_control(&sandbox, "three floods", &["yes", "both", "terminal"]).await;
        terminal.vanish();

        // By somebody without rights, and by root, whom the kernel allows all of its processes.
        for user in ["user", "root"] {
            let bomb = json!({ "cmd": BOMB, "background": true, "tag": "bomb", "user": user });
            start(&sandbox, bomb).await;
            eventually("there is no process left for it", || async {
                written(&sandbox, "bomb").await > 100
            })
            .await;
            is_in_control(&sandbox, &format!("a bomb of {user}"), &["bomb"]).await;
        }
        // Ahead of others is the agent alone, not what it starts.
        assert_eq!(sandbox.sh("nice").await, "0");
        assert!(sandbox.sh("chrt -p $$").await.contains("SCHED_OTHER"));
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
