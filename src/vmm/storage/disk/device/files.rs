//! The files below devices, and the locks that keep a file from having two users.
//!
//! A loop device uses the very open file it was given: Linux, `drivers/block/loop.c`. So a lock that was
//! taken through that file lasts as long as the loop device, whatever happens to the daemon.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use super::error::DeviceError;
use super::kernel::FileId;
use crate::vmm::storage::disk::cow::{self, Cow};
use crate::vmm::storage::disk::layer::DiskFormat;

/// Makes a sparse copy-on-write file for a disk of `size` bytes, for root alone, locked for one VM.
///
/// # Errors
///
/// [`DeviceError::File`], also if there is a file already; nothing is left then.
pub(super) fn create_overlay(path: &Path, size: u64) -> Result<File, DeviceError> {
    let mut options = File::options();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(DeviceError::file("create", path))?;
    let prepare = || {
        file.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => DeviceError::InUse { path: path.to_owned() },
            TryLockError::Error(error) => DeviceError::file("lock", path)(error),
        })?;
        file.set_len(cow::capacity(size)).map_err(DeviceError::file("enlarge", path))
    };
    match prepare() {
        Ok(()) => Ok(file),
        Err(error) => {
            // The file is ours: `create_new` made it. The first error is the one to tell.
            let _ = fs::remove_file(path);
            Err(error)
        }
    }
}

/// Removes a file; one that is gone already is as good.
///
/// # Errors
///
/// [`DeviceError::File`].
pub(super) fn remove(path: &Path) -> Result<(), DeviceError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(DeviceError::file("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// One read-only layer of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Link {
    pub path: PathBuf,
    pub file: FileId,
}

/// The read-only layers of a disk.
#[derive(Debug)]
pub(super) struct Chain {
    /// The image's root disk.
    pub base: Link,
    /// What lies on it, the lowest first.
    pub cows: Vec<Link>,
}

impl Chain {
    /// Finds the layers.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Layers`] if they are not one raw disk with copy-on-write files on it, which is
    /// all that the kernel can put together; [`DeviceError::File`].
    pub fn of(layers: &[(PathBuf, DiskFormat)], size: u64) -> Result<Self, DeviceError> {
        let wrong = |reason: String| DeviceError::Layers { reason };
        let mut links = Vec::new();
        for (index, (path, format)) in layers.iter().enumerate() {
            match (index, format) {
                (0, DiskFormat::Raw) | (1.., DiskFormat::Cow) => {}
                (0, DiskFormat::Cow | DiskFormat::Qcow2)
                | (1.., DiskFormat::Raw | DiskFormat::Qcow2) => {
                    let format = format.as_str();
                    return Err(wrong(format!("number {index} of them is {format}")));
                }
            }
            links.push(Link { path: path.clone(), file: id_at(path)? });
        }
        if links.is_empty() {
            return Err(wrong("there are none".to_owned()));
        }
        let base = links.remove(0);
        let data = fs::metadata(&base.path).map_err(DeviceError::file("measure", &base.path))?;
        if data.len() < size || !size.is_multiple_of(512) {
            return Err(wrong(format!("a disk of {size} bytes has a base of {}", data.len())));
        }
        Ok(Self { base, cows: links })
    }
}

/// Waits until the last who wrote to a layer has let go of it, which is for good: only new files are
/// written to. A loop device lives on for the moment that somebody, such as udev, looks at it.
///
/// # Errors
///
/// [`DeviceError::InUse`] if a living VM writes to it, [`DeviceError::File`].
pub(super) fn settle(link: &Link) -> Result<(), DeviceError> {
    const LIMIT: Duration = Duration::from_secs(1);
    const STEP: Duration = Duration::from_millis(5);
    let begun = Instant::now();
    loop {
        match open_layer(link) {
            Err(DeviceError::InUse { .. }) if begun.elapsed() < LIMIT => thread::sleep(STEP),
            opened => return opened.map(drop),
        }
    }
}

/// Opens a layer that nobody may write to any more, and keeps others from beginning to.
///
/// # Errors
///
/// [`DeviceError::InUse`] if a living VM writes to it, [`DeviceError::File`].
pub(super) fn open_layer(link: &Link) -> Result<File, DeviceError> {
    let file = open_written(link)?;
    share(&file, &link.path)?;
    Ok(file)
}

/// The same for a file that the VM itself has written to so far, and still holds.
///
/// # Errors
///
/// [`DeviceError::File`].
pub(super) fn open_written(link: &Link) -> Result<File, DeviceError> {
    File::open(&link.path).map_err(DeviceError::file("open", &link.path))
}

/// Takes a shared lock through `file`.
///
/// # Errors
///
/// [`DeviceError::InUse`], [`DeviceError::File`].
pub(super) fn share(file: &File, path: &Path) -> Result<(), DeviceError> {
    match file.try_lock_shared() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(DeviceError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(DeviceError::file("lock", path)(error)),
    }
}

/// Whether somebody has the file locked, whoever it is.
///
/// # Errors
///
/// [`DeviceError::File`].
pub(super) fn is_locked(path: &Path) -> Result<bool, DeviceError> {
    let file = File::open(path).map_err(DeviceError::file("open", path))?;
    match share(&file, path) {
        Ok(()) => Ok(false),
        Err(DeviceError::InUse { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// Checks the header of a copy-on-write layer: the kernel only warns in its log about one that it gave
/// up.
///
/// # Errors
///
/// [`DeviceError::Layer`].
pub(super) fn check_cow(file: &File, path: &Path) -> Result<(), DeviceError> {
    let copy = file.try_clone().map_err(DeviceError::file("open", path))?;
    Cow::check(copy, path)?;
    Ok(())
}

/// Which file is at `path`.
///
/// # Errors
///
/// [`DeviceError::File`].
pub(super) fn id_at(path: &Path) -> Result<FileId, DeviceError> {
    let data = fs::metadata(path).map_err(DeviceError::file("find", path))?;
    Ok(FileId { dev: data.dev(), ino: data.ino() })
}
