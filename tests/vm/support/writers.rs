//! Which files a VM can write to.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sys::stat::{major, minor};

/// A file, whatever it is called.
pub type FileId = (u64, u64);

/// The file that this is of.
pub fn id_of(data: &Metadata) -> FileId {
    (data.dev(), data.ino())
}

/// The file of that name.
pub fn id_at(path: &Path) -> FileId {
    id_of(&fs::metadata(path).expect("a file"))
}

/// Regular files that a process can write to, and what they were opened as: those that it has open
/// for writing, and those that a block device writes to which it has open so.
pub fn written_by(pid: i32) -> BTreeMap<FileId, PathBuf> {
    let mut written = BTreeMap::new();
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).expect("it lives").flatten() {
        let Ok(data) = fs::metadata(fd.path()) else { continue };
        let number = fd.file_name().into_string().expect("a number");
        let Ok(info) = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")) else { continue };
        let flags = info.lines().find_map(|line| line.strip_prefix("flags:")).expect("flags");
        let flags = i32::from_str_radix(flags.trim(), 8).expect("octal");
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            continue;
        }
        let path = fs::read_link(fd.path()).unwrap_or_default();
        if data.is_file() {
            written.insert(id_of(&data), path);
        } else if data.file_type().is_block_device() {
            let (major, minor) = (major(data.rdev()), minor(data.rdev()));
            for file in files_below(&PathBuf::from(format!("/sys/dev/block/{major}:{minor}"))) {
                written.insert(id_at(&file), file);
            }
        }
    }
    written
}

/// Files behind a block device that are written to through it.
fn files_below(device: &Path) -> Vec<PathBuf> {
    let text = |name: &str| fs::read_to_string(device.join(name)).unwrap_or_default();
    if text("ro").trim() == "1" {
        return Vec::new();
    }
    let slaves = fs::read_dir(device.join("slaves")).into_iter().flatten().flatten();
    let mut files: Vec<_> = slaves.flat_map(|slave| files_below(&slave.path())).collect();
    let backing = text("loop/backing_file");
    files.extend((!backing.is_empty()).then(|| PathBuf::from(backing.trim())));
    files
}
