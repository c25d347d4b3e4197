//! A hundred sandboxes, one after the other and some at the same time.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use futures::StreamExt;
use serde_json::json;

use crate::support::{Daemon, Options, Sandbox, in_a_lab};

const SANDBOXES: usize = 100;

/// What a guest says that no other may say: what the kernel makes of its random pool, directly and
/// through Python, and what its init made at boot.
const SAY: &str = "cat /proc/sys/kernel/random/uuid; cat /proc/sys/kernel/random/boot_id; \
                   python3 -c 'import os; print(os.urandom(16).hex())'";

#[test]
fn a_hundred_sandboxes_leave_nothing_and_share_no_randomness() {
    in_a_lab(2, async |lab| {
        let options = Options { slot_pool: 0, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        // The first one makes what the daemon keeps: connections, threads, caches.
        daemon.create().await.destroy().await;
        let (idle, descriptors) = (daemon.census(), open_files(daemon.pid()));

        let api = daemon.api();
        let lives = futures::stream::iter(0..SANDBOXES).map(|number| async move {
            let sandbox = api.create_with(json!({ "memory_mb": 192 })).await;
            let said = sandbox.sh(SAY).await;
            // Not all of them live their lives in the same step.
            if number % 5 == 0 {
                sandbox.kill_vm();
                sandbox.becomes("error").await;
            }
            sandbox.destroy().await;
            said
        });
        let said: Vec<String> = lives.buffer_unordered(2).collect().await;

        let values: Vec<&str> = said.iter().flat_map(|text| text.lines()).collect();
        assert_eq!(values.len(), 3 * SANDBOXES);
        assert_eq!(values.iter().collect::<HashSet<_>>().len(), values.len(), "{values:#?}");
        daemon.is_back_to(&idle).await;
        // Kept-alive connections of the test itself come and go.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = open_files(daemon.pid());
        assert!(now <= descriptors + 4, "{descriptors} descriptors were open, {now} are");
        assert_eq!(zombies(daemon.pid()), 0);
        daemon.stop().await;
    });
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").count()
}

/// Children that ended and were not waited for.
fn zombies(parent: u32) -> usize {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let stats = entries.filter_map(|entry| fs::read_to_string(entry.path().join("stat")).ok());
    let ended = stats.filter(|stat| {
        let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let mut words = after_name.split_whitespace();
        words.next() == Some("Z") && words.next() == Some(&parent.to_string())
    });
    ended.count()
}

const CYCLES: usize = 6;

/// Where a sandbox is in its life when the daemon is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    Never,
    Paused,
    Forked,
    Named,
}

/// Everything that can be done to a sandbox. The daemon is killed at a moment, and started again.
async fn live(daemon: &mut Daemon, killed: Moment) {
    let mut sandbox = daemon.create().await;
    sandbox.pause().await;
    sandbox = or_again(daemon, sandbox, killed == Moment::Paused).await;
    sandbox.resume().await;
    let mut child = sandbox.fork(1).await.remove(0);
    sandbox = or_again(daemon, sandbox, killed == Moment::Forked).await;
    child = child.through(daemon.api());
    child.pause().await;
    sandbox.snapshot("kept").await;
    sandbox = or_again(daemon, sandbox, killed == Moment::Named).await;
    let named = daemon.create_with(json!({ "template": "kept" })).await;
    daemon.delete_snapshot("kept").await;
    assert_eq!(named.sh("echo on").await, "on");
    for sandbox in [named, child.through(daemon.api()), sandbox] {
        sandbox.destroy().await;
    }
}

async fn or_again(daemon: &mut Daemon, sandbox: Sandbox, killed: bool) -> Sandbox {
    if killed {
        daemon.kill9().await;
        daemon.start_again().await;
    }
    sandbox.through(daemon.api())
}

fn cycles_leave_nothing(moments: &'static [Moment]) {
    // The lab compares what there was before the daemon with what there is after it.
    in_a_lab(4, async |lab| {
        let options = Options { slot_pool: 1, standbys: 1, vmm_pool: 1, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        for cycle in 0..CYCLES {
            live(&mut daemon, moments[cycle % moments.len()]).await;
        }
        let descriptors = open_files(daemon.pid());
        live(&mut daemon, Moment::Never).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = open_files(daemon.pid());
        assert!(now <= descriptors + 20, "{descriptors} descriptors were open, {now} are");
        assert_eq!(zombies(daemon.pid()), 0);
        assert!(daemon.ids().await.is_empty());
        daemon.stop().await;
        let left = daemon.census();
        for kind in ["processes", "files", "network namespaces", "cgroups", "claimed slots"] {
            assert_eq!(left.count(kind), 0, "{kind}: {left:#?}");
        }
    });
}

#[test]
fn whole_lives_with_standbys_leave_nothing() {
    cycles_leave_nothing(&[Moment::Never]);
}

#[test]
fn whole_lives_under_daemons_that_are_killed_leave_nothing() {
    cycles_leave_nothing(&[Moment::Paused, Moment::Forked, Moment::Named]);
}
