//! The one way from a running machine to a snapshot of it.
//!
//! ```text
//! sync, freeze, devices, memory, disk -> a complete snapshot in the machine's own directory
//!     it goes on:  new overlay, thaw, record, seal    it is paused:  record, end of the VM, seal
//! ```
//!
//! Sealed means that nobody can write to the disk's layers any more. A VM that goes on runs again by
//! then: what its process has not closed has to be copied. A crash in between changes nothing: whoever
//! uses the snapshot next finds it not sealed.
//!
//! Until the snapshot is complete nothing has changed for the machine, and any failure thaws it.
//! Then the record decides, in one rename, which of both counts.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;

use super::Host;
use super::disk::{self, Base};
use super::error::file_error;
use super::resources::{MachineResources, overlay_name, snapshot_dir};
use crate::vmm::fault::Point;
use crate::vmm::guest::Agent;
use crate::vmm::hypervisor::Vm;
use crate::vmm::machine::{CaptureError, MachineError, Run};
use crate::vmm::record::{Record, RecordFile, Residency};
use crate::vmm::storage::disk::DiskFormat;
use crate::vmm::storage::memory::{self, BuildId, Durability};
use crate::vmm::storage::snapshot::{self, FORMAT, Manifest, Snapshot, SnapshotError};

/// A guest that does not bring its disk up to date in this time is captured as it is: its file
/// system has a journal.
const SYNC_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest that goes on may take to set its clock. It runs meanwhile.
const CLOCK_LIMIT: Duration = Duration::from_secs(2);

/// Diffs of a chain that grows no further: a header has room for 255 generations.
const MOST_DIFFS: usize = 100;

/// The resources of a machine that runs.
struct Running {
    vm: Arc<dyn Vm>,
    snapshot: Arc<Snapshot>,
    record: Arc<RecordFile>,
    agent: Agent,
}

impl Running {
    fn of(resources: &MachineResources, agent: &Agent) -> Result<Self, MachineError> {
        match (&resources.vm, &resources.snapshot, &resources.record) {
            (Some(vm), Some(snapshot), Some(record)) => Ok(Self {
                vm: vm.clone(),
                snapshot: snapshot.clone(),
                record: record.clone(),
                agent: agent.clone(),
            }),
            // It was destroyed while this waited for its turn.
            _ => Err(MachineError::Cancelled),
        }
    }

    fn pid(&self) -> Option<i32> {
        Some(self.vm.process().pid)
    }

    /// Lets a VM run again whose capture failed, and says what the failure means.
    async fn after(&self, error: MachineError) -> CaptureError {
        match self.vm.thaw().await {
            Ok(()) => {
                set_clock(self.agent.clone()).await;
                CaptureError::RunsOn(error)
            }
            Err(thawing) => {
                tracing::error!(error = %crate::chain(&thawing), cause = %crate::chain(&error),
                    "a VM does not run on after its capture failed");
                CaptureError::Lost(error)
            }
        }
    }
}

impl Host {
    /// Captures a machine that then goes on. Its directory holds the new snapshot, and its VM's
    /// next capture builds on it.
    pub(super) async fn checkpoint(
        &self,
        resources: &mut MachineResources,
        agent: &Agent,
        run: &Run,
    ) -> Result<Arc<Snapshot>, CaptureError> {
        let running = Running::of(resources, agent).map_err(CaptureError::RunsOn)?;
        let build = BuildId::random();
        self.sync_and_freeze(&running, run).await?;
        let captured = self.capture(resources, &running, build, Durability::Cached, run).await;
        let snapshot = match captured {
            Ok(snapshot) => snapshot,
            Err(error) => return Err(running.after(error).await),
        };
        if let Err(error) =
            run.trace.span("switch", self.switch(resources, &running, &snapshot)).await
        {
            let _ = snapshot::remove(snapshot.dir());
            return Err(running.after(error).await);
        }
        // The VM writes to its new overlay: from here on the new snapshot is what it builds on,
        // whatever else fails.
        let former = resources.snapshot.replace(snapshot.clone());
        let thawed = run.trace.span("thaw", running.vm.thaw()).await;
        thawed.map_err(|error| CaptureError::Lost(error.into()))?;
        // Beside what is left to do: a guest in software may take a moment for it.
        self.runtime.spawn(set_clock(agent.clone()));
        let switched =
            self.faults.at(Point::DiskSwitched, running.pid()).map_err(file_error).and_then(|()| {
                Ok(running.record.update(|record| record.snapshot = Some(build))?)
            });
        // Not needed even if the record still names it: who finds the VM asks it what it has.
        if let Some(former) = former {
            self.forget_former(&resources.dir, former).await;
        }
        switched.map_err(CaptureError::RunsOn)?;
        self.faults
            .at(Point::Thawed, running.pid())
            .map_err(file_error)
            .map_err(CaptureError::RunsOn)?;
        let sealed = run.trace.span("seal", seal(&snapshot, Durability::Cached, run)).await;
        sealed.map_err(CaptureError::RunsOn)?;
        Ok(snapshot)
    }

