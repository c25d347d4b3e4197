//! QEMU as a hypervisor: the `microvm` machine, with KVM or in software (TCG).

mod command;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;

use self::command::{Descriptors, command_line};
use super::console::{self, Console};
use super::hypervisor::{BootPlan, Engine, Hypervisor, HypervisorError, Vm};
use super::process::{Confinement, ProcessId, VmProcess};
use super::tsc;

/// The program, looked up in `PATH`.
const PROGRAM: &str = "qemu-system-x86_64";

/// Name of QEMU's control socket in a sandbox's directory.
const QMP_SOCKET: &str = "qmp.sock";
/// What QEMU itself has to say.
const LOG: &str = "qemu.log";

/// A killed process is gone in milliseconds, unless the host is in trouble.
const KILL_LIMIT: Duration = Duration::from_secs(10);

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

    async fn boot(&self, plan: BootPlan<'_>) -> Result<Box<dyn Vm>, HypervisorError> {
        let open = |path: &Path| {
            File::open(path)
                .map(OwnedFd::from)
                .map_err(|source| HypervisorError::Open { path: path.to_owned(), source })
        };
        let inherited = Descriptors {
            kernel: open(plan.kernel)?,
            initramfs: open(plan.initramfs)?,
            rootfs: open(plan.rootfs)?,
            tap: plan.tap,
            console: console::listen(plan.dir, console::SOCKET)?,
            qmp: console::listen(plan.dir, QMP_SOCKET)?,
        };
        let log_path = plan.dir.join(LOG);
        let log = File::create(&log_path)
            .map_err(|source| HypervisorError::Open { path: log_path, source })?;
        let args = command_line(self.accel, plan.shape, plan.overlay, &inherited);
        let confinement = Confinement {
            namespace: plan.namespace.to_owned(),
            cgroup: plan.cgroup,
            uid: plan.uid,
            groups: self.device_groups(),
            dir: plan.dir.to_owned(),
            inherited: inherited.into_list().into_iter().chain([plan.overlay_lock]).collect(),
            log,
        };
        let program = self.program.clone();
        let spawn = move || VmProcess::spawn(&program, &args, confinement);
        let process =
            tokio::task::spawn_blocking(spawn).await.expect("starting a process does not panic")?;
        let vm = self.adopt(process, plan.dir).await;
        if vm.is_err()
            && let Ok(orphan) = VmProcess::watch(process)
        {
            orphan.kill(KILL_LIMIT).await?;
        }
        vm
    }

    async fn adopt(&self, process: ProcessId, dir: &Path) -> Result<Box<dyn Vm>, HypervisorError> {
        let process = VmProcess::watch(process)?;
        let console = Console::follow(dir).await?;
        Ok(Box::new(QemuVm { process, console, log: dir.join(LOG) }))
    }
}

impl Qemu {
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

struct QemuVm {
    process: VmProcess,
    console: Console,
    log: PathBuf,
}

/// The end of what QEMU had to say, if it said anything.
fn last_words(log: &Path) -> Option<String> {
    const LONGEST: usize = 300;
    let bytes = std::fs::read(log).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rfind(|line| !line.trim().is_empty())?;
    Some(line.chars().take(LONGEST).collect())
}

#[async_trait]
impl Vm for QemuVm {
    fn process(&self) -> ProcessId {
        self.process.id()
    }

    async fn agent_started(&self) {
        self.console.agent_started().await;
    }

    async fn ended(&self) -> String {
        let how = self.process.ended().await;
        match last_words(&self.log) {
            Some(words) => format!("{how}: {words}"),
            None => how,
        }
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        Ok(self.process.kill(KILL_LIMIT).await?)
    }
}
