//! What a machine consists of at a moment, and how it is taken away.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::disk::Disk;
use crate::vmm::hypervisor::Vm;
use crate::vmm::network::Slot;
use crate::vmm::process::cgroup::Cgroup;
use crate::vmm::process::{ProcessId, VmProcess};
use crate::vmm::record::RecordFile;
use crate::vmm::storage::disk::DiskFormat;
use crate::vmm::storage::memory::BuildId;
use crate::vmm::storage::snapshot::Snapshot;

/// The resources of one machine; those that are not made yet, or taken away already, are absent.
///
/// Dropped, they stay where they are: a VM outlives the daemon, and an actor that panicked finds
/// its machine again.
pub(super) struct MachineResources {
    pub dir: PathBuf,
    pub record: Option<Arc<RecordFile>>,
    /// What the VM was restored from.
    pub snapshot: Option<Arc<Snapshot>>,
    pub slot: Option<Slot>,
    pub cgroup: Option<Cgroup>,
    pub disk: Option<Disk>,
    /// The VM's process while there is no `vm` yet: it waits for its snapshot, or a former daemon left it.
    pub process: Option<ProcessId>,
    pub vm: Option<Arc<dyn Vm>>,
}

/// Where a sandbox keeps a snapshot of its own.
pub(super) fn snapshot_dir(dir: &Path, build: BuildId) -> PathBuf {
    // Without a dot: the extension is for what is not finished.
    dir.join(format!("snapshot-{build}"))
}

/// Name of the overlay that lies on a snapshot.
pub(super) fn overlay_name(build: BuildId) -> String {
    format!("disk-{build}")
}

/// The snapshot that an overlay of that name lies on.
pub(super) fn build_of(overlay_name: &str) -> Option<BuildId> {
    overlay_name.strip_prefix("disk-")?.parse().ok()
}

/// Where the overlay of that name is.
pub(super) fn overlay_path(dir: &Path, name: &str, format: DiskFormat) -> PathBuf {
    dir.join(format!("{name}.{}", format.as_str()))
}

impl MachineResources {
    pub fn new(dir: PathBuf) -> Self {
        let (record, snapshot, slot, cgroup) = (None, None, None, None);
        Self { dir, record, snapshot, slot, cgroup, disk: None, process: None, vm: None }
    }

    /// Makes the machine's directory. The VM's user may pass through it, no more; everybody else is
    /// kept out by the data directory.
    pub fn make_dir(&self) -> io::Result<()> {
        DirBuilder::new().mode(0o711).create(&self.dir)
    }

    /// Ends the VM, and whatever else runs in its cgroup.
    pub async fn kill(&mut self) -> Result<(), String> {
        if let Some(vm) = &self.vm {
            vm.kill().await.map_err(|error| crate::chain(&error).to_string())?;
        }
        if let Some(process) = self.process {
            VmProcess::end(process).await.map_err(|error| crate::chain(&error).to_string())?;
            self.process = None;
        }
        if let Some(cgroup) = &self.cgroup {
            cgroup.kill().await.map_err(|error| crate::chain(&error).to_string())?;
        }
        Ok(())
    }

    /// Takes everything away but what is in the directory beside the overlay, and returns what could
    /// not be. The VM goes first: what it uses can only be freed after it. One failure does not stop
    /// the rest, but for a VM that does not die: then everything stays, for it uses everything.
    pub async fn release(&mut self) -> Vec<String> {
        let mut remains = match self.end().await {
            Ok(remains) => remains,
            Err(error) => return vec![error],
        };
        remains.extend(self.give_slot_back().await);
        remains
    }

    /// Takes everything away and returns what could not be.
    pub async fn dismantle(&mut self) -> Vec<String> {
        let mut remains = match self.end().await {
            Ok(remains) => remains,
            Err(error) => return vec![error],
        };
        self.snapshot = None;
        // With the record in it, before the slot: so nothing has to be written, for which a full disk
        // would have no room.
        let dir = self.dir.clone();
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(dir)).await;
        match removed.expect("removing files does not panic") {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                remains.push(format!("{}: {error}", self.dir.display()));
            }
            _ => self.record = None,
        }
        remains.extend(self.give_slot_back().await);
        remains
    }

    /// Ends the VM and takes its cgroup and its overlay away. Returns what of these could not be; an
    /// error if the VM does not die.
    async fn end(&mut self) -> Result<Vec<String>, String> {
        self.kill().await?;
        self.vm = None;
        let mut remains = Vec::new();
        if let Some(cgroup) = self.cgroup.take()
            && let Err(error) = cgroup.release().await
        {
            remains.push(crate::chain(&error).to_string());
        }
        // Before anything is written: on a full disk this makes room.
        if let Some(disk) = self.disk.take()
            && let Err(error) = disk.remove().await
        {
            remains.push(crate::chain(&error).to_string());
        }
        Ok(remains)
    }

    async fn give_slot_back(&mut self) -> Vec<String> {
        let Some(slot) = self.slot.take() else { return Vec::new() };
        let forgotten = self.forget_slot().err();
        let released = slot.release().await.err();
        let released = released.map(|error| crate::chain(&error).to_string());
        forgotten.into_iter().chain(released).collect()
    }

    /// First the record, then the slot: a record must never name a slot that another sandbox may have
    /// by then. A slot that no record names is reaped at the next start.
    pub fn forget_slot(&self) -> Result<(), String> {
        let Some(record) = &self.record else { return Ok(()) };
        let forgotten = record.update(|record| {
            record.slot = None;
            record.process = None;
        });
        forgotten.map_err(|error| crate::chain(&error).to_string())
    }
}

impl Drop for MachineResources {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.detach();
        }
    }
}
