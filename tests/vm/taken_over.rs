//! Whoever has taken over a VM's process has what it has open. What others get of it does not depend
//! on that: disks of forks and named snapshots, names in headers, the memory that many share.
//!
//! Under Firecracker the kernel writes the disk and the pager serves the memory, so the process has
//! none of this open.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::skip::belongs_elsewhere;
use crate::support::{
    Answer, BrokenVmm, Daemon, Engine, FileId, Lab, Options, Sandbox, eventually, id_at, id_of,
    in_a_lab, run,
};

/// What only root may read.
const SECRET: &str = "what only root may read";

/// Runs a test of what QEMU alone has.
fn under_qemu(vms: u32, test: impl AsyncFnOnce(&Lab) + Send + 'static) {
    match Engine::present() {
        Engine::Qemu => in_a_lab(vms, test),
        Engine::Firecracker => belongs_elsewhere("about QEMU alone: `make test` runs it"),
    }
}

/// Takes over the VM's process, and with it what its disk is written to through.
fn disk_of(sandbox: &Sandbox) -> File {
    let vmm = BrokenVmm::of(sandbox.vm_pid());
    assert_ne!(vmm.uid(), 0);
    vmm.writer_of(&sandbox.overlay()).expect("its overlay is its own to write")
}

/// Overwrites all of a file, its header included.
fn ruin(file: &File) {
    let bytes = file.metadata().expect("its length").len();
    let junk = vec![0xee; 1 << 20];
    for at in (0..bytes).step_by(junk.len()) {
        let part = &junk[..(bytes - at).min(junk.len() as u64) as usize];
        file.write_all_at(part, at).expect("it is open for writing");
    }
}

/// The overlays that a snapshot's disk consists of, the lowest first.
fn layers(snapshot: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string(snapshot.join("snapshot.json")).expect("a manifest");
    let manifest: Value = serde_json::from_str(&text).expect("JSON");
    let layers = manifest["layers"].as_array().expect("layers").iter().skip(1);
    layers.map(|layer| snapshot.join(layer["file"].as_str().expect("a name"))).collect()
}

/// No layer is what an attacker holds, and none may be written to by anybody.
#[track_caller]
fn are_sealed(layers: &[PathBuf], held: &[FileId]) {
    assert!(!layers.is_empty());
    for layer in layers {
        let data = fs::metadata(layer).expect("a layer");
        assert_eq!((data.uid(), data.mode() & 0o777), (0, 0o400), "{}", layer.display());
        assert!(!held.contains(&id_of(&data)), "{} can be written to", layer.display());
    }
}

fn id(file: &File) -> FileId {
    id_of(&file.metadata().expect("a file"))
}

/// What the guest reads from its disk, not from its memory.
async fn note(sandbox: &Sandbox) -> String {
    sandbox.sh_as_root("echo 3 > /proc/sys/vm/drop_caches").await;
    sandbox.sh("cat /home/user/note").await
}

#[test]
fn what_a_vm_keeps_open_is_no_layer_of_a_fork_or_a_named_snapshot() {
    under_qemu(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let parent = daemon.create().await;
        parent.sh("echo kept > /home/user/note && sync").await;
        let mut held = vec![disk_of(&parent)];
        let child = parent.fork(1).await.remove(0);
        held.push(disk_of(&parent));
        parent.snapshot("kept").await;
        held.push(disk_of(&parent));

        held.iter().for_each(ruin);
        assert_eq!(note(&child).await, "kept");
        let made = daemon.create_with(json!({ "template": "kept" })).await;
        assert_eq!(note(&made).await, "kept");
        let ids: Vec<FileId> = held.iter().map(id).collect();
        let named = daemon.named_dirs().remove(0);
        for snapshot in [&named, &child.snapshot_dir(), &parent.snapshot_dir()] {
            are_sealed(&layers(snapshot), &ids);
        }
        for sandbox in [made, child, parent] {
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("kept").await;
        daemon.stop().await;
    });
}

#[test]
fn a_layer_that_a_crash_has_left_open_is_sealed_by_whoever_uses_it() {
    under_qemu(2, async |lab| {
        let fault = Some("thawed=kill-daemon".to_owned());
        let mut daemon = lab.daemon_with(Options { fault, ..Options::default() }).await;
        let sandbox = daemon.create().await;
        sandbox.sh("echo kept > /home/user/note && sync").await;
        let held = disk_of(&sandbox);
        assert_eq!(sandbox.try_snapshot("kept", false).await.status, 0);
        daemon.ended().await;
        let left = layers(&sandbox.snapshot_dir());
        assert!(left.iter().any(|layer| id_at(layer) == id(&held)), "the crash was in time");

        daemon.set_fault(None);
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        sandbox.snapshot("kept").await;
        ruin(&held);
        let made = daemon.create_with(json!({ "template": "kept" })).await;
        assert_eq!(note(&made).await, "kept");
        are_sealed(&layers(&daemon.named_dirs().remove(0)), &[id(&held)]);
        are_sealed(&layers(&sandbox.snapshot_dir()), &[id(&held)]);
        made.destroy().await;
        sandbox.destroy().await;
        daemon.delete_snapshot("kept").await;
        daemon.stop().await;
    });
}

