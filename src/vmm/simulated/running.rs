//! One simulated machine: the agent's processes, which go on, or stand still.

use std::sync::Arc;

use async_trait::async_trait;
use chrono::Utc;

use super::guest::Guest;
use super::steps::{Fault, Obstacle, Step};
use super::{Host, Phase, Present};
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::snapshot::{Existing, ForkPoint, SnapshotInfo, Storage};
use crate::domain::status::SandboxStatus;
use crate::vmm::guest::Agent;
use crate::vmm::machine::{CaptureError, Frozen, Machine, MachineError, Paused, Run};
use crate::vmm::process::VmProcess;
use crate::vmm::process::process_usage::Usage;

/// What a generation of memory and a disk take on a host that writes neither.
const GENERATION_BYTES: u64 = 4096;
const DISK_BYTES: u64 = 1 << 20;

pub(super) struct SimulatedMachine {
    pub(super) id: SandboxId,
    pub(super) slot: u32,
    pub(super) agent: Agent,
    pub(super) guest: Arc<Guest>,
    pub(super) process: VmProcess,
    pub(super) host: Arc<Host>,
}

impl SimulatedMachine {
    pub(super) fn thaw(&self) {
        self.guest.thaw();
    }

    /// Stops the guest and takes a step with it. Unless that succeeds it goes on, or is lost.
    async fn freeze(&self, step: Step, run: &Run) -> Result<(), CaptureError> {
        self.guest.freeze();
        let lost = |how: String| {
            CaptureError::Lost(MachineError::Snapshot { source: format!("its VM {how}").into() })
        };
        let taken = run.trace.span("freeze", self.host.steps.take(step, &self.id, &run.cancel));
        let taken = tokio::select! {
            how = self.process.ended() => return Err(lost(how)),
            taken = taken => taken,
        };
        match taken {
            Ok(()) => Ok(()),
            Err(Obstacle::Fault(Fault::VmLost)) => {
                self.guest.kill();
                Err(lost(self.process.ended().await))
            }
            Err(obstacle) => {
                self.guest.thaw();
                Err(CaptureError::RunsOn(obstacle.into()))
            }
        }
    }

    async fn capture(&self, run: &Run) -> Result<(), CaptureError> {
        self.freeze(Step::Capture, run).await?;
        self.host.change(&self.id, |present| present.generations += 1);
        self.guest.thaw();
        Ok(())
    }
}

#[async_trait]
impl Machine for SimulatedMachine {
    fn agent(&self) -> &Agent {
        &self.agent
    }

    fn slot(&self) -> Option<u32> {
        Some(self.slot)
    }

    fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError> {
        self.host.change(&self.id, |present| present.status = status.clone());
        Ok(())
    }

    fn network(&self) -> PolicyRevision {
        self.host.network(&self.id)
    }

    async fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError> {
        Ok(self.host.set_network(&self.id, policy))
    }

    async fn storage(&self) -> Result<Storage, MachineError> {
        self.host.storage(&self.id)
    }

    fn usage(&self) -> Option<Usage> {
        let guest = self.guest.usage()?;
        Some(Usage {
            cpu_time: guest.cpu_time,
            memory_bytes: guest.private_bytes,
            disk_bytes: Some(DISK_BYTES),
        })
    }

    async fn ended(&self) -> String {
        self.process.ended().await
    }

    async fn pause(&self, run: &Run) -> Result<Paused, CaptureError> {
        self.freeze(Step::Pause, run).await?;
        self.host.change(&self.id, |present| {
            present.generations += 1;
            present.phase = Phase::Frozen;
        });
        let frozen = Arc::new(SimulatedFrozen::new(&self.id, &self.host));
        Ok(Paused { frozen, taken_away: Ok(()) })
    }

    async fn snapshot(
        &self,
        name: &TemplateName,
        existing: Existing,
        run: &Run,
    ) -> Result<SnapshotInfo, CaptureError> {
        self.host.check_free(name, existing).map_err(CaptureError::RunsOn)?;
        self.capture(run).await?;
        self.host.keep_snapshot(&self.id, name, existing).map_err(CaptureError::RunsOn)
    }

