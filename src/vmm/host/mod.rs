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

mod parts;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use self::parts::Parts;
use super::cgroup::{CgroupError, Cgroups, Limits};
use super::disk::{DiskError, Overlay, Owner};
use super::guest::{AGENT_PORT, Agent, Identity};
use super::hypervisor::{BootPlan, Hypervisor, Vm};
use super::image::{Image, ImageError, ImageStore};
use super::machine::{EngineInfo, Machine, MachineError, MachineSpec, Machines, Survivor};
use super::network::{NetworkConfig, NetworkError, SlotPool, resolvers};
use super::process::VmProcess;
use super::record::{Life, Record, RecordError, RecordFile};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::SandboxState;
use crate::domain::slot::SlotIndex;

const SANDBOXES: &str = "sandboxes";
const OVERLAY: &str = "overlay.qcow2";

/// Each VM runs as a user of its own: this and its slot's number. Far from users of the system and
/// from the ranges that useradd(8) gives to containers (from 100,000 and from 524,288).
const FIRST_UID: u32 = 700_000;

/// What a VM's process may take beside its guest's memory: the program, its threads, translations.
const MEMORY_OVERHEAD_MIB: u64 = 256;

/// Threads of one hypervisor: one per vCPU, some for I/O.
const MAX_PIDS: u32 = 64;

