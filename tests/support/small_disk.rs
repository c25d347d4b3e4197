//! A disk that is soon full: an ext4 file system in a file, on a loop device.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A small file system. It is unmounted when this is dropped.
pub struct SmallDisk {
    image: PathBuf,
    mounted: PathBuf,
    filling: PathBuf,
}

impl SmallDisk {
    /// Makes one of so many MiB in the file `image` and mounts it at `mounted`, an empty directory.
    pub fn mount(image: &Path, mounted: &Path, mib: u64) -> Self {
        fs::create_dir_all(mounted).expect("a directory");
        File::create(image).and_then(|file| file.set_len(mib << 20)).expect("a file");
        // No room is kept back for root, who the daemon is.
        run("mkfs.ext4", &["-q", "-m", "0", text(image)]);
        run("mount", &["-o", "loop", text(image), text(mounted)]);
        fs::remove_dir(mounted.join("lost+found")).expect("an empty directory");
        let filling = mounted.join("filling");
        Self { image: image.to_owned(), mounted: mounted.to_owned(), filling }
    }

    /// Takes all the space that is left, down to the last block.
    pub fn fill(&self) {
        let mut file =
            File::options().append(true).create(true).open(&self.filling).expect("a file");
        for size in [1 << 20, 4096, 1] {
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

    /// Takes the disk away; it fails if anything still uses it.
    #[allow(dead_code, reason = "not every suite wants to know that")]
    pub fn unmount(self) {
        run("umount", &[text(&self.mounted)]);
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let detach = nix::mount::MntFlags::MNT_DETACH;
        // Not mounted any more after `unmount`.
        let _ = nix::mount::umount2(&self.mounted, detach);
        let _ = fs::remove_file(&self.image);
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path of the test's own")
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().expect("it is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?} (it needs root): {said}");
}
