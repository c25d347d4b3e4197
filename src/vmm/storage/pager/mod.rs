//! Serves a VM's memory from a lineage, page by page, as the VM asks for it.
//!
//! A hypervisor that restores through userfaultfd(2) has anonymous memory without any page. Whoever
//! touches a page waits until the pager has filled it: with what the lineage has there, or with
//! zeros. The pager is a process of its own for each VM, the same program as the daemon, started as
//! confined as the VM and under the VM's user:
//!
//! ```text
//!  daemon                  pager                         VM
//!    | start ---------------> |                            |
//!    |   (open files)         | <---- connects, gives -----|
//!    |                        |       its userfaultfd      |
//!    |                        | <---- faults --------------|
//!    |                        | ----- pages -------------->|
//!    | <--- State::read ------|                            |
//! ```
//!
//! It outlives the daemon, names no path and opens no file: all that it needs is inherited. It ends
//! when its VM ends. If it cannot serve a fault it says why in its state file and its log, and kills
//! the VM, which would wait for ever; if the pager itself is killed, that is for the daemon to see.
//!
//! A page that a VM has given back, as a balloon does, is zero from then on. The state file keeps
//! where the memory is and which pages were given back, for these are what a capture has to know;
//! and which pages the VM asked for, in order: the next restore of the same snapshot prefetches
//! these.
//!
//! Architecture Invariant: nothing here knows a hypervisor's API, a sandbox or a snapshot.

mod bitmap;
mod handshake;
mod program;
mod resolver;
mod server;
mod slim;
mod state;
mod uffd;
mod working_set;

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

pub use program::{COMMAND, main};
pub use state::{Counters, Phase, State};
pub use working_set::WorkingSet;

use crate::vmm::process::cgroup::CgroupEntry;
use crate::vmm::process::{
    Confinement, Files, MOST_THREADS, ProcessError, ProcessId, ProcessLimits, Processes, User,
    VmProcess,
};
use crate::vmm::storage::memory::{Lineage, MemoryError, PAGE_SIZE, RegionError};
use state::StateFile;

/// The program that runs now, also if its file was replaced since.
const PROGRAM: &str = "/proc/self/exe";

/// Name of the file with what a pager prints, which is why it failed.
const LOG: &str = "pager.log";

/// What one pager may use: a file for each generation, its state and its log; and, since it is the same
/// user, its VM's threads.
const LIMITS: ProcessLimits =
    ProcessLimits { open_files: 512, file_bytes: 256 << 20, threads: MOST_THREADS };

