//! Pause and resume: nothing is lost, little is written, and nothing runs in between.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use nestbox::vmm::storage::memory::{BuildId, Durability, Lineage, MAX_DIFFS, collapse};
use serde_json::json;

use crate::support::{Options, Sandbox, Witness, eventually, in_a_lab};

/// Diffs that a chain has at most while nothing is done to it, and overlays of a disk.
const MOST: usize = 10;

/// Holds 200 MiB of known content, changes a part of it all the time, and keeps files of known
/// content on the disk. Asked with a signal, it checks it all.
const LOAD: &str = r#"
import hashlib, os, signal
BLOCK, BLOCKS, FILES = 1 << 20, 200, 20
asked = False
def ask(*_):
    global asked
    asked = True
signal.signal(signal.SIGUSR1, ask)
def content(block, version):
    return hashlib.shake_128(b'%d of %d' % (block, version)).digest(BLOCK)
def sum_of(content):
    return hashlib.blake2b(content, digest_size=16).digest()
def sum_of_file(path):
    with open(path, 'rb') as file:
        return sum_of(file.read())
def show(path, text):
    with open(path + '.new', 'w') as file:
        file.write(text)
    os.rename(path + '.new', path)
memory = [bytearray(content(block, 0)) for block in range(BLOCKS)]
sums = [sum_of(block) for block in memory]
files, rounds = {}, 0
os.makedirs('/home/user/load')
os.chdir('/home/user/load')
directory = os.open('.', os.O_RDONLY)
show('/dev/shm/ready', '')
while True:
    if asked:
        asked = False
        wrong = sum(sum_of(block) != known for block, known in zip(memory, sums))
        broken = sum(sum_of_file(name) != known for name, known in files.items())
        show('/dev/shm/report', f'{os.getpid()} {rounds} {wrong} {broken} {len(files)}')
    rounds += 1
    block = rounds * 7 % BLOCKS
    new = content(block, rounds)
    memory[block][:] = new
    sums[block] = sum_of(new)
    name = str(rounds % FILES)
    part = new[rounds % 1000:BLOCK // 8]
    with open('new', 'wb') as file:
        file.write(part)
        file.flush()
        os.fsync(file.fileno())
    os.rename('new', name)
    os.fsync(directory)
    files[name] = sum_of(part)
"#;

/// A process under load in a guest.
struct Load {
    pid: String,
    rounds: u64,
}

impl Load {
    async fn start(sandbox: &Sandbox) -> Self {
        sandbox.write("/tmp/load.py", LOAD).await;
        let start = "setsid python3 /tmp/load.py > /tmp/load.log 2>&1 < /dev/null & echo $!";
        let pid = sandbox.sh(start).await;
        let ready = format!(
            "until [ -e /dev/shm/ready ]; do kill -0 {pid} || exec cat /tmp/load.log; sleep 0.2; done"
        );
        assert_eq!(sandbox.sh(&ready).await, "");
        Self { pid, rounds: 0 }
    }

    /// Has it check memory and disk, the latter as it is and not as it is remembered.
    async fn is_whole(&mut self, sandbox: &Sandbox) {
        let ask = format!(
            "sync; echo 3 > /proc/sys/vm/drop_caches; rm -f /dev/shm/report; kill -USR1 {}; \
             until [ -e /dev/shm/report ]; do sleep 0.1; done; cat /dev/shm/report",
            self.pid
        );
        let report = sandbox.sh_as_root(&ask).await;
        let words: Vec<&str> = report.split(' ').collect();
        let [pid, rounds, wrong, broken, files] = words[..] else { panic!("{report:?}") };
        assert_eq!((pid, wrong, broken), (&*self.pid, "0", "0"), "{report}");
        let rounds: u64 = rounds.parse().expect("a number");
        assert!(rounds > self.rounds, "{rounds} rounds after {}", self.rounds);
        assert!(files.parse::<u32>().expect("a number") > 0);
        self.rounds = rounds;
    }
}

fn overlays(snapshot: &Path) -> usize {
    let names = fs::read_dir(snapshot).expect("a snapshot").flatten();
    names.filter(|entry| entry.file_name().to_string_lossy().starts_with("overlay.")).count()
}

#[test]
fn twenty_pauses_under_load_lose_nothing_and_chains_stay_short() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create_with(json!({})).await;
        let mut load = Load::start(&sandbox).await;
        let (mut merged, mut merged_disks) = (0, 0);
        let (mut longest, mut most) = (0, 0);
        for cycle in 1..=20 {
            sandbox.pause().await;
            let diffs = async || sandbox.generations().await as usize - 1;
            let before = longest;
            longest = diffs().await;
            if longest > MAX_DIFFS {
                eventually("the memory is merged", || async { diffs().await == 0 }).await;
                longest = 0;
            }
            merged += usize::from(longest == 0 && before >= MAX_DIFFS);
            let before = most;
            most = overlays(&sandbox.snapshot_dir());
            if most > MOST {
                let few = || async { overlays(&sandbox.snapshot_dir()) == 1 };
                eventually("the disk is merged", few).await;
                most = 1;
            }
            merged_disks += usize::from(most == 1 && before >= MOST);
            let started = Instant::now();
            sandbox.resume().await;
            let took = started.elapsed();
            load.is_whole(&sandbox).await;
            eprintln!("cycle {cycle}: {longest} diffs, {most} overlays, resume {took:?}");
        }
        assert!(merged >= 1 && merged_disks >= 1, "{merged} {merged_disks}");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_paused_sandbox_is_only_files_and_outlives_daemons() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let idle = daemon.census();
        let mut sandbox = daemon.create().await;
        let mut witness = Witness::start(&sandbox).await;

        sandbox.pause().await;
        idle.clone().without_files().compare(&daemon.census().without_files());
        assert!(sandbox.files("disk-").is_empty(), "its disk is in its snapshot");
        assert_eq!(sandbox.record()["process"], json!(null));
        sandbox.try_exec(json!({ "cmd": "true" })).await.is_error(409, "invalid_state");
        sandbox.try_fork(1).await.is_error(409, "invalid_state");
        sandbox.pause().await;

        daemon.kill9().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        assert_eq!(sandbox.state().await, "paused");
        idle.clone().without_files().compare(&daemon.census().without_files());
        sandbox.resume().await;
        witness.goes_on(&sandbox).await;
        sandbox.resume().await;

        sandbox.pause().await;
        daemon.stop().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        sandbox.resume().await;
        witness.goes_on(&sandbox).await;
        sandbox.pause().await;
        sandbox.destroy().await;
        daemon.is_back_to(&idle).await;
        daemon.stop().await;
    });
}

