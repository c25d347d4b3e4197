//! Makes machines: every part in its order, then a guest that knows who it is.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::parts::Parts;
use super::{HostMachines, OVERLAY};
use crate::domain::name::TemplateName;
use crate::vmm::cgroup::Limits;
use crate::vmm::console;
use crate::vmm::disk::{DiskError, Overlay, Owner};
use crate::vmm::guest::{AGENT_PORT, Agent, Identity};
use crate::vmm::hypervisor::{BootPlan, Vm};
use crate::vmm::image::{Image, ImageError};
use crate::vmm::machine::{MachineError, MachineSpec};
use crate::vmm::network::resolvers;
use crate::vmm::record::{Record, RecordError, RecordFile};

/// Each VM runs as a user of its own: this and its slot's number. Far from users of the system and
/// from the ranges that useradd(8) gives to containers (from 100,000 and from 524,288).
const FIRST_UID: u32 = 700_000;

/// What a VM's process may take beside its guest's memory: the program, its threads, translations.
const MEMORY_OVERHEAD_MIB: u64 = 256;

/// Threads of one hypervisor: one per vCPU, some for I/O.
const MAX_PIDS: u32 = 64;

/// How long a guest whose agent has said that it listens may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

impl HostMachines {
    pub(super) fn image(&self, template: &TemplateName) -> Result<Image, MachineError> {
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

    /// Makes a machine out of nothing. On failure `parts` holds what there is to take away.
    pub(super) async fn make_machine(
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
    let bytes = std::fs::read(dir.join(console::LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    match lines.len() {
        0 => "nothing".to_owned(),
        count => lines[count.saturating_sub(LINES)..].join(" | "),
    }
}
