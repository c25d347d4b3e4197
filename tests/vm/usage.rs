//! What VMs take of the host, as the API tells it.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::sleep;

use crate::support::{Sandbox, eventually, in_a_lab};

const MIB: u64 = 1 << 20;

async fn usage(sandbox: &Sandbox) -> Value {
    sandbox.usage().await.expect(200)
}

fn number(sample: &Value, field: &str) -> u64 {
    sample[field].as_u64().unwrap_or_else(|| panic!("{field} of {sample}"))
}

fn cpu(sample: &Value) -> f64 {
    sample["cpu_percent"].as_f64().expect("a number")
}

async fn history(sandbox: &Sandbox) -> Vec<Value> {
    usage(sandbox).await["history"].as_array().expect("a list").clone()
}

#[test]
fn a_busy_guest_shows_its_processor_time_and_an_idle_one_nearly_none() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let (busy, idle) = (daemon.create().await, daemon.create().await);
        let mut socket = busy.session(None).await;
        socket.start("while :; do :; done").await;
        // The first sample of a VM in software still has the end of its restore in it.
        for sandbox in [&busy, &idle] {
            eventually("two samples", || async { history(sandbox).await.len() >= 2 }).await;
        }
        let (told, quiet) = (usage(&busy).await, usage(&idle).await);
        let last = |usage: &Value| usage["history"].as_array().expect("a list")[1].clone();
        eprintln!("busy {} now {}", last(&told), told["now"]);
        eprintln!("idle {} now {}", last(&quiet), quiet["now"]);
        for sample in [last(&told), told["now"].clone()] {
            assert!((12.0..210.0).contains(&cpu(&sample)), "{sample}");
        }
        assert!(cpu(&last(&quiet)) < 3.0, "{quiet}");
        for sandbox in [busy, idle] {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn memory_and_disk_grow_with_what_the_guest_writes() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let before = usage(&sandbox).await["now"].clone();
        assert_eq!(number(&before, "memory_total_bytes"), 256 * MIB);
        assert!((MIB..150 * MIB).contains(&number(&before, "memory_used_bytes")), "{before}");
        let storage = sandbox.look().await["storage"].clone();
        assert_eq!(before["disk_used_bytes"], storage["disk_bytes"]);

        let mut socket = sandbox.session(None).await;
        socket
            .start("python3 -c 'x = bytearray(b\"x\") * (64 << 20); print(1, flush=True); input()'")
            .await;
        socket.stdout("1\n").await;
        sandbox.sh("head -c 16M /dev/urandom > /home/user/file && sync").await;
        let after = usage(&sandbox).await["now"].clone();
        eprintln!("before {before}\nafter {after}");
        let grown = |field| number(&after, field).saturating_sub(number(&before, field)) / MIB;
        assert!((60..160).contains(&grown("memory_used_bytes")), "{before} {after}");
        assert!((16..40).contains(&grown("disk_used_bytes")), "{before} {after}");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_pause_keeps_the_history_and_a_daemon_that_starts_again_begins_one() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        eventually("a sample", || async { !history(&sandbox).await.is_empty() }).await;
        sandbox.pause().await;
        let paused = usage(&sandbox).await;
        let kept = paused["history"].as_array().expect("a list").clone();
        assert!(!kept.is_empty());
        let now = &paused["now"];
        assert_eq!((cpu(now), number(now, "memory_used_bytes")), (0.0, 0), "{now}");
        let storage = sandbox.look().await["storage"].clone();
        assert_eq!(now["disk_used_bytes"], storage["disk_bytes"]);
        sandbox.resume().await;
        eventually("another sample", || async { history(&sandbox).await.len() > kept.len() }).await;
        assert_eq!(history(&sandbox).await[..kept.len()], kept);

        daemon.kill9().await;
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        assert_eq!(history(&sandbox).await.len(), 0);
        sleep(Duration::from_secs(1)).await;
        let found = usage(&sandbox).await["now"].clone();
        assert!(number(&found, "memory_used_bytes") > MIB, "{found}");
        assert!(cpu(&found) < 50.0, "only what it uses since it was found: {found}");
        eventually("a sample", || async { !history(&sandbox).await.is_empty() }).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn the_host_tells_what_it_has_ready() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        eventually("a slot is ready", || async {
            daemon.metric("nestbox_slots_ready").await == 1.0
        })
        .await;
        assert_eq!(daemon.metric("nestbox_standbys_ready").await, 0.0);
        assert_eq!(daemon.metric("nestbox_vmms_ready").await, 0.0);
        let sandbox = daemon.create_with(json!({ "memory_mb": 256 })).await;
        sandbox.sh("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done").await;
        sandbox.destroy().await;
        assert!(daemon.metric("nestbox_sandbox_cpu_seconds_total").await > 0.01);
        assert_eq!(daemon.metric("nestbox_sandbox_memory_bytes").await, 0.0);
        daemon.stop().await;
    });
}
