//! What VMs write to, and what a file system is worth that is captured while it is written to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use nestbox::vmm::image::checksum::of_sparse_file;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::support::{FileId, Lab, Options, Sandbox, id_at, in_a_lab, raw_copy, written_by};

/// What a Firecracker maps that it has made itself and passes on to nobody: what KVM tells of a CPU, and
/// a ring for packets.
const ITS_OWN: [&str; 2] = ["anon_inode:kvm-vcpu:", "/memfd:iov_deque"];

/// Lines of a process's maps that others with the same file see writes to.
fn shared_writable_maps(pid: i32) -> Vec<String> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("it lives");
    let shared = maps.lines().filter(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let name = words.get(5).copied().unwrap_or_default();
        let device = fs::metadata(name).is_ok_and(|data| data.file_type().is_char_device());
        let others = words[4] != "0" && !device && !ITS_OWN.iter().any(|own| name.starts_with(own));
        words[1].starts_with("rw") && words[1].ends_with('s') && others
    });
    shared.map(str::to_owned).collect()
}

/// What a file holds, and when it was written to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Content {
    sum: String,
    changed: (i64, i64),
}

impl Content {
    fn of(path: &Path) -> Self {
        let data = fs::metadata(path).expect("a file");
        let sum = of_sparse_file(path).expect("it can be read");
        Self { sum, changed: (data.mtime(), data.mtime_nsec()) }
    }
}

