//! Firecracker as a hypervisor: in a jail, with its memory from a pager and its disk from the kernel.
//!
//! ```text
//! {sandbox}/  firecracker.log  firecracker.json  pager.state  pager.log  console.pipe
//!     jail/   all that Firecracker sees: see [`jail`]
//! ```

mod api;
mod jail;
mod tap_filter;
mod vm;
mod vm_config;

use std::fs::File;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;

use self::api::SOCKET;
use self::jail::{DEVICES, DISK, ID, INITRAMFS, Jail, KERNEL};
use self::vm::{CONSOLE_PIPE, Companions, FirecrackerVm, LOG_PIPE, Learning, WorkingSets};
use self::vm_config::PAGER_SOCKET;
use crate::domain::engine::Engine;
use crate::domain::trace::Trace;
use crate::vmm::hypervisor::console;
use crate::vmm::hypervisor::elf::{self, Linking};
use crate::vmm::hypervisor::vmm_log;
use crate::vmm::hypervisor::{
    BootPlan, DiskKind, DiskPlan, Hypervisor, HypervisorError, Place, RestorePlan, StartAhead, Vm,
    VmPlan,
};
use crate::vmm::process::cgroup::DeviceAccess;
use crate::vmm::process::{
    Confinement, Files, MOST_THREADS, ProcessId, ProcessLimits, Processes, User, VmProcess,
};
use crate::vmm::storage::memory::{BuildId, Lineage};
use crate::vmm::storage::pager::{self, PagerPlan};

/// The program, looked up in `PATH` if the settings do not name it.
const PROGRAM: &str = "firecracker";
const JAILER: &str = "jailer";

/// The versions that this is known to work with: `1.16` and its patches.
pub const SUPPORTED: &str = "1.16";

/// What one Firecracker may use. It writes files only where a whole memory is saved; what else it has is
/// a disk, a tap, its KVM and a few sockets.
const LIMITS: ProcessLimits =
    ProcessLimits { open_files: 512, file_bytes: MOST_MEMORY_BYTES, threads: MOST_THREADS };

/// The largest memory that a guest can have, and then some.
const MOST_MEMORY_BYTES: u64 = 1 << 40;

/// What failed when a jail could not be made.
const JAIL: &str = "make a jail for";

/// How Firecracker is confined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Jailing {
    /// By its jailer, which has to be installed beside it.
    Jailer,
    /// As a user of its own in a network namespace and a cgroup, but with the host's files in sight.
    None,
}

/// Firecracker, found on this host.
#[derive(Debug, Clone)]
pub struct Firecracker {
    program: PathBuf,
    jailer: Option<PathBuf>,
    version: String,
    libc: Libc,
    sets: WorkingSets,
}

/// The C library that a Firecracker was built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Libc {
    /// The GNU one, for which it has no seccomp filters: Firecracker `src/firecracker/build.rs`.
    Glibc,
    /// Another one; releases have musl.
    Other,
}

/// Part of the text that each program has in it which glibc was linked into, or that needs it.
const GLIBC: [&[u8]; 2] = [b"GNU C Library", b"GLIBC_2."];

impl Firecracker {
    /// Looks Firecracker up and asks for its version.
    ///
    /// # Errors
    ///
    /// [`HypervisorError::Missing`] and [`HypervisorError::Unsupported`], with what to install.
    pub async fn find(program: Option<&Path>, jailing: Jailing) -> Result<Self, HypervisorError> {
        let missing = |program: &str, advice| HypervisorError::Missing {
            program: program.to_owned(),
            advice,
        };
        let program = match program {
            Some(program) if program.is_file() => program.to_owned(),
            Some(program) => {
                let advice = "NESTBOX_FIRECRACKER names no file";
                return Err(missing(&program.display().to_string(), advice));
            }
            None => crate::vmm::find_program(PROGRAM).ok_or_else(|| {
                missing(PROGRAM, "put a release of Firecracker on PATH, with its jailer")
            })?,
        };
        let program = std::path::absolute(&program)
            .map_err(|source| HypervisorError::Version { program: program.clone(), source })?;
        let version = version(&program).await?;
        if !is_supported(&version) {
            return Err(HypervisorError::Unsupported { program, version, supported: SUPPORTED });
        }
        let (linking, libc) = tokio::task::spawn_blocking({
            let program = program.clone();
            move || io::Result::Ok((elf::linking(&program)?, libc_of(&program)?))
        })
        .await
        .expect("reading a program does not panic")
        .map_err(|source| HypervisorError::Version { program: program.clone(), source })?;
        if let (Jailing::Jailer, Linking::Dynamic(loader)) = (jailing, linking) {
            // All that it would say in its jail is "No such file or directory".
            return Err(HypervisorError::Dynamic { program, loader });
        }
        let jailer = match jailing {
            Jailing::None => None,
            Jailing::Jailer => {
                let beside = program.with_file_name(JAILER);
                if !beside.is_file() {
                    let advice = "it comes with Firecracker and belongs beside it; \
                        to do without, set NESTBOX_JAILER=off";
                    return Err(missing(&beside.display().to_string(), advice));
                }
                Some(beside)
            }
        };
        Ok(Self { program, jailer, version, libc, sets: WorkingSets::default() })
    }