#[test]
fn a_disk_of_the_version_before_is_sealed_when_it_is_used() {
    under_qemu(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let source = daemon.create().await;
        source.sh("echo kept > /home/user/note && sync").await;
        source.snapshot("kept").await;
        source.pause().await;
        // As that version has left them: with a right to write that nobody has used.
        let named = layers(&daemon.named_dirs().remove(0));
        let paused = layers(&source.snapshot_dir());
        for layer in named.iter().chain(&paused) {
            run(&format!("chmod 600 {}", layer.display()));
        }
        let made = daemon.create_with(json!({ "template": "kept" })).await;
        assert_eq!(note(&made).await, "kept");
        are_sealed(&named, &[]);
        source.resume().await;
        assert_eq!(note(&source).await, "kept");
        are_sealed(&paused, &[]);
        for sandbox in [made, source] {
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("kept").await;
        daemon.stop().await;
    });
}

/// Names another file in the header of a running sandbox's overlay, as the one below it.
fn name_below(sandbox: &Sandbox, name: &Path) {
    let (overlay, name) = (disk_of(sandbox), name.display().to_string());
    let mut at = [0; 8];
    overlay.read_exact_at(&mut at, 8).expect("a header");
    overlay.write_all_at(&(name.len() as u32).to_be_bytes(), 16).expect("written");
    overlay.write_all_at(name.as_bytes(), u64::from_be_bytes(at)).expect("written");
}

/// The files of a snapshot. None has the secret in it.
fn files(dir: &Path) -> BTreeMap<PathBuf, FileId> {
    let paths: Vec<_> = fs::read_dir(dir).expect("it").flatten().map(|it| it.path()).collect();
    for path in &paths {
        let found = std::process::Command::new("grep").args(["-qF", SECRET]).arg(path).status();
        assert!(!found.expect("grep runs").success(), "{} has it", path.display());
    }
    paths.into_iter().map(|path| (path.clone(), id_at(&path))).collect()
}

#[test]
fn a_header_that_names_a_file_of_the_host_is_refused_by_all_that_would_read_it() {
    under_qemu(2, async |lab| {
        let secret = lab.path("secret");
        fs::write(&secret, SECRET.repeat(50_000)).expect("a file");
        let mut daemon = lab.daemon().await;
        let mut sandbox = daemon.create().await;
        // With those that follow so many that they are merged when it is paused.
        for _ in 0..7 {
            sandbox.try_snapshot("before", true).await.expect(201);
        }
        name_below(&sandbox, &secret);
        let reason = "names another backing file";
        is_damaged(&daemon, &sandbox.try_snapshot("evil", false).await, reason);
        is_damaged(&daemon, &sandbox.try_fork(1).await, reason);
        // It goes on with what it had before, and nothing of it is anybody else's.
        assert_eq!(sandbox.state().await, "running");
        assert_eq!(daemon.snapshot_names().await, ["before"]);
        assert_eq!(daemon.ids().await, [sandbox.id.as_str()]);

        sandbox.pause().await;
        let merging = "a snapshot was not merged";
        let refused = || async {
            let log = daemon.log();
            log.lines().any(|line| line.contains(merging) && line.contains(reason))
        };
        eventually("its disk is not merged", refused).await;
        let set_aside = files(&sandbox.snapshot_dir());
        is_damaged(&daemon, &sandbox.try_resume().await, reason);
        assert_eq!(sandbox.state().await, "paused");
        daemon.stop().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        is_damaged(&daemon, &sandbox.try_resume().await, reason);
        is_damaged(&daemon, &sandbox.try_snapshot("evil", false).await, reason);
        assert_eq!(files(&sandbox.snapshot_dir()), set_aside, "it stays as it was");

        let made = daemon.create_with(json!({ "template": "before" })).await;
        assert_eq!(made.sh("echo on").await, "on");
        for sandbox in [made, sandbox] {
            sandbox.destroy().await;
        }
        daemon.delete_snapshot("before").await;
        daemon.stop().await;
    });
}

/// The caller hears that it is damaged, and the log says what.
#[track_caller]
fn is_damaged(daemon: &Daemon, answer: &Answer, what: &str) {
    let message = answer.is_error(500, "internal").message();
    assert!(message.contains("damaged"), "{message}");
    assert!(daemon.log().contains(what), "the log names {what}");
}

#[test]
fn memory_that_was_written_to_is_refused_also_after_a_capture() {
    under_qemu(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        // One of its own: others have the base as well, and are not to be harmed.
        sandbox.pause().await;
        let base = sandbox.snapshot_dir().join("memfile");
        let copy = base.with_extension("copy");
        run(&format!("cp -p --sparse=always {} {}", base.display(), copy.display()));
        fs::rename(&copy, &base).expect("renamed");
        sandbox.resume().await;

        // A neighbour that maps the same base writes to it through what its process has open.
        let writer = File::options().read(true).write(true).open(&base).expect("the base");
        let mut byte = [0];
        writer.read_exact_at(&mut byte, 4096).expect("a byte");
        writer.write_all_at(&[!byte[0]], 4096).expect("written");

        let what = "was changed after it was written";
        is_damaged(&daemon, &sandbox.try_snapshot("evil", false).await, what);
        is_damaged(&daemon, &sandbox.try_fork(1).await, what);
        is_damaged(&daemon, &sandbox.try_pause().await, what);
        assert_eq!(sandbox.sh("echo on").await, "on");
        assert!(daemon.snapshot_names().await.is_empty());
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
