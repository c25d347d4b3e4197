//! The pager's process: from its command line to its exit code.
//!
//! It stays small, for there is one for each VM: it is entered before anything else of the program
//! is set up, has one thread, and reads only the descriptors that its arguments number.

#![allow(clippy::print_stderr, reason = "a process of its own, whose log that is")]

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::time::Duration;

use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use super::PagerError;
use super::handshake::Peer;
use super::resolver::Windows;
use super::server::Server;
use super::slim::let_go_of_code;
use super::state::{Phase, StateFile};
use super::working_set::WorkingSet;
use crate::print::tell;
use crate::vmm::storage::memory::Lineage;

/// The hidden verb that makes the program a pager.
pub const COMMAND: &str = "pager";

/// Says instead of the number of a descriptor that there is none.
const NONE: &str = "-";

/// How long a VM may take to connect and to say what its memory is.
const PATIENCE: Duration = Duration::from_secs(60);

/// Sizes of windows as "FIRST,LARGEST" in pages, both powers of two, for measurements. The daemon
/// starts a pager with an empty environment.
const WINDOWS: &str = "NESTBOX_PAGER_WINDOWS";

/// What a pager inherits.
struct Inherited {
    socket: UnixListener,
    state: StateFile,
    prefetch: File,
    header: Option<File>,
    generations: Vec<File>,
}

/// The command line that gives a pager these descriptors: socket, state, prefetch, a header if there
/// is one, and the generations.
pub(super) fn arguments(fds: &[RawFd], header: bool) -> Vec<String> {
    let mut args = vec![COMMAND.to_owned()];
    args.extend(fds.iter().map(RawFd::to_string));
    if !header {
        args.insert(4, NONE.to_owned());
    }
    args
}

/// Runs a pager with the arguments that follow the verb, until its VM ends.
pub fn main(args: impl Iterator<Item = OsString>) -> ExitCode {
    // The descriptors of a VM and what it serves are not for other processes of the same user,
    // which are the VM's: proc(5), on "dumpable". Without it the pager works as well.
    let _ = nix::sys::prctl::set_dumpable(false);
    let inherited = match Inherited::from(args) {
        Ok(inherited) => inherited,
        Err(error) => {
            tell(format_args!("error: {}", crate::chain(&error)));
            return ExitCode::FAILURE;
        }
    };
    let Inherited { socket, state, prefetch, header, generations } = inherited;
    let mut peer = None;
    let work = || {
        let files = open(prefetch, header, generations)?;
        let_go_of_code();
        let peer = peer.insert(Peer::accept(socket, PATIENCE)?);
        serve(&files, peer, &state)
    };
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(PagerError::Panicked));
    match outcome {
        Ok(()) => {
            // Nobody is harmed if it is not seen.
            let _ = state.set_phase(Phase::Ended);
            ExitCode::SUCCESS
        }
        Err(error) => {
            fail(&error, &state, peer.as_ref());
            ExitCode::FAILURE
        }
    }
}

/// Says why, where it is looked for, before the VM is seen to have ended.
fn fail(error: &PagerError, state: &StateFile, peer: Option<&Peer>) {
    let text = crate::chain(error).to_string();
    if let Err(error) = state.set_error(&text) {
        tell(format_args!("error: cannot write the state: {error}"));
    }
    tell(format_args!("error: {text}"));
    if let Some(peer) = peer
        && let Err(error) = peer.kill()
    {
        tell(format_args!("error: cannot kill process {}: {error}", peer.pid));
    }
}

/// What is served, and what of it first.
struct Files {
    lineage: Lineage,
    prefetch: WorkingSet,
}

fn open(prefetch: File, header: Option<File>, generations: Vec<File>) -> Result<Files, PagerError> {
    let all = |mut file: File| {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map(|_| bytes).map_err(PagerError::Inherited)
    };
    let header = header.map(all).transpose()?;
    let lineage = Lineage::from_files(header.as_deref(), generations)?;
    Ok(Files { lineage, prefetch: WorkingSet::parse(&all(prefetch)?) })
}

fn serve(files: &Files, peer: &Peer, state: &StateFile) -> Result<(), PagerError> {
    let handshake = peer.receive(PATIENCE)?;
    let Files { lineage, prefetch } = files;
    Server::begin(lineage, peer, state, handshake, prefetch, windows())?.serve()
}

fn windows() -> Windows {
    let given = std::env::var(WINDOWS).ok().and_then(|text| {
        let (first, largest) = text.split_once(',')?;
        Some(Windows { first: first.parse().ok()?, largest: largest.parse().ok()? })
    });
    let given = given.filter(|Windows { first, largest }| {
        first.is_power_of_two() && largest.is_power_of_two() && first <= largest && *largest <= 4096
    });
    given.unwrap_or_default()
}

impl Inherited {
    fn from(args: impl Iterator<Item = OsString>) -> Result<Self, PagerError> {
        let wrong = |problem| PagerError::Arguments { problem };
        let args: Vec<String> = args
            .map(|arg| arg.into_string().map_err(|_| wrong("an argument is no number")))
            .collect::<Result<_, _>>()?;
        let [socket, state, prefetch, header, generations @ ..] = args.as_slice() else {
            return Err(wrong("there are too few descriptors"));
        };
        let mut taken = Vec::new();
        let mut take = |text: &str| {
            let fd = text.parse().map_err(|_| wrong("an argument is no number"))?;
            if taken.contains(&fd) {
                return Err(wrong("a descriptor is given twice"));
            }
            taken.push(fd);
            take(fd).map_err(PagerError::Inherited)
        };
        Ok(Self {
            socket: take(socket)?.into(),
            state: StateFile::open(take(state)?.into()),
            prefetch: take(prefetch)?.into(),
            header: match header == NONE {
                true => None,
                false => Some(take(header)?.into()),
            },
            generations: generations
                .iter()
                .map(|fd| take(fd).map(File::from))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// Takes an inherited descriptor by its number.
fn take(fd: RawFd) -> io::Result<OwnedFd> {
    if fd <= 2 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: only asks whether it is open, which the kernel answers for every number.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    // SAFETY: it is open, was inherited, and is taken once: nothing else was opened before.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(args: &[&str]) -> String {
        let outcome = Inherited::from(args.iter().map(OsString::from));
        outcome.err().expect("it is refused").to_string()
    }

    #[test]
    fn arguments_number_what_is_inherited() {
        assert_eq!(arguments(&[9, 8, 7, 6, 5], true), ["pager", "9", "8", "7", "6", "5"]);
        assert_eq!(arguments(&[9, 8, 7, 6], false), ["pager", "9", "8", "7", "-", "6"]);
    }

    #[test]
    fn what_the_daemon_does_not_say_is_refused() {
        assert!(refused(&[]).contains("too few"));
        assert!(refused(&["--help", "1", "2", "3"]).contains("no number"));
        assert!(refused(&["0", "1", "2", "-"]).contains("inherited"), "standard streams");
        assert!(refused(&["60000", "1", "2", "-"]).contains("inherited"), "not open");
    }
}
