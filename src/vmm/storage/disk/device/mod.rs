//! Disks as block devices, for a hypervisor that knows no disk format.
//!
//! ```text
//! nestbox-{host}-{sandbox}    snapshot: what the VM writes goes to a file of its own
//!     |        \__ loop, writable   {sandbox}/disk-{build}.cow
//! nestbox-{host}+{layers}     snapshot, read-only, one for all disks with the same layers below
//!     |        \__ loop, read-only  overlay.{build}.cow
//! loop, read-only             rootfs, one for all disks of the image
//! ```
//!
//! Each is a device-mapper "snapshot" (Linux, Documentation/admin-guide/device-mapper/snapshot.rst)
//! with a persistent store. Layers are shared as devices and not only as files: the kernel takes two
//! snapshots of one origin with one store for the old and the new owner of that store, and would not
//! start the second.
//!
//! Nothing is remembered here. Devices are found by names that follow from the data directory, the
//! sandbox and the layers' files; loop devices detach their files when their last user closes them. So
//! a daemon may end at any moment: what it was making is found, and [`Devices::discard`] and
//! [`Devices::sweep`] take it away.
//!
//! # No two VMs write one file
//!
//! The file that a VM writes to is new, and locked as long as its loop device lives: see `files`. The
//! files below have a shared lock each, which a file that is written to does not grant.
//!
//! # When the host's disk is full
//!
//! the kernel would give a device up for ever at the first write that fails. [`Devices::fit`] keeps it
//! from that; where it came too late, [`Device::health`] tells, and nobody should keep what such a disk
//! has.

mod error;
#[cfg(test)]
mod fake;
#[cfg(test)]
mod fake_tests;
mod files;
mod kernel;
#[cfg(test)]
mod lab_tests;
mod linux;
mod loop_size_limit;
#[cfg(test)]
mod loop_size_limit_lab_tests;
mod loops;
mod mapper;
mod node;
mod removal;
#[cfg(test)]
mod removal_tests;
mod stack;

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::libc::dev_t;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use self::kernel::Kernel;
use self::linux::Linux;
use self::removal::{Patience, blocking};
use self::stack::Stack;
use super::layer::DiskFormat;

pub use error::DeviceError;
pub use loop_size_limit::{Condition, Space};

/// The block devices of one daemon's sandboxes.
#[derive(Debug, Clone)]
pub struct Devices {
    stack: Arc<Stack>,
    patience: Patience,
}

impl Devices {
    /// Opens the kernel's device-mapper for the daemon with that data directory, which is there. Has the
    /// kernel load the snapshot module if need be. Blocks for a moment.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Missing`] says what the host lacks, [`DeviceError::File`].
    pub fn open(data_dir: &Path) -> Result<Self, DeviceError> {
        let path = fs::canonicalize(data_dir).map_err(DeviceError::file("find", data_dir))?;
        let digest = Sha256::digest(path.as_os_str().as_bytes());
        let host = hex::encode(&digest[..4]);
        Ok(Self::with(Arc::new(Linux::open()?), format!("nestbox-{host}"), Patience::USUAL))
    }

    fn with(kernel: Arc<dyn Kernel>, prefix: String, patience: Patience) -> Self {
        Self { stack: Arc::new(Stack::new(kernel, prefix)), patience }
    }

    /// Puts `layers`, the lowest first, together with a fresh copy-on-write file at `overlay`, for a
    /// disk of `size` bytes. Layers that others have already are shared. A stale device of that name is
    /// taken away first.
    ///
    /// Not to be dropped halfway: what was made by then stays, until [`Devices::discard`].
    ///
    /// # Errors
    ///
    /// [`DeviceError::Busy`] if a stale device is in use, [`DeviceError::InUse`] if a living VM writes
    /// to one of the layers, [`DeviceError::Layer`] if one is damaged, and others. Nothing is left then,
    /// neither devices nor the file.
    pub async fn create(
        &self,
        name: &str,
        layers: &[(PathBuf, DiskFormat)],
        overlay: &Path,
        size: u64,
    ) -> Result<Device, DeviceError> {
        self.discard(name).await?;
        let (id, layers, path) = (name.to_owned(), layers.to_vec(), overlay.to_owned());
        let work = move |stack: &Stack| stack.create(&id, &layers, &path, size);
        let number = blocking(&self.stack, work).await?;
        Ok(self.device(name, number, overlay.to_owned(), size))
    }

    /// Finds the device of a VM that a former daemon left. If that one ended while it was switching, the
    /// device is as before or as after, and runs.
    ///
    /// # Errors
    ///
    /// [`DeviceError::NotWhole`] if there is none, or something of it is missing.
    pub async fn adopt(&self, name: &str) -> Result<Device, DeviceError> {
        let id = name.to_owned();
        let whole = blocking(&self.stack, move |stack| stack.adopt(&id)).await?;
        Ok(self.device(name, whole.number, whole.overlay, whole.size))
    }

