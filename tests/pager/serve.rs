//! What a VM finds in its memory.

use std::fs;
use std::thread;
use std::time::Duration;

use nestbox::vmm::storage::memory::{Durability, Lineage, PAGE_SIZE};
use nestbox::vmm::storage::pager::{Phase, State, WorkingSet};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::lab::{Lab, PATIENCE, content, eventually, exit_code, pages, status_kb};

/// Diffs of three VMs, one on the other, on a base with data, holes and more data.
fn chain(lab: &Lab) -> Lineage {
    let mut lineage = lab.base(32, &[0..1000, 1003..1004, 3000..4000, 8000..8192]);
    for round in 0..3u8 {
        let mut restored = lab.restore(&lineage).served();
        restored.vm.write(10 * u64::from(round), 15, 100 + round);
        restored.vm.write(2000 + 100 * u64::from(round), 150, 50 + round);
        restored.vm.write(3500, 5 + u64::from(round), 0);
        (0..40).for_each(|n| restored.vm.write(6100 + 3 * n + u64::from(round), 1, round + 1));
        lineage = lab.capture(&restored, &lineage).lineage;
    }
    assert_eq!(lineage.diffs(), 3);
    lineage
}

#[test]
fn every_byte_of_every_generation_arrives() {
    let lab = Lab::new();
    let lineage = chain(&lab);
    let expected = content(&lineage);
    for order in ["random", "sequential"] {
        let mut restored = lab.restore(&lineage);
        restored.vm.touch(0, pages(32), order, 4);
        assert!(restored.vm.read(0, pages(32)) == expected, "{order}");
        let counters = restored.counters();
        println!("{order}: {counters:?}");
        assert_eq!(counters.pages_faulted, pages(32), "each page was served once");
        let zero = expected.chunks_exact(PAGE_SIZE).filter(|page| page.iter().all(|b| *b == 0));
        assert_eq!(counters.pages_zero, zero.count() as u64, "no zero page was read");
        let read = (pages(32) - counters.pages_zero) * PAGE_SIZE as u64;
        assert_eq!((counters.bytes_read, counters.pages_given_back), (read, 0));
    }
}

#[test]
fn a_single_full_file_is_served_too() {
    let lab = Lab::new();
    let base = lab.base(4, &[5..700]);
    let dir = lab.dir();
    base.link_into(&dir, Durability::Cached).unwrap();
    fs::remove_file(dir.join("memfile.header")).unwrap();
    let bare = Lineage::open(&dir).unwrap();
    assert_eq!(bare.origin(), None);
    let mut restored = lab.restore(&bare);
    assert!(restored.vm.read(0, pages(4)) == content(&base));
}

#[test]
fn only_the_window_around_a_fault_is_read() {
    let single = [3..4, 1000..1001, 2000..2001, 4095..4096];
    let pairs = [2..4, 1000..1002, 2000..2002, 4094..4096];
    for (lab, windows) in [(Lab::new(), single), (Lab::new().with_windows(2, 128), pairs)] {
        let lineage = lab.base(16, &[0..4096]);
        let mut restored = lab.restore(&lineage);
        for page in [3, 1000, 2000, 4095] {
            restored.vm.read(page, 1);
        }
        let counters = restored.counters();
        let served = windows.iter().map(|window| window.end - window.start).sum();
        assert_eq!((counters.faults, counters.pages_faulted), (4, served));
        assert_eq!(restored.state().working_set().windows(), windows);
    }
}

#[test]
fn pages_that_were_given_back_are_zero() {
    let lab = Lab::new();
    let lineage = lab.base(8, &[0..2048]);
    let mut restored = lab.restore(&lineage);
    restored.vm.write(100, 10, 7);
    restored.vm.give_back(105, 100);
    assert!(restored.vm.read(105, 100).iter().all(|byte| *byte == 0));
    assert!(restored.vm.read(100, 5).iter().all(|byte| *byte == 7));
    restored.vm.write(110, 1, 9);
    assert_eq!(restored.vm.read(110, 1)[0], 9, "it is memory like any other");
    restored.vm.give_back(110, 1);
    assert_eq!(restored.vm.read(110, 1)[0], 0);
    let expected = content(&lineage);
    assert!(restored.vm.read(205, 1000) == expected[205 * PAGE_SIZE..1205 * PAGE_SIZE]);
    assert_eq!(restored.state().given_back(), [105..205]);
    assert_eq!(restored.counters().pages_given_back, 101);
}

