//! PID 1 of a guest, from the initramfs to its end.
//!
//! The kernel starts this binary as `/init`. It finds the root file system and makes it the root,
//! without another `execve`: the program stays mapped from the initramfs, out of reach of anything
//! in the guest. Then it mounts what programs expect, brings up the network, starts the agent from
//! `/proc/self/exe` and reaps for the rest of its life.
//!
//! - `modules`, `device`, `root`: while the initramfs is the root
//! - `mounts`, `nodes`, `etc`, `network`: the guest's surroundings
//! - `reaper`: the rest of its life; the only place that calls `waitpid(-1)`

mod cmdline;
mod device;
mod etc;
mod modules;
mod mounts;
mod network;
mod nodes;
mod reaper;
mod root;

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, sethostname, sync};
use thiserror::Error;

use cmdline::Cmdline;

/// What the guest is called until the host gives it a name.
const HOSTNAME: &str = "nestbox";
/// Open files of a process: what it gets, and what it may ask for.
const OPEN_FILES: (u64, u64) = (65_536, 1_048_576);
/// Memory that is defragmented ahead of need: the kernel looks twice a second whether it should, in
/// every idle guest. On demand it still is. (Linux `Documentation/admin-guide/sysctl/vm.rst`)
const COMPACTION: &str = "/proc/sys/vm/compaction_proactiveness";

/// Why the guest could not be set up.
#[derive(Debug, Error)]
enum InitError {
    /// The list of modules, or a module on it, could not be read.
    #[error("cannot read module {name}")]
    ReadModule {
        /// File name in `/lib/modules`.
        name: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel does not take a module.
    #[error("cannot load module {name}")]
    LoadModule {
        /// File name in `/lib/modules`.
        name: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// Announcements of devices could not be heard.
    #[error("cannot listen for devices")]
    Listen(#[source] Errno),
    /// The root device did not appear in time.
    #[error("root device {device} did not appear")]
    NoDevice {
        /// As the command line names it.
        device: String,
    },
    /// A file system could not be mounted or moved.
    #[error("cannot mount {target}")]
    Mount {
        /// Where.
        target: String,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The root could not be changed.
    #[error("cannot change the root")]
    ChangeRoot(#[source] Errno),
    /// The network could not be set up.
    #[error("cannot set {step} of {interface}")]
    Network {
        /// Which interface.
        interface: &'static str,
        /// What of it.
        step: &'static str,
        /// The kernel's answer.
        #[source]
        source: Errno,
    },
    /// The agent could not be started.
    #[error("cannot start the agent")]
    Agent(#[source] io::Error),
    /// Signals could not be waited for.
    #[error("cannot wait for signals")]
    Signals(#[source] Errno),
}

/// Runs the guest. Returns only if even ending it fails.
pub fn run() -> ExitCode {
    if let Err(error) = live() {
        eprintln!("envd: {}", crate::chain(&error));
    }
    end()
}

/// The guest's life, in order.
fn live() -> Result<(), InitError> {
    // 1. See devices and processes. Where the kernel found no console before, there is one now.
    mounts::kernel_file_systems()?;
    open_console();

    // 2. If this is the initramfs, find the root and move there.
    if Path::new(modules::ORDER).exists() {
        let cmdline = Cmdline::read();
        // Listening starts before the first driver does, so that no device goes unheard.
        let devices = device::Announcements::new()?;
        modules::load_all()?;
        devices.wait_for(&cmdline.root)?;
        root::enter(&cmdline)?;
    }

    // 3. Make it look like a machine.
    mounts::guest_file_systems()?;
    mounts::device_links();
    nodes::make_static();
    let _ = sethostname(HOSTNAME);
    etc::keep_in_memory();
    let _ = setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES.0, OPEN_FILES.1);
    let _ = fs::write(COMPACTION, "0");

    // 4. Be reachable. A guest without a network card is an oddity, not a failure.
    network::loopback()?;
    network::ethernet()?;

    // 5. Serve, and reap, until somebody ends it.
    reaper::run()
}

/// Makes the console the standard streams, so that no other file gets their numbers.
fn open_console() {
    let console = fs::File::options().read(true).write(true).open("/dev/console");
    if let Ok(console) = console {
        let _ = dup2_stdin(console.as_fd());
        let _ = dup2_stdout(console.as_fd());
        let _ = dup2_stderr(console.as_fd());
    }
}

/// Ends the virtual machine: its monitor takes a reset for the end.
fn end() -> ExitCode {
    sync();
    mounts::seal_root();
    match reboot(RebootMode::RB_AUTOBOOT) {
        Ok(never) => match never {},
        Err(errno) => {
            eprintln!("envd: cannot reboot: {}", errno.desc());
            ExitCode::FAILURE
        }
    }
}