    /// Takes away whatever there is of that name, when no VM uses it any more; files stay. Idempotent.
    ///
    /// # Errors
    ///
    /// As [`Device::remove`].
    pub async fn discard(&self, name: &str) -> Result<(), DeviceError> {
        let (stack, top) = (&self.stack, self.stack.top(name));
        let below = removal::remove(stack, &top, self.patience, None).await?;
        below.release(stack, self.patience, None).await
    }

    /// Names of all that have devices of this data directory, complete or not.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Kernel`].
    pub fn list(&self) -> Result<Vec<String>, DeviceError> {
        self.stack.names()
    }

    /// Takes away layers that no device lies on: what a daemon left that ended while it was making or
    /// removing something. Takes no time if there are none. Blocks.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Kernel`].
    pub fn sweep(&self) -> Result<(), DeviceError> {
        self.stack.sweep()
    }

    fn device(&self, name: &str, number: dev_t, overlay: PathBuf, size: u64) -> Device {
        Device { devices: self.clone(), name: name.to_owned(), number, overlay, size }
    }
}

/// The disk of one VM. Dropped, it stays: a VM outlives the daemon.
#[derive(Debug)]
pub struct Device {
    devices: Devices,
    name: String,
    number: dev_t,
    overlay: PathBuf,
    size: u64,
}

impl Device {
    /// The number by which it is opened: nobody makes a node for it.
    pub fn number(&self) -> dev_t {
        self.number
    }

    /// The file that is written to now.
    pub fn overlay(&self) -> &Path {
        &self.overlay
    }

    /// Bytes that this file takes on the host's disk: blocks in use, not apparent size.
    ///
    /// # Errors
    ///
    /// [`DeviceError::File`].
    pub fn bytes_in_use(&self) -> Result<u64, DeviceError> {
        let data = fs::metadata(&self.overlay);
        let data = data.map_err(DeviceError::file("measure", &self.overlay))?;
        // stat(2): a block of st_blocks is 512 bytes.
        Ok(data.blocks() * 512)
    }

    /// Brings all that was written to the device into its file, which is then complete to whoever reads
    /// it. To bring it to the host's disk is for the caller.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Kernel`], [`DeviceError::Broken`].
    pub async fn flush(&self) -> Result<(), DeviceError> {
        let (top, number) = (self.top(), self.number);
        blocking(&self.devices.stack, move |stack| stack.flush(&top, number)).await
    }

    /// Asks the kernel whether the device has all that was written to it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Broken`] if a write has failed, [`DeviceError::Kernel`].
    pub fn health(&self) -> Result<(), DeviceError> {
        self.devices.stack.health(&self.top())
    }

    /// Has a frozen VM write to a fresh file at `overlay`. The file that it has written so far is the
    /// topmost of `layers`, under whatever name, and is never written again. The device keeps its
    /// number. Not to be dropped halfway.
    ///
    /// # Errors
    ///
    /// [`DeviceError`]; the device writes to the file that it had, and the new one is gone.
    pub async fn switch(
        &mut self,
        layers: &[(PathBuf, DiskFormat)],
        overlay: &Path,
    ) -> Result<(), DeviceError> {
        let (name, layers, path) = (self.name.clone(), layers.to_vec(), overlay.to_owned());
        let (number, size) = (self.number, self.size);
        let work = move |stack: &Stack| stack.switch(&name, number, &layers, &path, size);
        blocking(&self.devices.stack, work).await?;
        self.overlay = overlay.to_owned();
        Ok(())
    }

    /// Takes the device away with its file and the layers that only it needs, when its VM is gone;
    /// waits if it is not quite. The file goes by the name that it has here: other links to it stay.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Busy`] if it stays in use, [`DeviceError::Cancelled`] if `cancel` says so while it
    /// is waited for, [`DeviceError::Kernel`] at once for anything else. What the error names stays then,
    /// with all below it, and the file if it is this device; [`Devices::discard`] and [`Devices::sweep`]
    /// are the ways to try again.
    pub async fn remove(self, cancel: Option<&CancellationToken>) -> Result<(), DeviceError> {
        let Devices { stack, patience } = &self.devices;
        let below = removal::remove(stack, &self.top(), *patience, cancel).await?;
        let removed = files::remove(&self.overlay);
        below.release(stack, *patience, cancel).await?;
        removed
    }

    fn top(&self) -> String {
        self.devices.stack.top(&self.name)
    }
}
