//! QEMU as a hypervisor: the `microvm` machine, with KVM or in software (TCG).

mod command;
mod qmp;
mod root;
mod vm;

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::pipe2;

use self::command::{Descriptors, SharedMemory, Start, command_line, descriptor_path};
use self::vm::{MAX_DEVICES, QemuVm};
use crate::domain::engine::Engine;
use crate::vmm::hypervisor::console;
use crate::vmm::hypervisor::tsc;
use crate::vmm::hypervisor::vmm_log;
use crate::vmm::hypervisor::{
    BootPlan, DiskKind, DiskPlan, Hypervisor, HypervisorError, RestorePlan, StartAhead, Vm, VmPlan,
};
use crate::vmm::process::answered_calls::{self, Answering};
use crate::vmm::process::cgroup::DeviceAccess;
use crate::vmm::process::{
    Confinement, Files, MOST_THREADS, ProcessError, ProcessId, ProcessLimits, Processes, User,
    VmProcess,
};
use crate::vmm::storage::memory::{self, GuestMemory, Lineage};

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

/// Descriptors of one QEMU: some twenty when it starts, three more for each overlay that it is given.
const OPEN_FILES: u64 = 512;

/// How long a QEMU that was just started may take to open its guest's memory.
const OPEN_LIMIT: Duration = Duration::from_secs(60);

/// The files that QEMUs see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// Their own program and what it needs, nothing else.
    Empty,
    /// The host's, as far as its rights let an unprivileged user.
    Host,
}

/// QEMU, found on this host.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: PathBuf,
    version: String,
    accel: command::Engine,
    shared_memory: SharedMemory,
    /// The mount namespace that its processes enter; the host's if there is none.
    files: Option<Arc<File>>,
}

