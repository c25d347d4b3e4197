//! Disks of sandboxes: a copy-on-write overlay each, on read-only layers that they share.
//!
//! QEMU opens the files itself, as an [`Overlay`] of its own format. Firecracker knows nothing but
//! block devices: for it the kernel puts [`cow`] files together to a [`device`].
//!
//! Knows files, locks and the kernel's devices; knows no image store, no hypervisor and no sandbox.
//!
//! # No two VMs write one file
//!
//! An [`Overlay`] holds an exclusive flock(2) on its file. Such a lock belongs to the open file
//! description, so a VM process that is given [`Overlay::file`] holds the very same lock: it
//! lasts for as long as the daemon or the VM lives, whichever is longer, and the kernel ends it when
//! both are gone, however they went. A daemon that starts again finds the lock taken and gets a
//! share of it from the VM process with [`Overlay::adopt`]. Besides, QEMU locks ranges of the file
//! itself (fcntl(2), F_OFD_SETLK); opening an overlay asks for those too, so a VM that was started
//! without the descriptor is seen as well.

pub mod cow;
pub mod device;
mod layer;
mod overlay;
mod qcow2;

pub use device::{Condition, Device, DeviceError, Devices, Space};
pub use layer::{DiskFormat, Layer, OpenLayer};
pub use overlay::{DiskError, Overlay};
