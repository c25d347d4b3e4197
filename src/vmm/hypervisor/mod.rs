//! What Nestbox asks of a hypervisor.
//!
//! A hypervisor gets a plan in which everything of the host is ready (directory, disk, network,
//! cgroup) and makes a process out of it. It knows no sandbox and no pool.

pub mod choice;
pub mod console;
mod elf;
pub mod firecracker;
pub mod json;
pub mod kvm;
pub mod qemu;
mod tsc;
mod vmm_log;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use nix::libc::dev_t;
use tokio_util::sync::CancellationToken;

use crate::domain::engine::Engine;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::trace::Trace;
use crate::vmm::hypervisor::console::ConsoleError;
use crate::vmm::process::cgroup::{CgroupEntry, DeviceAccess};
use crate::vmm::process::{ProcessError, ProcessId};
use crate::vmm::storage::disk::OpenLayer;
use crate::vmm::storage::memory::{BuildId, GuestMemory, Lineage, MemoryError};

/// The guest's MAC address; the same in every guest, each alone in its namespace.
pub const GUEST_MAC: &str = "06:00:a9:fe:00:15";

/// What went wrong with a hypervisor or one of its VMs.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// Its program is not installed.
    #[error("{program} is not installed: {advice}")]
    Missing { program: String, advice: &'static str },
    /// Its program is of a version that this daemon was never tried with.
    #[error("{} is version {version}, and {supported} is what is supported", program.display())]
    Unsupported { program: PathBuf, version: String, supported: &'static str },
    /// Its program cannot start in a jail, where nothing else is.
    #[error(
        "{} is linked dynamically and finds no {} in its jail: use a release of Firecracker, or a static \
         build; to do without a jail, set NESTBOX_JAILER=off",
        program.display(), loader.display()
    )]
    Dynamic { program: PathBuf, loader: PathBuf },
    /// Its program does not say its version.
    #[error("cannot learn the version of {program}")]
    Version { program: PathBuf, source: std::io::Error },
    /// Its processes cannot be confined here as they should be.
    #[error("cannot {what}; {advice}")]
    Unconfined {
        what: &'static str,
        advice: &'static str,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A part of the plan could not be opened.
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: std::io::Error },
    /// The VM's process could not be started, found or ended.
    #[error("the VM's process failed")]
    Process(#[from] ProcessError),
    /// The VM's console cannot be listened to.
    #[error("the VM's console cannot be followed")]
    Console(#[from] ConsoleError),
    /// The hypervisor refused a command, or does not answer any more.
    #[error("the hypervisor failed to {verb} the VM")]
    Control { verb: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
    /// The VM ended while it was being started or restored, and how.
    #[error("the VM {how}")]
    Ended { how: String },
    /// The guest's memory cannot be read or written.
    #[error("the guest's memory failed")]
    Memory(#[from] MemoryError),
    /// Nobody wants the VM any more.
    #[error("starting the VM was cancelled")]
    Cancelled,
}

/// What every VM is made of, however it starts. Everything of the host is ready.
pub struct VmPlan<'a> {
    /// vCPUs and memory.
    pub shape: Shape,
    /// Its disk.
    pub disk: DiskPlan<'a>,
    /// Bytes of the disk as the guest sees it.
    pub disk_bytes: u64,
    /// Where its process runs.
    pub place: Place<'a>,
}

/// Where a VM's process runs, whatever its VM is.
pub struct Place<'a> {
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

/// Who puts the layers of a disk together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// The hypervisor, from open files; its VMs are [`LayeredDisk`]s.
    Layers,
    /// The host's kernel; the hypervisor sees a block device.
    Device,
}

/// A disk that is ready for one VM.
pub enum DiskPlan<'a> {
    /// For [`DiskKind::Layers`].
    Layers {
        /// Read-only layers, the lowest first.
        layers: Vec<OpenLayer>,
        /// Writable overlay on the layers.
        overlay: OverlayPlan<'a>,
    },
    /// For [`DiskKind::Device`]: number of the block device.
    Device(dev_t),
}

/// An overlay to be written to by one VM.
pub struct OverlayPlan<'a> {
    /// Names the overlay to [`LayeredDisk::active`].
    pub name: &'a str,
    /// The overlay. The very descriptor that holds its lock, so that the lock lasts as long as the
    /// VM can write.
    pub file: OwnedFd,
}

/// A VM that starts from its kernel.
pub struct BootPlan<'a> {
    /// What it is made of.
    pub vm: VmPlan<'a>,
    /// Uncompressed kernel, an ELF file.
    pub kernel: &'a Path,
    /// Initial file system with the guest agent.
    pub initramfs: &'a Path,
    /// An empty file that becomes the guest's memory, byte for byte: see [`Vm::save_memory`].
    pub memory: &'a Path,
}

