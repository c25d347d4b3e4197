//! A daemon that ends, one way or another, and starts again: sandboxes run on, and nothing is
//! orphaned.

use std::fs;
use std::time::Duration;

use chrono::{DateTime, Utc};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::support::{Daemon, Options, Sandbox, eventually, eventually_within, in_a_lab};

/// How a daemon ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Killed,
    InOrder,
}

async fn restart(daemon: &mut Daemon, end: End) {
    match end {
        End::Killed => daemon.kill9().await,
        End::InOrder => daemon.stop().await,
    }
    daemon.start_again().await;
}

/// When a sandbox's time will be over, as the API says.
async fn expires_at(sandbox: &Sandbox) -> DateTime<Utc> {
    let look = sandbox.look().await;
    look["expires_at"].as_str().expect("a time").parse().expect("a time")
}

#[test]
fn sandboxes_survive_every_end_of_the_daemon() {
    in_a_lab(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let wish = || json!({ "memory_mb": 256, "envs": { "MARK": "kept" } });
        let (first, second) = tokio::join!(daemon.create_with(wish()), daemon.create_with(wish()));
        let mut third = daemon
            .create_with(json!({ "memory_mb": 256, "timeout_sec": 45, "metadata": { "a": "b" } }))
            .await;
        let mut lasting = [first, second];
        for sandbox in &lasting {
            sandbox.sh(&format!("echo {} > mine; sleep 5000 >/dev/null 2>&1 &", sandbox.id)).await;
        }
        third.sh("true").await;
        // Activity is recorded within a second.
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let due = expires_at(&third).await;
        let pids: Vec<i32> = lasting.iter().map(Sandbox::vm_pid).collect();

        for end in [End::Killed, End::InOrder, End::Killed] {
            restart(&mut daemon, end).await;
            for (sandbox, pid) in lasting.iter_mut().zip(&pids) {
                *sandbox = sandbox.through(daemon.api());
                assert_eq!(sandbox.vm_pid(), *pid, "after {end:?}");
                assert_eq!(sandbox.state().await, "running");
                assert_eq!(
                    sandbox.sh("cat mine; echo $MARK").await,
                    format!("{}\nkept", sandbox.id)
                );
                assert_eq!(
                    sandbox.sh("grep -lzx '500[0]' /proc/[0-9]*/cmdline | wc -l").await,
                    "1"
                );
                sandbox.write("more", "data").await;
                assert_eq!(sandbox.read("more").await, b"data");
            }
            assert!(daemon.announced().contains("3 of a former daemon"), "{}", daemon.announced());
        }

        third = third.through(daemon.api());
        assert_eq!(third.state().await, "running");
        assert_eq!(expires_at(&third).await, due, "its time goes on as it was");
        let reason = third.becomes("stopped").await;
        let late = (Utc::now() - due).num_milliseconds();
        assert!((0..3000).contains(&late), "it ended {late} ms after its time");
        assert!(reason.contains("45 s"), "{reason}");

        for sandbox in &lasting {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn a_time_that_ran_out_while_no_daemon_ran_is_over_at_the_next_start() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let wish = json!({ "memory_mb": 256, "timeout_sec": 6 });
        let sandbox = daemon.create_with(wish).await;
        let vm = format!("/proc/{}", sandbox.vm_pid());
        daemon.kill9().await;
        tokio::time::sleep(Duration::from_secs(7)).await;
        assert!(std::path::Path::new(&vm).exists(), "nobody ends it meanwhile");
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        let over = || async { sandbox.state().await == "stopped" };
        // Its time does not begin anew.
        eventually_within(Duration::from_secs(5), "it is over", &mut { over }).await;
        daemon.stop().await;
    });
}