/// A killed process is gone in milliseconds, unless the host is in trouble.
const KILL_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest whose agent has said that it listens may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

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

    fn image(&self, template: &TemplateName) -> Result<Image, MachineError> {
        self.images.get(template).map_err(|error| match error {
            ImageError::NotFound { .. } => MachineError::UnknownTemplate(template.clone()),
            error => MachineError::Template { name: template.clone(), source: Box::new(error) },
        })
    }

    /// Makes everything that a machine consists of, up to a running VM.
    async fn assemble(&self, spec: &MachineSpec, parts: &mut Parts) -> Result<(), MachineError> {
        let image = self.image(&spec.template)?;
        parts.make_dir().map_err(no_space_or(|source| MachineError::Disk { source }))?;
        let record = RecordFile::create(&parts.dir, self.record(spec)).map_err(record_error)?;
        let record = parts.record.insert(Arc::new(record)).clone();

        let slot = self
            .slots
            .acquire()
            .await
            .map_err(|error| MachineError::Network { source: Box::new(error) })?;
        let slot = parts.slot.insert(slot);
        record.update(|record| record.slot = Some(slot.index().get())).map_err(record_error)?;

        let limits = Limits {
            memory_bytes: (u64::from(spec.shape.memory_mib) + MEMORY_OVERHEAD_MIB) << 20,
            pids: MAX_PIDS,
            vcpus: spec.shape.vcpus,
        };
        let cgroup_error = |error| MachineError::Cgroup { source: Box::new(error) };
        let cgroup = self.cgroups.create(&spec.id, limits).await.map_err(cgroup_error)?;
        let cgroup = parts.cgroup.insert(cgroup);

        let uid = FIRST_UID + slot.index().get();
        let owner = Owner { uid, gid: uid };
        let overlay = Overlay::create(&image.rootfs, &parts.dir.join(OVERLAY), owner);
        let overlay = parts.overlay.insert(overlay.map_err(disk_error)?);
        let lock = overlay.lock_fd().try_clone_to_owned();
        let plan = BootPlan {
            shape: spec.shape,
            kernel: &image.kernel,
            initramfs: &image.initramfs,
            rootfs: &image.rootfs,
            overlay: Path::new(OVERLAY),
            overlay_lock: lock.map_err(|error| MachineError::Disk { source: Box::new(error) })?,
            dir: &parts.dir,
            tap: slot
                .tap()
                .await
                .map_err(|error| MachineError::Network { source: Box::new(error) })?,
            namespace: slot.namespace(),
            cgroup: cgroup.entry().map_err(cgroup_error)?,
            uid,
        };
        let vm: Arc<dyn Vm> = Arc::from(self.hypervisor.boot(plan).await?);
        let process = vm.process();
        parts.vm = Some(vm);
        record.update(|record| record.process = Some(process)).map_err(record_error)
    }

    /// Waits until the guest of a new VM answers, and tells it who it is.
    async fn introduce(
        &self,
        spec: &MachineSpec,
        vm: &dyn Vm,
        agent: &Agent,
        dir: &Path,
        cancel: &CancellationToken,
    ) -> Result<(), MachineError> {
        let identity = Identity {
            hostname: spec.id.to_string(),
            envs: spec.envs.clone(),
            nameservers: resolvers(),
        };
        let up = async {
            vm.agent_started().await;
            agent.wait_until_healthy(ANSWER_LIMIT).await?;
            agent.init(&identity).await
        };
        tokio::select! {
            biased;
            () = cancel.cancelled() => Err(MachineError::Cancelled),
            how = vm.ended() => {
                Err(MachineError::EndedEarly { how, console: console_tail(dir) })
            }
            up = tokio::time::timeout(self.boot_timeout, up) => match up {
                Ok(up) => Ok(up?),
                Err(_) => Err(MachineError::BootTimeout {
                    seconds: self.boot_timeout.as_secs(),
                    console: console_tail(dir),
                }),
            },
        }
    }

    async fn make(
        &self,
        spec: &MachineSpec,
        parts: &mut Parts,
        cancel: &CancellationToken,
    ) -> Result<Agent, MachineError> {
        self.assemble(spec, parts).await?;
        let (vm, slot) = match (&parts.vm, &parts.slot) {
            (Some(vm), Some(slot)) => (vm.clone(), slot),
            _ => unreachable!("assembling ends with a VM in a slot"),
        };
        let agent = Agent::new((slot.address(), AGENT_PORT).into(), &spec.access_token);
        self.introduce(spec, &*vm, &agent, &parts.dir, cancel).await?;
        Ok(agent)
    }

    fn record(&self, spec: &MachineSpec) -> Record {
        Record {
            id: spec.id.clone(),
            template: spec.template.clone(),
            shape: spec.shape,
            engine: self.hypervisor.engine(),
            access_token: spec.access_token.clone(),
            slot: None,
            process: None,
            life: spec.life.clone(),
        }
    }

    /// Finds everything that a machine consists of; what is missing makes it unfit.
    async fn find(&self, id: &SandboxId, parts: &mut Parts) -> Result<Agent, String> {
        let dir = parts.dir.clone();
        let told = |error: &(dyn std::error::Error + 'static)| crate::chain(error).to_string();
        let record = RecordFile::read(&dir).map_err(|error| told(&error))?;
        let now = parts.record.insert(Arc::new(record)).get();
        let (Some(process), Some(slot)) = (now.process, now.slot) else {
            return Err("the daemon ended while the sandbox was being made".to_owned());
        };
        let vm = self.hypervisor.adopt(process, &dir).await.map_err(|error| told(&error))?;
        parts.vm = Some(Arc::from(vm));
        let slot = SlotIndex::try_from(slot).map_err(|error| told(&error))?;
        let slot = self.slots.adopt(slot).await.map_err(|error| told(&error))?;
        let address = (parts.slot.insert(slot).address(), AGENT_PORT).into();
        match self.cgroups.adopt(id) {
            Ok(cgroup) => parts.cgroup = Some(cgroup),
            // A host without cgroups has none to adopt.
            Err(CgroupError::NotFound { .. }) => {}
            Err(error) => return Err(told(&error)),
        }
        let pid = u32::try_from(process.pid).map_err(|error| told(&error))?;
        let overlay = Overlay::adopt(&dir.join(OVERLAY), pid).map_err(|error| told(&error))?;
        parts.overlay = Some(overlay);
        if now.life.state == SandboxState::Starting {
            return Err("the daemon ended while the sandbox was starting".to_owned());
        }
        Ok(Agent::new(address, &now.access_token))
    }
}

#[async_trait]
impl Machines for HostMachines {
    fn engine(&self) -> EngineInfo {
        let version = self.hypervisor.version().to_owned();
        EngineInfo { engine: self.hypervisor.engine(), version }
    }

    fn check_template(&self, template: &TemplateName) -> Result<(), MachineError> {
        self.image(template).map(drop)
    }

