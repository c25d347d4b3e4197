//! A VM that ends without having been asked to.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Daemon, Options, Sandbox, in_a_lab};

/// Starts a command that goes on for ever and ends the VM meanwhile. The caller is told in time, the
/// sandbox says why it is gone, and nothing is left of it.
async fn ends_under_a_command(daemon: &Daemon, end: impl AsyncFnOnce(&Sandbox)) -> String {
    let sandbox = daemon.create().await;
    let working = {
        let sandbox = sandbox.clone();
        tokio::spawn(async move {
            let answer = sandbox.try_exec(json!({ "cmd": "touch began; sleep 1000" })).await;
            (answer, Instant::now())
        })
    };
    while sandbox.sh("ls began 2>/dev/null || true").await.is_empty() {}
    let vm = format!("/proc/{}", sandbox.vm_pid());
    end(&sandbox).await;
    while std::path::Path::new(&vm).exists() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = Instant::now();
    let (answer, answered) = working.await.expect("no panic");
    let took = answered.saturating_duration_since(ended);
    assert!(took < Duration::from_secs(2), "the caller was told after {took:?}");
    let reason = sandbox.becomes("error").await;
    match answer.status {
        // A guest that shuts down in order ends the command first, and that is what came of it.
        200 => assert!(answer.body["exit_code"].as_i64() > Some(128), "{answer:?}"),
        _ => {
            let message = answer.is_error(502, "agent_error").message();
            assert!(message.contains(&reason), "{message} / {reason}");
        }
    }
    let refused = sandbox.try_exec(json!({ "cmd": "true" })).await;
    assert!(refused.is_error(409, "invalid_state").message().contains(&reason), "{refused:?}");
    reason
}

#[test]
fn a_vm_that_is_killed_is_told_at_once() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let reason = ends_under_a_command(&daemon, async |sandbox| sandbox.kill_vm()).await;
        assert!(reason.contains("SIGKILL"), "{reason}");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

#[test]
fn a_guest_that_powers_off_or_reboots_or_panics_is_gone_and_says_so() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        for end in [
            "echo o > /proc/sysrq-trigger",
            "echo b > /proc/sysrq-trigger",
            "echo c > /proc/sysrq-trigger",
            "kill -TERM 1",
        ] {
            let root =
                json!({ "cmd": format!("(sleep 0.2; {end}) >/dev/null 2>&1 &"), "user": "root" });
            let command = async |sandbox: &Sandbox| {
                sandbox.try_exec(root).await;
            };
            let reason = ends_under_a_command(&daemon, command).await;
            assert!(reason.contains("VM"), "{end}: {reason}");
            daemon.is_back_to(&idle).await;
        }
        daemon.stop().await;
    });
}

#[test]
fn a_vm_that_dies_while_its_image_boots_is_told_with_its_console() {
    in_a_lab(1, async |lab| {
        let images = Some(lab.cold_images());
        let mut daemon =
            lab.daemon_with(Options { images, slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let api = daemon.api().clone();
        let creating = tokio::spawn(async move { api.try_create(json!({})).await });
        daemon.starting().await.kill_vm();
        let answer = creating.await.expect("no panic");
        let message = answer.is_error(502, "agent_error").message();
        assert!(message.contains("SIGKILL") && message.contains("console"), "{message}");
        let sandbox = daemon.sandbox(&daemon.ids().await[0]);
        assert!(sandbox.becomes("error").await.contains("SIGKILL"));
        daemon.is_back_to(&idle).await;

        // The next one boots the image once more.
        daemon.create_with(json!({})).await.destroy().await;
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

#[test]
fn a_console_that_is_flooded_fills_no_disk() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let flood =
            json!({ "cmd": "timeout 6 sh -c 'yes flood > /dev/console'; true", "user": "root" });
        sandbox.exec(flood).await;
        let size = |name: &str| {
            std::fs::metadata(sandbox.dir().join(name)).map_or(0, |metadata| metadata.len())
        };
        let kept = size("console.log") + size("console.log.1");
        assert!(kept > 1000, "the flood was seen: {kept} bytes");
        assert!(kept < 300_000, "{kept} bytes");
        assert_eq!(sandbox.sh("echo on").await, "on");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
