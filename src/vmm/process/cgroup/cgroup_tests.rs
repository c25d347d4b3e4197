//! Cgroups against the real kernel, whichever version it has. Needs root.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::unistd::Pid;

use super::group::cpu_time;
use super::*;
use crate::skip::{is_root, skip};

const LIMITS: Limits = Limits {
    memory_bytes: 64 << 20,
    pids: 8,
    vcpus: 1,
    share: Share::Full,
    devices: DeviceAccess::Unrestricted,
};

/// A daemon's cgroups; none, and the test is skipped, where they cannot be tested.
fn cgroups() -> Option<(tempfile::TempDir, Cgroups)> {
    if !is_root("a cgroup") {
        return None;
    }
    let data = tempfile::tempdir().expect("a data directory");
    let cgroups = Cgroups::open(data.path()).expect("the machine's cgroups");
    if cgroups.hierarchies.is_empty() {
        skip("this machine has no cgroups mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`");
        return None;
    }
    Some((data, cgroups))
}

fn start(cgroup: &Cgroup, script: &str) -> Child {
    let entry = cgroup.entry().expect("a way in");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script]);
    // SAFETY: entering a cgroup only writes to open descriptors.
    unsafe { command.pre_exec(move || entry.enter()) };
    command.spawn().expect("the process starts")
}

fn dirs_of(cgroups: &Cgroups) -> Vec<PathBuf> {
    let parents = cgroups.hierarchies.iter().map(|hierarchy| cgroups.parent(hierarchy));
    parents.filter(|parent| parent.exists()).collect()
}

#[tokio::test]
async fn a_cgroup_is_made_with_its_limits_and_leaves_nothing() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let id = SandboxId::random();
    let cgroup = cgroups.create(&id, LIMITS).await.expect("a cgroup");
    assert_eq!(cgroups.list().expect("a list"), [id]);
    for place in cgroup.places() {
        let read = |name: &str| fs::read_to_string(place.dir.join(name)).expect(name);
        for controller in &place.controllers {
            match (controller, place.version) {
                (Controller::Pids, _) => assert_eq!(read("pids.max").trim(), "8"),
                (Controller::Memory, Version::V1) => {
                    assert_eq!(read("memory.limit_in_bytes").trim(), "67108864");
                }
                (Controller::Memory, Version::V2) => {
                    assert_eq!(read("memory.max").trim(), "67108864");
                }
                (Controller::Cpu, Version::V1) => assert_eq!(read("cpu.shares").trim(), "1024"),
                (Controller::Cpu, Version::V2) => {
                    assert_eq!(read("cpu.max").trim(), "200000 100000");
                }
                (Controller::CpuAccounting | Controller::Devices | Controller::Kill, _) => {}
            }
        }
    }
    cgroup.set_share(1, Share::Background).expect("a smaller share");
    for place in cgroup.places().iter().filter(|it| it.controllers.contains(&Controller::Cpu)) {
        let (file, value) = match place.version {
            Version::V1 => ("cpu.shares", "102"),
            Version::V2 => ("cpu.weight", "10"),
        };
        assert_eq!(fs::read_to_string(place.dir.join(file)).expect(file).trim(), value);
    }
    cgroup.release().await.expect("a clean release");
    assert!(cgroups.list().expect("a list").is_empty());
    assert_eq!(dirs_of(&cgroups), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn a_child_is_in_the_cgroup_before_it_executes_anything() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let cgroup = cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup");
    let mut child = start(&cgroup, "exec sleep 60");
    let pid = Pid::from_raw(child.id() as i32);
    for place in cgroup.places() {
        assert!(place.pids().expect("readable").contains(&pid), "{}", place.dir.display());
    }
    child.kill().expect("killed");
    child.wait().expect("reaped");
    cgroup.release().await.expect("a clean release");
}

#[tokio::test]
async fn killing_reaches_descendants_in_other_sessions() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let cgroup = cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup");
    let mut child = start(&cgroup, "setsid sleep 61 & setsid sleep 62 & wait");
    let alive = || cgroup.places()[0].pids().expect("readable").len();
    while alive() < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    cgroup.kill().await.expect("all gone");
    assert_eq!(alive(), 0);
    child.wait().expect("reaped");
    cgroup.release().await.expect("a clean release");
}

#[tokio::test]
async fn who_enters_after_all_were_killed_is_ended_too() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let cgroup = cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup");
    cgroup.kill().await.expect("nobody is in it");
    let mut late = start(&cgroup, "sleep 1000");
    cgroup.release().await.expect("a clean release");
    assert!(late.wait().expect("a child").code().is_none(), "it was killed");
    assert!(dirs_of(&cgroups).is_empty());
}

#[tokio::test]
async fn what_a_daemon_left_that_was_killed_half_way_is_removed() {
    let Some((_data, cgroups)) = cgroups() else { return };
    for hierarchy in &cgroups.hierarchies {
        fs::create_dir_all(cgroups.parent(hierarchy)).expect("a directory");
    }
    cgroups.remove_empty();
    assert!(dirs_of(&cgroups).is_empty());
    let cgroup = cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup");
    cgroups.remove_empty();
    assert!(!dirs_of(&cgroups).is_empty(), "one that is in use stays");
    cgroup.release().await.expect("a clean release");
}