    /// The program's path.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// How it is confined, for people.
    pub fn confinement(&self) -> String {
        match &self.jailer {
            Some(jailer) => format!("by {}", jailer.display()),
            None => "without the jailer, as the settings say".to_owned(),
        }
    }

    /// Settings of a VM without network that writes to no disk, for `--config-file`: to see whether a
    /// guest boots at all.
    pub fn trial_config(kernel: &Path, initramfs: &Path, rootfs: &Path) -> String {
        let text = |path: &Path| path.display().to_string();
        vm_config::trial(&text(kernel), &text(initramfs), &text(rootfs)).to_string()
    }
}

/// Asks a program for its version: its first line is "Firecracker v1.16.1".
async fn version(program: &Path) -> Result<String, HypervisorError> {
    let failed = |source| HypervisorError::Version { program: program.to_owned(), source };
    let output = tokio::process::Command::new(program).arg("--version").output().await;
    let output = output.map_err(failed)?;
    let text = String::from_utf8_lossy(&output.stdout);
    let word = text.split_ascii_whitespace().nth(1).and_then(|word| word.strip_prefix('v'));
    word.map(str::to_owned)
        .ok_or_else(|| failed(io::Error::other(format!("unexpected answer {text:?}"))))
}

/// Looks with which C library a program was built.
fn libc_of(program: &Path) -> io::Result<Libc> {
    let bytes = std::fs::read(program)?;
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    Ok(if GLIBC.into_iter().any(has) { Libc::Glibc } else { Libc::Other })
}

fn is_supported(version: &str) -> bool {
    version.strip_prefix(SUPPORTED).is_some_and(|rest| rest.starts_with('.'))
}

#[async_trait]
impl Hypervisor for Firecracker {
    fn engine(&self) -> Engine {
        Engine::Firecracker
    }

    fn version(&self) -> &str {
        &self.version
    }

    fn machine(&self) -> u32 {
        vm_config::MACHINE
    }

    fn disk_kind(&self) -> DiskKind {
        DiskKind::Device
    }

