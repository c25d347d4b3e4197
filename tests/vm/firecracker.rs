//! What only Firecracker has: a pager beside the VM, a jail around it, a block device below it.

mod ahead;
mod choice;
mod costs;
mod floor;

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nestbox::vmm::storage::memory::{Lineage, PAGE_SIZE};
use nestbox::vmm::storage::pager::{Counters, State};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::support::skip::belongs_elsewhere;
use crate::support::{Answer, Daemon, Engine, Lab, Options, Sandbox, eventually, in_a_lab, lives};

/// Touches memory that nobody has touched before, for a quarter of a minute or longer, so that there
/// are faults all the time.
const TOUCH: &str = "import mmap, time\n\
    memory = mmap.mmap(-1, 128 << 20)\n\
    open('/dev/shm/began', 'w').close()\n\
    for at in range(0, len(memory), 4096):\n    \
        memory[at] = 1\n    \
        if at % (1 << 20) == 0: time.sleep(0.1)\n\
    time.sleep(1000)\n";

/// Reads 64 MiB of files, always the same ones.
const READ: &str =
    "find /usr -xdev -type f -print0 | xargs -0 cat 2>/dev/null | head -c 64M | wc -c";

/// Pages that are compared at once.
const BATCH: usize = 256;

/// Percent of the memory in use that may be read until a first command is done.
const MOST_READ: f64 = 15.0;

/// Percent of what a guest and its first command touch that a working set brings, at least. One without the
/// command has 60; one with it brings 94, and 77 where the pager has to wait for a processor.
const LEAST_AHEAD: f64 = 66.0;

/// What a pager may have beside the generations, in kB.
const MOST_MEMORY: u64 = 10_000;

/// How many cycles the test of leaks does.
const CYCLES: &str = "NESTBOX_TEST_CYCLES";

/// As [`in_a_lab`], for Firecracker alone.
fn under_firecracker(vms: u32, test: impl AsyncFnOnce(&Lab) + Send + 'static) {
    match Engine::present() {
        Engine::Firecracker => in_a_lab(vms, test),
        Engine::Qemu => belongs_elsewhere("about Firecracker alone: `make lab` runs it"),
    }
}

/// The process that serves a sandbox's memory.
fn pager_of(sandbox: &Sandbox) -> i32 {
    let text = fs::read(sandbox.dir().join("firecracker.json")).expect("what belongs to the VM");
    let known: Value = serde_json::from_slice(&text).expect("JSON");
    i32::try_from(known["pager"]["pid"].as_i64().expect("a pager")).expect("a pid")
}

fn kill_pager(sandbox: &Sandbox) {
    kill(Pid::from_raw(pager_of(sandbox)), Signal::SIGKILL).expect("it can be killed");
}

/// What a sandbox's pager has done. It says so ten times a second.
async fn served(sandbox: &Sandbox) -> Counters {
    tokio::time::sleep(Duration::from_millis(300)).await;
    State::read(&sandbox.dir()).expect("its pager's state").counters()
}

/// Does work in a sandbox that makes page faults; gives what the caller is told in the end.
async fn work(sandbox: &Sandbox) -> tokio::task::JoinHandle<Answer> {
    sandbox.write("/tmp/touch.py", TOUCH).await;
    let worker = sandbox.clone();
    let working = tokio::spawn(async move {
        worker.try_exec(json!({ "cmd": "python3", "args": ["/tmp/touch.py"] })).await
    });
    while sandbox.sh("ls /dev/shm/began 2>/dev/null || true").await.is_empty() {}
    let before = served(sandbox).await.faults;
    eventually("it makes page faults", || async { served(sandbox).await.faults > before }).await;
    working
}

#[test]
fn a_vm_whose_pager_is_killed_is_ended_and_says_so() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let sandbox = daemon.create().await;
        let working = work(&sandbox).await;
        let vm = sandbox.vm_pid();
        kill_pager(&sandbox);
        let killed = Instant::now();
        let reason = sandbox.becomes("error").await;
        let took = killed.elapsed();
        eprintln!("{took:?} after its pager's end: {reason}");
        assert!(took < Duration::from_secs(2), "the sandbox says so after {took:?}");
        assert!(reason.contains("pager"), "{reason}");
        assert!(!lives(vm), "the VM lives on");
        let answer = working.await.expect("no panic");
        let message = answer.is_error(502, "agent_error").message();
        assert!(message.contains(&reason), "{message} / {reason}");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

