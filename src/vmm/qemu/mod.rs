//! QEMU as a hypervisor: the `microvm` machine, with KVM or in software (TCG).

mod command;
mod qmp;
mod vm;

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use self::command::{Descriptors, Start, command_line};
use self::vm::QemuVm;
use super::console;
use super::hypervisor::{
    BootPlan, DiskKind, DiskPlan, Engine, Hypervisor, HypervisorError, RestorePlan, StartAhead, Vm,
    VmPlan,
};
use super::memory::{self, GuestMemory, Lineage};
use super::process::{Confinement, ProcessId, User, VmProcess};
use super::tsc;

/// The program, looked up in `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";

/// How QEMU is to execute the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// On the CPU, through `/dev/kvm`.
    Kvm,
    /// In software.
    Tcg,
}

/// QEMU, found on this host.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    version: String,
    accel: command::Engine,
}

impl Qemu {
    /// Looks QEMU up and asks for its version.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Missing`] with what to install.
    pub async fn find(accel: Accel) -> Result<Self, HypervisorError> {
        let program = super::find_program(PROGRAM).ok_or_else(|| HypervisorError::Missing {
            program: PROGRAM.to_owned(),
            advice: "install it with `apt-get install qemu-system-x86`",
        })?;
        let output = tokio::process::Command::new(&program)
            .arg("--version")
            .output()
            .await
            .map_err(|source| HypervisorError::Version { program: program.clone(), source })?;
        // "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)"
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text
            .split_ascii_whitespace()
            .nth(3)
            .ok_or_else(|| HypervisorError::Version {
                program: program.clone(),
                source: std::io::Error::other(format!("unexpected answer {text:?}")),
            })?
            .to_owned();
        let accel = match accel {
            Accel::Kvm => command::Engine::Kvm,
            Accel::Tcg => {
                let measure = tokio::task::spawn_blocking(tsc::measure_khz);
                let tsc_khz = measure.await.expect("measuring does not panic");
                command::Engine::Tcg { tsc_khz }
            }
        };
        Ok(Self { program, version, accel })
    }

    /// Arguments of a VM without network whose changes are thrown away, its console on standard
    /// output: to see whether a guest boots at all.
    pub fn trial_command(&self, kernel: &Path, initramfs: &Path, rootfs: &Path) -> Vec<String> {
        command::trial_command(self.accel, kernel, initramfs, rootfs)
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn engine(&self) -> Engine {
        match self.accel {
            command::Engine::Kvm => Engine::QemuKvm,
            command::Engine::Tcg { .. } => Engine::QemuTcg,
        }
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn machine(&self) -> u32 {
        command::MACHINE
    }

    fn disk_kind(&self) -> DiskKind {
        DiskKind::Layers
    }

    fn ahead(&self) -> Option<&dyn StartAhead> {
        // Its command line describes the machine.
        None
    }

    async fn boot(&self, plan: BootPlan<'_>) -> Result<Box<dyn Vm>, HypervisorError> {
        let memory = File::options().read(true).write(true).open(plan.memory);
        let memory = memory
            .map_err(|source| HypervisorError::Open { path: plan.memory.to_owned(), source })?;
        let start = Start::Boot {
            kernel: open(plan.kernel)?,
            initramfs: open(plan.initramfs)?,
            memory: memory.into(),
        };
        let dir = plan.vm.place.dir.to_owned();
        let process = self.spawn(plan.vm, start).await?;
        Ok(Box::new(or_kill(process, QemuVm::connect(process, &dir)).await?))
    }

    async fn restore(&self, plan: RestorePlan<'_>) -> Result<Box<dyn Vm>, HypervisorError> {
        let (cancel, trace, memory) = (plan.cancel, plan.trace, plan.memory);
        let base = memory.base().try_clone();
        let base = base.map_err(|source| HypervisorError::Open {
            path: memory.base_path().to_owned(),
            source,
        })?;
        let devices = plan.devices.as_raw_fd();
        let start = Start::Restore { memory: base.into(), devices: plan.devices };
        let dir = plan.vm.place.dir.to_owned();
        let process = trace.span("spawn", self.spawn(plan.vm, start)).await?;
        let vm = async {
            let vm = trace.span("qmp", QemuVm::connect(process, &dir)).await?;
            // Before the devices are loaded: virtio reads its rings while its state is.
            trace.span("inject", inject(process, memory)).await?;
            trace.span("load", vm.load(devices)).await?;
            Ok(vm)
        };
        let wanted = async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(HypervisorError::Cancelled),
                vm = vm => vm,
            }
        };
        Ok(Box::new(or_kill(process, wanted).await?))
    }