    async fn fork(&self, run: &Run) -> Result<ForkPoint, CaptureError> {
        self.capture(run).await?;
        let point = ForkPoint(SandboxId::random().to_string());
        let image = self.host.look(&self.id, |present| present.image.clone());
        let image = image.map_err(CaptureError::RunsOn)?;
        self.host.forks().insert(point.clone(), image);
        Ok(point)
    }

    async fn destroy(&self) -> Result<(), MachineError> {
        self.host.take_away(Step::Destroy, &self.id).await
    }
}

pub(super) struct SimulatedFrozen {
    id: SandboxId,
    host: Arc<Host>,
}

impl SimulatedFrozen {
    pub(super) fn new(id: &SandboxId, host: &Arc<Host>) -> Self {
        Self { id: id.clone(), host: host.clone() }
    }
}

#[async_trait]
impl Frozen for SimulatedFrozen {
    fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError> {
        self.host.change(&self.id, |present| present.status = status.clone());
        Ok(())
    }

    fn network(&self) -> PolicyRevision {
        self.host.network(&self.id)
    }

    fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError> {
        Ok(self.host.set_network(&self.id, policy))
    }

    async fn storage(&self) -> Result<Storage, MachineError> {
        self.host.storage(&self.id)
    }

    async fn resume(&self, run: &Run) -> Result<Arc<dyn Machine>, MachineError> {
        let machine = self.host.watch(&self.id)?;
        run.trace.span("thaw", self.host.steps.take(Step::Resume, &self.id, &run.cancel)).await?;
        self.host.change(&self.id, |present| present.phase = Phase::Running);
        machine.thaw();
        Ok(Arc::new(machine))
    }

    async fn snapshot(
        &self,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, MachineError> {
        self.host.check_free(name, existing)?;
        self.host.steps.take(Step::Capture, &self.id, &Run::default().cancel).await?;
        self.host.keep_snapshot(&self.id, name, existing)
    }

    async fn tidy(&self) {}

    async fn destroy(&self) -> Result<(), MachineError> {
        self.host.take_away(Step::Destroy, &self.id).await
    }
}

impl Host {
    fn change(&self, id: &SandboxId, change: impl FnOnce(&mut Present)) {
        if let Some(present) = self.present().get_mut(id) {
            change(present);
        }
    }

    fn look<T>(&self, id: &SandboxId, look: impl FnOnce(&Present) -> T) -> Result<T, MachineError> {
        let gone = || MachineError::Snapshot { source: "nothing is left of it".into() };
        self.present().get(id).map(look).ok_or_else(gone)
    }

    fn network(&self, id: &SandboxId) -> PolicyRevision {
        self.look(id, |present| present.network.clone()).unwrap_or_default()
    }

    fn set_network(&self, id: &SandboxId, policy: &Policy) -> PolicyRevision {
        self.change(id, |present| {
            present.network.policy = policy.clone();
            present.network.revision += 1;
        });
        self.network(id)
    }

    fn storage(&self, id: &SandboxId) -> Result<Storage, MachineError> {
        self.look(id, |present| Storage {
            memory_bytes: u64::from(present.generations) * GENERATION_BYTES,
            memory_generations: present.generations,
            disk_bytes: DISK_BYTES,
            shared_bytes: DISK_BYTES / 2,
        })
    }

    fn check_free(&self, name: &TemplateName, existing: Existing) -> Result<(), MachineError> {
        if self.templates.contains(name) {
            return Err(MachineError::NameOfImage(name.clone()));
        }
        match existing {
            Existing::Keep if self.snapshots().contains_key(name) => {
                Err(MachineError::SnapshotExists(name.clone()))
            }
            Existing::Keep | Existing::Replace => Ok(()),
        }
    }

    fn keep_snapshot(
        &self,
        id: &SandboxId,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, MachineError> {
        // Another one may have come while this one was held.
        self.check_free(name, existing)?;
        let storage = self.storage(id)?;
        let snapshot = self.look(id, |present| SnapshotInfo {
            name: name.clone(),
            build: SandboxId::random().to_string(),
            sandbox_id: id.clone(),
            image: present.image.clone(),
            shape: present.shape,
            engine: Engine::Simulated,
            storage,
            created_at: Utc::now(),
        })?;
        self.snapshots().insert(name.clone(), snapshot.clone());
        Ok(snapshot)
    }
}
