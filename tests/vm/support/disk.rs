//! A disk that is soon full.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

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