    /// Captures a machine and ends its VM. All that is left of it is its directory, with the
    /// snapshot and the record that says so. The inner result says whether that is really all.
    pub(super) async fn freeze(
        &self,
        resources: &mut MachineResources,
        agent: &Agent,
        run: &Run,
        on_end: impl FnOnce(),
    ) -> Result<Result<(), MachineError>, CaptureError> {
        let running = Running::of(resources, agent).map_err(CaptureError::RunsOn)?;
        let build = BuildId::random();
        self.sync_and_freeze(&running, run).await?;
        let captured = self.capture(resources, &running, build, Durability::Synced, run).await;
        let snapshot = match captured {
            Ok(_) if run.cancel.is_cancelled() => {
                return Err(running.after(MachineError::Cancelled).await);
            }
            Ok(snapshot) => snapshot,
            Err(error) => return Err(running.after(error).await),
        };
        on_end();
        let commit = |record: &mut Record| {
            record.snapshot = Some(build);
            record.residency = Residency::Snapshot;
        };
        if let Err(error) = run.trace.blocking("commit", || running.record.commit(commit)) {
            let _ = snapshot::remove(snapshot.dir());
            return Err(running.after(error.into()).await);
        }
        // Paused, as anybody would find who looked now. What follows can only leave things behind.
        let former = resources.snapshot.replace(snapshot.clone());
        let remains = async {
            let at = |point, vm| self.faults.at(point, vm).map_err(|error| vec![error.to_string()]);
            at(Point::PauseCommitted, running.pid())?;
            resources.kill().await.map_err(|error| vec![error])?;
            // Without a pid: it may name another process by now.
            at(Point::VmEnded, None)?;
            match resources.release().await {
                remains if remains.is_empty() => Ok(()),
                remains => Err(remains),
            }
        };
        let mut taken_away = Ok(());
        if let Err(remains) = run.trace.span("release", remains).await {
            tracing::error!(dir = %resources.dir.display(), remains = remains.join("; "),
                "something is left of a VM that was paused");
            // Once more, for what was not tried because something before it failed.
            let remains = resources.release().await;
            if !remains.is_empty() {
                taken_away = Err(MachineError::Remains(remains));
            }
        }
        let dir = resources.dir.clone();
        if let Some(former) = former {
            self.forget_former(&dir, former).await;
        }
        // Nobody has it open any more, so this copies nothing. If it fails, who resumes it tries again.
        let sealed = run.trace.span("seal", seal(&snapshot, Durability::Synced, run)).await;
        if let Err(error) = sealed {
            tracing::warn!(dir = %snapshot.dir().display(), error = %crate::chain(&error),
                "a paused disk is not sealed yet");
        }
        Ok(taken_away)
    }

    async fn sync_and_freeze(&self, running: &Running, run: &Run) -> Result<(), CaptureError> {
        // Once more than after its start: what it was first asked to do has been done by now.
        running.vm.learn();
        let sync = async {
            match tokio::time::timeout(SYNC_LIMIT, running.agent.sync()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!(error = %crate::chain(&error), "no sync"),
                Err(_) => tracing::warn!(limit = ?SYNC_LIMIT, "a guest's sync takes too long"),
            }
        };
        tokio::select! {
            biased;
            () = run.cancel.cancelled() => return Err(CaptureError::RunsOn(MachineError::Cancelled)),
            () = run.trace.span("sync", sync) => {}
        }
        let begun = self.faults.at(Point::CaptureBegun, running.pid()).map_err(file_error);
        begun.map_err(CaptureError::RunsOn)?;
        match run.trace.span("freeze", running.vm.freeze()).await {
            Ok(()) => Ok(()),
            Err(error) => Err(running.after(error.into()).await),
        }
    }

