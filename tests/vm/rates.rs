//! How fast a sandbox may use its disk, whatever became of it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Options, Sandbox, eventually, in_a_lab};

/// Bytes a second.
const RATE: u64 = 2 << 20;

/// The least time that [`write`] takes at this rate, of which a second's worth may come at once.
const LEAST: Duration = Duration::from_secs(2);

/// Writes three times [`RATE`] past the guest's cache.
async fn write(sandbox: &Sandbox) -> Duration {
    let started = Instant::now();
    sandbox.sh("dd if=/dev/zero of=/home/user/block bs=1M count=6 oflag=direct 2>/dev/null").await;
    started.elapsed()
}

#[test]
fn a_disk_is_no_faster_than_it_may_be_whatever_becomes_of_its_sandbox() {
    in_a_lab(4, async |lab| {
        let mut daemon = lab.daemon_with(Options { standbys: 1, ..Options::default() }).await;
        let unlimited = daemon.create().await;
        assert_eq!(unlimited.look().await["rate_limits"], json!({}));
        eventually("a standby", || async { !daemon.unclaimed().await.is_empty() }).await;
        let standby = daemon.unclaimed().await.remove(0);
        let rates = json!({ "disk_bytes_per_sec": RATE });
        let limited = daemon.create_with(json!({ "memory_mb": 256, "rate_limits": rates })).await;
        assert_eq!(limited.id, standby.id, "it was a standby, which has no limits");
        assert_eq!(limited.look().await["rate_limits"], rates);
        let took = write(&limited).await;
        assert!(took >= LEAST, "{took:?}");

        limited.pause().await;
        limited.resume().await;
        let took = write(&limited).await;
        assert!(took >= LEAST, "resumed, {took:?}");
        let child = limited.fork(1).await.remove(0);
        assert_eq!(child.look().await["rate_limits"], rates);
        let took = write(&child).await;
        assert!(took >= LEAST, "forked, {took:?}");

        // What was captured of it has its limits, and whoever is made from that does not.
        limited.snapshot("limited").await;
        let free = daemon.create_with(json!({ "template": "limited" })).await;
        for sandbox in [&unlimited, &free] {
            // On a busy machine it takes more than one attempt to see it.
            eventually("it is faster", || async { write(sandbox).await < LEAST }).await;
        }
        for sandbox in [unlimited, limited, child, free] {
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("limited").await;
        daemon.stop().await;
    });
}
