//! The machines of this host: VM, disk, network and cgroup put together, and taken apart again.
//!
//! ```text
//! {data_dir}/sandboxes/{id}/      sandbox.json  console.log  qemu.log  *.sock
//!     snapshot-{build}/           what its VM was restored from, or all that there is of it
//!     disk-{build}.qcow2 or .cow  what its VM writes to, an overlay on that snapshot
//! {data_dir}/snapshots/           named ones, and those of forks under way
//! ```
//!
//! The directory and all in it belong to root: a hypervisor that a guest has broken out into can
//! neither put a link where the daemon writes, nor change what it will read. What it works with it
//! gets as open files.
//!
//! Every machine comes out of a snapshot ([`restore`]), and goes into one ([`capture`]). What it
//! consists of at any moment is in [`resources::MachineResources`], so that a failure half-way leaves nothing
//! behind.

mod capture;
mod create;
mod disk;
mod error;
mod frozen;
mod hang;
mod recover;
mod resources;
mod restore;
mod running;
mod space;
mod standby;
mod warm_snapshot;
mod warm_vmm_pool;

use std::io;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::runtime::{Handle, Runtime};

use self::disk::Disks;
pub use self::recover::left_running;
use self::recover::{list, slot_of};
use self::space::SpaceWatch;
use self::standby::Standbys;
use self::warm_snapshot::Making;
use crate::domain::egress::Lan;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::slot::SlotIndex;
use crate::domain::snapshot::ForkPoint;
use crate::domain::snapshot::SnapshotInfo;
use crate::domain::usage::Readiness;
use crate::vmm::fault::Faults;
use crate::vmm::hypervisor::Hypervisor;
use crate::vmm::image::ImageStore;
use crate::vmm::machine::{
    EngineInfo, Found, Machine, MachineError, MachineSpec, Machines, Run, Survivor, Template,
};
use crate::vmm::network::{NetworkConfig, NetworkError, SlotPool};
use crate::vmm::process::cgroup::{CgroupError, Cgroups};
use crate::vmm::storage::disk::DeviceError;
use crate::vmm::storage::memory::Provenance;
use crate::vmm::storage::snapshot::{Snapshot, SnapshotError, SnapshotStore};

const SANDBOXES: &str = "sandboxes";
const SNAPSHOTS: &str = "snapshots";

/// They mostly wait; what blocks for long goes to threads of the runtime's own.
const THREADS: usize = 2;

/// What the machines of a host are made with.
#[derive(Debug, Clone)]
pub struct HostSettings {
    /// Where their directories are made.
    pub data_dir: PathBuf,
    /// Whether guests reach networks of somebody near without a rule about them.
    pub lan: Lan,
    /// Questions for names a second that are answered to each guest with rules about names.
    pub dns_rate: NonZeroU32,
    /// How fast a guest is for whom nothing else was said.
    pub rates: RateLimits,
    /// Network slots that are kept ready.
    pub slot_pool: usize,
    /// Machines that stand by for the next creates.
    pub standbys: usize,
    /// VMs' processes that wait for the next creates.
    pub vmm_pool: usize,
    /// Each VM runs as a user of its own: this one and its slot's number.
    pub first_uid: u32,
    /// How long a guest may take to boot.
    pub boot_timeout: Duration,
    /// A VM whose hypervisor does not answer for so long is ended; none is if absent.
    pub vmm_timeout: Option<Duration>,
    /// What is to fail on purpose.
    pub faults: Faults,
}

