//! Puts layers together to devices, and finds what is there. All of it blocks.
//!
//! What a device lies on is found in the kernel's tables, not remembered: a daemon that starts again
//! knows as much as the one before.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::libc::dev_t;
use sha2::{Digest, Sha256};

use super::error::DeviceError;
use super::files::{self, Chain, Link};
use super::kernel::{Access, FileId, Kernel, Loop, State, Table};
use crate::vmm::storage::disk::layer::DiskFormat;

const SECTOR: u64 = 512;

/// The devices of one data directory.
#[derive(Debug)]
pub(super) struct Stack {
    pub kernel: Arc<dyn Kernel>,
    /// What all names of its devices begin with, and what its loop devices are marked with.
    prefix: String,
    /// One at a time builds on layers or takes them away, so that what was just found to be there, or
    /// to be unused, stays so.
    turn: Mutex<()>,
}

/// What a device is put on.
struct Origin {
    number: dev_t,
    /// Keeps a loop device until a table has it.
    _pin: Option<Loop>,
    /// The layer that was written to until now, which is not locked yet.
    fresh: Option<std::fs::File>,
}

/// A device that a former daemon left.
pub(super) struct Whole {
    pub number: dev_t,
    pub overlay: PathBuf,
    pub size: u64,
}

/// How a device that a VM writes to is.
pub(super) enum Health {
    /// It takes what is written to it; so many bytes of its file are in use.
    Good { in_use: u64 },
    /// It refuses what is written to it, and has all that it took.
    Full,
    /// The kernel gave it up, in these words.
    GivenUp { status: String },
}

impl Stack {
    pub fn new(kernel: Arc<dyn Kernel>, prefix: String) -> Self {
        Self { kernel, prefix, turn: Mutex::default() }
    }

