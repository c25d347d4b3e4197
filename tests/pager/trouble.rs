//! What happens when something goes wrong: no VM waits for ever, and somebody says why.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use nestbox::vmm::storage::pager::{Phase, WorkingSet};
use nix::libc::SIGKILL;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{Lab, PATIENCE, exit_code, exit_of, pages};
use super::vm::Vm;

#[test]
fn a_file_that_cannot_be_read_ends_the_vm_and_says_why() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let mut restored = lab.restore(&lineage).served();
    restored.vm.touch(0, 16, "sequential", 1);
    let base = File::options().write(true).open(lineage.base_path()).unwrap();
    base.set_len(1 << 20).unwrap();
    let started = Instant::now();
    restored.vm.tell("touch 512 1 sequential 1");
    assert_eq!(restored.vm.killed_by(PATIENCE), Some(SIGKILL));
    let took = started.elapsed();
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(exit_code(restored.pager, PATIENCE), 1);
    let state = restored.state();
    let error = state.error().expect("it says why");
    assert!(error.contains("cannot serve the memory: memfile has 1048576 bytes"), "{error}");
    assert_eq!(state.phase(), Phase::Failed);
    let log = fs::read_to_string(restored.dir.join("pager.log")).unwrap();
    assert_eq!(log, format!("error: {error}\n"));
    println!("killed after {took:?}: {error}");
}

#[test]
fn a_diff_that_is_cut_off_is_found_out() {
    let lab = Lab::new();
    let base = lab.base(4, &[0..1024]);
    let mut restored = lab.restore(&base).served();
    restored.vm.write(100, 200, 1);
    let lineage = lab.capture(&restored, &base).lineage;
    let dir = lineage.base_path();
    let diff = fs::read_dir(dir.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let mut diffs = diff.filter(|path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("memfile.") && name != "memfile.header"
    });
    let diff = File::options().write(true).open(diffs.next().unwrap()).unwrap();
    let mut restored = lab.restore(&lineage).served();
    diff.set_len(4096).unwrap();
    restored.vm.tell("touch 200 1 sequential 1");
    assert_eq!(restored.vm.killed_by(PATIENCE), Some(SIGKILL));
    assert_eq!(exit_code(restored.pager, PATIENCE), 1);
    let error = restored.state().error().unwrap().to_owned();
    assert!(error.contains("cannot read memfile."), "{error}");
}

#[test]
fn a_handshake_that_is_wrong_ends_the_vm() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[]);
    for (kind, reason) in [
        ("no-fd", "0 descriptors"),
        ("two-fds", "2 descriptors"),
        ("other-fd", "cannot take over the VM's memory"),
        ("no-json", "no list of regions"),
        ("cut-off", "no list of regions"),
        ("nothing", "0 descriptors"),
        ("empty", "0 bytes instead of"),
        ("too-small", "does not begin where"),
        ("uneven", "not made of whole pages"),
        ("overlapping", "does not begin where"),
        ("huge-pages", "pages of 2097152 bytes"),
    ] {
        let mut restored = lab.restore_with(&lineage, kind, &WorkingSet::default());
        assert_eq!(restored.vm.killed_by(PATIENCE), Some(SIGKILL), "{kind}");
        assert_eq!(exit_code(restored.pager, PATIENCE), 1, "{kind}");
        let state = restored.state();
        let error = state.error().unwrap_or_else(|| panic!("{kind} has no reason"));
        println!("{kind}: {error}");
        assert!(error.contains(reason), "{kind}: {error}");
    }
}

#[test]
fn a_vm_that_hangs_up_and_lives_on_is_killed() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let mut restored = lab.restore_with(&lineage, "hangs-up", &WorkingSet::default()).served();
    restored.vm.touch(0, 100, "sequential", 1);
    assert_eq!(restored.vm.killed_by(PATIENCE), Some(SIGKILL));
    assert_eq!(exit_code(restored.pager, PATIENCE), 1);
    assert_eq!(restored.state().error(), Some("the VM has hung up and did not end"));
}

#[test]
fn another_users_process_is_not_served() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let (dir, pager) = lab.pager(&lineage, &WorkingSet::default());
    let mut stranger = Vm::start(&dir, 61_235, "good", &[1024]);
    assert_eq!(exit_code(pager, PATIENCE), 1);
    assert!(stranger.is_running());
}

#[test]
fn a_vm_whose_pager_was_killed_waits_until_it_is_killed_too() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let mut restored = lab.restore(&lineage).served();
    restored.vm.touch(0, 16, "sequential", 1);
    kill(Pid::from_raw(restored.pager.pid), Signal::SIGKILL).unwrap();
    exit_of(restored.pager, PATIENCE);
    assert_eq!(restored.state().phase(), Phase::Serving, "it could not say anything");
    restored.vm.tell("touch 512 1 sequential 1");
    assert!(restored.vm.is_stuck(Duration::from_millis(500)));
    restored.vm.kill();
}

#[test]
fn a_vm_that_ends_while_it_waits_leaves_no_pager() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let mut restored = lab.restore(&lineage).served();
    kill(Pid::from_raw(restored.pager.pid), Signal::SIGSTOP).unwrap();
    restored.vm.tell("touch 512 512 random 4");
    assert!(restored.vm.is_stuck(Duration::from_millis(100)));
    restored.vm.kill();
    kill(Pid::from_raw(restored.pager.pid), Signal::SIGCONT).unwrap();
    assert_eq!(exit_code(restored.pager, PATIENCE), 0);
}

#[test]
fn a_vm_that_ends_while_much_is_prefetched_leaves_no_pager() {
    let lab = Lab::new();
    let lineage = lab.base(64, &[0..pages(64)]);
    let set: WorkingSet = (0..512).map(|n| n * 32..n * 32 + 16).collect();
    for pause in [0, 1, 3, 10] {
        let mut restored = lab.restore_with(&lineage, "good", &set).served();
        std::thread::sleep(Duration::from_millis(pause));
        restored.vm.kill();
        assert_eq!(exit_code(restored.pager, PATIENCE), 0, "{:?}", restored.state().error());
    }
}

#[test]
fn a_hundred_pagers_leave_nothing() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let mut ends = Vec::new();
    let mut before = 0;
    for round in 0..100 {
        if round == 1 {
            before = descriptors();
        }
        let mut restored = lab.restore(&lineage).served();
        restored.vm.touch(0, 64, "random", 2);
        restored.vm.kill();
        let started = Instant::now();
        assert_eq!(exit_code(restored.pager, PATIENCE), 0);
        ends.push(started.elapsed());
    }
    println!("a pager ends {:?} after its VM at most", ends.iter().max().unwrap());
    // Other tests of this process open some too.
    let after = descriptors();
    assert!(after < before + 100, "{before} descriptors, then {after}");
}

#[test]
#[ignore = "takes long: a minute, see `make test-long`"]
fn takes_long_a_pager_without_a_vm_gives_up_after_a_minute() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[]);
    let (dir, pager) = lab.pager(&lineage, &WorkingSet::default());
    assert_eq!(exit_code(pager, Duration::from_secs(70)), 1);
    let state = nestbox::vmm::storage::pager::State::read(&dir).unwrap();
    assert_eq!(state.error(), Some("no VM has connected within 60s"));
}