    async fn boot(
        &self,
        spec: MachineSpec,
        cancel: &CancellationToken,
    ) -> Result<Arc<dyn Machine>, MachineError> {
        let mut parts = Parts::new(self.dir(&spec.id));
        match self.make(&spec, &mut parts, cancel).await {
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

    async fn survivors(&self) -> Vec<Survivor> {
        let mut survivors = Vec::new();
        for dir in list(&self.sandboxes).unwrap_or_default() {
            match RecordFile::read(&dir) {
                Ok(record) => {
                    let record = record.get();
                    survivors.push(Survivor { id: record.id, life: record.life });
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
                && let Err(error) = self.sweep(&id).await
            {
                tracing::warn!(sandbox_id = %id, error = %crate::chain(&error),
                    "a left-over cgroup stays");
            }
        }
        survivors
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Machine>, MachineError> {
        let mut parts = Parts::new(self.dir(id));
        match self.find(id, &mut parts).await {
            Ok(agent) => Ok(Arc::new(HostMachine::new(parts, agent))),
            Err(reason) => {
                // What was found is let go of, not taken away: the sweep goes by the record, which
                // also names what was not found any more.
                drop(parts);
                match self.sweep(id).await {
                    Ok(()) => Err(MachineError::NotAdopted(reason)),
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn sweep(&self, id: &SandboxId) -> Result<(), MachineError> {
        let mut parts = Parts::new(self.dir(id));
        let mut remains = Vec::new();
        parts.cgroup = self.cgroups.adopt(id).ok();
        let record = RecordFile::read(&parts.dir).ok();
        let now = record.as_ref().map(RecordFile::get);
        parts.record = record.map(Arc::new);
        // By its pid, for its sockets may be what is broken.
        if let Some(process) = now.as_ref().and_then(|now| now.process)
            && let Ok(process) = VmProcess::watch(process)
            && let Err(error) = process.kill(KILL_LIMIT).await
        {
            return Err(MachineError::Remains(vec![crate::chain(&error).to_string()]));
        }
        // A VM that lives uses everything, so everything stays.
        if let Err(error) = parts.kill().await {
            return Err(MachineError::Remains(vec![error]));
        }
        if let (Some(record), Some(now)) = (&parts.record, now)
            && let Some(slot) = now.slot.and_then(|slot| SlotIndex::try_from(slot).ok())
        {
            // First the record, then the slot: as in `Parts::dismantle`.
            let forgotten = record.update(|record| record.slot = None);
            remains.extend(forgotten.err().map(|error| crate::chain(&error).to_string()));
            let removed = self.slots.discard(slot).await;
            remains.extend(removed.err().map(|error| crate::chain(&error).to_string()));
        }
        remains.extend(parts.dismantle().await);
        match remains.is_empty() {
            true => Ok(()),
            false => Err(MachineError::Remains(remains)),
        }
    }

    async fn shut_down(&self) {
        if let Err(error) = self.slots.shutdown().await {
            tracing::warn!(error = %crate::chain(&error), "some network slots are left");
        }
    }
}

impl HostMachines {
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
            Some(id) => self.sweep(&id).await.map_err(|error| error.to_string()),
            None => std::fs::remove_dir_all(dir).map_err(|error| error.to_string()),
        };
        if let Err(error) = outcome {
            tracing::warn!(path = %dir.display(), error, "a left-over directory stays");
        }
    }
}

/// One machine of this host.
struct HostMachine {
    slot: Option<u32>,
    vm: Arc<dyn Vm>,
    agent: Agent,
    parts: Arc<tokio::sync::Mutex<Parts>>,
    record: Arc<RecordFile>,
}

impl HostMachine {
    fn new(parts: Parts, agent: Agent) -> Self {
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

fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}

fn slot_of(dir: &Path) -> Option<SlotIndex> {
    SlotIndex::try_from(RecordFile::read(dir).ok()?.get().slot?).ok()
}

fn disk_error(error: DiskError) -> MachineError {
    let full = |source: &io::Error| source.kind() == io::ErrorKind::StorageFull;
    match &error {
        DiskError::Create { source, .. } if full(source) => {
            MachineError::NoSpace { source: Box::new(error) }
        }
        _ => MachineError::Disk { source: Box::new(error) },
    }
}

fn record_error(error: RecordError) -> MachineError {
    match error {
        RecordError::Write { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            MachineError::NoSpace { source: Box::new(source) }
        }
        error => MachineError::Record(error),
    }
}

fn no_space_or(
    other: impl Fn(Box<dyn std::error::Error + Send + Sync>) -> MachineError,
) -> impl Fn(io::Error) -> MachineError {
    move |error| match error.kind() {
        io::ErrorKind::StorageFull => MachineError::NoSpace { source: Box::new(error) },
        _ => other(Box::new(error)),
    }
}

/// The last lines of a guest's console, for an error that a person reads.
fn console_tail(dir: &Path) -> String {
    const LINES: usize = 5;
    let bytes = std::fs::read(dir.join(super::console::LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => "nothing".to_owned(),
        count => lines[count.saturating_sub(LINES)..].join(" | "),
    }
}