/// A VM that goes on where a snapshot was taken.
pub struct RestorePlan<'a> {
    /// What it is made of.
    pub vm: VmPlan<'a>,
    /// Its memory. Whatever the guest writes is the VM's own.
    pub memory: Arc<Lineage>,
    /// The state of its devices, as [`Vm::save_devices`] gave it.
    pub devices: OwnedFd,
    /// Tells the snapshot from all others.
    pub build: BuildId,
    /// What [`StartAhead::start_ahead`] has started in the same place.
    pub started: Option<ProcessId>,
    /// Ends it early.
    pub cancel: &'a CancellationToken,
    /// Where the time goes.
    pub trace: &'a Trace,
}

/// Makes VMs and finds them again.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// Which one it is.
    fn engine(&self) -> Engine;

    /// The program's own version, such as "7.2.22".
    fn version(&self) -> &str;

    /// Number of the virtual machine that it makes: snapshots of another one cannot be restored.
    fn machine(&self) -> u32;

    /// Which kind of disk its VMs take.
    fn disk_kind(&self) -> DiskKind;

    /// Says why its processes may make any system call, if that is so.
    fn unfiltered(&self) -> Option<&'static str>;

    /// Which devices its processes open themselves.
    fn devices(&self) -> DeviceAccess;

    /// The way to processes that wait for their snapshot, if there is one.
    fn ahead(&self) -> Option<&dyn StartAhead>;

    /// Starts a VM from its kernel. Returns as soon as its process runs.
    ///
    /// # Errors
    ///
    /// Nothing runs then.
    async fn boot(&self, plan: BootPlan<'_>) -> Result<Box<dyn Vm>, HypervisorError>;

    /// Makes a VM that stands where its snapshot was taken, for [`Vm::thaw`].
    ///
    /// # Errors
    ///
    /// Nothing runs then, but perhaps what was started ahead.
    async fn restore(&self, plan: RestorePlan<'_>) -> Result<Box<dyn Vm>, HypervisorError>;

    /// Takes over a VM that a former daemon started in `dir`.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Gone`] within, if it does not run any more.
    async fn adopt(&self, process: ProcessId, dir: &Path) -> Result<Box<dyn Vm>, HypervisorError>;
}

/// A hypervisor whose processes can be started before it is known what they will run.
#[async_trait]
pub trait StartAhead: Send + Sync {
    /// Starts a process that waits for a restore in the same place.
    ///
    /// # Errors
    ///
    /// Nothing runs then.
    async fn start_ahead(&self, place: Place<'_>) -> Result<ProcessId, HypervisorError>;
}

/// One VM. Dropping it leaves it running.
#[async_trait]
pub trait Vm: Send + Sync {
    /// Its process.
    fn process(&self) -> ProcessId;

    /// Another process that works for this VM alone, if there is one.
    fn companion(&self) -> Option<ProcessId>;

    /// Waits until the guest's agent has said on the console that it listens. Never returns if
    /// that does not happen, nor for a VM that was restored or adopted: what was said before is
    /// gone.
    async fn agent_started(&self);

    /// Waits for the VM to end and says how.
    async fn ended(&self) -> String;

    /// Has the hypervisor answer something that costs nothing. Waits for what it is doing.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`]; it may also take its time to say so, if it hangs.
    async fn answers(&self) -> Result<(), HypervisorError>;

    /// Stops the vCPUs and brings the disk's caches to its files. Nothing of the guest changes until
    /// [`Vm::thaw`].
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`]; it may be frozen or not.
    async fn freeze(&self) -> Result<(), HypervisorError>;

    /// Lets the vCPUs run; idempotent.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`].
    async fn thaw(&self) -> Result<(), HypervisorError>;

    /// The state of everything but memory and disk of a frozen VM.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`].
    async fn save_devices(&self) -> Result<Vec<u8>, HypervisorError>;

    /// Brings the memory of a frozen VM that was booted into the file of its [`BootPlan`], whole.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`].
    async fn save_memory(&self, to: &Path) -> Result<(), HypervisorError>;

    /// Has the VM use its disk no faster from now on; the limits of the network are none of its.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`].
    async fn limit_disk(&self, rates: &RateLimits) -> Result<(), HypervisorError>;

    /// The memory of a VM that was restored from `former`, or from a snapshot with the same base.
    /// Blocks for some small reads.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Memory`].
    fn memory(&self, former: &Lineage) -> Result<GuestMemory, HypervisorError>;

    /// Remembers what the guest touched first after its restore: the next restore of the same snapshot
    /// will need it at once. Does nothing where memory is not served page by page.
    fn learn(&self);

    /// Its disk, where it is the VM that puts the layers together.
    fn layered_disk(&self) -> Option<&dyn LayeredDisk>;

    /// Ends the VM at once and waits until its process is gone; idempotent.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Stuck`] within, if the process does not go.
    async fn kill(&self) -> Result<(), HypervisorError>;
}

/// The disk of a VM that puts the layers of it together itself.
#[async_trait]
pub trait LayeredDisk: Send + Sync {
    /// Has a frozen VM write to `overlay` from now on; what it wrote to so far becomes the layer
    /// below and is not written any more.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`]; [`LayeredDisk::active`] says which of both it is.
    async fn switch(&self, overlay: OverlayPlan<'_>) -> Result<(), HypervisorError>;

    /// Name of the overlay that the VM writes to.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Control`].
    async fn active(&self) -> Result<String, HypervisorError>;
}