    /// Name of the device that a VM writes to.
    pub fn top(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Names of what has a device.
    pub fn names(&self) -> Result<Vec<String>, DeviceError> {
        let prefix = self.top("");
        let names = self.all()?.into_iter();
        Ok(names.filter_map(|(name, _)| Some(name.strip_prefix(&prefix)?.to_owned())).collect())
    }

    pub fn turn(&self) -> MutexGuard<'_, ()> {
        // It guards no value that a panic could have left half-done.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a device with a fresh copy-on-write file. After an error nothing is left, as far as the
    /// kernel lets go of it.
    pub fn create(
        &self,
        name: &str,
        layers: &[(PathBuf, DiskFormat)],
        overlay: &Path,
        size: u64,
    ) -> Result<dev_t, DeviceError> {
        let top = self.top(name);
        let chain = Chain::of(layers, size)?;
        chain.cows.iter().try_for_each(files::settle)?;
        let file = files::create_overlay(overlay, size)?;
        let _turn = self.turn();
        let made = (|| {
            let cow = self.attach(&file, overlay, Access::Write)?;
            let origin = self.ensure(&chain, size, None)?;
            let number = self.kernel.create(&top, Access::Write);
            let number = number.map_err(DeviceError::kernel("create", &top))?;
            let table = Table { origin: origin.number, cow: cow.number, sectors: size / SECTOR };
            self.start(&top, &table, Access::Write)?;
            Ok(number)
        })();
        if made.is_err() {
            // What of it stays, because of an error of its own, is found by the next sweep.
            if self.remove_now(&top).is_ok() {
                let _ = files::remove(overlay);
            }
            self.remove_unused(&chain);
        }
        made
    }

    /// Has a device write to a fresh file. What it has written so far is the topmost of `layers`.
    pub fn switch(
        &self,
        name: &str,
        number: dev_t,
        layers: &[(PathBuf, DiskFormat)],
        overlay: &Path,
        size: u64,
    ) -> Result<(), DeviceError> {
        let top = self.top(name);
        let chain = Chain::of(layers, size)?;
        let written = self.written(&top)?;
        if chain.cows.last().map(|link| link.file) != Some(written) {
            let reason = "the topmost is not what the VM writes to".to_owned();
            return Err(DeviceError::Layers { reason });
        }
        self.flush(&top, number)?;
        let file = files::create_overlay(overlay, size)?;
        let _turn = self.turn();
        let switched = (|| {
            let cow = self.attach(&file, overlay, Access::Write)?;
            let told = |verb| DeviceError::kernel(verb, &top);
            self.kernel.suspend(&top).map_err(told("suspend"))?;
            // Now the file below holds still, and its tables can be read.
            let origin = self.ensure(&chain, size, Some(written))?;
            let table = Table { origin: origin.number, cow: cow.number, sectors: size / SECTOR };
            self.start(&top, &table, Access::Write)?;
            Ok(origin.fresh)
        })();
        match switched {
            Ok(fresh) => {
                let link = chain.cows.last().expect("it was compared");
                // The VM writes elsewhere already, so this is not the way to stop it.
                if let Some(Err(error)) = fresh.map(|file| files::share(&file, &link.path)) {
                    tracing::error!(error = %crate::chain(&error), "a layer is not locked");
                }
                Ok(())
            }
            Err(error) => {
                self.as_it_was(&top)?;
                self.remove_unused(&chain);
                let _ = files::remove(overlay);
                Err(error)
            }
        }
    }

    /// Lets a device work with the table it had, whatever came after.
    fn as_it_was(&self, top: &str) -> Result<(), DeviceError> {
        self.kernel.clear(top).map_err(DeviceError::kernel("clear", top))?;
        self.kernel.resume(top).map_err(DeviceError::kernel("resume", top))
    }

    /// Brings everything that was written to a device into its copy-on-write file.
    pub fn flush(&self, top: &str, number: dev_t) -> Result<(), DeviceError> {
        self.kernel.sync(number).map_err(DeviceError::kernel("flush", top))?;
        self.health(top)
    }

    /// Asks the kernel whether it has given the device's content up.
    pub fn health(&self, top: &str) -> Result<(), DeviceError> {
        match self.state(top)? {
            // What it refused, whoever wrote it was told.
            Health::Good { .. } | Health::Full => Ok(()),
            Health::GivenUp { status } => Err(DeviceError::Broken { name: top.to_owned(), status }),
        }
    }

    /// Asks the kernel how a device is.
    pub fn state(&self, top: &str) -> Result<Health, DeviceError> {
        let status = self.kernel.status(top).map_err(DeviceError::kernel("ask", top))?;
        // Linux, drivers/md/dm-snap.c, snapshot_status: sectors as "used/all metadata", or a word.
        let sectors = status.split_once('/').and_then(|(used, _)| used.parse::<u64>().ok());
        Ok(match (sectors, status.as_str()) {
            (Some(sectors), _) => Health::Good { in_use: sectors * SECTOR },
            (None, "Overflow") => Health::Full,
            (None, _) => Health::GivenUp { status },
        })
    }

    /// The file that a device writes to.
    fn written(&self, top: &str) -> Result<FileId, DeviceError> {
        let told = |verb| DeviceError::kernel(verb, top);
        let table = self.kernel.table(top).map_err(told("find"))?;
        let table = table.ok_or_else(|| not_whole(top, "it has no table"))?;
        Ok(self.kernel.backing(table.cow).map_err(told("find the file of"))?.file)
    }

    /// Finds a device with everything that belongs to it.
    pub fn adopt(&self, name: &str) -> Result<Whole, DeviceError> {
        let top = &self.top(name);
        let told = |verb| DeviceError::kernel(verb, top);
        let found = self.kernel.find(top).map_err(told("find"))?;
        let found = found.ok_or_else(|| not_whole(top, "there is none"))?;
        let _turn = self.turn();
        match found.state {
            State::Active => self.kernel.clear(top).map_err(told("clear"))?,
            // A daemon ended while it switched: before the resume, nothing has changed.
            State::Suspended => self.as_it_was(top)?,
            State::Empty => return Err(not_whole(top, "it has no table")),
        }
        let table = self.kernel.table(top).map_err(told("find"))?;
        let table = table.ok_or_else(|| not_whole(top, "it is no snapshot"))?;
        let backing = self.kernel.backing(table.cow).map_err(told("find the file of"))?;
        if backing.tag != self.prefix || backing.access != Access::Write {
            return Err(not_whole(top, "it writes to a loop device that is not ours"));
        }
        if files::id_at(&backing.path)? != backing.file {
            return Err(not_whole(top, "the file it writes to was replaced"));
        }
        if !files::is_locked(&backing.path)? {
            return Err(not_whole(top, "the file it writes to is not locked"));
        }
        let size = table.sectors * SECTOR;
        Ok(Whole { number: found.number, overlay: backing.path, size })
    }

    /// Our devices below one, from the top down.
    pub fn below(&self, name: &str) -> Result<Vec<String>, DeviceError> {
        let layers = self.all()?;
        let mut below = Vec::new();
        let mut at = name.to_owned();
        loop {
            let table = self.kernel.table(&at).map_err(DeviceError::kernel("find", &at))?;
            let Some(table) = table else { return Ok(below) };
            let next = layers.iter().find(|(_, number)| *number == table.origin);
            let Some((next, _)) = next else { return Ok(below) };
            below.push(next.clone());
            at = next.clone();
        }
    }

    /// Removes layers that nothing lies on, whoever has left them.
    pub fn sweep(&self) -> Result<(), DeviceError> {
        let _turn = self.turn();
        let prefix = self.layer("");
        loop {
            let mut removed = false;
            for (name, _) in self.all()?.iter().filter(|(name, _)| name.starts_with(&prefix)) {
                match self.remove_now(name) {
                    Ok(()) => removed = true,
                    Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) => {}
                    Err(error) => return Err(DeviceError::kernel("remove", name)(error)),
                }
            }
            if !removed {
                return Ok(());
            }
        }
    }