#[test]
fn a_pager_that_dies_while_no_daemon_runs_ends_its_vm_too() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let sandbox = daemon.create().await;
        let working = work(&sandbox).await;
        let vm = sandbox.vm_pid();
        daemon.kill9().await;
        kill_pager(&sandbox);
        working.await.expect("no panic");
        daemon.start_again().await;
        let reason = sandbox.through(daemon.api()).becomes("error").await;
        eprintln!("after a start: {reason}");
        assert!(!lives(vm), "the VM lives on");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

/// Counts the pages in which two memories differ, by reading both as a whole.
fn differing(before: &Lineage, after: &Lineage) -> u64 {
    let pages = after.memory_bytes() / PAGE_SIZE as u64;
    assert_eq!(before.memory_bytes(), after.memory_bytes());
    let (mut old, mut new) = (vec![0; BATCH * PAGE_SIZE], vec![0; BATCH * PAGE_SIZE]);
    let mut count = 0;
    for start in (0..pages).step_by(BATCH) {
        let run = start..start + BATCH as u64;
        before.read(std::slice::from_ref(&run), &mut old).expect("a memory");
        after.read(std::slice::from_ref(&run), &mut new).expect("a memory");
        if old != new {
            let both = old.chunks_exact(PAGE_SIZE).zip(new.chunks_exact(PAGE_SIZE));
            count += both.filter(|(old, new)| old != new).count() as u64;
        }
    }
    count
}

/// Pauses a sandbox, and compares what that has written with what has really changed since the
/// sandbox was restored.
async fn pause_writes_what_differs(what: &str, sandbox: &Sandbox) {
    // Open files can be read when their directory is gone.
    let before = Lineage::open(&sandbox.snapshot_dir()).expect("its memory");
    let known = sandbox.memory_files();
    let pager = served(sandbox).await;
    let started = Instant::now();
    sandbox.pause().await;
    let took = started.elapsed();
    let after = Lineage::open(&sandbox.snapshot_dir()).expect("its memory");
    let new = sandbox.memory_files();
    let new = new.iter().filter(|(name, _)| !known.contains_key(*name));
    let written: u64 = new.map(|(_, data)| data.len()).sum();
    let changed = differing(&before, &after) * PAGE_SIZE as u64;
    let ratio = written as f64 / changed as f64;
    let touched = (pager.pages_faulted + pager.pages_prefetched) * PAGE_SIZE as u64;
    eprintln!(
        "{what}: {written} bytes written for {changed} that differ: {ratio:.3}; {touched} were \
         served; {took:.2?}; storage {}",
        sandbox.storage().await
    );
    assert!(written as f64 <= 1.05 * changed as f64, "{written} bytes for {changed}");
}

#[test]
fn a_pause_writes_what_was_changed() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        assert_eq!(sandbox.sh(READ).await, (64 << 20).to_string());
        pause_writes_what_differs("64 MiB read from the disk", &sandbox).await;
        sandbox.resume().await;
        // Now the files are in the snapshot's memory: reading them has pages served, and changes none.
        assert_eq!(sandbox.sh(READ).await, (64 << 20).to_string());
        sandbox.sh("head -c 16M /dev/urandom > /dev/shm/random").await;
        pause_writes_what_differs("64 MiB read from memory, 16 MiB changed", &sandbox).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

/// Memory of a process in kB: all that is resident, and that without mappings of such files.
fn resident(pid: i32, without: &str) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("it lives");
    let (mut all, mut others, mut left_out) = (0, 0, false);
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if !first.ends_with(':') {
            left_out = line.contains(without);
        } else if first == "Rss:" {
            let size = line.split_whitespace().nth(1).expect("a number");
            let size: u64 = size.parse().expect("a number");
            all += size;
            others += if left_out { 0 } else { size };
        }
    }
    (all, others)
}

