//! One machine of this host, while it is in use.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::Host;
use super::frozen::HostFrozen;
use super::hang::hangs;
use super::resources::MachineResources;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::domain::snapshot::{Existing, ForkPoint, SnapshotInfo, Storage};
use crate::domain::status::SandboxStatus;
use crate::vmm::guest::Agent;
use crate::vmm::hypervisor::Vm;
use crate::vmm::machine::{CaptureError, Machine, MachineError, Paused, Run};
use crate::vmm::process::cgroup::{Cgroup, CpuMeter};
use crate::vmm::process::process_usage::{ProcessUsage, Usage};
use crate::vmm::record::RecordFile;
use crate::vmm::storage::snapshot::Snapshot;

/// A machine that was made or found again.
pub(super) struct HostMachine {
    host: Arc<Host>,
    id: SandboxId,
    slot: Option<u32>,
    vm: Arc<dyn Vm>,
    agent: Agent,
    cpu_meter: Option<CpuMeter>,
    /// Held by the one operation that is under way.
    resources: Arc<Mutex<MachineResources>>,
    record: Arc<RecordFile>,
    /// The VM is ended because the machine is being paused.
    pausing: Arc<AtomicBool>,
}

impl HostMachine {
    /// A machine has a record and a VM: `resources` is complete.
    pub fn new(host: Arc<Host>, resources: MachineResources, agent: Agent) -> Self {
        let record = resources.record.clone().expect("a machine has a record");
        let vm = resources.vm.clone().expect("a machine has a VM");
        let id = record.get().id.clone();
        let slot = resources.slot.as_ref().map(|slot| slot.index().get());
        let cpu_meter = resources.cgroup.as_ref().and_then(Cgroup::cpu_meter);
        let resources = Arc::new(Mutex::new(resources));
        Self { host, id, slot, vm, agent, cpu_meter, resources, record, pausing: Arc::default() }
    }

    /// Its vCPUs and memory.
    pub fn shape(&self) -> Shape {
        self.record.get().shape
    }

    /// Ends a VM that is of no use any more.
    async fn kill(&self, why: &str) {
        if let Err(error) = self.vm.kill().await {
            tracing::error!(sandbox_id = %self.id, error = %crate::chain(&error),
                "cannot end a VM that {why}");
        }
    }

    /// What its disk takes; none while an operation may be changing that.
    fn disk_bytes(&self) -> Option<u64> {
        let resources = self.resources.try_lock().ok()?;
        let (layers, _) = resources.snapshot.as_ref()?.disk_bytes().ok()?;
        Some(layers + resources.disk.as_ref()?.bytes_in_use().ok()?)
    }

    async fn checkpoint(&self, run: &Run) -> Result<Arc<Snapshot>, CaptureError> {
        let (host, resources) = (self.host.clone(), self.resources.clone());
        let (agent, run) = (self.agent.clone(), run.clone());
        let work = async move { host.checkpoint(&mut *resources.lock().await, &agent, &run).await };
        self.host.run(work).await
    }
}

#[async_trait]
impl Machine for HostMachine {
    fn agent(&self) -> &Agent {
        &self.agent
    }

    fn slot(&self) -> Option<u32> {
        self.slot
    }

    fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError> {
        Ok(self.record.update(|record| record.status = status.clone())?)
    }

    fn network(&self) -> PolicyRevision {
        self.record.get().policy()
    }

    async fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError> {
        let (resources, policy) = (self.resources.clone(), policy.clone());
        let work = async move {
            let resources = resources.lock().await;
            let (Some(record), Some(slot)) = (&resources.record, &resources.slot) else {
                // It was destroyed while this waited for its turn.
                return Err(MachineError::Cancelled);
            };
            let now = record.get();
            let (former, rate) = (now.network, now.rates.network());
            // First the record: a later daemon enforces what is in it.
            record.update(|record| record.set_policy(&policy))?;
            match slot.limit(&policy, rate).await {
                Ok(()) => Ok(record.get().policy()),
                Err(error) => {
                    record.update(|record| record.set_policy(&former))?;
                    Err(MachineError::Network { source: Box::new(error) })
                }
            }
        };
        self.host.run(work).await
    }