    /// Makes sure that the layers of a chain are there as devices: those that another VM has already
    /// are shared. `written` is the one that a VM has written to until now.
    fn ensure(
        &self,
        chain: &Chain,
        size: u64,
        written: Option<FileId>,
    ) -> Result<Origin, DeviceError> {
        let names = self.layer_names(chain);
        let mut layers: Vec<(&String, &Link)> = names.iter().zip(&chain.cows).collect();
        let mut missing = Vec::new();
        let mut origin = None;
        while let Some((name, link)) = layers.pop() {
            if let Some(number) = self.ready(name, Some(link.file) == written)? {
                origin = Some(Origin { number, _pin: None, fresh: None });
                break;
            }
            missing.push((name, link));
        }
        let mut origin = match origin {
            Some(origin) => origin,
            None => self.base(&chain.base)?,
        };
        for (name, link) in missing.into_iter().rev() {
            let is_written = Some(link.file) == written;
            let file = match is_written {
                true => files::open_written(link)?,
                false => files::open_layer(link)?,
            };
            files::check_cow(&file, &link.path)?;
            let cow = self.attach(&file, &link.path, Access::Read)?;
            let table = Table { origin: origin.number, cow: cow.number, sectors: size / SECTOR };
            let number = self.kernel.create(name, Access::Read);
            let number = number.map_err(DeviceError::kernel("create", name))?;
            self.start(name, &table, Access::Read)?;
            self.health(name)?;
            origin = Origin { number, _pin: None, fresh: is_written.then_some(file) };
        }
        Ok(origin)
    }

    /// The device of a layer, if it is there and complete. One that is not complete is taken away: a
    /// daemon has died over it. So is one of a file that was written to after it was made, when a
    /// switch had failed: the kernel has read its tables only once.
    fn ready(&self, name: &str, stale: bool) -> Result<Option<dev_t>, DeviceError> {
        let found = self.kernel.find(name).map_err(DeviceError::kernel("find", name))?;
        match found {
            None => Ok(None),
            Some(found) if found.state == State::Active && !stale => Ok(Some(found.number)),
            Some(_) => {
                self.remove_now(name).map_err(DeviceError::kernel("remove", name))?;
                Ok(None)
            }
        }
    }

    fn base(&self, base: &Link) -> Result<Origin, DeviceError> {
        let attach = |source| DeviceError::Attach { path: base.path.clone(), source };
        let pin = match self.kernel.attached(base.file, &self.prefix).map_err(attach)? {
            Some(pin) => pin,
            None => self.attach(&files::open_layer(base)?, &base.path, Access::Read)?,
        };
        Ok(Origin { number: pin.number, _pin: Some(pin), fresh: None })
    }

    fn attach(
        &self,
        file: &std::fs::File,
        path: &Path,
        access: Access,
    ) -> Result<Loop, DeviceError> {
        let attached = self.kernel.attach(file, access, &self.prefix);
        attached.map_err(|source| DeviceError::Attach { path: path.to_owned(), source })
    }

    fn start(&self, name: &str, table: &Table, access: Access) -> Result<(), DeviceError> {
        let loaded = self.kernel.load(name, table, access);
        loaded.map_err(DeviceError::kernel("load a table of", name))?;
        self.kernel.resume(name).map_err(DeviceError::kernel("resume", name))
    }

    /// Removes the layers of a chain that nothing lies on.
    fn remove_unused(&self, chain: &Chain) {
        for name in self.layer_names(chain).iter().rev() {
            if self.remove_now(name).is_err() {
                return;
            }
        }
    }

    /// Removes a device; one that is gone already is as good. Tries once.
    pub fn remove_now(&self, name: &str) -> std::io::Result<()> {
        match self.kernel.remove(name) {
            Err(error) if error.raw_os_error() == Some(Errno::ENXIO as i32) => Ok(()),
            removed => removed,
        }
    }

    /// Names of the devices of a chain's copy-on-write files. Whoever has the same files, below as
    /// well, has the same device.
    fn layer_names(&self, chain: &Chain) -> Vec<String> {
        let mut digest = Sha256::new();
        let mut add = |link: &Link| {
            digest.update(link.file.dev.to_le_bytes());
            digest.update(link.file.ino.to_le_bytes());
            hex::encode(&digest.clone().finalize()[..12])
        };
        add(&chain.base);
        chain.cows.iter().map(|link| self.layer(&add(link))).collect()
    }

    fn layer(&self, key: &str) -> String {
        format!("{}+{key}", self.prefix)
    }

    fn all(&self) -> Result<Vec<(String, dev_t)>, DeviceError> {
        let mut all = self.kernel.list().map_err(DeviceError::kernel("list", &self.prefix))?;
        all.retain(|(name, _)| name.starts_with(&self.prefix));
        Ok(all)
    }
}

fn not_whole(name: &str, reason: &str) -> DeviceError {
    DeviceError::NotWhole { name: name.to_owned(), reason: reason.to_owned() }
}
