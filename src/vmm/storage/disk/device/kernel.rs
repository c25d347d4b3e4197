//! What disks need of the kernel, as calls that mean something: the one place where a test can put
//! another kernel.

use std::any::Any;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use nix::libc::dev_t;

/// What may be done with a device or file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing is ever written.
    Read,
    /// It is the one file that a VM writes to.
    Write,
}

/// Tells a file from all others on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct FileId {
    pub dev: dev_t,
    pub ino: u64,
}

/// What a device does: shows `origin`, but for what is in `cow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Table {
    pub origin: dev_t,
    pub cow: dev_t,
    pub sectors: u64,
}

/// How far a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// It has no table: whoever made it got no further.
    Empty,
    /// It has a table, and holds what is asked of it back.
    Suspended,
    /// It works.
    Active,
}

/// A device that was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub number: dev_t,
    pub state: State,
}

/// A loop device, held open. The kernel detaches its file when the last one closes it: whoever holds
/// this, or a device whose table names it.
pub(super) struct Loop {
    pub number: dev_t,
    pub _pin: Box<dyn Any + Send>,
}

/// The file behind a loop device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Backing {
    pub file: FileId,
    pub path: PathBuf,
    pub access: Access,
    pub tag: String,
}

/// The kernel's devices. Every call is one system call or a few, and blocks for their time.
///
/// Names are of device-mapper devices, numbers of any block device. A device that is not there is
/// ENXIO, one that is in use EBUSY.
pub(super) trait Kernel: Send + Sync + fmt::Debug {
    /// All devices of the host.
    fn list(&self) -> io::Result<Vec<(String, dev_t)>>;
    /// The device of that name, if there is one.
    fn find(&self, name: &str) -> io::Result<Option<Found>>;
    /// Makes an empty device.
    fn create(&self, name: &str, access: Access) -> io::Result<dev_t>;
    /// Gives a device a table, which counts from its next resume.
    fn load(&self, name: &str, table: &Table, access: Access) -> io::Result<()>;
    /// Forgets a table that does not count yet.
    fn clear(&self, name: &str) -> io::Result<()>;
    /// Waits for what was asked of a device, and holds back what is asked from now on. What the page
    /// cache has for it stays there.
    fn suspend(&self, name: &str) -> io::Result<()>;
    /// Lets a device work, with the table that was loaded last.
    fn resume(&self, name: &str) -> io::Result<()>;
    /// Takes a device away. Tries once.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// The table that counts.
    fn table(&self, name: &str) -> io::Result<Option<Table>>;
    /// What a device says of itself.
    fn status(&self, name: &str) -> io::Result<String>;
    /// Whether another device lies on it.
    fn carries_another(&self, name: &str) -> io::Result<bool>;
    /// Writes out what the page cache has for a device.
    fn sync(&self, number: dev_t) -> io::Result<()>;
    /// Attaches a file to a free loop device. The open file is the device's from now on, with the
    /// lock that it holds.
    fn attach(&self, file: &File, access: Access, tag: &str) -> io::Result<Loop>;
    /// Finds a read-only loop device of that file and tag.
    fn attached(&self, file: FileId, tag: &str) -> io::Result<Option<Loop>>;
    /// The file behind a loop device.
    fn backing(&self, number: dev_t) -> io::Result<Backing>;
    /// Bytes at which a loop device ends before its file does.
    fn limit(&self, number: dev_t) -> io::Result<Option<u64>>;
    /// Has a loop device end at so many bytes, or with its file. EAGAIN if somebody reads it right now.
    fn set_limit(&self, number: dev_t, limit: Option<u64>) -> io::Result<()>;
}
