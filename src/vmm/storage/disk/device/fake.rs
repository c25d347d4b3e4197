//! A kernel for tests: keeps the rules that matter, writes down what it was asked, and fails on order.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc::{dev_t, makedev};

use super::kernel::{Access, Backing, FileId, Found, Kernel, Loop, State, Table};

#[derive(Debug, Default, Clone)]
pub(super) struct Fake(Arc<Mutex<World>>);

#[derive(Debug, Default)]
struct World {
    devices: BTreeMap<String, Mapped>,
    loops: BTreeMap<dev_t, Attached>,
    calls: Vec<String>,
    failures: Vec<(String, Errno)>,
    status: BTreeMap<String, String>,
    last: u32,
}

#[derive(Debug)]
struct Mapped {
    number: dev_t,
    active: Option<Table>,
    inactive: Option<Table>,
    suspended: bool,
}

#[derive(Debug)]
struct Attached {
    /// Shares its open file description, and so its lock, with what was attached.
    file: File,
    access: Access,
    tag: String,
    pins: usize,
    limit: Option<u64>,
}

/// Holds a loop device open.
struct Pin(Fake, dev_t);

impl Drop for Pin {
    fn drop(&mut self) {
        let mut world = self.0.world();
        if let Some(attached) = world.loops.get_mut(&self.1) {
            attached.pins -= 1;
        }
        world.detach_unused();
    }
}

impl World {
    fn called(&mut self, call: String) -> io::Result<()> {
        let failure = self.failures.iter().position(|(prefix, _)| call.starts_with(prefix));
        self.calls.push(call);
        match failure {
            Some(index) => Err(self.failures.remove(index).1.into()),
            None => Ok(()),
        }
    }

    fn device(&mut self, name: &str) -> io::Result<&mut Mapped> {
        self.devices.get_mut(name).ok_or_else(|| Errno::ENXIO.into())
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.devices.values().flat_map(|device| [&device.active, &device.inactive]).flatten()
    }

    fn detach_unused(&mut self) {
        let used: Vec<dev_t> = self.tables().flat_map(|table| [table.origin, table.cow]).collect();
        self.loops.retain(|number, attached| attached.pins > 0 || used.contains(number));
    }

    fn next(&mut self, major: u32) -> dev_t {
        self.last += 1;
        makedev(major, self.last)
    }
}

impl Fake {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the next call that begins with `prefix` fail.
    pub fn fail(&self, prefix: &str, errno: Errno) {
        self.world().failures.push((prefix.to_owned(), errno));
    }

    /// Has a device say something else of itself.
    pub fn say(&self, name: &str, status: &str) {
        self.world().status.insert(name.to_owned(), status.to_owned());
    }

    /// Calls that change something and begin with `prefix`.
    pub fn calls(&self, prefix: &str) -> Vec<String> {
        let world = self.world();
        world.calls.iter().filter(|call| call.starts_with(prefix)).cloned().collect()
    }

    pub fn devices(&self) -> Vec<String> {
        self.world().devices.keys().cloned().collect()
    }

    pub fn loops(&self) -> usize {
        self.world().loops.len()
    }

    /// Makes a device as a stranger or a daemon that died would.
    pub fn put(&self, name: &str, table: Option<Table>) {
        let mut world = self.world();
        let number = world.next(253);
        let device = Mapped { number, active: table, inactive: None, suspended: false };
        world.devices.insert(name.to_owned(), device);
    }
}

impl Kernel for Fake {
    fn list(&self) -> io::Result<Vec<(String, dev_t)>> {
        let world = self.world();
        Ok(world.devices.iter().map(|(name, device)| (name.clone(), device.number)).collect())
    }

    fn find(&self, name: &str) -> io::Result<Option<Found>> {
        Ok(self.world().devices.get(name).map(|device| Found {
            number: device.number,
            state: match (device.active, device.suspended) {
                (None, _) => State::Empty,
                (Some(_), true) => State::Suspended,
                (Some(_), false) => State::Active,
            },
        }))
    }

    fn create(&self, name: &str, _access: Access) -> io::Result<dev_t> {
        let mut world = self.world();
        world.called(format!("create {name}"))?;
        if world.devices.contains_key(name) {
            return Err(Errno::EBUSY.into());
        }
        drop(world);
        self.put(name, None);
        Ok(self.find(name)?.expect("it was just made").number)
    }

