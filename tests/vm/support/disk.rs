//! Disks: one that is soon full, and copies of those in snapshots.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::lab::{Lab, run};

/// A small file system under the data directory.
pub struct SmallDisk {
    image: PathBuf,
    mounted: PathBuf,
    filling: PathBuf,
}

impl SmallDisk {
    /// Makes one of so many MiB.
    pub fn mount(lab: &Lab, mib: u64) -> Self {
        let (image, mounted) = (lab.path("disk"), lab.data_dir().to_owned());
        fs::create_dir_all(&mounted).expect("a directory");
        File::create(&image).and_then(|file| file.set_len(mib << 20)).expect("a file");
        run(&format!("mkfs.ext4 -q -m 0 {}", image.display()));
        run(&format!("mount -o loop {} {}", image.display(), mounted.display()));
        fs::remove_dir(mounted.join("lost+found")).expect("an empty directory");
        let filling = mounted.join("filling");
        Self { image, mounted, filling }
    }

    /// Takes all the space that is left.
    pub fn fill(&self) {
        let mut file = File::create(&self.filling).expect("a file");
        for size in [1 << 20, 4096] {
            let zeroes = vec![0; size];
            while file.write_all(&zeroes).is_ok() {}
        }
        // What was promised is taken.
        let _ = file.sync_all();
    }

    /// Gives it back.
    pub fn free(&self) {
        fs::remove_file(&self.filling).expect("removed");
    }

    /// Takes the disk away.
    pub fn unmount(self) {
        run(&format!("umount {}", self.mounted.display()));
        fs::remove_file(&self.image).expect("removed");
    }
}

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