    async fn storage(&self) -> Result<Storage, MachineError> {
        let resources = self.resources.lock().await;
        let (Some(snapshot), Some(disk)) = (&resources.snapshot, &resources.disk) else {
            return Ok(Storage::default());
        };
        let mut storage = snapshot.storage()?;
        storage.disk_bytes += disk.bytes_in_use()?;
        Ok(storage)
    }

    fn usage(&self) -> Option<Usage> {
        let vm = ProcessUsage::of(self.vm.process())?;
        let companion = self.vm.companion().and_then(ProcessUsage::of);
        let processes = || std::iter::once(vm).chain(companion);
        // A cgroup counts to the nanosecond, where there is one.
        let metered = self.cpu_meter.as_ref().and_then(CpuMeter::read);
        Some(Usage {
            cpu_time: metered.unwrap_or_else(|| processes().map(|it| it.cpu_time).sum()),
            memory_bytes: processes().map(|it| it.private_bytes).sum(),
            disk_bytes: self.disk_bytes(),
        })
    }

    async fn ended(&self) -> String {
        let how = tokio::select! {
            how = self.vm.ended() => how,
            () = self.host.space.given_up(&self.id) => {
                self.kill("lost its disk").await;
                "lost its disk: the host's was full, and the kernel gave it up".to_owned()
            }
            () = hangs(&*self.vm, self.host.vmm_timeout) => {
                self.kill("hangs").await;
                let seconds = self.host.vmm_timeout.unwrap_or_default().as_secs();
                format!("did not answer for {seconds} s, and was ended")
            }
        };
        if self.pausing.load(Ordering::SeqCst) {
            std::future::pending().await
        }
        how
    }

    async fn pause(&self, run: &Run) -> Result<Paused, CaptureError> {
        let (host, resources, pausing) =
            (self.host.clone(), self.resources.clone(), self.pausing.clone());
        let (agent, run, record) = (self.agent.clone(), run.clone(), self.record.clone());
        let work = async move {
            let mut resources = resources.lock().await;
            let dir = resources.dir.clone();
            let on_end = {
                let pausing = pausing.clone();
                move || pausing.store(true, Ordering::SeqCst)
            };
            let frozen = host.freeze(&mut resources, &agent, &run, on_end).await;
            if frozen.is_err() {
                pausing.store(false, Ordering::SeqCst);
            }
            let taken_away = frozen?;
            Ok(Paused { frozen: Arc::new(HostFrozen::new(host, dir, record)), taken_away })
        };
        self.host.run(work).await
    }

    async fn snapshot(
        &self,
        name: &TemplateName,
        existing: Existing,
        run: &Run,
    ) -> Result<SnapshotInfo, CaptureError> {
        // Before the machine is disturbed; the same is asked again when it is named.
        self.host.check_name(name, existing).await.map_err(CaptureError::RunsOn)?;
        let snapshot = self.checkpoint(run).await?;
        let named = run.trace.span("name", self.host.name(snapshot, name, existing)).await;
        named.map_err(CaptureError::RunsOn)
    }

    async fn fork(&self, run: &Run) -> Result<ForkPoint, CaptureError> {
        let snapshot = self.checkpoint(run).await?;
        let host = self.host.clone();
        let keep = move || host.store.keep_fork(&snapshot);
        let kept = tokio::task::spawn_blocking(keep).await;
        let kept = kept.expect("linking files does not panic");
        kept.map_err(|error| CaptureError::RunsOn(error.into()))
    }

    async fn destroy(&self) -> Result<(), MachineError> {
        let resources = self.resources.clone();
        let work = async move {
            let mut resources = resources.lock().await;
            // As before a capture; for one that lived only to do what it was asked.
            resources.vm.iter().for_each(|vm| vm.learn());
            resources.dismantle().await
        };
        let remains = self.host.run(work).await;
        match remains.is_empty() {
            true => Ok(()),
            false => Err(MachineError::Remains(remains)),
        }
    }
}