impl Qemu {
    /// Looks QEMU up, asks for its version, and prepares what its processes are confined to.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Missing`] with what to install; [`HypervisorError::Unconfined`] with what the
    /// host lacks.
    pub async fn find(accel: Accel, root: Root) -> Result<Self, HypervisorError> {
        let program =
            crate::vmm::find_program(PROGRAM).ok_or_else(|| HypervisorError::Missing {
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
        let shared_memory = match reads_shared_memory(&program).await? {
            true => SharedMemory::Opened,
            false => {
                answered_calls::check_support().map_err(|source| HypervisorError::Unconfined {
                    what: "give QEMU before 8.2 its guest's memory for reading only",
                    advice: "use a newer kernel, or QEMU from 8.2 on",
                    source: source.into(),
                })?;
                SharedMemory::Answered
            }
        };
        let files = match root {
            Root::Host => None,
            Root::Empty => Some(Arc::new(make_root(&program, accel).await?)),
        };
        Ok(Self { program, version, accel, shared_memory, files })
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

    /// How it is confined, for people.
    pub fn confinement(&self) -> String {
        let files = match &self.files {
            Some(_) => "a root with nothing but its own program",
            None => "the host's files in sight, as the settings say",
        };
        let memory = match self.shared_memory {
            SharedMemory::Opened => "",
            SharedMemory::Answered => {
                "; before 8.2, so the daemon opens its shared memory for it at each start"
            }
        };
        format!("{files}, and namespaces of its own for processes, IPC and network{memory}")
    }
}

/// Makes what the processes of a QEMU see.
async fn make_root(program: &Path, accel: command::Engine) -> Result<File, HypervisorError> {
    let program = program.to_owned();
    let devices: &[&str] = match accel {
        command::Engine::Kvm => &["/dev/kvm"],
        command::Engine::Tcg { .. } => &[],
    };
    let make = move || root::make(&root::Contents::of(&program, devices)?);
    let made = tokio::task::spawn_blocking(make).await.expect("mounting does not panic");
    made.map_err(|source| HypervisorError::Unconfined {
        what: "give QEMU a root of its own",
        advice: "set NESTBOX_JAILER=off to run it with the host's files in sight",
        source: source.into(),
    })
}

/// Whether a QEMU can map a file privately that it opens for reading only: what its option
/// `memory-backend-file,rom` is for, from 8.2 on.
async fn reads_shared_memory(program: &Path) -> Result<bool, HypervisorError> {
    let mut command = tokio::process::Command::new(program);
    let said = command.args(["-object", "memory-backend-file,help"]).output().await;
    let failed = |source| HypervisorError::Version { program: program.to_owned(), source };
    let said = said.map_err(failed)?;
    // "  rom=<OnOffAuto>"
    Ok(String::from_utf8_lossy(&said.stdout).lines().any(|line| line.trim().starts_with("rom=")))
}

/// What nobody may write to any more who has not opened it for that already: a base that an older daemon
/// made was everybody's to write who had a descriptor of it.
fn protect(memory: &File) -> io::Result<()> {
    const READ_ONLY: u32 = 0o444;
    match memory.metadata()?.permissions().mode() & 0o777 {
        READ_ONLY => Ok(()),
        _ => memory.set_permissions(Permissions::from_mode(READ_ONLY)),
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

    fn unfiltered(&self) -> Option<&'static str> {
        // It installs its own filter, or does not start.
        None
    }

    fn devices(&self) -> DeviceAccess {
        match (&self.files, self.accel) {
            // Libraries may open what they like.
            (None, _) => DeviceAccess::Unrestricted,
            (Some(_), command::Engine::Kvm) => DeviceAccess::Kvm,
            (Some(_), command::Engine::Tcg { .. }) => DeviceAccess::Nothing,
        }
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
        let (process, _) = self.spawn(plan.vm, start).await?;
        Ok(Box::new(or_kill(process, QemuVm::connect(process, &dir)).await?))
    }

    async fn restore(&self, plan: RestorePlan<'_>) -> Result<Box<dyn Vm>, HypervisorError> {
        let (cancel, trace, memory) = (plan.cancel, plan.trace, plan.memory);
        let base = memory.base().try_clone();
        let base = base.map_err(|source| HypervisorError::Open {
            path: memory.base_path().to_owned(),
            source,
        })?;
        protect(&base).map_err(|source| HypervisorError::Open {
            path: memory.base_path().to_owned(),
            source,
        })?;
        let devices = in_a_pipe(plan.devices.into()).map_err(|source| {
            HypervisorError::Control { verb: "restore", source: source.into() }
        })?;
        let fd = devices.as_raw_fd();
        let start = Start::Restore { memory: base.into(), devices };
        let dir = plan.vm.place.dir.to_owned();
        let (process, request) = trace.span("spawn", self.spawn(plan.vm, start)).await?;
        let vm = async {
            // It listens when it has its memory.
            let up =
                async { tokio::try_join!(open_memory(request), QemuVm::connect(process, &dir)) };
            let ((), vm) = trace.span("qmp", up).await?;
            // Before the devices are loaded: virtio reads its rings while its state is.
            trace.span("inject", inject(process, memory)).await?;
            trace.span("load", vm.load(fd)).await?;
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

/// The content of a file as a pipe that holds all of it: QEMU from 11 on does not load a state from a
/// descriptor of a file.
fn in_a_pipe(state: File) -> io::Result<OwnedFd> {
    let length = state.metadata()?.len();
    if length > MAX_DEVICES {
        let why = format!("the state of the devices has {length} bytes, more than {MAX_DEVICES}");
        return Err(io::Error::other(why));
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // So that nobody has to wait for QEMU to read it. It grows only: small ones have room anyway.
    let room = i32::try_from(length).expect("it is not so large");
    if room > fcntl(&writer, FcntlArg::F_GETPIPE_SZ)? {
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(room))?;
    }
    io::copy(&mut state.take(length), &mut File::from(writer))?;
    Ok(reader)
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
    async fn spawn(
        &self,
        plan: VmPlan<'_>,
        start: Start,
    ) -> Result<(ProcessId, Option<MemoryRequest>), HypervisorError> {
        let VmPlan { shape, disk, disk_bytes, place } = plan;
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
        let output = vmm_log::make_pipe(place.dir, vm::LOG_PIPE).map_err(|source| {
            HypervisorError::Open { path: place.dir.join(vm::LOG_PIPE), source }
        })?;
        let args = command_line(self.accel, shape, &inherited, self.shared_memory);
        let starting = Starting {
            program: self.program.clone(),
            args,
            shared: self.answered_memory(&inherited.start)?,
        };
        let confinement = Confinement {
            namespace: place.namespace.to_owned(),
            cgroup: place.cgroup,
            user: User::Unprivileged { uid: place.uid, groups: self.device_groups() },
            files: match &self.files {
                Some(files) => Files::Namespace(files.clone()),
                None => Files::Host(place.dir.to_owned()),
            },
            processes: Processes::Own,
            limits: ProcessLimits {
                open_files: OPEN_FILES,
                file_bytes: most_overlay_bytes(disk_bytes),
                threads: MOST_THREADS,
            },
            inherited: inherited.into_list(),
            log: output.try_clone().map_err(|source| HypervisorError::Open {
                path: place.dir.join(vm::LOG_PIPE),
                source,
            })?,
            output,
            answered: None,
        };
        let started = tokio::task::spawn_blocking(move || starting.start(confinement)).await;
        let (process, request) = started.expect("starting a process does not panic")?;
        match request {
            Ok(request) => Ok((process, request)),
            Err(source) => {
                VmProcess::end(process).await?;
                Err(no_memory(source))
            }
        }
    }

    /// The memory that has to be opened for a QEMU, and the name under which it does so itself.
    fn answered_memory(
        &self,
        start: &Start,
    ) -> Result<Option<(PathBuf, OwnedFd)>, HypervisorError> {
        match (start, self.shared_memory) {
            (Start::Restore { memory, .. }, SharedMemory::Answered) => {
                let path = descriptor_path(memory);
                let failed = |source| HypervisorError::Open { path: path.clone(), source };
                let file = memory.try_clone().map_err(failed)?;
                Ok(Some((path, file)))
            }
            // Its own, or opened for reading.
            (Start::Boot { .. }, _) | (Start::Restore { .. }, SharedMemory::Opened) => Ok(None),
        }
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

/// A QEMU that is about to be started.
struct Starting {
    program: PathBuf,
    args: Vec<String>,
    /// The memory that is opened for it, and by which name it asks.
    shared: Option<(PathBuf, OwnedFd)>,
}

impl Starting {
    /// Starts it, and says what it is going to ask for. Blocks for a fork and an exec.
    fn start(
        self,
        mut confinement: Confinement,
    ) -> Result<(ProcessId, io::Result<Option<MemoryRequest>>), ProcessError> {
        let Self { program, args, shared } = self;
        let Some((path, memory)) = shared else {
            return Ok((VmProcess::spawn(&program, &args, confinement)?, Ok(None)));
        };
        let failed = |source| ProcessError::Spawn { program: program.clone(), source };
        let (asking, pending) = answered_calls::pair().map_err(failed)?;
        confinement.answered = Some(asking);
        let process = VmProcess::spawn(&program, &args, confinement)?;
        let request =
            pending.answering().map(|answering| Some(MemoryRequest { answering, path, memory }));
        Ok((process, request))
    }
}

/// What a QEMU that was just started will ask for: to open its guest's memory.
struct MemoryRequest {
    answering: Answering,
    path: PathBuf,
    memory: OwnedFd,
}

/// Answers what a QEMU asks for when it starts, if it does. Whoever goes away before has ended it, which
/// ends the waiting as well.
async fn open_memory(request: Option<MemoryRequest>) -> Result<(), HypervisorError> {
    let Some(MemoryRequest { answering, path, memory }) = request else { return Ok(()) };
    let answer = move || answering.give_for(&path, memory.as_fd(), OPEN_LIMIT);
    let answered = tokio::task::spawn_blocking(answer).await;
    answered.expect("waiting does not panic").map_err(no_memory)
}

fn no_memory(source: io::Error) -> HypervisorError {
    HypervisorError::Control { verb: "open the memory of", source: source.into() }
}

/// The longest that an overlay on a disk may become, in bytes: what is written twice takes no more space,
/// but QEMU's own tables do, and holes that are not used again.
fn most_overlay_bytes(disk_bytes: u64) -> u64 {
    const TABLES: u64 = 64 << 20;
    disk_bytes.saturating_mul(2).saturating_add(TABLES)
}
