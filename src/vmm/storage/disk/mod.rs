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
//!
//! # What a VM wrote, another one reads
//!
//! An overlay becomes a layer of snapshots, and its VM's process may have been taken over. Before
//! anybody else gets it, a qcow2 layer is sealed ([`seal`]): its file is one that no VM has open for
//! writing, and none can open. Its header is compared with what was written when it was made
//! ([`qcow2::check`]), and layers are merged by code that follows no name in them ([`qcow2::flatten`]).
//! A `cow` file needs neither: the kernel writes it, and no VM has it open.

pub mod cow;
pub mod device;
mod layer;
mod overlay;
pub mod qcow2;
mod seal;

pub use device::{Condition, Device, DeviceError, Devices, Space};
pub use layer::{DiskFormat, Layer, LayerError, OpenLayer};
pub use overlay::{DiskError, Overlay};
pub use seal::{Sealing, is_sealed, seal};
