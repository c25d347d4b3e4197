//! The one way to a running machine: a snapshot, thawed, whose guest then learns who it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::Host;
use super::disk::Base;
use super::error::file_error;
use super::resources::{MachineResources, overlay_name};
use crate::domain::printable;
use crate::domain::shape::Shape;
use crate::vmm::fault::Point;
use crate::vmm::guest::{AGENT_PORT, Agent, Identity};
use crate::vmm::hypervisor::console;
use crate::vmm::hypervisor::{Place, RestorePlan, Vm, VmPlan};
use crate::vmm::machine::{MachineError, Run};
use crate::vmm::network::resolvers;
use crate::vmm::process::MOST_THREADS;
use crate::vmm::process::cgroup::{Limits, Share};
use crate::vmm::record::{Record, RecordFile};
use crate::vmm::storage::snapshot::Snapshot;

/// What a VM's process may take beside its guest's memory: the program, its threads, translations.
const MEMORY_OVERHEAD_MIB: u64 = 256;

impl Host {
    /// Checks that what is in the snapshot can go on here.
    pub(super) fn check(&self, snapshot: &Snapshot) -> Result<(), MachineError> {
        match snapshot.memory().origin() {
            // A bare memory does not say what it was taken with; its manifest knows the engine.
            None => Ok(()),
            Some(origin) => {
                let here = self.provenance(&origin.provenance.guest_kernel);
                let checked = origin.provenance.check(&here);
                checked.map_err(|mismatch| MachineError::Incompatible(mismatch.to_string()))
            }
        }
    }

    /// Makes a running machine out of a directory with a record and a snapshot. On failure `resources`
    /// holds what there is to take away.
    pub(super) async fn restore(
        &self,
        resources: &mut MachineResources,
        run: &Run,
    ) -> Result<Agent, MachineError> {
        let (record, snapshot) = match (&resources.record, &resources.snapshot) {
            (Some(record), Some(snapshot)) => (record.clone(), snapshot.clone()),
            _ => unreachable!("what is restored has a record and a snapshot"),
        };
        self.check(&snapshot)?;
        // Once more: it may have been opened long ago.
        snapshot.memory().check_untouched()?;
        let now = record.get();
        match resources.process {
            Some(_) => self.fit(resources, &now, run).await?,
            None => self.take_slot(resources, &record, run).await?,
        }
        self.faults.at(Point::SlotTaken, None).map_err(file_error)?;
        let name = overlay_name(snapshot.manifest().build);
        let base = Base::of(&snapshot);
        let disk = self.disks.make(&resources.dir, &now.id, &name, &base);
        resources.disk = Some(run.trace.span("overlay", disk).await?);
        self.faults.at(Point::OverlayMade, None).map_err(file_error)?;
        if run.cancel.is_cancelled() {
            return Err(MachineError::Cancelled);
        }

        let plan = RestorePlan {
            vm: self.plan(resources, &now, &name, &base).await?,
            memory: snapshot.memory().clone(),
            devices: snapshot.open_devices()?.into(),
            build: snapshot.manifest().build,
            started: resources.process,
            cancel: &run.cancel,
            trace: &run.trace,
        };
        let vm: Arc<dyn Vm> = Arc::from(self.hypervisor.restore(plan).await?);
        let process = vm.process();
        (resources.process, resources.vm) = (None, Some(vm.clone()));
        record.update(|record| record.process = Some(process))?;
        self.faults.at(Point::Restored, Some(process.pid)).map_err(file_error)?;

        self.limit_disk(&*vm, &now, &snapshot, run).await?;
        run.trace.span("thaw", vm.thaw()).await?;
        self.faults.at(Point::RestoreThawed, Some(process.pid)).map_err(file_error)?;
        let slot = resources.slot.as_ref().expect("it was just taken");
        let agent = Agent::new((slot.address(), AGENT_PORT).into(), &now.access_token);
        let known_token = snapshot.manifest().access_token.clone();
        let up = self.introduce(&now, known_token, &agent);
        run.trace.span("init", self.unless_it_ends(&*vm, &resources.dir, run, up)).await?;
        vm.learn();
        self.faults.at(Point::Introduced, Some(process.pid)).map_err(file_error)?;
        Ok(agent)
    }

    /// Has a VM that was restored from a snapshot use its disk no faster than it may.
    pub(super) async fn limit_disk(
        &self,
        vm: &dyn Vm,
        now: &Record,
        snapshot: &Snapshot,
        run: &Run,
    ) -> Result<(), MachineError> {
        // Whoever was captured with limits may have them still.
        if now.rates.has_disk() || snapshot.manifest().rates.has_disk() {
            run.trace.span("rates", vm.limit_disk(&now.rates)).await?;
        }
        Ok(())
    }