    async fn adopt(&self, process: ProcessId, dir: &Path) -> Result<Box<dyn Vm>, HypervisorError> {
        Ok(Box::new(QemuVm::connect(process, dir).await?))
    }
}

/// Writes what differs from the base into a VM that has mapped it.
async fn inject(process: ProcessId, memory: Arc<Lineage>) -> Result<(), HypervisorError> {
    let work = move || {
        let guest = GuestMemory::find(process.pid, memory.base())?;
        memory::inject(&memory, &guest).map(drop)
    };
    let done = tokio::task::spawn_blocking(work).await;
    Ok(done.expect("writing memory does not panic")?)
}

/// Gives the VM of a process that was just started; on failure nothing is left of it.
async fn or_kill(
    process: ProcessId,
    vm: impl Future<Output = Result<QemuVm, HypervisorError>>,
) -> Result<QemuVm, HypervisorError> {
    let vm = vm.await;
    if vm.is_err() {
        VmProcess::end(process).await?;
    }
    vm
}

fn open(path: &Path) -> Result<OwnedFd, HypervisorError> {
    File::open(path)
        .map(OwnedFd::from)
        .map_err(|source| HypervisorError::Open { path: path.to_owned(), source })
}

impl Qemu {
    /// Starts the process, confined.
    async fn spawn(&self, plan: VmPlan<'_>, start: Start) -> Result<ProcessId, HypervisorError> {
        let VmPlan { shape, disk, place } = plan;
        let DiskPlan::Layers { layers, overlay } = disk else {
            unreachable!("it asks for layers");
        };
        let reading = vm::reading(&overlay.file)
            .map_err(|source| HypervisorError::Open { path: overlay.name.into(), source })?;
        let inherited = Descriptors {
            start,
            layers,
            reading,
            overlay: (overlay.name.to_owned(), overlay.file),
            tap: place.tap,
            console: console::listen(place.dir, console::SOCKET)?,
            qmp: console::listen(place.dir, qmp::SOCKET)?,
        };
        let log_path = place.dir.join(vm::LOG);
        let failed_log = |source| HypervisorError::Open { path: log_path.clone(), source };
        let log = File::create(&log_path).map_err(failed_log)?;
        let args = command_line(self.accel, shape, &inherited);
        let confinement = Confinement {
            namespace: place.namespace.to_owned(),
            cgroup: place.cgroup,
            user: User::Unprivileged { uid: place.uid, groups: self.device_groups() },
            dir: place.dir.to_owned(),
            inherited: inherited.into_list(),
            output: log.try_clone().map(OwnedFd::from).map_err(failed_log)?,
            log,
        };
        let program = self.program.clone();
        let spawn = move || VmProcess::spawn(&program, &args, confinement);
        let spawned = tokio::task::spawn_blocking(spawn).await;
        Ok(spawned.expect("starting a process does not panic")?)
    }

    /// Groups that the unprivileged process needs: that of `/dev/kvm`, where it is used.
    fn device_groups(&self) -> Vec<u32> {
        use std::os::unix::fs::MetadataExt;
        match self.accel {
            command::Engine::Kvm => {
                std::fs::metadata("/dev/kvm").map(|kvm| kvm.gid()).into_iter().collect()
            }
            command::Engine::Tcg { .. } => Vec::new(),
        }
    }
}
