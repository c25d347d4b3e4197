//! The kernel itself.

use std::fmt;
use std::fs::File;
use std::io;

use nix::libc::dev_t;

use super::error::DeviceError;
use super::kernel::{Access, Backing, FileId, Found, Kernel, Loop, Table};
use super::mapper::{self, Mapper};
use super::{loops, node};

/// This machine's devices.
pub(super) struct Linux(Mapper);

impl Linux {
    /// Checks that the kernel has what disks need, and that this process may use it.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Missing`].
    pub fn open() -> Result<Self, DeviceError> {
        let missing = |what, remedy| move |source| DeviceError::Missing { what, remedy, source };
        let mapper = Mapper::open().map_err(missing(
            "/dev/mapper/control",
            "load the module dm-mod (modprobe dm-mod); a container must be given this node",
        ))?;
        mapper.require_snapshots().map_err(missing(
            "device-mapper's snapshot target",
            "load the module dm-snapshot (modprobe dm-snapshot); Debian's kernel packages have it",
        ))?;
        let control = File::options().read(true).write(true).open("/dev/loop-control");
        control.map_err(missing(
            "/dev/loop-control",
            "load the module loop (modprobe loop); a container must be given this node",
        ))?;
        Ok(Self(mapper))
    }
}

impl fmt::Debug for Linux {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Linux")
    }
}

impl Kernel for Linux {
    fn list(&self) -> io::Result<Vec<(String, dev_t)>> {
        self.0.list()
    }

    fn find(&self, name: &str) -> io::Result<Option<Found>> {
        self.0.find(name)
    }

    fn create(&self, name: &str, access: Access) -> io::Result<dev_t> {
        self.0.create(name, access)
    }

    fn load(&self, name: &str, table: &Table, access: Access) -> io::Result<()> {
        self.0.load(name, table, access)
    }

    fn clear(&self, name: &str) -> io::Result<()> {
        self.0.clear(name)
    }

    fn suspend(&self, name: &str) -> io::Result<()> {
        self.0.suspend(name)
    }

    fn resume(&self, name: &str) -> io::Result<()> {
        self.0.resume(name)
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.0.remove(name)
    }

    fn table(&self, name: &str) -> io::Result<Option<Table>> {
        self.0.table(name)
    }

    fn status(&self, name: &str) -> io::Result<String> {
        self.0.status(name)
    }

    fn carries_another(&self, name: &str) -> io::Result<bool> {
        match self.0.find(name)? {
            Some(found) => mapper::carries_another(found.number),
            None => Ok(false),
        }
    }

    fn sync(&self, number: dev_t) -> io::Result<()> {
        node::open(number, &mapper::node_path(number), Access::Read)?.sync_all()
    }

    fn attach(&self, file: &File, access: Access, tag: &str) -> io::Result<Loop> {
        loops::attach(file, access, tag)
    }

    fn attached(&self, file: FileId, tag: &str) -> io::Result<Option<Loop>> {
        loops::attached(file, tag)
    }

    fn backing(&self, number: dev_t) -> io::Result<Backing> {
        loops::backing(number)
    }

    fn limit(&self, number: dev_t) -> io::Result<Option<u64>> {
        loops::limit(number)
    }

    fn set_limit(&self, number: dev_t, limit: Option<u64>) -> io::Result<()> {
        loops::set_limit(number, limit)
    }
}
