//! Layers that nobody writes to any more, whatever the VM's process that wrote them keeps open.
//!
//! A VM that goes on after its disk was captured is asked to close what has become a layer. Whoever has
//! taken its process over need not do so. So a layer that others get is *sealed*: its file is root's,
//! with no right to write (mode 0400), and was given that mode only when the kernel knew of nobody who
//! had it open for writing. That is so of a VM that is gone, and of one that did as it was asked: then
//! nothing is copied. If somebody has it open, the layer is copied to a file of which that is true, which
//! takes its name; the VM keeps the other one, which nobody else reads.
//!
//! A crash at any moment leaves a layer that is sealed, or one that is found not to be.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc;
use nix::unistd::{Whence, geteuid, lseek};

use super::layer::{Layer, LayerError, OpenLayer};
use super::qcow2::Problem;

/// Mode of a file that is sealed.
const SEALED: u32 = 0o400;
/// Bytes that are copied before somebody is asked whether they are still wanted.
const STEP: u64 = 8 << 20;
/// How often, and how long apart, it is asked whether somebody still has a file open for writing.
const TRIES: u32 = 5;
const PAUSE: Duration = Duration::from_millis(4);
/// ioctl_ficlonerange(2): `FICLONE`.
const FICLONE: libc::c_ulong = 0x4004_9409;

/// How layers are sealed.
pub struct Sealing<'a> {
    /// The longest file that a layer may be, in bytes.
    pub longest: u64,
    /// Whether a copy has to survive a crash of the host at once.
    pub synced: bool,
    /// Asked now and then, and ends the work with [`LayerError::Cancelled`].
    pub cancelled: &'a dyn Fn() -> bool,
}

/// Whether nobody but root can come to write to a file, and nobody has it open so. Only root gives it
/// such a mode, for it belongs to root.
///
/// # Errors
///
/// Those of looking at it.
pub fn is_sealed(file: &File) -> io::Result<bool> {
    let data = file.metadata()?;
    Ok(data.uid() == geteuid().as_raw() && data.mode() & 0o222 == 0)
}

/// Seals a layer in `dir`, in place or by a copy in its place, and opens it. One that is sealed costs
/// no more than that. Blocks; any number may do it at the same time.
///
/// # Errors
///
/// [`LayerError::Io`], [`LayerError::Refused`] if it is too long to be copied,
/// [`LayerError::Cancelled`]. The layer is as it was then.
pub fn seal(layer: &Layer, dir: &Path, how: &Sealing) -> Result<OpenLayer, LayerError> {
    let io = |verb| LayerError::io(verb, &layer.file);
    let found = layer.open(dir)?;
    if is_sealed(&found.file).map_err(io("measure"))? {
        return Ok(found);
    }
    // Against two copies at a time, of which one would be replaced while it is being linked. Also
    // other daemons may share the directory. Nobody but root comes in to take this lock.
    let lock = File::open(dir).map_err(io("lock"))?;
    let _lock = Flock::lock(lock, FlockArg::LockExclusive)
        .map_err(|(_, errno)| io("lock")(errno.into()))?;
    let found = layer.open(dir)?;
    if is_sealed(&found.file).map_err(io("measure"))? {
        return Ok(found);
    }
    if nobody_writes_soon(&found.file) {
        let mode = Permissions::from_mode(SEALED);
        found.file.set_permissions(mode).map_err(io("seal"))?;
        return Ok(found);
    }
    // A VM's process that was not taken over has closed it by now.
    tracing::warn!(dir = %dir.display(), layer = layer.file,
        "a layer is still open for writing, so others get a copy of it");
    let path = dir.join(&layer.file);
    let new = dir.join(format!("{}.new", layer.file));
    let copied = copy(layer, &found.file, &new, how).and_then(|()| {
        fs::rename(&new, &path).map_err(io("rename"))?;
        if how.synced {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(io("sync"))?;
        }
        layer.open(dir)
    });
    if copied.is_err() {
        // The first error is the one to tell. What stays is made anew under the same name.
        let _ = fs::remove_file(&new);
    }
    copied
}

/// Whether no process has a file open for writing, mapped or in a message on its way, as the kernel
/// counts them: it gives a lease for reading only then, fcntl(2). Where there are no leases, nobody
/// knows.
fn nobody_writes(file: &File) -> bool {
    let lease = |kind: libc::c_int| {
        // SAFETY: the call takes three numbers and touches no memory.
        Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) })
    };
    // Given back at once: from here on nobody can open it for writing, for only root may.
    lease(libc::F_RDLCK as libc::c_int).is_ok() && lease(libc::F_UNLCK as libc::c_int).is_ok()
}

/// The same in a moment: any process that the daemon is just starting has its open files as well,
/// until it executes.
fn nobody_writes_soon(file: &File) -> bool {
    for _ in 0..TRIES {
        if nobody_writes(file) {
            return true;
        }
        thread::sleep(PAUSE);
    }
    false
}

/// Copies a layer to a new file that is sealed. Its VM may write to it meanwhile, or make it longer.
fn copy(layer: &Layer, from: &File, new: &Path, how: &Sealing) -> Result<(), LayerError> {
    let io = |verb| LayerError::io(verb, &layer.file);
    let bytes = from.metadata().map_err(io("measure"))?.len();
    if bytes > how.longest {
        let problem = Problem::TooLong { bytes };
        return Err(LayerError::Refused { file: layer.file.clone(), problem });
    }
    if (how.cancelled)() {
        return Err(LayerError::Cancelled);
    }
    // One that is there was left by a crash.
    let mut options = File::options();
    let to = options.write(true).create(true).truncate(true).mode(0o600).open(new);
    let to = to.map_err(io("copy"))?;
    if !clone_blocks(from, &to) {
        to.set_len(bytes).map_err(io("copy"))?;
        copy_data(from, &to, bytes, how.cancelled).map_err(|error| match error.kind() {
            io::ErrorKind::Interrupted => LayerError::Cancelled,
            _ => io("copy")(error),
        })?;
    }
    if how.synced {
        to.sync_data().map_err(io("sync"))?;
    }
    to.set_permissions(Permissions::from_mode(SEALED)).map_err(io("seal"))
}

/// Has the file system share the blocks until one of both is written to, where it can.
fn clone_blocks(from: &File, to: &File) -> bool {
    // SAFETY: the call takes three numbers and touches no memory.
    unsafe { libc::ioctl(to.as_raw_fd(), FICLONE, from.as_raw_fd()) == 0 }
}

/// Copies the first `bytes` without what are holes. [`io::ErrorKind::Interrupted`] if it was
/// cancelled.
fn copy_data(
    mut from: &File,
    mut to: &File,
    bytes: u64,
    cancelled: &dyn Fn() -> bool,
) -> io::Result<()> {
    let next = |at: u64, whence| match lseek(from.as_fd(), at as i64, whence) {
        Ok(offset) => Ok(Some(offset as u64)),
        // There is nothing but a hole up to the end.
        Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(io::Error::from(errno)),
    };
    let mut at = 0;
    while let Some(data) = next(at, Whence::SeekData)?.filter(|data| *data < bytes) {
        let end = next(data, Whence::SeekHole)?.unwrap_or(bytes).min(bytes);
        at = data;
        while at < end {
            if cancelled() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            let step = STEP.min(end - at);
            from.seek(SeekFrom::Start(at))?;
            to.seek(SeekFrom::Start(at))?;
            // Within the kernel, where it can.
            let copied = io::copy(&mut from.take(step), &mut to)?;
            if copied == 0 {
                return Ok(());
            }
            at += copied;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "seal_tests.rs"]
mod tests;