#[test]
fn what_cannot_be_adopted_says_why_and_is_cleaned_up() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let (killed, garbled) = tokio::join!(daemon.create(), daemon.create());

        daemon.kill9().await;
        killed.kill_vm();
        fs::write(garbled.dir().join("sandbox.json"), "{ \"id\": 7").expect("garbage");
        let leftover = lab.data_dir().join("sandboxes/leftover");
        fs::create_dir_all(leftover.join("deep")).expect("a leftover");
        fs::write(leftover.join("deep/file"), "x").expect("a leftover");
        fs::write(lab.data_dir().join("sandboxes/stray"), "x").expect("a leftover");
        daemon.start_again().await;

        let killed = killed.through(daemon.api());
        let reason = killed.becomes("error").await;
        assert!(reason.contains("did not survive") && reason.contains("gone"), "{reason}");
        let refused = killed.try_exec(json!({ "cmd": "true" })).await;
        assert!(refused.is_error(409, "invalid_state").message().contains("gone"), "{refused:?}");
        assert!(daemon.announced().contains(&format!("Lost:       {}", killed.id)));
        // Nobody knows any more what its VM was, so it is ended.
        let garbled = garbled.through(daemon.api());
        let reason = garbled.becomes("stopped").await;
        assert!(reason.contains("VM not found at startup"), "{reason}");
        killed.destroy().await;
        garbled.destroy().await;

        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

#[test]
fn a_daemon_that_is_killed_while_it_creates_orphans_nothing() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 2, ..Options::default() }).await;
        for delay in [0, 5, 15, 40, 80, 120, 200, 400, 800, 1600] {
            let requests: Vec<_> = (0..2)
                .map(|_| {
                    let api = daemon.api().clone();
                    tokio::spawn(async move { api.try_create(json!({ "memory_mb": 256 })).await })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(delay)).await;
            daemon.kill9().await;
            for request in requests {
                // It may have been done, or its connection broke.
                let _ = request.await;
            }
            daemon.start_again().await;
            for id in daemon.ids().await {
                let sandbox = daemon.sandbox(&id);
                let state = sandbox.state().await;
                assert!(
                    ["running", "error"].contains(&state.as_str()),
                    "after {delay} ms: {state}"
                );
                sandbox.destroy().await;
            }
            // The daemon makes its slots meanwhile, and looks like two while it starts a program.
            eventually(&format!("nothing is left after {delay} ms"), || async {
                let census = daemon.census();
                let counts = ["processes", "cgroups", "files"].map(|what| census.count(what));
                counts == [1, 0, 0]
            })
            .await;
        }
        daemon.stop().await;
    });
}

#[test]
fn a_daemon_that_is_killed_while_it_destroys_goes_on_with_it() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        for delay in [0, 3, 10, 30, 60] {
            let sandbox = daemon.create().await;
            let destroying = {
                let sandbox = sandbox.clone();
                tokio::spawn(async move { sandbox.try_destroy().await })
            };
            tokio::time::sleep(Duration::from_millis(delay)).await;
            daemon.kill9().await;
            let _ = destroying.await;
            daemon.start_again().await;
            let sandbox = sandbox.through(daemon.api());
            // The wish may not have reached the daemon at all; or it goes on at this moment.
            if sandbox.state().await == "running" {
                let answer = sandbox.try_exec(json!({ "cmd": "echo whole" })).await;
                assert!([200, 409].contains(&answer.status), "after {delay} ms: {answer:?}");
            }
            sandbox.destroy().await;
            assert!(!sandbox.dir().exists(), "after {delay} ms");
            assert_eq!(daemon.census().count("cgroups"), 0, "after {delay} ms");
        }
        daemon.stop().await;
    });
}

#[test]
fn a_daemon_that_is_killed_while_idle_leaves_nothing_after_the_next() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 6, ..Options::default() }).await;
        eventually("the pool is full", || async { daemon.census().count("claimed slots") == 6 })
            .await;
        daemon.kill9().await;
        daemon.start_again().await;
        daemon.kill9().await;
        daemon.start_again().await;
        eventually("the pool is full", || async { daemon.census().count("claimed slots") == 6 })
            .await;
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(daemon.census().count("network namespaces"), 6);
        assert_eq!(daemon.census().count("claimed slots"), 6);
        daemon.stop().await;
    });
}

#[test]
fn an_interrupt_is_orderly_while_a_command_runs() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        // The first command of a guest may take longer by itself than a daemon waits at its end.
        sandbox.sh("true").await;
        let working = {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { sandbox.exec(json!({ "cmd": "sleep 2; echo done" })).await })
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let status = daemon.signal(Signal::SIGINT).await;
        assert!(status.success(), "{status}");
        assert_eq!(working.await.expect("an answer").text(), "done", "requests are finished");
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        assert_eq!(sandbox.sh("echo on").await, "on");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