    fn unfiltered(&self) -> Option<&'static str> {
        match self.libc {
            Libc::Glibc => Some(
                "this Firecracker was built for glibc, and has filters of system calls for musl only: \
                 use a release of Firecracker",
            ),
            Libc::Other => None,
        }
    }

    fn devices(&self) -> DeviceAccess {
        // The jailer makes nodes of what there is in the host's /dev, and no others.
        DeviceAccess::Unrestricted
    }

    fn ahead(&self) -> Option<&dyn StartAhead> {
        Some(self)
    }

    async fn boot(&self, plan: BootPlan<'_>) -> Result<Box<dyn Vm>, HypervisorError> {
        let BootPlan { vm: VmPlan { shape, disk, place, .. }, kernel, initramfs, .. } = plan;
        let (dir, uid) = (place.dir, place.uid);
        let files = [(KERNEL, open(kernel)?), (INITRAMFS, open(initramfs)?)];
        let jail = Jail::make(dir, &self.program, uid).map_err(failed(JAIL))?;
        furnish(&jail, &disk, uid, files.into())?;
        let process = self.spawn(place, &jail).await?;
        let vm = take_charge(process, None, &jail, dir, None).await?;
        let booted = vm.start("boot", async {
            vm.api().wait().await?;
            for (path, body) in vm_config::boot(shape) {
                vm.api().put(path, &body).await?;
            }
            Ok(())
        });
        or_kill(booted.await, vm).await
    }

    async fn restore(&self, plan: RestorePlan<'_>) -> Result<Box<dyn Vm>, HypervisorError> {
        let RestorePlan { vm, memory, devices, build, started, cancel, trace } = plan;
        let VmPlan { disk, place, .. } = vm;
        let (dir, uid) = (place.dir, place.uid);
        let jail = trace.blocking("jail", || {
            let jail = match started {
                Some(_) => Jail::find(dir),
                None => Jail::make(dir, &self.program, uid),
            };
            let jail = jail.map_err(failed(JAIL))?;
            furnish(&jail, &disk, uid, vec![(DEVICES, File::from(devices))])?;
            Ok::<_, HypervisorError>(jail)
        })?;
        let learning = Learning::new(build, &memory, self.sets.clone());
        let pager = trace.span("pager", self.serve(&place, &jail, memory, build)).await?;
        let spawned = async {
            let process = match started {
                Some(process) => {
                    // Firecracker opens the tap by name, which nobody else may have open then.
                    drop(place);
                    process
                }
                None => self.spawn(place, &jail).await?,
            };
            take_charge(process, Some(pager), &jail, dir, Some(learning)).await
        };
        let vm = match trace.span("spawn", spawned).await {
            Ok(vm) => vm,
            Err(error) => {
                VmProcess::end(pager).await?;
                return Err(error);
            }
        };
        let loaded = tokio::select! {
            biased;
            () = cancel.cancelled() => Err(HypervisorError::Cancelled),
            loaded = load(&vm, trace) => loaded,
        };
        or_kill(loaded, vm).await
    }

    async fn adopt(&self, process: ProcessId, dir: &Path) -> Result<Box<dyn Vm>, HypervisorError> {
        let companions = Companions::read(dir);
        let companions =
            companions.map_err(|source| HypervisorError::Open { path: dir.to_owned(), source })?;
        let jail = Jail::find(dir)
            .map_err(|source| HypervisorError::Open { path: dir.to_owned(), source })?;
        Ok(Box::new(FirecrackerVm::attach(process, companions.pager, jail, dir, None)?))
    }
}

#[async_trait]
impl StartAhead for Firecracker {
    async fn start_ahead(&self, place: Place<'_>) -> Result<ProcessId, HypervisorError> {
        let dir = place.dir;
        let jail = Jail::make(dir, &self.program, place.uid).map_err(failed(JAIL))?;
        let process = self.spawn(place, &jail).await?;
        let vm = take_charge(process, None, &jail, dir, None).await?;
        let up = vm.start("reach", vm.api().wait()).await;
        or_kill(up, vm).await.map(|_| process)
    }
}

async fn load(vm: &FirecrackerVm, trace: &Trace) -> Result<(), HypervisorError> {
    trace.span("api", vm.start("reach", vm.api().wait())).await?;
    let (path, body) = vm_config::load();
    trace.span("load", vm.start("restore", vm.api().put(path, &body))).await
}

/// Gives a VM whose start has succeeded; else nothing is left of it.
async fn or_kill(
    started: Result<(), HypervisorError>,
    vm: FirecrackerVm,
) -> Result<Box<dyn Vm>, HypervisorError> {
    match started {
        Ok(()) => Ok(Box::new(vm)),
        Err(error) => {
            vm.kill().await?;
            Err(error)
        }
    }
}

/// Takes charge of a process that was started in a jail. On failure it does not run any more.
async fn take_charge(
    process: ProcessId,
    pager: Option<ProcessId>,
    jail: &Jail,
    dir: &Path,
    learning: Option<Learning>,
) -> Result<FirecrackerVm, HypervisorError> {
    let written = Companions { pager }.write(dir).map_err(failed("keep a record of"));
    let vm =
        written.and_then(|()| FirecrackerVm::attach(process, pager, jail.clone(), dir, learning));
    if vm.is_err() {
        VmProcess::end(process).await?;
    }
    vm
}

/// Puts into a jail what Firecracker will open in it.
fn furnish(
    jail: &Jail,
    disk: &DiskPlan<'_>,
    uid: u32,
    files: Vec<(&str, File)>,
) -> Result<(), HypervisorError> {
    let DiskPlan::Device(device) = disk else { unreachable!("it asks for a device") };
    let put = || {
        files.into_iter().try_for_each(|(name, file)| jail.put(name, file, uid))?;
        jail.node(DISK, *device, uid)
    };
    put().map_err(failed(JAIL))
}

