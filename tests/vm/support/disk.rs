//! Copies of the disks in snapshots.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lab::run;

/// Writes what the guest would read from a disk with these layers, the lowest first, into a file. The
/// layers stay as they are.
#[track_caller]
pub fn raw_copy(layers: &[PathBuf], to: &Path) {
    let (base, above) = layers.split_first().expect("a disk has layers");
    let top = above.last().expect("a snapshot has an overlay");
    if top.extension().is_some_and(|extension| extension == "qcow2") {
        run(&format!("qemu-img check {}", top.display()));
        run(&format!("qemu-img convert -O raw {} {}", top.display(), to.display()));
        return;
    }
    // The kernel's own format: so the kernel reads it, from copies, for what it has been given to
    // read belongs to a VM.
    let size = fs::metadata(base).expect("a base").len() / 512;
    let mut loops = vec![attach(base)];
    let mut devices: Vec<String> = Vec::new();
    for (number, layer) in above.iter().enumerate() {
        let copy = to.with_extension(format!("layer-{number}"));
        run(&format!("cp --sparse=always {} {}", layer.display(), copy.display()));
        loops.push(attach(&copy));
        fs::remove_file(&copy).expect("removed");
        let name = format!("test-{}-{number}", std::process::id());
        let below = devices.last().unwrap_or(&loops[0]);
        let table = format!("0 {size} snapshot {below} {} P 8", loops[number + 1]);
        let made = Command::new("dmsetup")
            .args(["create", &name, "--readonly", "--noudevsync", "--table", &table])
            .output()
            .expect("dmsetup is installed");
        assert!(made.status.success(), "{table}: {}", String::from_utf8_lossy(&made.stderr));
        run("dmsetup mknodes");
        devices.push(format!("/dev/mapper/{name}"));
    }
    let top = devices.last().expect("an overlay");
    run(&format!("dd if={top} of={} bs=1M conv=sparse status=none", to.display()));
    for device in devices.iter().rev() {
        run(&format!("dmsetup remove --retry --noudevsync {device}"));
    }
    loops.iter().for_each(|device| drop(run(&format!("losetup -d {device}"))));
}

fn attach(file: &Path) -> String {
    run(&format!("losetup --show -r -f {}", file.display())).trim().to_owned()
}