#[tokio::test]
async fn a_running_process_can_be_added_and_is_accounted() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let cgroup = cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup");
    let mut child = Command::new("/bin/sh")
        .args(["-c", "read go; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("the process starts");
    cgroup.add(child.id()).await.expect("added");
    drop(child.stdin.take());
    child.wait().expect("done");
    let meter = cgroup.cpu_meter();
    let used = meter.as_ref().map(|meter| meter.read().expect("a number"));
    assert!(used.is_none_or(|time| time > Duration::ZERO), "{used:?}");
    cgroup.release().await.expect("a clean release");
    assert_eq!(meter.and_then(|meter| meter.read()), None, "nothing counts it any more");
}

#[tokio::test]
async fn the_limit_of_processes_holds() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let limited = cgroups
        .describe()
        .into_iter()
        .any(|support| support.controller == Controller::Pids && support.offered_by.is_some());
    if !limited {
        skip("this machine has no pids controller: mount or delegate it");
        return;
    }
    let limits = Limits { pids: 2, ..LIMITS };
    let cgroup = cgroups.create(&SandboxId::random(), limits).await.expect("a cgroup");
    // The shell is one, the first sleep the second; the kernel has no room for a third.
    let mut child = start(&cgroup, "sleep 1 & sleep 1 & wait");
    let status = child.wait().expect("reaped");
    assert!(!status.success());
    cgroup.kill().await.expect("all gone");
    cgroup.release().await.expect("a clean release");
}

#[tokio::test]
async fn a_cgroup_with_processes_outlives_its_guard_and_is_adopted() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let id = SandboxId::random();
    let cgroup = cgroups.create(&id, LIMITS).await.expect("a cgroup");
    let mut child = start(&cgroup, "exec sleep 60");
    drop(cgroup);
    assert_eq!(cgroups.list().expect("a list"), std::slice::from_ref(&id));
    let adopted = cgroups.adopt(&id).expect("it is there");
    adopted.kill().await.expect("all gone");
    child.wait().expect("reaped");
    adopted.release().await.expect("a clean release");
    assert!(matches!(cgroups.adopt(&id), Err(CgroupError::NotFound { .. })));
}

#[tokio::test]
async fn an_empty_cgroup_does_not_outlive_its_guard() {
    let Some((_data, cgroups)) = cgroups() else { return };
    drop(cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup"));
    assert!(cgroups.list().expect("a list").is_empty());
    assert_eq!(dirs_of(&cgroups), Vec::<PathBuf>::new());
}

#[tokio::test]
async fn daemons_do_not_see_each_others_cgroups() {
    let Some((_data, ours)) = cgroups() else { return };
    let Some((_their_data, theirs)) = cgroups() else { return };
    let id = SandboxId::random();
    let cgroup = theirs.create(&id, LIMITS).await.expect("a cgroup");
    assert!(ours.list().expect("a list").is_empty());
    assert!(ours.adopt(&id).is_err());
    cgroup.release().await.expect("a clean release");
}

#[tokio::test]
async fn many_cgroups_come_and_go_at_once() {
    let Some((_data, cgroups)) = cgroups() else { return };
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let cgroups = cgroups.clone();
        tasks.spawn(async move {
            let cgroup = cgroups.create(&SandboxId::random(), LIMITS).await.expect("a cgroup");
            cgroup.release().await.expect("a clean release");
        });
    }
    tasks.join_all().await;
    assert!(cgroups.list().expect("a list").is_empty());
}

#[test]
fn processor_time_is_read_in_both_formats() {
    let v2 = "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n";
    assert_eq!(cpu_time(Version::V2, v2), Some(Duration::from_micros(1500)));
    assert_eq!(cpu_time(Version::V1, "1500000\n"), Some(Duration::from_micros(1500)));
    assert_eq!(cpu_time(Version::V2, "nr_periods 0\n"), None);
}

/// Tries to open two devices in a cgroup, of which the first has the numbers of `/dev/kvm`, and says which
/// can be.
async fn devices_opened(cgroups: &Cgroups, devices: DeviceAccess) -> String {
    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    let dir = tempfile::tempdir().expect("a directory");
    let kvm = dir.path().join("kvm");
    mknod(&kvm, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(10, 232)).expect("a node");
    let id = SandboxId::random();
    let cgroup = cgroups.create(&id, Limits { devices, ..LIMITS }).await.expect("a cgroup");
    let entry = cgroup.entry().expect("a way in");
    // What the kernel says to one that is allowed depends on the machine; EPERM is the cgroup's.
    let script = "import os, errno\n\
        for path in ('kvm', '/dev/zero'):\n\
        \x20 try: os.open(path, os.O_RDWR); print('allowed')\n\
        \x20 except OSError as e: print('refused' if e.errno == errno.EPERM else 'allowed')";
    let mut command = Command::new("python3");
    command.args(["-c", script]).current_dir(dir.path());
    // SAFETY: entering a cgroup only writes to open descriptors.
    unsafe { command.pre_exec(move || entry.enter()) };
    let output = command.output().expect("the process starts");
    cgroup.release().await.expect("a clean release");
    String::from_utf8(output.stdout)
        .expect("words")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test]
async fn a_cgroup_opens_the_devices_that_it_is_given_and_no_others() {
    let Some((_data, mut cgroups)) = cgroups() else { return };
    let find = |version: Version| hierarchy::with_devices(version).expect("the machine's cgroups");
    let both: Vec<Hierarchy> = [Version::V1, Version::V2].into_iter().filter_map(find).collect();
    assert!(!both.is_empty(), "one version of the two can do it on any machine that tests run on");
    for hierarchy in both {
        cgroups.hierarchies = vec![hierarchy];
        assert_eq!(devices_opened(&cgroups, DeviceAccess::Unrestricted).await, "allowed allowed");
        assert_eq!(devices_opened(&cgroups, DeviceAccess::Nothing).await, "refused refused");
        assert_eq!(devices_opened(&cgroups, DeviceAccess::Kvm).await, "allowed refused");
    }
}