/// Holds so many pages, and changes each of them when it is told to.
const PAGES: u64 = 160 << 20 >> 12;

#[test]
fn a_pause_writes_what_has_changed_and_hardly_more() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create_with(json!({})).await;
        let program = format!(
            "import os, signal, sys\n\
             memory = bytearray(b'a' * 4096 * {PAGES})\n\
             open('/dev/shm/ready', 'w').close()\n\
             signal.sigwait([signal.SIGUSR1])\n\
             memory[::4096] = b'b' * {PAGES}\n\
             open('/dev/shm/changed', 'w').close()\n\
             signal.pause()\n"
        );
        sandbox.write("/tmp/pages.py", program).await;
        let start = "import signal, os; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1]); \
                     os.execvp('python3', ['python3', '/tmp/pages.py'])";
        let start = format!(
            "setsid python3 -c \"{start}\" > /tmp/pages.log 2>&1 < /dev/null & echo $! > /tmp/pid; \
             until [ -e /dev/shm/ready ]; do sleep 0.1; done"
        );
        sandbox.sh(&start).await;
        sandbox.pause().await;
        let known = sandbox.memory_files();
        sandbox.resume().await;
        let change =
            "kill -USR1 $(cat /tmp/pid); until [ -e /dev/shm/changed ]; do sleep 0.1; done";
        sandbox.sh(change).await;
        sandbox.pause().await;

        let new = sandbox.memory_files();
        let new: Vec<_> = new.iter().filter(|(name, _)| !known.contains_key(*name)).collect();
        let [(name, data)] = new[..] else { panic!("{new:?}") };
        let (changed, written) = (PAGES * 4096, data.len());
        eprintln!("{name}: {written} bytes for {changed} that were changed on purpose");
        assert!(written >= changed, "{written} bytes for {changed}");
        assert!(written <= changed + changed / 20, "{written} bytes for {changed}");
        assert!(data.blocks() * 512 <= written + written / 100);
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn what_was_asked_for_survives_a_pause() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let wish = json!({
            "memory_mb": 256, "timeout_sec": 8,
            "envs": { "GREETING": "hello" }, "metadata": { "a": "b" },
        });
        let sandbox = daemon.create_with(wish).await;
        let (look, record) = (sandbox.look().await, sandbox.record());
        sandbox.pause().await;
        // Time in which it cannot do any work is not held against it.
        tokio::time::sleep(Duration::from_secs(9)).await;
        assert_eq!(sandbox.state().await, "paused");
        sandbox.resume().await;

        assert_eq!(sandbox.sh("echo $GREETING; hostname").await, format!("hello\n{}", sandbox.id));
        let now = sandbox.look().await;
        for field in ["id", "template", "vcpus", "memory_mb", "timeout_sec", "metadata"] {
            assert_eq!(now[field], look[field], "{field}");
        }
        assert_eq!(sandbox.record()["access_token"], record["access_token"]);
        let reason = sandbox.becomes("stopped").await;
        assert!(reason.contains("8 s"), "{reason}");
        daemon.stop().await;
    });
}

