//! Finds what a former daemon left, takes it over, or takes it away.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::frozen::HostFrozen;
use super::resources::{MachineResources, build_of, snapshot_dir};
use super::running::HostMachine;
use super::{Host, SANDBOXES};
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::slot::SlotIndex;
use crate::vmm::guest::{AGENT_PORT, Agent};
use crate::vmm::machine::{Found, MachineError, Survivor};
use crate::vmm::process::cgroup::CgroupError;
use crate::vmm::process::start_ticks;
use crate::vmm::record::{RecordFile, Residency};
use crate::vmm::storage::snapshot::Snapshot;

impl Host {
    pub(super) async fn list_survivors(&self) -> Vec<Survivor> {
        let mut survivors = Vec::new();
        for dir in list(&self.sandboxes).unwrap_or_default() {
            match RecordFile::read(&dir) {
                Ok(record) => {
                    let record = record.get();
                    if record.status.is_unassigned() {
                        if let Err(error) = self.sweep_sandbox(&record.id).await {
                            tracing::warn!(sandbox_id = %record.id, error = %crate::chain(&error),
                                "a machine that nobody had asked for yet is left");
                        }
                        continue;
                    }
                    survivors.push(Survivor {
                        id: record.id,
                        status: record.status,
                        template: record.template,
                        shape: record.shape,
                        envs: record.envs,
                        rates: record.rates,
                    });
                }
                Err(error) => {
                    tracing::warn!(path = %dir.display(), error = %crate::chain(&error),
                        "a sandbox without a record is taken away");
                    self.forget(&dir).await;
                }
            }
        }
        let known: HashSet<&SandboxId> = survivors.iter().map(|survivor| &survivor.id).collect();
        for id in self.cgroups.list().unwrap_or_default() {
            if !known.contains(&id)
                && let Err(error) = self.sweep_sandbox(&id).await
            {
                tracing::warn!(sandbox_id = %id, error = %crate::chain(&error),
                    "a left-over cgroup stays");
            }
        }
        self.cgroups.remove_empty();
        for id in self.disks.list() {
            if !survivors.iter().any(|survivor| survivor.id == id)
                && let Err(error) = self.sweep_sandbox(&id).await
            {
                tracing::warn!(sandbox_id = %id, error = %crate::chain(&error),
                    "a left-over block device stays");
            }
        }
        self.disks.sweep();
        survivors
    }

    pub(super) async fn adopt_machine(
        self: &Arc<Self>,
        id: &SandboxId,
    ) -> Result<Found, MachineError> {
        let mut resources = MachineResources::new(self.dir(id));
        let record = RecordFile::read(&resources.dir).ok().map(|record| record.get());
        if record.is_some_and(|record| record.residency == Residency::Snapshot) {
            return self.adopt_frozen(id).await.map(|frozen| Found::Frozen(Arc::new(frozen)));
        }
        match self.find(id, &mut resources).await {
            Ok(agent) => {
                let machine = HostMachine::new(self.clone(), resources, agent);
                Ok(Found::Running(Arc::new(machine)))
            }
            Err(reason) => {
                // What was found is let go of, not taken away: the sweep goes by the record, which
                // also names what was not found any more.
                drop(resources);
                match self.sweep_sandbox(id).await {
                    Ok(()) => Err(MachineError::NotAdopted(reason)),
                    Err(error) => Err(error),
                }
            }
        }
    }

    /// A frozen sandbox is its record and its snapshot. What else there is, a pause could not take
    /// away any more, or a resume had just made.
    async fn adopt_frozen(self: &Arc<Self>, id: &SandboxId) -> Result<HostFrozen, MachineError> {
        let (mut resources, slot, mut remains) = self.take_vm_away(id).await?;
        remains.extend(resources.release().await);
        remains.extend(self.discard_slot(&resources, slot).await);
        if !remains.is_empty() {
            return Err(MachineError::Remains(remains));
        }
        let record = RecordFile::read(&resources.dir)?;
        if let Some(build) = record.get().snapshot {
            remove_all_but(&resources.dir, &[snapshot_dir(&resources.dir, build)]);
        }
        Ok(HostFrozen::new(self.clone(), resources.dir.clone(), Arc::new(record)))
    }

    pub(super) async fn sweep_sandbox(&self, id: &SandboxId) -> Result<(), MachineError> {
        let (mut resources, slot, mut remains) = self.take_vm_away(id).await?;
        remains.extend(resources.dismantle().await);
        remains.extend(self.discard_slot(&resources, slot).await);
        match remains.is_empty() {
            true => Ok(()),
            false => Err(MachineError::Remains(remains)),
        }
    }

    /// Ends whatever runs of a sandbox. Returns what there may be besides, the slot that it had, and
    /// what could not be taken away.
    async fn take_vm_away(
        &self,
        id: &SandboxId,
    ) -> Result<(MachineResources, Option<SlotIndex>, Vec<String>), MachineError> {
        let mut resources = MachineResources::new(self.dir(id));
        let mut remains = Vec::new();
        resources.cgroup = self.cgroups.adopt(id).ok();
        let record = RecordFile::read(&resources.dir).ok();
        let now = record.as_ref().map(RecordFile::get);
        resources.record = record.map(Arc::new);
        // By its pid, for its sockets may be what is broken.
        resources.process = now.as_ref().and_then(|now| now.process);
        // A VM that lives uses everything, so everything stays.
        if let Err(error) = resources.kill().await {
            return Err(MachineError::Remains(vec![error]));
        }
        if let Err(error) = self.disks.discard(id).await {
            remains.push(crate::chain(&error).to_string());
        }
        let slot = now.and_then(|now| now.slot).and_then(|slot| SlotIndex::try_from(slot).ok());
        Ok((resources, slot, remains))
    }

