//! One machine of this host, while it is in use.

use std::sync::Arc;

use async_trait::async_trait;

use super::parts::Parts;
use crate::vmm::guest::Agent;
use crate::vmm::hypervisor::Vm;
use crate::domain::name::TemplateName;
use crate::vmm::machine::{
    CaptureError, Existing, ForkPoint, Frozen, Machine, MachineError, Run, SnapshotInfo, Storage,
};
use crate::vmm::record::{Life, RecordFile};

/// A machine that was made or found again.
pub(super) struct HostMachine {
    slot: Option<u32>,
    vm: Arc<dyn Vm>,
    agent: Agent,
    parts: Arc<tokio::sync::Mutex<Parts>>,
    record: Arc<RecordFile>,
}

impl HostMachine {
    /// A machine has a record and a VM: `parts` is complete.
    pub fn new(parts: Parts, agent: Agent) -> Self {
        let record = parts.record.clone().expect("a machine has a record");
        let vm = parts.vm.clone().expect("a machine has a VM");
        let slot = parts.slot.as_ref().map(|slot| slot.index().get());
        Self { slot, vm, agent, parts: Arc::new(tokio::sync::Mutex::new(parts)), record }
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

    fn keep(&self, life: &Life) -> Result<(), MachineError> {
        Ok(self.record.update(|record| record.life = life.clone())?)
    }

    async fn storage(&self) -> Result<Storage, MachineError> {
        todo!()
    }

    async fn pause(&self, _: &Run) -> Result<Arc<dyn Frozen>, CaptureError> {
        todo!()
    }

    async fn snapshot(
        &self,
        _: &TemplateName,
        _: Existing,
        _: &Run,
    ) -> Result<SnapshotInfo, CaptureError> {
        todo!()
    }

    async fn fork(&self, _: &Run) -> Result<ForkPoint, CaptureError> {
        todo!()
    }

    async fn ended(&self) -> String {
        self.vm.ended().await
    }

    async fn destroy(&self) -> Result<(), MachineError> {
        let parts = self.parts.clone();
        // A task of its own: a caller that goes away does not leave half a machine.
        let work = tokio::spawn(async move { parts.lock().await.dismantle().await });
        let remains = match work.await {
            Ok(remains) => remains,
            Err(error) => vec![format!("taking it away was interrupted: {error}")],
        };
        match remains.is_empty() {
            true => Ok(()),
            false => Err(MachineError::Remains(remains)),
        }
    }
}