/// What went wrong with a pager: the first ones in the daemon, the others in the
/// pager.
#[derive(Debug, thiserror::Error)]
pub enum PagerError {
    /// A file for a new pager could not be made.
    #[error("cannot {verb} {}", path.display())]
    Prepare {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The pager's process could not be started.
    #[error("cannot start a pager")]
    Start(#[source] ProcessError),
    /// The file in which a pager says how it is cannot be used.
    #[error("cannot {verb} {}", path.display())]
    State {
        /// What was tried.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The memory could not be opened or read.
    #[error("cannot serve the memory")]
    Memory(#[from] MemoryError),
    /// The command line is not one that the daemon gives.
    #[error("a pager is started by the daemon: {problem}")]
    Arguments {
        /// What is wrong.
        problem: &'static str,
    },
    /// What was inherited cannot be used.
    #[error("cannot read what was inherited")]
    Inherited(#[source] io::Error),
    /// No VM has come.
    #[error("no VM has connected within {waited:?}")]
    NoVm {
        /// How long.
        waited: Duration,
    },
    /// A VM has connected and says nothing.
    #[error("the VM has connected and gave nothing within {waited:?}")]
    NoHandshake {
        /// How long.
        waited: Duration,
    },
    /// Another user's process has connected: it is no VM of this pager, and could not be killed.
    #[error("process {pid} of user {uid} is another user's")]
    Stranger {
        /// The process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// The process that has connected cannot be watched.
    #[error("cannot watch process {pid}")]
    Peer {
        /// The process.
        pid: i32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The socket could not be used.
    #[error("cannot {verb} the socket")]
    Socket {
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What the VM sent is not what a VM sends.
    #[error("the VM's handshake is wrong: {problem}")]
    Handshake {
        /// What is wrong with it.
        problem: String,
    },
    /// What the VM calls its memory is not one.
    #[error("the VM's handshake is wrong")]
    Regions(#[from] RegionError),
    /// The VM's userfaultfd does not do what it should.
    #[error("cannot {verb} the VM's memory")]
    Uffd {
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A page could not be filled.
    #[error("cannot fill the page at {address:#x}")]
    Fill {
        /// Its address.
        address: u64,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A fault is none of the memory's.
    #[error(transparent)]
    Outside(#[from] OutsideOfMemory),
    /// The VM's memory tells something that was not asked for.
    #[error("event {event:#x} of the VM's memory is not expected")]
    Unexpected {
        /// Its number.
        event: u8,
    },
    /// The VM hung up and did not end.
    #[error("the VM has hung up and did not end")]
    HungUp,
    /// A mistake in the pager itself.
    #[error("the pager panicked")]
    Panicked,
}

/// A fault at an address that is in no region.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a fault at {address:#x} is outside of the memory")]
pub struct OutsideOfMemory {
    /// The address.
    pub address: u64,
}

impl PagerError {
    fn writing(source: io::Error) -> Self {
        Self::State { verb: "write", path: PathBuf::from(state::STATE), source }
    }

    fn fill(address: u64, errno: Errno) -> Self {
        Self::Fill { address, source: errno.into() }
    }
}

/// What a pager is started with.
pub struct PagerPlan<'a> {
    /// What it serves.
    pub lineage: &'a Lineage,
    /// Where the VM will connect: a listening Unix socket, which only the VM's user can reach.
    pub socket: OwnedFd,
    /// What it fills before it is asked: the working set of the last restore of the same snapshot.
    pub prefetch: &'a WorkingSet,
    /// Directory of the sandbox, for `pager.state` and `pager.log`.
    pub dir: &'a Path,
    /// Network namespace of the VM.
    pub namespace: &'a Path,
    /// Cgroup of the VM.
    pub cgroup: CgroupEntry,
    /// User of the VM: a pager can only kill what has its own user.
    pub uid: u32,
}

/// Starts a pager, which then waits a minute for its VM. Blocks for a fork and an exec.
///
/// # Errors
///
/// [`PagerError::Prepare`], [`PagerError::Memory`] and [`PagerError::Start`]: nothing runs then.
pub fn start(plan: PagerPlan<'_>) -> Result<ProcessId, PagerError> {
    start_program(Path::new(PROGRAM), plan)
}

/// Does what [`start`] does, with another file as the program: that of a test is the test.
///
/// # Errors
///
/// Those of [`start`].
pub fn start_program(program: &Path, plan: PagerPlan<'_>) -> Result<ProcessId, PagerError> {
    let PagerPlan { lineage, socket, prefetch, dir, namespace, cgroup, uid } = plan;
    let cannot = |verb, path: PathBuf| move |source| PagerError::Prepare { verb, path, source };
    let pages = lineage.memory_bytes() / PAGE_SIZE as u64;
    let state = StateFile::create(dir, pages).map_err(cannot("make", dir.join(state::STATE)))?;
    let path = dir.join(LOG);
    let log = File::options().append(true).create(true).mode(0o600).open(&path);
    let log = log.map_err(cannot("make", path))?;
    let inline = |bytes: &[u8]| inline(bytes).map_err(cannot("make", PathBuf::from("a memfd")));

    let mut inherited = vec![socket, state.into_file().into(), inline(&prefetch.encode())?];
    let header = lineage.header()?;
    if let Some(header) = &header {
        inherited.push(inline(header)?);
    }
    for file in lineage.files() {
        let file = file.try_clone().map_err(cannot("open", lineage.base_path()))?;
        inherited.push(file.into());
    }
    let fds: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let args = program::arguments(&fds, header.is_some());
    let output = log.try_clone().map_err(cannot("make", dir.join(LOG)))?;
    let confinement = Confinement {
        namespace: namespace.to_owned(),
        cgroup,
        user: User::Unprivileged { uid, groups: Vec::new() },
        files: Files::Host(dir.to_owned()),
        // It has to know its VM by the number that the host knows it by.
        processes: Processes::Host,
        limits: LIMITS,
        inherited,
        output: output.into(),
        log: log.into(),
        answered: None,
    };
    VmProcess::spawn(program, &args, confinement).map_err(PagerError::Start)
}

/// Makes a file without a name that has these bytes.
fn inline(bytes: &[u8]) -> io::Result<OwnedFd> {
    let mut file = File::from(memfd_create(c"pager", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(bytes)?;
    file.rewind()?;
    Ok(file.into())
}