/// The host cannot run machines.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The directory of machines cannot be used.
    #[error("cannot use {path}")]
    Directory { path: PathBuf, source: io::Error },
    /// It has no threads for them.
    #[error("cannot start threads")]
    Threads(#[source] io::Error),
    /// The host does not tell what it is.
    #[error("cannot learn about the host from {path}")]
    Unknown { path: &'static str, source: io::Error },
    /// The snapshots cannot be used.
    #[error("the snapshots cannot be used")]
    Snapshots(#[from] SnapshotError),
    /// The network cannot be used.
    #[error("the network cannot be prepared")]
    Network(#[from] NetworkError),
    /// Block devices for disks cannot be made.
    #[error("disks cannot be prepared")]
    Disks(#[from] DeviceError),
    /// Cgroups cannot be used.
    #[error("cgroups cannot be prepared")]
    Cgroup(#[from] CgroupError),
}

/// Makes the machines of this host, on threads of its own: making one takes many small waits for the
/// kernel, which those who decide and those who serve should not share.
pub struct HostMachines {
    host: Arc<Host>,
    /// There until this is dropped.
    runtime: Option<Runtime>,
}

/// What all machines of a host share.
struct Host {
    runtime: Handle,
    data_dir: PathBuf,
    sandboxes: PathBuf,
    first_uid: u32,
    rates: RateLimits,
    boot_timeout: Duration,
    vmm_timeout: Option<Duration>,
    hypervisor: Arc<dyn Hypervisor>,
    images: ImageStore,
    slots: SlotPool,
    cgroups: Cgroups,
    disks: Disks,
    space: SpaceWatch,
    store: SnapshotStore,
    making: Making,
    standbys: Standbys,
    vmms: Standbys,
    kernel: String,
    cpu_model: String,
    faults: Faults,
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
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("machines")
            .enable_all()
            .build()
            .map_err(HostError::Threads)?;
        let handle = runtime.handle().clone();
        let host = on(&handle, Host::start(settings, hypervisor, images, handle.clone())).await;
        Ok(Self { host: Arc::new(host?), runtime: Some(runtime) })
    }

    /// Makes the warm snapshot of an image in a shape, unless there is one.
    ///
    /// # Errors
    ///
    /// [`MachineError`]; nothing is left of it then.
    pub async fn warm_up(&self, name: &TemplateName, shape: Shape) -> Result<(), MachineError> {
        let image = self.host.image(name)?;
        let image = image.ok_or_else(|| MachineError::UnknownTemplate(name.clone()))?;
        self.host.warm(image, shape, &Run::default()).await.map(drop)
    }
}

impl Drop for HostMachines {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Does `work` on the host's threads, to its end even if nobody waits for it any more.
async fn on<T: Send + 'static>(
    runtime: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    match runtime.spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The threads are gone, and the daemon is about to be.
        Err(_) => std::future::pending().await,
    }
}

impl Host {
    async fn start(
        settings: HostSettings,
        hypervisor: Arc<dyn Hypervisor>,
        images: ImageStore,
        runtime: Handle,
    ) -> Result<Self, HostError> {
        let HostSettings {
            data_dir,
            lan,
            dns_rate,
            rates,
            slot_pool: pool_size,
            standbys,
            vmm_pool,
            first_uid,
            boot_timeout,
            vmm_timeout,
            faults,
        } = settings;
        let vmm_pool = hypervisor.ahead().map_or(0, |_| vmm_pool);
        let sandboxes = data_dir.join(SANDBOXES);
        std::fs::create_dir_all(&sandboxes)
            .map_err(|source| HostError::Directory { path: sandboxes.clone(), source })?;
        let left = list(&sandboxes)
            .map_err(|source| HostError::Directory { path: sandboxes.clone(), source })?;
        let in_use: Vec<SlotIndex> = left.iter().filter_map(|dir| slot_of(dir)).collect();
        let network = NetworkConfig::new(data_dir.clone());
        let network = NetworkConfig { pool_size, lan, dns_rate, rate: rates.network(), ..network };
        let disks = Disks::open(hypervisor.disk_kind(), &data_dir)?;
        Ok(Self {
            cgroups: Cgroups::open(&data_dir)?,
            space: SpaceWatch::start(&disks, &data_dir, &runtime),
            runtime,
            disks,
            store: SnapshotStore::open(&data_dir.join(SNAPSHOTS))?,
            slots: SlotPool::start(network, &in_use).await?,
            making: Making::default(),
            standbys: Standbys::new(standbys),
            vmms: Standbys::new(vmm_pool),
            kernel: kernel_release()?,
            cpu_model: cpu_model()?,
            data_dir,
            sandboxes,
            first_uid,
            rates,
            boot_timeout,
            vmm_timeout,
            hypervisor,
            images,
            faults,
        })
    }

    /// Does `work` on the host's threads, to its end even if nobody waits for it any more.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl Future<Output = T> + Send + 'static,
    ) -> T {
        on(&self.runtime, work).await
    }

    fn dir(&self, id: &SandboxId) -> PathBuf {
        self.sandboxes.join(id.as_str())
    }

    /// What a snapshot that is taken here is taken with.
    fn provenance(&self, guest_kernel: &str) -> Provenance {
        Provenance {
            engine: self.hypervisor.engine().as_str().to_owned(),
            vmm_version: format!(
                "{} (machine {})",
                self.hypervisor.version(),
                self.hypervisor.machine()
            ),
            host_kernel: self.kernel.clone(),
            guest_kernel: guest_kernel.to_owned(),
            cpu_model: self.cpu_model.clone(),
        }
    }

    /// The same for one of a VM that was restored from `former`. What runs it is what restored it:
    /// the program may have been replaced since, and the daemon been started again.
    fn provenance_after(&self, former: &Snapshot) -> Provenance {
        let Some(origin) = former.memory().origin() else { return self.provenance("unknown") };
        let Provenance { engine, vmm_version, guest_kernel, .. } = origin.provenance.clone();
        Provenance { engine, vmm_version, ..self.provenance(&guest_kernel) }
    }
}

fn kernel_release() -> Result<String, HostError> {
    const PATH: &str = "/proc/sys/kernel/osrelease";
    let text = std::fs::read_to_string(PATH);
    let text = text.map_err(|source| HostError::Unknown { path: PATH, source })?;
    Ok(text.trim().to_owned())
}

fn cpu_model() -> Result<String, HostError> {
    const PATH: &str = "/proc/cpuinfo";
    let text = std::fs::read_to_string(PATH);
    let text = text.map_err(|source| HostError::Unknown { path: PATH, source })?;
    let model = text.lines().find_map(|line| line.strip_prefix("model name"));
    let model = model.map(|rest| rest.trim_start_matches([' ', '\t', ':']));
    Ok(model.unwrap_or("unknown").to_owned())
}

#[async_trait]
impl Machines for HostMachines {
    fn engine(&self) -> EngineInfo {
        let version = self.host.hypervisor.version().to_owned();
        EngineInfo { engine: self.host.hypervisor.engine(), version }
    }

    fn readiness(&self) -> Readiness {
        let slots = self.host.slots.status().ready;
        Readiness { slots, vmms: self.host.vmms.ready(), standbys: self.host.standbys.ready() }
    }

    async fn template(&self, name: &TemplateName) -> Result<Template, MachineError> {
        let (host, name) = (self.host.clone(), name.clone());
        let look = tokio::task::spawn_blocking(move || host.template(&name)).await;
        look.expect("opening files does not panic")
    }

    async fn reserve(&self, template: &TemplateName, shape: Shape) -> SandboxId {
        self.host.reserve(template, shape).await
    }

    async fn make(&self, spec: MachineSpec, run: &Run) -> Result<Arc<dyn Machine>, MachineError> {
        let (host, run) = (self.host.clone(), run.clone());
        let made = self.host.run(async move { host.create(spec, &run).await });
        Ok(Arc::new(made.await?))
    }

    async fn survivors(&self) -> Vec<Survivor> {
        let host = self.host.clone();
        self.host.run(async move { host.list_survivors().await }).await
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Found, MachineError> {
        let (host, id) = (self.host.clone(), id.clone());
        self.host.run(async move { host.adopt_machine(&id).await }).await
    }

    async fn sweep(&self, id: &SandboxId) -> Result<(), MachineError> {
        let (host, id) = (self.host.clone(), id.clone());
        self.host.run(async move { host.sweep_sandbox(&id).await }).await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, MachineError> {
        let host = self.host.clone();
        let list = move || {
            let all = host.store.all()?;
            all.into_iter().map(|(name, snapshot)| create::info(name, &snapshot)).collect()
        };
        tokio::task::spawn_blocking(list).await.expect("opening files does not panic")
    }

    async fn remove_snapshot(&self, name: &TemplateName) -> Result<(), MachineError> {
        let (host, name) = (self.host.clone(), name.clone());
        let remove = move || match host.store.remove(&name)? {
            true => Ok(()),
            false => Err(MachineError::UnknownTemplate(name)),
        };
        tokio::task::spawn_blocking(remove).await.expect("removing files does not panic")
    }

    async fn discard(&self, point: ForkPoint) {
        let host = self.host.clone();
        let discard = move || host.store.discard_fork(&point);
        let discarded = tokio::task::spawn_blocking(discard).await;
        if let Err(error) = discarded.expect("removing files does not panic") {
            // It is found again when the daemon starts.
            tracing::warn!(error = %crate::chain(&error), "what a fork froze is left");
        }
    }

    async fn shut_down(&self) {
        let host = self.host.clone();
        let all = async move {
            host.standbys.close().await;
            host.vmms.close().await;
        };
        self.host.run(all).await;
        if let Err(error) = self.host.slots.shutdown().await {
            tracing::warn!(error = %crate::chain(&error), "some network slots are left");
        }
    }
}
