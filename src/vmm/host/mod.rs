//! The machines of this host: VM, disk, network and cgroup put together, and taken apart again.
//!
//! ```text
//! {data_dir}/sandboxes/{id}/   sandbox.json  overlay.qcow2  console.log  qemu.log  *.sock
//! ```
//!
//! The directory and all in it but the overlay belong to root: a hypervisor that a guest has broken
//! out into can neither put a link where the daemon writes, nor change what it will read.
//!
//! Everything is made in one order and taken away in the other; what a machine consists of at any
//! moment is in [`parts::Parts`], so that a failure half-way leaves nothing behind.

mod machine;
mod make;
mod parts;
mod recover;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use self::machine::HostMachine;
use self::parts::Parts;
use self::recover::{list, slot_of};
use super::cgroup::{CgroupError, Cgroups};
use super::hypervisor::Hypervisor;
use super::image::ImageStore;
use super::machine::{
    EngineInfo, ForkPoint, Found, Machine, MachineError, MachineSpec, Machines, Run, SnapshotInfo,
    Survivor, Template,
};
use super::network::{NetworkConfig, NetworkError, SlotPool};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::slot::SlotIndex;

const SANDBOXES: &str = "sandboxes";
const OVERLAY: &str = "overlay.qcow2";

/// What the machines of a host are made with.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Where their directories are made.
    pub data_dir: PathBuf,
    /// Network slots that are kept ready.
    pub slot_pool: usize,
    /// How long a guest may take to boot.
    pub boot_timeout: Duration,
}

/// The host cannot run machines.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The directory of machines cannot be used.
    #[error("cannot use {path}")]
    Directory { path: PathBuf, source: io::Error },
    /// The network cannot be used.
    #[error("the network cannot be prepared")]
    Network(#[from] NetworkError),
    /// Cgroups cannot be used.
    #[error("cgroups cannot be prepared")]
    Cgroup(#[from] CgroupError),
}

/// Makes the machines of this host.
pub struct HostMachines {
    sandboxes: PathBuf,
    boot_timeout: Duration,
    hypervisor: Arc<dyn Hypervisor>,
    images: ImageStore,
    slots: SlotPool,
    cgroups: Cgroups,
}

impl HostMachines {
    /// Prepares the host. Slots of machines that a former daemon left are kept for their adoption,
    /// all others of this data directory are taken away.
    ///
    /// # Errors
    ///
    /// [`HostError`], with what was in the way.
    pub async fn start(
        settings: HostSettings,
        hypervisor: Arc<dyn Hypervisor>,
        images: ImageStore,
    ) -> Result<Self, HostError> {
        let sandboxes = settings.data_dir.join(SANDBOXES);
        std::fs::create_dir_all(&sandboxes)
            .map_err(|source| HostError::Directory { path: sandboxes.clone(), source })?;
        let left = list(&sandboxes)
            .map_err(|source| HostError::Directory { path: sandboxes.clone(), source })?;
        let in_use: Vec<SlotIndex> = left.iter().filter_map(|dir| slot_of(dir)).collect();
        let network = NetworkConfig {
            pool_size: settings.slot_pool,
            ..NetworkConfig::new(settings.data_dir.clone())
        };
        let cgroups = Cgroups::open(&settings.data_dir)?;
        let slots = SlotPool::start(network, &in_use).await?;
        let boot_timeout = settings.boot_timeout;
        Ok(Self { sandboxes, boot_timeout, hypervisor, images, slots, cgroups })
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes.join(id.as_str())
    }
}

#[async_trait]
impl Machines for HostMachines {
    fn engine(&self) -> EngineInfo {
        let version = self.hypervisor.version().to_owned();
        EngineInfo { engine: self.hypervisor.engine(), version }
    }

    async fn template(&self, name: &TemplateName) -> Result<Template, MachineError> {
        self.image(name).map(|_| Template::Image)
    }

    async fn make(&self, spec: MachineSpec, run: &Run) -> Result<Arc<dyn Machine>, MachineError> {
        let mut parts = Parts::new(self.dir(&spec.id));
        match self.make_machine(&spec, &mut parts, &run.cancel).await {
            Ok(agent) => Ok(Arc::new(HostMachine::new(parts, agent))),
            Err(error) => {
                let remains = parts.dismantle().await;
                if remains.is_empty() {
                    return Err(error);
                }
                tracing::error!(sandbox_id = %spec.id, error = %crate::chain(&error),
                    "a machine could not be made");
                Err(MachineError::Remains(remains))
            }
        }
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, MachineError> {
        todo!()
    }

    async fn remove_snapshot(&self, _: &TemplateName) -> Result<(), MachineError> {
        todo!()
    }

    async fn discard(&self, _: ForkPoint) {
        todo!()
    }

    async fn survivors(&self) -> Vec<Survivor> {
        self.list_survivors().await
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Found, MachineError> {
        self.adopt_machine(id).await.map(Found::Running)
    }

    async fn sweep(&self, id: &SandboxId) -> Result<(), MachineError> {
        self.sweep_sandbox(id).await
    }

    async fn shut_down(&self) {
        if let Err(error) = self.slots.shutdown().await {
            tracing::warn!(error = %crate::chain(&error), "some network slots are left");
        }
    }
}
