//! Firecrackers that wait for a snapshot before anybody asks for a sandbox.

use std::fs;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{rollup, under_firecracker};
use crate::support::{Daemon, Options, Sandbox, World, eventually, lives};

fn ahead(vmm_pool: usize) -> Options {
    Options { vmm_pool, ..Options::default() }
}

/// The sandbox that the process which waits now will become.
async fn waiting(daemon: &Daemon) -> Sandbox {
    let ready = || async { daemon.metric("nestbox_vmms_ready").await == 1.0 };
    eventually("a Firecracker waits", ready).await;
    let mut found = daemon.unclaimed().await;
    assert_eq!(found.len(), 1);
    found.remove(0)
}

/// A setting of the cgroup of a process, in the hierarchy of version 2.
fn setting(pid: i32, name: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).expect("its cgroups");
    let path = text.lines().find_map(|line| line.strip_prefix("0::")).expect("version 2");
    let setting = fs::read_to_string(format!("/sys/fs/cgroup{path}/{name}")).expect(name);
    setting.trim().parse().expect("a number")
}

/// Has a guest try to reach what is beyond the host.
async fn reaches_outside(sandbox: &Sandbox) -> bool {
    let (outside, port) = (World::OUTSIDE, World::WEB);
    let program = format!("import socket; socket.create_connection(('{outside}', {port}), 5)");
    let answer = sandbox.exec(json!({ "cmd": "python3", "args": ["-c", program] })).await;
    answer.exit_code == 0
}

#[test]
fn a_create_is_loaded_into_what_waits_whatever_it_is() {
    under_firecracker(3, async |lab| {
        let world = World::connect();
        let mut daemon = lab.daemon_with(ahead(1)).await;
        let first = daemon.create().await;
        first.sh("echo kept > /tmp/kept").await;
        first.snapshot("kept").await;
        first.destroy().await;

        let closed = json!({ "default": "deny" });
        let wishes = [
            (json!({ "memory_mb": 512, "envs": { "A": "b" } }), 512, "b", true),
            (json!({ "memory_mb": 256, "network": closed }), 256, "", false),
            (json!({ "template": "kept" }), 256, "kept", true),
        ];
        for (wish, memory_mib, says, open) in wishes {
            let ahead = waiting(&daemon).await;
            daemon.get(&format!("/v1/sandboxes/{}", ahead.id)).await.is_error(404, "not_found");
            eprintln!("one that waits has {} kB, proportional", rollup(ahead.vm_pid(), "Pss"));
            let background = setting(ahead.vm_pid(), "cpu.weight");
            let sandbox = daemon.create_with(wish.clone()).await;
            assert_eq!((&sandbox.id, sandbox.vm_pid()), (&ahead.id, ahead.vm_pid()), "{wish}");
            // What it was given before anybody knew what it would be is not what it has now.
            let memory_max = setting(sandbox.vm_pid(), "memory.max");
            assert_eq!(memory_max, (memory_mib + 256) << 20, "{wish}");
            assert_eq!((background, setting(sandbox.vm_pid(), "cpu.weight")), (10, 100));
            assert_eq!(reaches_outside(&sandbox).await, open, "{wish}");
            assert_eq!(sandbox.sh("hostname").await, sandbox.id.as_str());
            let said = sandbox.sh("echo $A; cat /tmp/kept 2>/dev/null; true").await;
            assert_eq!(said.trim(), says, "{wish}");
            // It is as any other from now on.
            sandbox.pause().await;
            sandbox.resume().await;
            assert_eq!(sandbox.sh("echo still").await, "still");
            sandbox.destroy().await;
        }
        waiting(&daemon).await;
        daemon.delete_snapshot("kept").await;
        daemon.stop().await;
        assert_eq!(daemon.census().count("processes"), 0);
        world.disconnect();
    });
}

#[test]
fn one_that_has_died_while_it_waited_is_made_up_for() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon_with(ahead(1)).await;
        daemon.create().await.destroy().await;
        let ahead = waiting(&daemon).await;
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
        let mut daemon = lab.daemon_with(ahead(1)).await;
        daemon.create().await.destroy().await;
        let process = waiting(&daemon).await.vm_pid();
        daemon.kill9().await;
        assert!(lives(process), "nobody ended it");
        daemon.start_again().await;
        assert!(!lives(process), "nobody asked for it");
        assert!(daemon.ids().await.is_empty());

        daemon.create().await.destroy().await;
        let process = waiting(&daemon).await.vm_pid();
        daemon.stop().await;
        assert!(!lives(process));
        nothing_is_left(&daemon);
    });
}

#[test]
fn as_many_wait_as_are_wanted_and_no_more_are_made_once_the_daemon_ends() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon_with(ahead(5)).await;
        daemon.create().await.destroy().await;
        let some = || async { daemon.metric("nestbox_vmms_ready").await >= 1.0 };
        eventually("the first waits", some).await;
        daemon.stop().await;
        nothing_is_left(&daemon);

        daemon.start_again().await;
        daemon.create().await.destroy().await;
        let all = || async { daemon.metric("nestbox_vmms_ready").await == 5.0 };
        eventually("all wait", all).await;
        assert_eq!(daemon.unclaimed().await.len(), 5);
        daemon.stop().await;
        nothing_is_left(&daemon);
    });
}

fn nothing_is_left(daemon: &Daemon) {
    for kind in ["processes", "files", "network namespaces", "cgroups", "claimed slots"] {
        assert_eq!(daemon.census().count(kind), 0, "{kind}: {:#?}", daemon.census());
    }
}