    /// Writes the snapshot of a frozen VM.
    async fn capture(
        &self,
        resources: &MachineResources,
        running: &Running,
        build: BuildId,
        durability: Durability,
        run: &Run,
    ) -> Result<Arc<Snapshot>, MachineError> {
        let at = |point| self.faults.at(point, running.pid()).map_err(file_error);
        at(Point::Frozen)?;
        let devices = run.trace.span("devices", running.vm.save_devices()).await?;
        at(Point::DevicesSaved)?;

        let disk = resources.disk.as_ref().expect("a running machine has a disk");
        run.trace.span("flush", disk.flush()).await?;
        let (overlay, format) = (disk.path().to_owned(), self.disks.format());
        let manifest = next_manifest(build, format, &running.record.get(), &running.snapshot);
        let (former, vm) = (running.snapshot.clone(), running.vm.clone());
        let provenance = self.provenance_after(&former);
        let origin = memory::Origin { shape: manifest.shape, provenance };
        let (dir, faults) = (snapshot_dir(&resources.dir, build), self.faults.clone());
        let write = move || {
            let memory = former.memory();
            Snapshot::create::<MachineError>(&dir, &manifest, &devices, durability, |new| {
                let guest = vm.memory(memory)?;
                // A VM that was captured many times without being paused, which is when chains are
                // merged, merges its own.
                let capture = match memory.diffs() {
                    0..MOST_DIFFS => memory::capture,
                    _ => memory::capture_merged,
                };
                capture(&guest, memory, new, build, origin, durability)?;
                faults.at(Point::MemoryWritten, Some(vm.process().pid)).map_err(file_error)?;
                former.link_layers(new)?;
                let top = manifest.layers.last().expect("it was just added");
                Ok(snapshot::link(&overlay, &new.join(&top.file))?)
            })
        };
        let written = run.trace.span("write", tokio::task::spawn_blocking(write)).await;
        let snapshot = Arc::new(written.expect("writing a snapshot does not panic")?);
        if let Err(error) = at(Point::SnapshotWritten) {
            let _ = snapshot::remove(snapshot.dir());
            return Err(error);
        }
        Ok(snapshot)
    }

    /// Has a frozen VM write to an overlay on its new snapshot.
    async fn switch(
        &self,
        resources: &mut MachineResources,
        running: &Running,
        snapshot: &Snapshot,
    ) -> Result<(), MachineError> {
        let name = overlay_name(snapshot.manifest().build);
        disk::switch(&self.disks, resources, &*running.vm, &name, &Base::of(snapshot)).await
    }

    /// Removes a snapshot that a machine does not build on any more, and the name of the overlay that
    /// lay on it: the overlay itself is a layer of the new one.
    async fn forget_former(&self, dir: &Path, former: Arc<Snapshot>) {
        let overlay = self.disks.overlay_path(dir, &overlay_name(former.manifest().build));
        let work = move || {
            let unlinked = match fs::remove_file(&overlay) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(SnapshotError::io("remove", &overlay)(error))
                }
                _ => Ok(()),
            };
            unlinked.and(snapshot::remove(former.dir()))
        };
        let removed = tokio::task::spawn_blocking(work).await;
        if let Err(error) = removed.expect("removing files does not panic") {
            // It is found again when the daemon starts.
            tracing::warn!(error = %crate::chain(&error), "a snapshot that nobody needs is left");
        }
    }
}

/// Seals the disk's layers of a snapshot, unless nobody wants it any more.
pub(super) async fn seal(
    snapshot: &Arc<Snapshot>,
    durability: Durability,
    run: &Run,
) -> Result<(), MachineError> {
    let (snapshot, cancel) = (snapshot.clone(), run.cancel.clone());
    let work = move || snapshot.seal(durability, &|| cancel.is_cancelled());
    let sealed = tokio::task::spawn_blocking(work).await;
    Ok(sealed.expect("copying files does not panic")?)
}

/// Tells a guest that stood still what time it is.
async fn set_clock(agent: Agent) {
    match tokio::time::timeout(CLOCK_LIMIT, agent.set_clock()).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %crate::chain(&error), "a clock is behind"),
        Err(_) => tracing::warn!(limit = ?CLOCK_LIMIT, "a guest's clock is not set in time"),
    }
}

/// What a capture of this sandbox will be.
fn next_manifest(
    build: BuildId,
    format: DiskFormat,
    record: &Record,
    former: &Snapshot,
) -> Manifest {
    let mut layers = former.manifest().layers.clone();
    layers.push(snapshot::overlay(build, format));
    Manifest {
        format: FORMAT,
        build,
        created_at: Utc::now(),
        sandbox_id: record.id.clone(),
        image: record.image.clone(),
        shape: record.shape,
        engine: record.engine,
        layers,
        disk_size: former.manifest().disk_size,
        access_token: Some(record.access_token.clone()),
        rates: record.rates,
        envs: record.envs.clone(),
    }
}
