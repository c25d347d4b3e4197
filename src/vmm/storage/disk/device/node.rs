//! Opens block devices by their numbers.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc::dev_t;
use nix::sys::stat::{Mode, SFlag, mknod};

use super::kernel::Access;

/// Opens a block device. Nobody may have made its node: there is no udev in a container, and `/dev`
/// there may be older than the device. Then a node of our own is made, for as long as opening takes.
///
/// # Errors
///
/// Those of making and opening a node.
pub(super) fn open(number: dev_t, usual: &Path, access: Access) -> io::Result<File> {
    match open_as(usual, number, access) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => open_own(number, access),
        opened => opened,
    }
}

fn open_as(path: &Path, number: dev_t, access: Access) -> io::Result<File> {
    let file = File::options().read(true).write(access == Access::Write).open(path)?;
    match file.metadata()?.rdev() == number {
        true => Ok(file),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}

fn open_own(number: dev_t, access: Access) -> io::Result<File> {
    // At random: in containers that share a `/dev`, all daemons may have the same pid.
    let name = format!(".nestbox-{:016x}", rand::random::<u64>());
    // Nearly every other file system that a daemon may write to is mounted `nodev` somewhere.
    let node = PathBuf::from("/dev").join(name);
    mknod(&node, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, number)?;
    let opened = open_as(&node, number, access);
    fs::remove_file(&node)?;
    opened
}