fn sum_of(path: &Path) -> String {
    let (mut file, mut digest) = (File::open(path).expect("a file"), Sha256::new());
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).expect("it can be read") {
            0 => break,
            read => digest.update(&buffer[..read]),
        }
    }
    hex(&digest.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Names of the layers of the disk in a snapshot, the lowest first.
fn layers(snapshot: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(snapshot.join("snapshot.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter();
    layers.map(|layer| snapshot.join(layer["file"].as_str().expect("a name"))).collect()
}

/// Everything in a directory.
fn contents(dir: &Path) -> BTreeMap<String, Content> {
    let entries = fs::read_dir(dir).expect("a directory").flatten();
    let named = |entry: fs::DirEntry| {
        (entry.file_name().to_string_lossy().into_owned(), Content::of(&entry.path()))
    };
    entries.map(named).collect()
}

#[test]
fn no_two_live_vms_have_one_file_to_write_to() {
    in_a_lab(5, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let parent = daemon.create().await;
        parent.sh("dd if=/dev/urandom of=before bs=1M count=8 conv=fsync 2>&1").await;
        let mut vms = parent.fork(2).await;
        parent.snapshot("kept").await;
        vms.push(daemon.create_with(json!({ "template": "kept" })).await);
        let resumed = daemon.create().await;
        resumed.pause().await;
        resumed.resume().await;
        vms.extend([parent.clone(), resumed]);

        let bases: BTreeSet<FileId> =
            vms.iter().map(|vm| id_at(&vm.snapshot_dir().join("memfile"))).collect();
        let base = parent.snapshot_dir().join("memfile");
        let read_only: BTreeMap<FileId, PathBuf> = vms
            .iter()
            .flat_map(|vm| layers(&vm.snapshot_dir()))
            .map(|path| (id_at(&path), path))
            .collect();
        // What the parent wrote to before the fork and before the snapshot, the image and its overlay.
        assert!(read_only.len() >= 4, "{read_only:#?}");
        let mut before: Vec<_> = read_only.values().cloned().collect();
        before.retain(|path| !path.ends_with("rootfs"));
        before.push(base.clone());
        let before: Vec<_> = before.into_iter().map(|path| (Content::of(&path), path)).collect();

        for vm in &vms {
            vm.sh("dd if=/dev/urandom of=after bs=1M count=8 conv=fsync 2>&1").await;
            vm.sh("dd if=/dev/urandom of=/dev/shm/after bs=1M count=48 2>&1").await;
        }
        let mut writers: BTreeMap<FileId, Vec<(i32, PathBuf)>> = BTreeMap::new();
        for vm in &vms {
            let pid = vm.vm_pid();
            for (file, path) in written_by(pid) {
                writers.entry(file).or_default().push((pid, path));
            }
            let maps = shared_writable_maps(pid);
            assert!(maps.is_empty(), "{maps:#?}");
            assert!(written_by(pid).contains_key(&id_at(&vm.overlay())), "its own overlay");
        }
        // QEMU opens the memory's base for writing, and maps it so that it cannot write to it.
        writers.retain(|file, _| !bases.contains(file));
        for (file, by) in &writers {
            assert_eq!(by.len(), 1, "{by:?}");
            assert!(!read_only.contains_key(file), "a layer that may be written to: {by:?}");
        }
        for (content, path) in before {
            assert_eq!(Content::of(&path), content, "{}", path.display());
        }
        for vm in vms {
            vm.destroy().await;
        }
        daemon.delete_snapshot("kept").await;
        daemon.stop().await;
    });
}

#[test]
fn what_one_child_writes_no_other_sees() {
    in_a_lab(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let parent = daemon.create().await;
        parent.sh("echo common > common && sync").await;
        let mut family = parent.fork(2).await;
        family.push(parent);
        for member in &family {
            let line = format!("echo {0} > common && echo {0} > {0} && sync", member.id);
            member.sh(&line).await;
        }
        for member in &family {
            member.sh_as_root("echo 3 > /proc/sys/vm/drop_caches").await;
            let seen = member.sh("cat common; ls").await;
            assert!(seen.starts_with(&member.id), "{seen}");
            for other in family.iter().filter(|other| other.id != member.id) {
                assert!(!seen.contains(&other.id), "{} sees {seen}", member.id);
            }
        }
        for member in family {
            member.destroy().await;
        }
        daemon.stop().await;
    });
}

/// Under QEMU. Firecracker's disks take no discards.
#[test]
fn what_a_guest_frees_comes_back_to_the_host() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        if sandbox.look().await["hypervisor"] == "qemu" {
            const WRITTEN: u64 = 64 << 20;
            let used = async || sandbox.storage().await["disk_bytes"].as_u64().expect("a number");
            let before = used().await;
            sandbox.sh("head -c 64M /dev/urandom > large && sync").await;
            assert!(used().await >= before + WRITTEN);
            sandbox.sh("rm large && sync").await;
            sandbox.sh_as_root("fstrim /").await;
            let now = used().await;
            assert!(now < before + WRITTEN / 4, "{before} bytes before, {now} now");
            // It is as whole as before, in a snapshot too.
            sandbox.sh("head -c 8M /dev/urandom > other && sync && sha256sum other > sum").await;
            sandbox.pause().await;
            sandbox.resume().await;
            sandbox.sh_as_root("echo 3 > /proc/sys/vm/drop_caches").await;
            sandbox.sh("sha256sum -c sum").await;
        }
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_resume_that_fails_leaves_what_was_paused_as_it_was() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let mut sandbox = daemon.create().await;
        // A guest that runs for a moment writes something.
        let write = "i=0; while :; do i=$((i+1)); echo $i > busy; sync busy; done";
        sandbox.sh(&format!("setsid sh -c '{write}' > /dev/null 2>&1 < /dev/null &")).await;
        sandbox.sh("echo kept > kept && sync").await;
        sandbox.pause().await;
        let dir = sandbox.snapshot_dir();
        let before = contents(&dir);
        for fault in ["introduced=disk-full", "restore-thawed=kill-vm", "restore-thawed=disk-full"]
        {
            daemon.kill9().await;
            daemon.set_fault(Some(fault));
            daemon.start_again().await;
            sandbox = sandbox.through(daemon.api());
            let answer = sandbox.try_resume().await;
            assert!(answer.status >= 500, "{fault}: {answer:?}");
            sandbox.becomes("paused").await;
            assert_eq!(sandbox.snapshot_dir(), dir, "{fault}");
            assert_eq!(contents(&dir), before, "{fault}");
            assert!(sandbox.files("disk-").is_empty(), "{fault}: its overlay is gone");
        }
        sandbox.resume().await;
        assert_eq!(sandbox.sh("cat kept").await, "kept");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_capture_that_fails_leaves_a_vm_that_can_write() {
    in_a_lab(2, async |lab| {
        let fault = |point: &str| Some(format!("{point}=disk-full"));
        let options = Options { fault: fault("memory-written"), ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let mut sandbox = daemon.create().await;
        sandbox.try_fork(1).await.is_error(507, "no_space");
        sandbox.sh("echo first > first && sync first").await;
        sandbox.fork(1).await.remove(0).destroy().await;
        for point in ["devices-saved", "snapshot-written"] {
            daemon.kill9().await;
            daemon.set_fault(fault(point).as_deref());
            daemon.start_again().await;
            sandbox = sandbox.through(daemon.api());
            sandbox.try_pause().await.is_error(507, "no_space");
            sandbox.sh(&format!("echo {point} > {point} && sync {point}")).await;
            sandbox.pause().await;
            sandbox.resume().await;
            assert_eq!(sandbox.sh(&format!("cat first {point}")).await, format!("first\n{point}"));
        }
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

/// Writes files of known content, each in full and with its name on the disk before it counts, and
/// keeps lists of those: one on the disk, one in memory.
const LOAD: &str = r#"
import hashlib, os
os.makedirs('/home/user/load')
os.chdir('/home/user/load')
directory = os.open('.', os.O_RDONLY)
ledger = open('ledger', 'w')
memory = open('/dev/shm/ledger', 'w')
def put(name, content):
    with open('new', 'wb') as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename('new', name)
    os.fsync(directory)
number = 0
while True:
    number += 1
    content = hashlib.shake_128(b'%d' % number).digest(1000 + number * 7919 % 60000)
    name = f'{number}.data'
    put(name, content)
    # Of those that go, some are open.
    put('current', content)
    open('open', 'wb').write(content)
    held = open('open', 'rb')
    os.unlink('open')
    line = f'{name} {hashlib.sha256(content).hexdigest()}\n'
    ledger.write(line)
    ledger.flush()
    os.fsync(ledger.fileno())
    memory.write(line)
    memory.flush()
"#;

async fn load(sandbox: &Sandbox) {
    sandbox.write("/tmp/load.py", LOAD).await;
    let begin =
        "setsid python3 /tmp/load.py > /tmp/load.log 2>&1 < /dev/null & echo $! > /tmp/load.pid";
    sandbox.sh(begin).await;
    synced(sandbox, 30).await;
}

/// Lets the load rest until it is waited for again: what it wrote while a disk is being checked, the
/// next check would have to go through.
async fn rest(sandbox: &Sandbox) {
    sandbox.sh("kill -STOP $(cat /tmp/load.pid)").await;
}

/// Has the load go on and waits for so many files; returns what the guest knows to be on its disk.
async fn synced(sandbox: &Sandbox, more: usize) -> Vec<String> {
    let wait = format!(
        "kill -CONT $(cat /tmp/load.pid); until [ $(cat /dev/shm/ledger 2>/dev/null | wc -l) -ge {more} ]; do \
         [ -s /tmp/load.log ] && exec cat /tmp/load.log; sleep 0.1; done; cat /dev/shm/ledger"
    );
    let list = sandbox.sh(&wait).await;
    let lines: Vec<String> = list.lines().map(str::to_owned).collect();
    assert!(lines.len() >= more, "{list}");
    lines
}

fn run(program: &str, args: &[&str], dir: &Path) -> (Option<i32>, String) {
    let output = Command::new(program).args(args).current_dir(dir).output();
    let Output { status, stdout, stderr } = output.unwrap_or_else(|e| panic!("{program}: {e}"));
    let said = [stdout, stderr].concat();
    (status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// What `e2fsck` found wrong, but for two sums over all groups that a file system in use does not
/// keep up to date.
fn mended(said: &str) -> Vec<&str> {
    let lines: Vec<&str> = said.lines().filter(|line| !line.trim().is_empty()).collect();
    let questions = lines.windows(2).filter(|pair| pair[1].ends_with("? yes"));
    let sums = ["Free blocks count wrong (", "Free inodes count wrong ("];
    let wrong = questions.map(|pair| pair[0]);
    wrong.filter(|line| !sums.iter().any(|sum| line.starts_with(sum))).collect()
}

/// Checks the file system on the disk of a snapshot, in a copy of it: it needs nothing but its
/// journal replayed, and what was synced is whole.
#[track_caller]
fn is_sound(lab: &Lab, snapshot: &Path, synced: &[String]) {
    let work = lab.path("check");
    fs::create_dir(&work).expect("a directory");
    raw_copy(&layers(snapshot), &work.join("raw"));

    let (code, said) = run("dumpe2fs", &["-h", "raw"], &work);
    assert!(code == Some(0) && said.contains("needs_recovery"), "nothing was going on: {said}");
    let (code, said) = run("e2fsck", &["-fy", "raw"], &work);
    assert!(matches!(code, Some(0 | 1)), "{code:?}: {said}");
    assert!(said.contains("recovering journal"), "{said}");
    let mended: Vec<&str> = mended(&said);
    assert!(mended.is_empty(), "more than a journal had to be mended: {mended:#?}");
    let (code, said) = run("e2fsck", &["-fn", "raw"], &work);
    assert_eq!(code, Some(0), "{said}");

    let (code, said) = run("debugfs", &["-R", "rdump /home/user/load .", "raw"], &work);
    assert_eq!(code, Some(0), "{said}");
    let load = work.join("load");
    let ledger = fs::read_to_string(load.join("ledger")).expect("the ledger");
    assert!(ledger.lines().count() >= synced.len(), "{said}");
    for line in synced {
        assert!(ledger.lines().any(|known| known == line), "{line} is not in the ledger");
    }
    // What was being appended may be there in part.
    let (whole, _) = ledger.rsplit_once('\n').expect("a line");
    for line in whole.lines() {
        let (name, sum) = line.split_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        assert_eq!(sum_of(&load.join(name)), sum, "{name}");
    }
    eprintln!("{} files were synced, and {} are whole", synced.len(), whole.lines().count());
    fs::remove_dir_all(&work).expect("removed");
}

#[test]
fn a_disk_that_is_captured_under_load_needs_nothing_but_its_journal() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        load(&sandbox).await;
        for round in 1..=2 {
            let before = synced(&sandbox, round * 80).await;
            sandbox.pause().await;
            is_sound(lab, &sandbox.snapshot_dir(), &before);
            sandbox.resume().await;

            let before = synced(&sandbox, before.len() + 20).await;
            let child = sandbox.fork(1).await.remove(0);
            rest(&sandbox).await;
            rest(&child).await;
            is_sound(lab, &sandbox.snapshot_dir(), &before);
            is_sound(lab, &child.snapshot_dir(), &before);
            // In both it goes on.
            synced(&child, before.len() + 10).await;
            child.destroy().await;

            let before = synced(&sandbox, before.len() + 20).await;
            sandbox.snapshot("kept").await;
            rest(&sandbox).await;
            is_sound(lab, &daemon.named_dirs()[0], &before);
            daemon.delete_snapshot("kept").await;
        }
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