impl Firecracker {
    /// Starts the pager that the VM will connect to.
    async fn serve(
        &self,
        place: &Place<'_>,
        jail: &Jail,
        memory: Arc<Lineage>,
        build: BuildId,
    ) -> Result<ProcessId, HypervisorError> {
        let socket = console::listen(jail.root(), PAGER_SOCKET)?;
        let path = jail.root().join(PAGER_SOCKET);
        chown(&path, Some(place.uid), Some(place.uid)).map_err(failed(JAIL))?;
        let cgroup = place.cgroup.try_clone().map_err(failed("confine"))?;
        let (dir, namespace) = (place.dir.to_owned(), place.namespace.to_owned());
        let (uid, prefetch) = (place.uid, self.sets.of(build, &memory));
        let start = move || {
            pager::start(PagerPlan {
                lineage: &memory,
                socket,
                prefetch: &prefetch,
                dir: &dir,
                namespace: &namespace,
                cgroup,
                uid,
            })
        };
        let started = tokio::task::spawn_blocking(start).await;
        started
            .expect("starting a process does not panic")
            .map_err(|error| HypervisorError::Control { verb: "serve", source: error.into() })
    }

    /// Starts the process, confined. On failure nothing runs.
    async fn spawn(&self, place: Place<'_>, jail: &Jail) -> Result<ProcessId, HypervisorError> {
        tap_filter::give(&place.tap, place.uid).map_err(failed("give a network to"))?;
        // A tap has one user at a time: Firecracker opens it by name.
        drop(place.tap);
        let output =
            vmm_log::make_pipe(place.dir, CONSOLE_PIPE).map_err(failed("make a console for"))?;
        let log = vmm_log::make_pipe(place.dir, LOG_PIPE).map_err(failed("make a log for"))?;
        let (program, args, user) = self.command(jail, place.uid);
        let confinement = Confinement {
            namespace: place.namespace.to_owned(),
            cgroup: place.cgroup,
            user,
            files: Files::Host(jail.root().to_owned()),
            processes: Processes::Own,
            limits: LIMITS,
            inherited: Vec::new(),
            output,
            log,
            answered: None,
        };
        let spawn = move || VmProcess::spawn(&program, &args, confinement);
        let spawned = tokio::task::spawn_blocking(spawn).await;
        Ok(spawned.expect("starting a process does not panic")?)
    }

    /// What is executed, with which arguments, as whom.
    fn command(&self, jail: &Jail, uid: u32) -> (PathBuf, Vec<String>, User) {
        // Everything below errors is mixed into the console: some twenty lines at each boot.
        let own = ["--api-sock", SOCKET, "--level", "Error"].map(str::to_owned);
        let Some(jailer) = &self.jailer else {
            let user = User::Unprivileged { uid, groups: device_groups() };
            let args = ["--id".to_owned(), ID.to_owned()].into_iter().chain(own).collect();
            return (self.program.clone(), args, user);
        };
        let mut args: Vec<String> = Vec::new();
        for (flag, value) in [
            ("--id", ID.to_owned()),
            ("--exec-file", self.program.display().to_string()),
            ("--uid", uid.to_string()),
            ("--gid", uid.to_string()),
            ("--chroot-base-dir", jail.base().display().to_string()),
            // Else the jailer raises what it was started with.
            ("--resource-limit", format!("no-file={}", LIMITS.open_files)),
            ("--resource-limit", format!("fsize={}", LIMITS.file_bytes)),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        args.push("--".to_owned());
        args.extend(own);
        (jailer.clone(), args, User::Root)
    }
}

/// Groups that an unprivileged process needs: that of `/dev/kvm`.
fn device_groups() -> Vec<u32> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/dev/kvm").map(|kvm| kvm.gid()).into_iter().collect()
}

fn open(path: &Path) -> Result<File, HypervisorError> {
    File::open(path).map_err(|source| HypervisorError::Open { path: path.to_owned(), source })
}

fn failed(verb: &'static str) -> impl Fn(io::Error) -> HypervisorError {
    move |source| HypervisorError::Control { verb, source: source.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_versions_that_were_tried_are_supported() {
        assert!(is_supported("1.16.0") && is_supported("1.16.1"));
        assert!(!is_supported("1.15.2") && !is_supported("1.160.0") && !is_supported("1.17.0-dev"));
    }
}
