//! The directory that is all a Firecracker sees of the host.
//!
//! ```text
//! {sandbox}/jail/{program}/vm/root/      the layout that the jailer wants
//!     disk  devices  api.sock  pager.sock  (kernel  initramfs)
//! ```
//!
//! The names in it are the same for every VM: a snapshot remembers the paths of its disk, and finds
//! that of another VM under the same one. `root` belongs to the VM's user once the jailer has begun,
//! so whatever is read back from it is opened without following links, and read with a limit.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{
    DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown,
};
use std::path::{Path, PathBuf};

use nix::libc::{self, dev_t};
use nix::sys::stat::{Mode, SFlag, mknod};

const JAIL: &str = "jail";

/// What the jailer calls the VM.
pub const ID: &str = "vm";

/// The disk's block device.
pub const DISK: &str = "disk";
/// State of the devices, to be loaded.
pub const DEVICES: &str = "devices";
/// State of the devices, saved.
pub const NEW_DEVICES: &str = "devices.new";
/// The whole memory, saved.
pub const NEW_MEMORY: &str = "memory.new";
/// Uncompressed kernel.
pub const KERNEL: &str = "kernel";
/// Initial file system.
pub const INITRAMFS: &str = "initramfs";

/// The jail of one VM.
#[derive(Debug, Clone)]
pub struct Jail {
    base: PathBuf,
    root: PathBuf,
}

impl Jail {
    /// Makes an empty jail for `program` in a sandbox's directory.
    ///
    /// # Errors
    ///
    /// Those of making directories.
    pub fn make(dir: &Path, program: &Path, uid: u32) -> io::Result<Self> {
        let base = dir.join(JAIL);
        let name = program.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let root = base.join(name).join(ID).join("root");
        match fs::remove_dir_all(&base) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&root)?;
        chown(&root, Some(uid), Some(uid))?;
        Ok(Self { base, root })
    }

    /// Finds the jail in a sandbox's directory.
    ///
    /// # Errors
    ///
    /// `NotFound` if there is none.
    pub fn find(dir: &Path) -> io::Result<Self> {
        let base = dir.join(JAIL);
        let mut programs = fs::read_dir(&base)?;
        let program = programs.next().ok_or(io::ErrorKind::NotFound)??;
        let root = program.path().join(ID).join("root");
        Ok(Self { base, root })
    }

    /// What the jailer is told.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// What Firecracker sees as `/`.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Copies a file into the jail, for reading.
    ///
    /// # Errors
    ///
    /// Those of reading and writing.
    pub fn put(&self, name: &str, mut from: File, uid: u32) -> io::Result<()> {
        let path = self.root.join(name);
        let mut to = File::options().write(true).create_new(true).mode(0o400).open(&path)?;
        io::copy(&mut from, &mut to)?;
        chown(&path, Some(uid), Some(uid))
    }

    /// Makes a block device's node in the jail. Not in `/dev`: only here it has the same name for
    /// every VM.
    ///
    /// # Errors
    ///
    /// Those of mknod(2).
    pub fn node(&self, name: &str, device: dev_t, uid: u32) -> io::Result<()> {
        let path = self.root.join(name);
        mknod(&path, SFlag::S_IFBLK, Mode::S_IRUSR | Mode::S_IWUSR, device)?;
        if !fs::symlink_metadata(&path)?.file_type().is_block_device() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        chown(&path, Some(uid), Some(uid))
    }

    /// Opens a file that Firecracker has written, and nothing else that may be there in its place.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no plain file; those of opening it.
    pub fn open(&self, name: &str) -> io::Result<File> {
        let mut options = File::options();
        // Without waiting: it might be a pipe.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_CLOEXEC;
        let file = options.read(true).custom_flags(flags).open(self.root.join(name))?;
        let data = file.metadata()?;
        match data.is_file() && data.nlink() == 1 {
            true => Ok(file),
            false => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// Reads a file that Firecracker has written.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no plain file or longer than `limit` bytes; those of reading it.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.open(name)?.take(limit + 1).read_to_end(&mut bytes)?;
        match bytes.len() as u64 > limit {
            true => Err(io::ErrorKind::InvalidData.into()),
            false => Ok(bytes),
        }
    }

    /// Moves a file that Firecracker has written out of the jail, for root alone.
    ///
    /// # Errors
    ///
    /// `InvalidData` if it is no plain file; those of moving it.
    pub fn take(&self, name: &str, to: &Path) -> io::Result<File> {
        let file = self.open(name)?;
        let from = self.root.join(name);
        let ours = file.metadata()?;
        fs::rename(&from, to)?;
        let moved = fs::symlink_metadata(to)?;
        if (moved.dev(), moved.ino()) != (ours.dev(), ours.ino()) {
            // It was another one by then.
            fs::remove_file(to)?;
            return Err(io::ErrorKind::InvalidData.into());
        }
        chown(to, Some(0), Some(0))?;
        fs::set_permissions(to, Permissions::from_mode(0o600))?;
        // Opened anew: the mode of the other descriptor is for reading.
        File::options().read(true).write(true).open(to)
    }

    /// Removes a file; one that is gone already is as good.
    ///
    /// # Errors
    ///
    /// Those of removing it.
    pub fn remove(&self, name: &str) -> io::Result<()> {
        match fs::remove_file(self.root.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn jail() -> (tempfile::TempDir, Jail) {
        let dir = tempfile::tempdir().unwrap();
        let uid = nix::unistd::geteuid().as_raw();
        let jail = Jail::make(dir.path(), Path::new("/bin/firecracker"), uid).unwrap();
        (dir, jail)
    }

    #[test]
    fn a_jail_is_found_again() {
        let (dir, jail) = jail();
        assert!(jail.root().ends_with("jail/firecracker/vm/root"));
        assert_eq!(Jail::find(dir.path()).unwrap().root(), jail.root());
    }

    #[test]
    fn a_link_is_not_followed_out_of_the_jail() {
        let (dir, jail) = jail();
        fs::write(dir.path().join("secret"), "secret").unwrap();
        symlink(dir.path().join("secret"), jail.root().join("link")).unwrap();
        jail.read("link", 100).unwrap_err();
        jail.take("link", &dir.path().join("taken")).unwrap_err();
        assert!(!dir.path().join("taken").exists());
        // Nor is a second name of a file that is elsewhere, or something that is no file.
        fs::hard_link(dir.path().join("secret"), jail.root().join("hard")).unwrap();
        jail.read("hard", 100).unwrap_err();
        nix::unistd::mkfifo(&jail.root().join("pipe"), Mode::S_IRWXU).unwrap();
        jail.read("pipe", 100).unwrap_err();
    }

    #[test]
    fn what_is_too_long_is_not_read() {
        if !crate::skip::is_root("taking a file out of a jail") {
            return;
        }
        let (dir, jail) = jail();
        fs::write(jail.root().join("file"), [7; 100]).unwrap();
        assert_eq!(jail.read("file", 100).unwrap(), [7; 100]);
        jail.read("file", 99).unwrap_err();
        let taken = jail.take("file", &dir.path().join("taken")).unwrap();
        assert_eq!(taken.metadata().unwrap().mode() & 0o777, 0o600);
        assert!(!jail.root().join("file").exists());
        jail.remove("file").unwrap();
    }
}
