//! Firecrackers that wait for a snapshot before anybody asks for a sandbox.

use std::collections::HashSet;
use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{is_gone, rollup, under_firecracker};
use crate::support::{Daemon, Lab, Options, Sandbox, eventually};

fn one_ahead() -> Options {
    Options { vmm_pool: 1, ..Options::default() }
}

/// The sandbox that the process which waits now will become.
async fn waiting(daemon: &Daemon, lab: &Lab) -> Sandbox {
    let ready = || async { daemon.metric("nestbox_vmms_ready").await == 1.0 };
    eventually("a Firecracker waits", ready).await;
    let known: HashSet<String> = daemon.ids().await.into_iter().collect();
    let entries = fs::read_dir(lab.data_dir().join("sandboxes")).expect("sandboxes").flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut others = names.filter(|name| !known.contains(name));
    let found = daemon.sandbox(&others.next().expect("it has a directory"));
    assert_eq!(others.next(), None);
    found
}

/// What the kernel lets the cgroup of a process have, in bytes.
fn memory_limit(pid: i32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).expect("version 2");
    let limit = fs::read_to_string(format!("/sys/fs/cgroup{path}/memory.max"));
    limit.expect("its limit").trim().parse().expect("a number")
}

#[test]
fn a_create_is_loaded_into_what_waits_whatever_it_is() {
    under_firecracker(3, async |lab| {
        let mut daemon = lab.daemon_with(one_ahead()).await;
        let first = daemon.create().await;
        first.sh("echo kept > /tmp/kept").await;
        first.snapshot("kept").await;
        first.destroy().await;

        let closed = json!({ "default": "deny" });
        let wishes = [
            (json!({ "memory_mb": 512, "envs": { "A": "b" } }), 512 + 256),
            (json!({ "memory_mb": 256, "network": closed }), 256 + 256),
            (json!({ "template": "kept" }), 256 + 256),
        ];
        for (wish, limit_mib) in wishes {
            let ahead = waiting(&daemon, lab).await;
            daemon.get(&format!("/v1/sandboxes/{}", ahead.id)).await.is_error(404, "not_found");
            eprintln!("one that waits has {} kB, proportional", rollup(ahead.vm_pid(), "Pss"));
            let sandbox = daemon.create_with(wish.clone()).await;
            assert_eq!((&sandbox.id, sandbox.vm_pid()), (&ahead.id, ahead.vm_pid()), "{wish}");
            assert_eq!(memory_limit(sandbox.vm_pid()), limit_mib << 20, "{wish}");
            assert_eq!(sandbox.sh("hostname").await, sandbox.id.as_str());
            let said = sandbox.sh("echo $A; cat /tmp/kept 2>/dev/null; true").await;
            let expected = match (wish["envs"].is_object(), wish["template"].is_string()) {
                (true, _) => "b",
                (_, true) => "kept",
                _ => "",
            };
            assert_eq!(said.trim(), expected, "{wish}");
            // It is as any other from now on.
            sandbox.pause().await;
            sandbox.resume().await;
            assert_eq!(sandbox.sh("echo still").await, "still");
            sandbox.destroy().await;
        }
        waiting(&daemon, lab).await;
        daemon.delete_snapshot("kept").await;
        daemon.stop().await;
        assert_eq!(daemon.census().count("processes"), 0);
    });
}

#[test]
fn one_that_has_died_while_it_waited_is_made_up_for() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon_with(one_ahead()).await;
        daemon.create().await.destroy().await;
        let ahead = waiting(&daemon, lab).await;
        let process = ahead.vm_pid();
        kill(Pid::from_raw(process), Signal::SIGKILL).expect("it can be killed");
        let sandbox = daemon.create().await;
        assert_ne!(sandbox.vm_pid(), process);
        assert_eq!(sandbox.sh("echo here").await, "here");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn none_is_left_when_the_daemon_ends_however_it_does() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon_with(one_ahead()).await;
        daemon.create().await.destroy().await;
        let process = waiting(&daemon, lab).await.vm_pid();
        daemon.kill9().await;
        assert!(!is_gone(process), "nobody ended it");
        daemon.start_again().await;
        assert!(is_gone(process), "nobody asked for it");
        assert!(daemon.ids().await.is_empty());

        daemon.create().await.destroy().await;
        let process = waiting(&daemon, lab).await.vm_pid();
        daemon.stop().await;
        assert!(is_gone(process));
        for kind in ["processes", "files", "network namespaces", "cgroups", "claimed slots"] {
            assert_eq!(daemon.census().count(kind), 0, "{kind}: {:#?}", daemon.census());
        }
    });
}