#[test]
fn a_page_that_is_touched_while_it_is_given_back_is_zero_afterwards() {
    let lab = Lab::new();
    let lineage = lab.base(8, &[0..2048]);
    let mut restored = lab.restore(&lineage).served();
    for round in 0..10 {
        let first = 200 * round;
        // The kernel then has both to tell at once, the fault first.
        kill(Pid::from_raw(restored.pager.pid), Signal::SIGSTOP).unwrap();
        restored.vm.tell(&format!("race {first} 32"));
        thread::sleep(Duration::from_millis(100));
        assert!(restored.vm.is_stuck(Duration::from_millis(50)));
        kill(Pid::from_raw(restored.pager.pid), Signal::SIGCONT).unwrap();
        assert_eq!(restored.vm.answer().as_deref(), Some("ok"));
        assert!(restored.vm.read(first, 32).iter().all(|byte| *byte == 0));
        let next = first as usize + 32;
        let expected = content(&lineage);
        assert!(restored.vm.read(first + 32, 1) == expected[next * PAGE_SIZE..][..PAGE_SIZE]);
        assert_eq!(restored.state().given_back().len() as u64, round + 1);
    }
}

#[test]
fn pages_are_given_back_while_others_are_read() {
    let lab = Lab::new();
    let lineage = lab.base(16, &[0..4096]);
    let prefetch: WorkingSet = (0..200).map(|n| n * 20..n * 20 + 16).collect();
    let mut restored = lab.restore_with(&lineage, "good", &prefetch);
    restored.vm.storm(3072, 1024, 30);
    restored.vm.give_back(3072, 1024);
    let found = restored.vm.read(0, 4096);
    let (low, high) = found.split_at(3072 * PAGE_SIZE);
    assert!(low == &content(&lineage)[..3072 * PAGE_SIZE]);
    assert!(high.iter().all(|byte| *byte == 0));
    println!("{:?}", restored.counters());
}

#[test]
fn what_the_last_vm_asked_for_is_there_before_the_next_one_asks() {
    let lab = Lab::new();
    let lineage = chain(&lab);
    let mut first = lab.restore(&lineage);
    first.vm.touch(0, 500, "random", 2);
    first.vm.touch(2000, 1200, "sequential", 1);
    let cold = first.counters();
    let set = first.state().working_set().clone();
    assert_eq!(set.pages(), cold.pages_faulted);

    let set = WorkingSet::parse(&set.encode());
    let mut second = lab.restore_with(&lineage, "good", &set);
    eventually(|| second.state().counters().pages_prefetched == set.pages());
    second.vm.touch(0, 500, "random", 2);
    second.vm.touch(2000, 1200, "sequential", 1);
    let warm = second.counters();
    println!("{cold:?} then {warm:?}");
    assert_eq!((warm.faults, warm.pages_prefetched), (0, set.pages()));
    assert_eq!(second.state().working_set().pages(), set.pages(), "the third one has it too");
    assert!(second.vm.read(0, pages(32)) == content(&lineage));
}

#[test]
fn a_working_set_of_another_memory_harms_nobody() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let set: WorkingSet = [1000..1100, 900..910, 5_000_000..5_000_010, 0..20].into_iter().collect();
    let mut restored = lab.restore_with(&lineage, "good", &set);
    eventually(|| restored.state().counters().pages_prefetched == 54);
    assert!(restored.vm.read(0, 1024) == content(&lineage));
}

#[test]
fn a_pager_is_small_and_confined() {
    let lab = Lab::new();
    let lineage = lab.base(512, &[0..pages(64)]);
    let mut restored = lab.restore(&lineage);
    restored.vm.touch(0, pages(512), "sequential", 1);
    let kb = |name| status_kb(restored.pager.pid, name);
    println!("at work {} kB are resident, {} kB its own", kb("VmRSS:"), kb("RssAnon:"));
    thread::sleep(Duration::from_millis(1500));
    println!("at rest {} kB are resident, {} kB its own", kb("VmRSS:"), kb("RssAnon:"));
    assert!(kb("VmRSS:") <= 10 << 10, "that is too much");
    let pid = restored.pager.pid;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("Uid:\t61234\t61234\t61234\t61234\n"), "{status}");
    assert!(status.contains("NoNewPrivs:\t1\n"), "{status}");
    assert!(status.contains("Threads:\t1\n"), "{status}");
}

#[test]
fn a_pager_ends_with_its_vm() {
    let lab = Lab::new();
    let lineage = lab.base(4, &[0..1024]);
    let mut restored = lab.restore(&lineage).served();
    assert_eq!(restored.state().phase(), Phase::Serving);
    restored.vm.touch(0, 1024, "random", 1);
    restored.vm.kill();
    assert_eq!(exit_code(restored.pager, PATIENCE), 0);
    let state = State::read(&restored.dir).unwrap();
    assert_eq!((state.phase(), state.error()), (Phase::Ended, None));
    assert_eq!(state.counters().pages_faulted, 1024, "the last words are complete");
    assert_eq!(fs::read_to_string(restored.dir.join("pager.log")).unwrap(), "");
}
