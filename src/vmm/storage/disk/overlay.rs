//! The overlay of one sandbox, and the lock that makes it the only one's.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

use super::layer::Layer;
use super::qcow2;

/// Why an overlay cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The overlay could not be made.
    #[error("cannot create overlay {}", path.display())]
    Create {
        /// The overlay.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The overlay could not be opened.
    #[error("cannot open overlay {}", path.display())]
    Open {
        /// The overlay.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Another VM or daemon has the overlay open.
    #[error("overlay {} is in use", path.display())]
    InUse {
        /// The overlay.
        path: PathBuf,
    },
    /// The process that should hold the overlay does not.
    #[error("process {pid} does not hold overlay {}", path.display())]
    NotHeld {
        /// The overlay.
        path: PathBuf,
        /// The process.
        pid: u32,
    },
    /// The overlay could not be removed.
    #[error("cannot remove overlay {}", path.display())]
    Remove {
        /// The overlay.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The overlay's size could not be read.
    #[error("cannot measure overlay {}", path.display())]
    Measure {
        /// The overlay.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A sandbox's disk, open for one VM and nobody else.
#[derive(Debug)]
pub struct Overlay {
    path: PathBuf,
    lock: OwnedFd,
}

impl Overlay {
    /// Makes an empty overlay of `size` bytes on `backing`, for root alone: a VM gets it as an open
    /// file.
    ///
    /// # Errors
    /// [`DiskError::Create`], also if there is a file at `path` already; nothing is left then.
    pub fn create(path: &Path, backing: &Layer, size: u64) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Create { path: path.to_owned(), source };
        let mut options = File::options();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
        let file = file.map_err(failed)?;
        let fill = || {
            let file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e)?;
            qcow2::write_overlay(&file, backing, size)?;
            io::Result::Ok(file)
        };
        match fill() {
            Ok(file) => Ok(Self { path: path.to_owned(), lock: into_fd(file) }),
            Err(error) => {
                // The file is ours: `create_new` made it. The first error is the one to tell.
                let _ = fs::remove_file(path);
                Err(failed(error))
            }
        }
    }

    /// Opens an overlay that no living VM uses.
    ///
    /// # Errors
    /// [`DiskError::InUse`] if one does, [`DiskError::Open`] if there is no such file.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let in_use = || DiskError::InUse { path: path.to_owned() };
        let file = File::options().read(true).write(true).open(path).map_err(failed)?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => file,
            Err((_, Errno::EWOULDBLOCK)) => return Err(in_use()),
            Err((_, errno)) => return Err(failed(errno.into())),
        };
        if locked_by_hypervisor(&file).map_err(failed)? {
            return Err(in_use());
        }
        // Between opening and locking another may have put a new file in this one's place.
        if !is_file_at(&file, path).map_err(failed)? {
            return Err(in_use());
        }
        Ok(Self { path: path.to_owned(), lock: into_fd(file) })
    }

    /// Takes a share of the lock that the VM process `pid` inherited, after the daemon started
    /// again.
    ///
    /// The caller has made sure that `pid` is still the process that it knew.
    ///
    /// # Errors
    /// [`DiskError::NotHeld`] if the process has no lock on the overlay; then [`Overlay::open`] says
    /// whether somebody else has.
    pub fn adopt(path: &Path, pid: u32) -> Result<Self, DiskError> {
        let failed = |source| DiskError::Open { path: path.to_owned(), source };
        let not_held = || DiskError::NotHeld { path: path.to_owned(), pid };
        let wanted = fs::metadata(path).map_err(failed)?;
        let process = pidfd_open(pid).map_err(|_| not_held())?;
        let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_err(|_| not_held())?;
        for entry in fds.flatten() {
            let same = fs::metadata(entry.path())
                .is_ok_and(|meta| (meta.dev(), meta.ino()) == (wanted.dev(), wanted.ino()));
            let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let (true, Some(number)) = (same, number) else { continue };
            let Ok(fd) = pidfd_getfd(&process, number) else { continue };
            // Through the description that holds the lock, locking again succeeds; through any
            // other one of the file it does not.
            let file = File::from(fd);
            if let Ok(file) = Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                return Ok(Self { path: path.to_owned(), lock: into_fd(file) });
            }
        }
        Err(not_held())
    }

    /// Where the overlay is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file, which holds the lock. A VM process that works with this very descriptor keeps
    /// the lock when the daemon is gone. (It is close-on-exec, so that no other child has it.)
    pub fn file(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Bytes the overlay takes on the host's disk: blocks in use, not apparent size.
    ///
    /// # Errors
    /// [`DiskError::Measure`].
    pub fn bytes_in_use(&self) -> Result<u64, DiskError> {
        let measure = || File::from(self.lock.try_clone()?).metadata();
        let meta =
            measure().map_err(|source| DiskError::Measure { path: self.path.clone(), source })?;
        Ok(meta.blocks() * 512)
    }

    /// Removes the overlay; one that is gone already is as good.
    ///
    /// # Errors
    /// [`DiskError::Remove`].
    pub fn remove(self) -> Result<(), DiskError> {
        match fs::remove_file(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DiskError::Remove { path: self.path, source })
            }
            _ => Ok(()),
        }
    }
}

/// Keeps the descriptor and with it the lock. [`Flock`] itself would unlock when dropped, for every
/// process that shares the open file description: the VM would lose its lock with the daemon.
fn into_fd(lock: Flock<File>) -> OwnedFd {
    let lock = std::mem::ManuallyDrop::new(lock);
    // SAFETY: `lock` is never dropped, so the descriptor is owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(lock.as_raw_fd()) }
}

fn is_file_at(file: &File, path: &Path) -> io::Result<bool> {
    let (open, named) = (file.metadata()?, fs::metadata(path)?);
    Ok((open.dev(), open.ino()) == (named.dev(), named.ino()))
}

/// Tells whether a process has a range of the file locked, as QEMU has for each image it opens.
fn locked_by_hypervisor(file: &File) -> io::Result<bool> {
    let mut range = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut range))?;
    Ok(range.l_type != libc::F_UNLCK as libc::c_short)
}

fn pidfd_open(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two numbers and touches no memory.
    own(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

fn pidfd_getfd(process: &OwnedFd, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_getfd(2) takes three numbers and touches no memory.
    own(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) })
}

/// Takes the descriptor that a system call returned; both calls above set close-on-exec.
fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
#[path = "overlay_tests.rs"]
mod tests;