    /// Gives back the slot that a record names which a former daemon has written.
    async fn discard_slot(
        &self,
        resources: &MachineResources,
        slot: Option<SlotIndex>,
    ) -> Vec<String> {
        let Some(slot) = slot else { return Vec::new() };
        let forgotten = resources.forget_slot().err();
        let removed = self.slots.discard(slot).await.err();
        let removed = removed.map(|error| crate::chain(&error).to_string());
        forgotten.into_iter().chain(removed).collect()
    }

    /// Finds everything that a machine consists of; what is missing makes it unfit.
    async fn find(
        &self,
        id: &SandboxId,
        resources: &mut MachineResources,
    ) -> Result<Agent, String> {
        let dir = resources.dir.clone();
        let told = |error: &(dyn std::error::Error + 'static)| crate::chain(error).to_string();
        let record = RecordFile::read(&dir).map_err(|error| told(&error))?;
        let now = resources.record.insert(Arc::new(record)).get();
        let (Some(process), Some(slot)) = (now.process, now.slot) else {
            return Err("the daemon ended while the sandbox was being made".to_owned());
        };
        let vm = self.hypervisor.adopt(process, &dir).await.map_err(|error| told(&error))?;
        resources.vm = Some(Arc::from(vm));
        let slot = SlotIndex::try_from(slot).map_err(|error| told(&error))?;
        let slot = self
            .slots
            .adopt(slot, &now.network, now.rates.network())
            .await
            .map_err(|error| told(&error))?;
        let address = (resources.slot.insert(slot).address(), AGENT_PORT).into();
        match self.cgroups.adopt(id) {
            Ok(cgroup) => resources.cgroup = Some(cgroup),
            // A host without cgroups has none to adopt.
            Err(CgroupError::NotFound { .. }) => {}
            Err(error) => return Err(told(&error)),
        }
        if now.status.state == SandboxState::Starting {
            return Err("the daemon ended while the sandbox was starting".to_owned());
        }
        let vm = resources.vm.clone().expect("it was just found");
        // The record may not know yet that a capture has moved the VM to another overlay.
        let found = self.disks.adopt(&dir, id, &*vm).await;
        let (disk, name) = found.map_err(|error| told(&error))?;
        let path = resources.disk.insert(disk).path().to_owned();
        let build = build_of(&name).ok_or_else(|| format!("{name} is no overlay of ours"))?;
        let kept = snapshot_dir(&dir, build);
        let snapshot = Snapshot::open(&kept).map_err(|error| told(&error))?;
        resources.snapshot = Some(Arc::new(snapshot));
        if now.snapshot != Some(build) {
            let record = resources.record.as_ref().expect("it was just read");
            record.update(|record| record.snapshot = Some(build)).map_err(|error| told(&error))?;
        }
        remove_all_but(&dir, &[kept, path]);
        // A capture that was under way has left it frozen.
        vm.thaw().await.map_err(|error| told(&error))?;
        let agent = Agent::new(address, &now.access_token);
        let standing = agent.clone();
        // Nobody waits for it: most have never been frozen.
        self.runtime.spawn(async move {
            if let Err(error) = standing.set_clock().await {
                tracing::debug!(error = %crate::chain(&error), "an adopted clock was not set");
            }
        });
        Ok(agent)
    }

    /// Takes away a directory in which no sandbox can be found, or whatever else is there.
    async fn forget(&self, dir: &Path) {
        let is_dir = std::fs::symlink_metadata(dir).is_ok_and(|metadata| metadata.is_dir());
        if !is_dir {
            if let Err(error) = std::fs::remove_file(dir) {
                tracing::warn!(path = %dir.display(), %error, "a left-over file stays");
            }
            return;
        }
        let id = dir.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
        let outcome: Result<(), String> = match id {
            Some(id) => self.sweep_sandbox(&id).await.map_err(|error| error.to_string()),
            None => std::fs::remove_dir_all(dir).map_err(|error| error.to_string()),
        };
        if let Err(error) = outcome {
            tracing::warn!(path = %dir.display(), error, "a left-over directory stays");
        }
    }
}

/// Removes snapshots and overlays of a sandbox that were not finished, or are not needed any more.
fn remove_all_but(dir: &Path, kept: &[PathBuf]) {
    let ours = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("snapshot-") || name.starts_with("disk-")
    };
    for path in list(dir).unwrap_or_default() {
        if !ours(&path) || kept.contains(&path) {
            continue;
        }
        let removed = match path.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "a left-over file stays");
        }
    }
}

/// The engines of the sandboxes that a former daemon left running in a data directory.
pub fn left_running(data_dir: &Path) -> Vec<Engine> {
    let dirs = list(&data_dir.join(SANDBOXES)).unwrap_or_default();
    let running = |dir: &PathBuf| {
        let now = RecordFile::read(dir).ok()?.get();
        let process = now.process.filter(|_| !now.status.is_unassigned())?;
        (start_ticks(process.pid) == Some(process.start_ticks)).then_some(now.engine)
    };
    dirs.iter().filter_map(running).collect()
}

/// Everything that lies in a directory.
pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

/// The slot that the record in a sandbox's directory names.
pub(super) fn slot_of(dir: &Path) -> Option<SlotIndex> {
    SlotIndex::try_from(RecordFile::read(dir).ok()?.get().slot?).ok()
}
