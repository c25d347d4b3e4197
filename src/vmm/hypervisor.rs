//! What Nestbox asks of a hypervisor.
//!
//! A hypervisor gets a plan in which everything of the host is ready (directory, disk, network,
//! cgroup) and makes a process out of it. It knows no sandbox and no pool.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::cgroup::CgroupEntry;
use super::console::ConsoleError;
use super::process::{ProcessError, ProcessId};
use crate::domain::shape::Shape;

/// What went wrong with a hypervisor or one of its VMs.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// Its program is not installed.
    #[error("{program} is not installed: {advice}")]
    Missing { program: String, advice: &'static str },
    /// Its program does not say its version.
    #[error("cannot learn the version of {program}")]
    Version { program: PathBuf, source: std::io::Error },
    /// A part of the plan could not be opened.
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: std::io::Error },
    /// The VM's process could not be started, found or ended.
    #[error("the VM's process failed")]
    Process(#[from] ProcessError),
    /// The VM's console cannot be listened to.
    #[error("the VM's console cannot be followed")]
    Console(#[from] ConsoleError),
}

/// Which program runs the VMs, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Engine {
    /// QEMU with hardware virtualization.
    QemuKvm,
    /// QEMU in software.
    QemuTcg,
    /// No VM at all; for tests of the API.
    Simulated,
}

impl Engine {
    /// The engine's name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::QemuKvm => "qemu-kvm",
            Self::QemuTcg => "qemu-tcg",
            Self::Simulated => "simulated",
        }
    }
}

/// Everything a VM is made of. Paths are absolute unless said otherwise.
pub struct BootPlan<'a> {
    /// vCPUs and memory.
    pub shape: Shape,
    /// Uncompressed kernel, an ELF file.
    pub kernel: &'a Path,
    /// Initial file system with the guest agent.
    pub initramfs: &'a Path,
    /// Read-only root file system, a raw image shared by all.
    pub rootfs: &'a Path,
    /// Writable overlay on it, a path relative to `dir`.
    pub overlay: &'a Path,
    /// Holds the exclusive lock on the overlay. The process inherits it, so that the lock lasts as
    /// long as anybody could write.
    pub overlay_lock: OwnedFd,
    /// The VM's own directory; sockets and logs go here.
    pub dir: &'a Path,
    /// The host's end of the guest's network card.
    pub tap: OwnedFd,
    /// Network namespace that the process runs in.
    pub namespace: &'a Path,
    /// Cgroup that the process enters.
    pub cgroup: CgroupEntry,
    /// Unprivileged user of this VM alone.
    pub uid: u32,
}

/// Makes VMs and finds them again.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Which one it is.
    fn engine(&self) -> Engine;

    /// The program's own version, such as "7.2.22".
    fn version(&self) -> &str;

    /// Starts a VM from its kernel. Returns as soon as its process runs.
    ///
    /// # Errors
    ///
    /// Nothing runs then.
    async fn boot(&self, plan: BootPlan<'_>) -> Result<Box<dyn Vm>, HypervisorError>;

    /// Takes over a VM that a former daemon started in `dir`.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Gone`] within, if it does not run any more.
    async fn adopt(&self, process: ProcessId, dir: &Path) -> Result<Box<dyn Vm>, HypervisorError>;
}

/// One VM. Dropping it leaves it running.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Its process.
    fn process(&self) -> ProcessId;

    /// Waits until the guest's agent has said on the console that it listens. Never returns if
    /// that does not happen, nor after adoption: what was said before is gone.
    async fn agent_started(&self);

    /// Waits for the VM to end and says how.
    async fn ended(&self) -> String;

    /// Ends the VM at once and waits until its process is gone; idempotent.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Stuck`] within, if the process does not go.
    async fn kill(&self) -> Result<(), HypervisorError>;
}
