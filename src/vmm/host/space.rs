//! Watches how much space the host's disk has, for the VMs whose disks the host's kernel puts together:
//! it gives such a disk up for ever when it cannot write what the guest has written (`disk::device`).

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::statvfs::statvfs;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;

use super::disk::Disks;
use crate::domain::id::SandboxId;
use crate::vmm::storage::disk::{Condition, Devices, Space};

/// Time from one look to the next. What guests write in that time has to fit into what is left when
/// space is called short.
const PERIOD: Duration = Duration::from_secs(1);

/// Space is short below this share of the disk ...
const SHORT_SHARE: u64 = 20;
/// ... or this many bytes, whichever is less.
const SHORT_BYTES: u64 = 4 << 30;

/// Looks, once in a while, as long as the host's threads are there.
pub(super) struct SpaceWatch {
    /// Machines whose disks the kernel has given up.
    given_up: watch::Receiver<BTreeSet<String>>,
}

impl SpaceWatch {
    pub fn start(disks: &Disks, data_dir: &Path, runtime: &Handle) -> Self {
        let (tell, given_up) = watch::channel(BTreeSet::new());
        if let Disks::Devices(devices) = disks {
            runtime.spawn(keep_looking(devices.clone(), data_dir.to_owned(), tell));
        }
        Self { given_up }
    }

    /// Waits until the kernel gives the disk of a machine up, which may be for ever.
    pub async fn given_up(&self, id: &SandboxId) {
        let mut given_up = self.given_up.clone();
        if given_up.wait_for(|names| names.contains(id.as_str())).await.is_err() {
            // Nobody looks.
            std::future::pending::<()>().await;
        }
    }
}

async fn keep_looking(devices: Devices, data_dir: PathBuf, tell: watch::Sender<BTreeSet<String>>) {
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut space = Space::Plenty;
    let mut full = BTreeSet::new();
    loop {
        ticks.tick().await;
        let (devices, dir, former) = (devices.clone(), data_dir.clone(), space);
        let look = move || {
            let space = space_of(&dir, former).unwrap_or(former);
            (space, devices.fit(space))
        };
        let looked = tokio::task::spawn_blocking(look).await;
        let (now, fitted) = looked.expect("looking does not panic");
        if now != space {
            tracing::warn!(space = ?now, "space on the host's disk for what guests write");
            space = now;
        }
        let fitted = fitted.unwrap_or_else(|error| {
            tracing::warn!(error = %crate::chain(&error), "block devices cannot be listed");
            Vec::new()
        });
        let of = |condition| {
            let names = fitted.iter().filter(move |(_, found)| *found == condition);
            names.map(|(name, _)| name.clone()).collect::<BTreeSet<_>>()
        };
        let now_full = of(Condition::Full);
        for sandbox_id in now_full.difference(&full) {
            tracing::error!(sandbox_id, "the host's disk is full: its disk takes no more writes");
        }
        full = now_full;
        let given_up = of(Condition::GivenUp);
        tell.send_if_modified(|told| std::mem::replace(told, given_up) != *told);
    }
}

/// How much there is on the disk that has `dir`. Not to and fro at the border: what is short is plenty
/// only with half as much again.
fn space_of(dir: &Path, former: Space) -> io::Result<Space> {
    let disk = statvfs(dir)?;
    let bytes = |blocks: u64| blocks.saturating_mul(disk.fragment_size());
    let (total, free) = (bytes(disk.blocks()), bytes(disk.blocks_available()));
    Ok(judge(total, free, former))
}

fn judge(total: u64, free: u64, former: Space) -> Space {
    let border = (total / SHORT_SHARE).min(SHORT_BYTES);
    let enough = match former {
        Space::Plenty => border,
        Space::Short => border + border / 2,
    };
    if free < enough { Space::Short } else { Space::Plenty }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_short_before_it_is_gone_and_plenty_only_with_some_to_spare() {
        const GIB: u64 = 1 << 30;
        for (total, free, former, now) in [
            (1000 * GIB, 5 * GIB, Space::Plenty, Space::Plenty),
            (1000 * GIB, 5 * GIB, Space::Short, Space::Short),
            (1000 * GIB, 3 * GIB, Space::Plenty, Space::Short),
            (1000 * GIB, 7 * GIB, Space::Short, Space::Plenty),
            (20 * GIB, 2 * GIB, Space::Plenty, Space::Plenty),
            (20 * GIB, GIB - 1, Space::Plenty, Space::Short),
            (20 * GIB, 0, Space::Short, Space::Short),
        ] {
            assert_eq!(judge(total, free, former), now, "{free} of {total}, was {former:?}");
        }
    }
}