    /// Takes a network slot and makes a cgroup.
    pub(super) async fn take_slot(
        &self,
        resources: &mut MachineResources,
        record: &RecordFile,
        run: &Run,
    ) -> Result<(), MachineError> {
        let slot = run.trace.span("slot", self.slots.acquire()).await;
        let slot = slot.map_err(|error| MachineError::Network { source: Box::new(error) })?;
        let slot = resources.slot.insert(slot);
        record.update(|record| record.slot = Some(slot.index().get()))?;
        let now = record.get();
        // Before there is a guest: its first packet is the first that the policy is asked about.
        let limited =
            run.trace.span("network", slot.limit(&now.network, now.rates.network())).await;
        limited.map_err(|error| MachineError::Network { source: Box::new(error) })?;
        let made = self.cgroups.create(&now.id, self.limits(now.shape, run.share));
        let cgroup = run.trace.span("cgroup", made).await;
        let cgroup = cgroup.map_err(|error| MachineError::Cgroup { source: Box::new(error) })?;
        resources.cgroup = Some(cgroup);
        Ok(())
    }

    /// Fits the slot and the cgroup of a process that was started ahead to what it becomes.
    async fn fit(
        &self,
        resources: &MachineResources,
        now: &Record,
        run: &Run,
    ) -> Result<(), MachineError> {
        let (Some(slot), Some(cgroup)) = (&resources.slot, &resources.cgroup) else {
            unreachable!("a process runs in both")
        };
        // Before there is a guest: its first packet is the first that the policy is asked about.
        let limited =
            run.trace.span("network", slot.limit(&now.network, now.rates.network())).await;
        limited.map_err(|error| MachineError::Network { source: Box::new(error) })?;
        let limited = || cgroup.set_limits(self.limits(now.shape, run.share));
        let limited = run.trace.blocking("cgroup", limited);
        limited.map_err(|error| MachineError::Cgroup { source: Box::new(error) })
    }

    /// What a VM of a shape may use of the host.
    fn limits(&self, shape: Shape, share: Share) -> Limits {
        Limits {
            memory_bytes: (u64::from(shape.memory_mib) + MEMORY_OVERHEAD_MIB) << 20,
            pids: MOST_THREADS,
            vcpus: shape.vcpus,
            share,
            devices: self.hypervisor.devices(),
        }
    }

    /// Where the VM's process runs, in a machine that has a slot and a cgroup.
    pub(super) async fn place<'a>(
        &self,
        resources: &'a MachineResources,
    ) -> Result<Place<'a>, MachineError> {
        let (Some(slot), Some(cgroup)) = (&resources.slot, &resources.cgroup) else {
            unreachable!("they were made before")
        };
        let (tap, entry) = (slot.tap().await, cgroup.entry());
        Ok(Place {
            dir: &resources.dir,
            tap: tap.map_err(|error| MachineError::Network { source: Box::new(error) })?,
            namespace: slot.namespace(),
            cgroup: entry.map_err(|error| MachineError::Cgroup { source: Box::new(error) })?,
            uid: self.first_uid + slot.index().get(),
        })
    }

    /// What the VM is made of, in a machine that has a slot, a cgroup and an overlay.
    pub(super) async fn plan<'a>(
        &self,
        resources: &'a MachineResources,
        now: &Record,
        overlay_name: &'a str,
        base: &Base<'_>,
    ) -> Result<VmPlan<'a>, MachineError> {
        let disk = resources.disk.as_ref().expect("it was made before");
        Ok(VmPlan {
            shape: now.shape,
            disk: disk.plan(overlay_name, base)?,
            disk_bytes: base.size(),
            place: self.place(resources).await?,
        })
    }

    /// Tells a guest that was just thawed who it is.
    pub(super) async fn introduce(
        &self,
        now: &Record,
        known_token: Option<String>,
        agent: &Agent,
    ) -> Result<(), MachineError> {
        let identity = Identity {
            hostname: now.id.to_string(),
            envs: now.envs.clone(),
            nameservers: resolvers(),
            known_token,
        };
        Ok(agent.init(&identity, self.boot_timeout).await?)
    }

    /// Waits for what a guest does, unless its VM ends, it takes too long, or nobody wants it.
    pub(super) async fn unless_it_ends<T>(
        &self,
        vm: &dyn Vm,
        dir: &Path,
        run: &Run,
        work: impl Future<Output = Result<T, MachineError>>,
    ) -> Result<T, MachineError> {
        let limit: Duration = self.boot_timeout;
        tokio::select! {
            biased;
            () = run.cancel.cancelled() => Err(MachineError::Cancelled),
            how = vm.ended() => {
                Err(MachineError::EndedEarly { how, console: console_tail(dir) })
            }
            done = tokio::time::timeout(limit, work) => done.unwrap_or_else(|_| {
                Err(MachineError::BootTimeout {
                    seconds: limit.as_secs(),
                    console: console_tail(dir),
                })
            }),
        }
    }
}

/// The last lines of a guest's console, for an error that a person reads.
fn console_tail(dir: &Path) -> String {
    const LINES: usize = 5;
    const LONGEST: usize = 2 << 10;
    let bytes = std::fs::read(dir.join(console::LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match lines.len() {
        0 => "nothing".to_owned(),
        // The kernel and the agent end their lines as a terminal wants it.
        count => printable::line(&lines[count.saturating_sub(LINES)..].join(" | "), LONGEST),
    }
}