#[test]
fn a_command_is_cut_off_by_a_pause_and_its_process_goes_on() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let working = {
            let sandbox = sandbox.clone();
            let count = "i=0; while :; do i=$((i+1)); echo $$ $i > /dev/shm/count; echo $i; \
                         sleep 0.1; done";
            tokio::spawn(async move { sandbox.try_exec(json!({ "cmd": count })).await })
        };
        let read = async || {
            let shown = sandbox.sh("cat /dev/shm/count 2>/dev/null || true").await;
            let (pid, count) = shown.split_once(' ')?;
            Some((pid.to_owned(), count.parse::<u64>().ok()?))
        };
        eventually("it counts", || async { read().await.is_some() }).await;
        let Some((pid, before)) = read().await else { panic!("it counted") };
        sandbox.pause().await;
        let answer = working.await.expect("no panic");
        let message = answer.is_error(409, "invalid_state").message();
        assert!(message.contains("paus"), "{message}");
        sandbox.resume().await;
        let goes_on =
            || async { read().await.is_some_and(|(now, count)| now == pid && count > before + 20) };
        eventually("it goes on", goes_on).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_memory_that_is_one_file_without_a_header_is_resumed() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let mut witness = Witness::start(&sandbox).await;
        sandbox.pause().await;

        let dir = sandbox.snapshot_dir();
        let lineage = Lineage::open(&dir).expect("its memory");
        let build = BuildId::random();
        collapse(&lineage, &dir, build, &|| false, Durability::Cached).expect("merged");
        fs::rename(dir.join(format!("memfile.{build}")), dir.join("memfile")).expect("renamed");
        fs::remove_file(dir.join("memfile.header")).expect("removed");
        assert_eq!(sandbox.memory_files().len(), 1);
        assert_eq!(sandbox.generations().await, 1);

        sandbox.resume().await;
        witness.goes_on(&sandbox).await;
        sandbox.pause().await;
        assert_eq!(sandbox.generations().await, 2);
        sandbox.resume().await;
        witness.goes_on(&sandbox).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