/// A line of `/proc/PID/smaps_rollup`, in kB.
fn rollup(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("it lives");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
    line.trim_start_matches(':').split_whitespace().next().expect("a number").parse().expect("kB")
}

#[test]
fn a_pager_is_small() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        for command in ["true", "ls -lR /usr/lib > /dev/null", "python3 -c 'print(1)'"] {
            sandbox.sh(command).await;
        }
        let pager = pager_of(&sandbox);
        let (all, others) = resident(pager, "memfile");
        let own = rollup(pager, "Private_Clean") + rollup(pager, "Private_Dirty");
        let (pss, anonymous) = (rollup(pager, "Pss"), rollup(pager, "Anonymous"));
        let counters = served(&sandbox).await;
        eprintln!(
            "pager: {all} kB resident, {others} kB without the generations, {own} kB its alone, \
             {anonymous} kB anonymous, {pss} kB proportional; {counters:?}"
        );
        // Of a debug build most is the program's file, which the daemon and all pagers have together.
        let counted = if cfg!(debug_assertions) { own } else { others };
        assert!(counted <= MOST_MEMORY, "{counted} kB");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn little_of_a_snapshot_is_read_to_run_a_first_command() {
    under_firecracker(1, async |lab| {
        let mut daemon = lab.daemon().await;
        // The one that froze the image, and so on: each is restored from the same snapshot, and brought
        // what the one before it touched, with its command, unless its guest is faster than that.
        let mut ahead = Vec::new();
        for create in ["first", "second", "third"] {
            let sandbox = daemon.create().await;
            sandbox.exec(json!({ "cmd": "true", "args": [] })).await;
            let Counters { faults, pages_faulted, pages_prefetched, pages_zero, .. } =
                served(&sandbox).await;
            let files = sandbox.memory_files();
            let used: u64 = files.values().map(std::os::unix::fs::MetadataExt::blocks).sum();
            let used = used * 512 / PAGE_SIZE as u64;
            let served = pages_faulted + pages_prefetched;
            let share_of = |pages: u64, all: u64| pages as f64 / all as f64 * 100.0;
            let share = |pages: u64| share_of(pages, used);
            eprintln!(
                "{create} create: {faults} faults; {pages_faulted} pages for them and \
                 {pages_prefetched} ahead, {:.1} % of the {used} in use; {pages_zero} were zero, \
                 so {:.1} % were read",
                share(served),
                share(served - pages_zero)
            );
            let read = served - pages_zero;
            assert!(share(read) <= MOST_READ, "{read} of {used} pages");
            sandbox.destroy().await;
            ahead.push(share_of(pages_prefetched, served));
        }
        assert_eq!(ahead[0], 0.0, "nobody was there before it");
        assert!(ahead[1..].iter().all(|share| *share >= LEAST_AHEAD), "{ahead:?} % came ahead");
        daemon.stop().await;
    });
}

/// A sandbox's life.
async fn cycle(daemon: &Daemon) {
    let sandbox = daemon.create_with(json!({ "memory_mb": 192 })).await;
    sandbox.sh("echo kept > /tmp/kept").await;
    sandbox.pause().await;
    sandbox.resume().await;
    assert_eq!(sandbox.sh("cat /tmp/kept").await, "kept");
    sandbox.destroy().await;
}

#[test]
fn no_jail_no_device_no_socket_is_left_after_cycles() {
    under_firecracker(2, async |lab| {
        let cycles = std::env::var(CYCLES).ok().map(|text| text.parse().expect("a number"));
        let cycles: usize = cycles.unwrap_or(5);
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        cycle(&daemon).await;
        let idle = daemon.census();
        let started = Instant::now();
        let done = AtomicUsize::new(0);
        let worker = async || {
            while done.fetch_add(1, Ordering::Relaxed) < cycles {
                cycle(&daemon).await;
            }
        };
        tokio::join!(worker(), worker());
        let each = started.elapsed().as_secs_f64() / cycles as f64;
        eprintln!("{cycles} cycles, two at a time: {each:.2} s for each");
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}
