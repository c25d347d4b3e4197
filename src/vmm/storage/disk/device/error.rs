//! What goes wrong with disks that are block devices.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::vmm::storage::disk::cow::CowError;

/// Why a block device cannot be made, used or taken away.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The host lacks something.
    #[error("{what} is not there: {remedy}")]
    Missing { what: &'static str, remedy: &'static str, source: io::Error },
    /// The layers do not make a disk.
    #[error("these layers make no disk: {reason}")]
    Layers { reason: String },
    /// A file could not be used.
    #[error("cannot {verb} {}", path.display())]
    File { verb: &'static str, path: PathBuf, source: io::Error },
    /// A copy-on-write layer is not what it should be.
    #[error("a layer cannot be used")]
    Layer(#[from] CowError),
    /// A living VM writes to the file, or has it as a layer that must not change.
    #[error("{} is in use by another VM", path.display())]
    InUse { path: PathBuf },
    /// A file could not be attached to a loop device.
    #[error("cannot attach {} to a loop device", path.display())]
    Attach { path: PathBuf, source: io::Error },
    /// The kernel refused something.
    #[error("cannot {verb} device {name}")]
    Kernel { verb: &'static str, name: String, source: io::Error },
    /// There is no such device, or it is not complete.
    #[error("device {name} is not whole: {reason}")]
    NotWhole { name: String, reason: String },
    /// The kernel gave the disk up: a write failed, usually because the host's disk was full.
    #[error("device {name} is broken: the kernel says {status:?}")]
    Broken { name: String, status: String },
    /// Somebody has the device open. Whatever lies below it stays as well.
    #[error("device {name} is still in use after {waited:?}, so it stays with all its layers")]
    Busy { name: String, waited: Duration },
    /// Nobody wants to wait until the device is free. It stays.
    #[error("removing device {name} was cancelled")]
    Cancelled { name: String },
}

impl DeviceError {
    /// Makes an error of a device that says what was tried.
    pub(super) fn kernel(verb: &'static str, name: &str) -> impl FnOnce(io::Error) -> Self {
        let name = name.to_owned();
        move |source| Self::Kernel { verb, name, source }
    }

    /// Makes an error of a file that says what was tried.
    pub(super) fn file(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { verb, path, source }
    }
}