    fn load(&self, name: &str, table: &Table, access: Access) -> io::Result<()> {
        let mut world = self.world();
        world.called(format!("load {name}"))?;
        let cow = world.loops.get(&table.cow).ok_or(Errno::ENODEV)?;
        if access == Access::Write {
            // A writable table opens its store for writing, and gives a new one a header.
            if cow.access == Access::Read {
                return Err(Errno::EACCES.into());
            }
            cow.file.write_all_at(b"SnAp\x01\0\0\0\x01\0\0\0\x08\0\0\0", 0)?;
        }
        world.device(name)?.inactive = Some(*table);
        Ok(())
    }

    fn clear(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.called(format!("clear {name}"))?;
        world.device(name)?.inactive = None;
        world.detach_unused();
        Ok(())
    }

    fn suspend(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.called(format!("suspend {name}"))?;
        world.device(name)?.suspended = true;
        Ok(())
    }

    fn resume(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.called(format!("resume {name}"))?;
        let others: Vec<Table> = world
            .devices
            .iter()
            .filter(|(other, _)| *other != name)
            .filter_map(|(_, device)| device.active)
            .collect();
        let device = world.device(name)?;
        if let Some(table) = device.inactive.take() {
            // Taken for the next owner of a store that has one.
            if others.iter().any(|other| (other.origin, other.cow) == (table.origin, table.cow)) {
                return Err(Errno::EINVAL.into());
            }
            device.active = Some(table);
        }
        device.suspended = false;
        world.detach_unused();
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut world = self.world();
        world.called(format!("remove {name}"))?;
        let number = world.device(name)?.number;
        if world.tables().any(|table| table.origin == number) {
            return Err(Errno::EBUSY.into());
        }
        world.devices.remove(name);
        world.detach_unused();
        Ok(())
    }

    fn table(&self, name: &str) -> io::Result<Option<Table>> {
        Ok(self.world().devices.get(name).and_then(|device| device.active))
    }

    fn status(&self, name: &str) -> io::Result<String> {
        let mut world = self.world();
        world.device(name)?;
        Ok(world.status.get(name).cloned().unwrap_or_else(|| "16/8192 16".to_owned()))
    }

    fn carries_another(&self, name: &str) -> io::Result<bool> {
        let mut world = self.world();
        let number = world.device(name)?.number;
        Ok(world.tables().any(|table| table.origin == number))
    }

    fn sync(&self, number: dev_t) -> io::Result<()> {
        self.world().called(format!("sync {number}"))
    }

    fn attach(&self, file: &File, access: Access, tag: &str) -> io::Result<Loop> {
        let mut world = self.world();
        world.called("attach".to_owned())?;
        let number = world.next(7);
        let (file, tag) = (file.try_clone()?, tag.to_owned());
        world.loops.insert(number, Attached { file, access, tag, pins: 1, limit: None });
        Ok(Loop { number, _pin: Box::new(Pin(self.clone(), number)) })
    }

    fn attached(&self, file: FileId, tag: &str) -> io::Result<Option<Loop>> {
        let mut world = self.world();
        for (number, attached) in &mut world.loops {
            let data = attached.file.metadata()?;
            let same = (data.dev(), data.ino()) == (file.dev, file.ino);
            if same && attached.tag == tag && attached.access == Access::Read {
                attached.pins += 1;
                let pin = Pin(self.clone(), *number);
                return Ok(Some(Loop { number: *number, _pin: Box::new(pin) }));
            }
        }
        Ok(None)
    }

    fn backing(&self, number: dev_t) -> io::Result<Backing> {
        let world = self.world();
        let attached = world.loops.get(&number).ok_or(Errno::ENXIO)?;
        let data = attached.file.metadata()?;
        Ok(Backing {
            file: FileId { dev: data.dev(), ino: data.ino() },
            path: std::fs::read_link(format!("/proc/self/fd/{}", attached.file.as_raw_fd()))?,
            access: attached.access,
            tag: attached.tag.clone(),
        })
    }
    fn limit(&self, number: dev_t) -> io::Result<Option<u64>> {
        Ok(self.world().loops.get(&number).ok_or(Errno::ENXIO)?.limit)
    }

    fn set_limit(&self, number: dev_t, limit: Option<u64>) -> io::Result<()> {
        let mut world = self.world();
        world.called(format!("limit {number}"))?;
        world.loops.get_mut(&number).ok_or(Errno::ENXIO)?.limit = limit;
        Ok(())
    }
}
