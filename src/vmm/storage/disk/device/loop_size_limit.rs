//! Keeps disks alive while the host's disk is nearly full.
//!
//! The kernel gives a snapshot up for ever at the first write to its file that fails. It does not if
//! the file's device is merely too small for another chunk: with the option "O" it then refuses what
//! is written to the disk from there on, and keeps all that is on it (Linux, `drivers/md/dm-snap.c`,
//! `userspace_supports_overflow`). It asks for the size of that device at each new chunk.
//!
//! ```text
//! file      |  chunks in use  |  reserve: blocks, but no data  |   hole, to its full size  |
//! device    |<----------------- limit while space is short --->|
//! ```
//!
//! So while space is short each device ends where its file has blocks. A guest that needs more is told
//! by errors, and goes on with what it has. Such a disk takes no more writes until it is put together
//! anew, which a pause and a resume do; others get their full size back once there is space.
//!
//! Nothing is remembered: the limit is the loop device's, what is in use the kernel tells.

use std::fs::File;

use nix::fcntl::{FallocateFlags, fallocate};

use super::error::DeviceError;
use super::stack::{Health, Stack};
use crate::vmm::storage::disk::cow;

/// Blocks that a file gets ahead of what is in use, in bytes, if the host's disk has them.
const RESERVE: u64 = 16 << 20;

/// Whether the host's disk has room for what guests may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// It has.
    Plenty,
    /// It may be full soon, or is.
    Short,
}

/// What became of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// It takes what is written to it.
    Good,
    /// It takes no more writes. What is on it can be read.
    Full,
    /// The kernel gave it up: not all that was written to it is on it.
    GivenUp,
}

impl Stack {
    /// Fits one device to the space that there is. Blocks.
    pub(super) fn fit(&self, name: &str, space: Space) -> Result<Condition, DeviceError> {
        let top = self.top(name);
        let _turn = self.turn();
        let health = self.state(&top)?;
        let in_use = match health {
            Health::Good { in_use } => in_use,
            Health::Full => return Ok(Condition::Full),
            Health::GivenUp { .. } => return Ok(Condition::GivenUp),
        };
        let told = |verb| DeviceError::kernel(verb, &top);
        let table = self.kernel.table(&top).map_err(told("find"))?;
        // Its maker, or its end, is under way.
        let Some(table) = table else { return Ok(Condition::Good) };
        let limit = self.kernel.limit(table.cow).map_err(told("measure the file of"))?;
        match (space, limit) {
            (Space::Plenty, None) => {}
            (Space::Plenty, Some(_)) => {
                let unlimited = self.kernel.set_limit(table.cow, None);
                unlimited.map_err(told("enlarge the file of"))?;
            }
            (Space::Short, None) => {
                // What is written between a look at what is in use and the limit would be cut off.
                self.kernel.suspend(&top).map_err(told("suspend"))?;
                let limited = self.limit_while_suspended(&top, table.cow);
                self.kernel.resume(&top).map_err(told("resume"))?;
                limited?;
            }
            (Space::Short, Some(limit)) => {
                if limit.saturating_sub(in_use) < RESERVE / 2 {
                    self.limit(&top, table.cow, in_use, limit)?;
                }
            }
        }
        Ok(Condition::Good)
    }

    fn limit_while_suspended(&self, top: &str, cow: nix::libc::dev_t) -> Result<(), DeviceError> {
        match self.state(top)? {
            Health::Good { in_use } => self.limit(top, cow, in_use, 0),
            Health::Full | Health::GivenUp { .. } => Ok(()),
        }
    }

    /// Reserves blocks behind what is in use and has the device end behind them, not before `former`.
    fn limit(
        &self,
        top: &str,
        cow: nix::libc::dev_t,
        in_use: u64,
        former: u64,
    ) -> Result<(), DeviceError> {
        let told = |verb| DeviceError::kernel(verb, top);
        let path = self.kernel.backing(cow).map_err(told("find the file of"))?.path;
        let file = File::options().write(true).open(&path);
        let file = file.map_err(DeviceError::file("open", &path))?;
        let full = file.metadata().map_err(DeviceError::file("measure", &path))?.len();
        let end = reserve(&file, in_use, full);
        let end = if end > in_use { cow::whole(end) } else { in_use };
        if end > former {
            self.kernel.set_limit(cow, Some(end)).map_err(told("limit the file of"))?;
        }
        Ok(())
    }
}

/// Has blocks for the file from `from` on; returns where they end, at most at `full`.
fn reserve(file: &File, from: u64, full: u64) -> u64 {
    let mut bytes = RESERVE.min(full.saturating_sub(from));
    while bytes >= cow::CHUNK {
        let (at, length) = (from as i64, bytes as i64);
        match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at, length) {
            Ok(()) => return from + bytes,
            // Less may still be there.
            Err(_) => bytes /= 4,
        }
    }
    from
}

impl super::Devices {
    /// Fits all devices to the space that there is, and tells how they are. What fails for one is
    /// logged, and tried again in the next round. Blocks.
    ///
    /// # Errors
    ///
    /// [`DeviceError::Kernel`] if they cannot be listed.
    pub fn fit(&self, space: Space) -> Result<Vec<(String, Condition)>, DeviceError> {
        let names = self.stack.names()?.into_iter();
        let fitted = names.filter_map(|name| match self.stack.fit(&name, space) {
            Ok(condition) => Some((name, condition)),
            Err(error) => {
                // One that was just being made or removed is no news.
                tracing::debug!(device = name, error = %crate::chain(&error), "not fitted");
                None
            }
        });
        Ok(fitted.collect())
    }
}

#[cfg(test)]
#[path = "loop_size_limit_tests.rs"]
mod tests;
