//! Ends of a process's pipes and of its terminal, driven by the runtime.

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{Winsize, posix_openpt, unlockpt};
use nix::unistd::{Gid, Uid, fchown, pipe2, read, write};
use tokio::io::Interest;
use tokio::io::unix::{AsyncFd, AsyncFdRegisterError};

/// Bytes read at once. Large chunks cost less per byte in emulation; four of them may wait for
/// each follower.
pub const CHUNK: usize = 32 * 1024;

/// Bytes that are moved before others get their turn: what a pipe holds.
const TURN: usize = 64 * 1024;
/// What any piece counts for at least: small ones cost as much as this.
const LEAST: usize = 4 * 1024;

/// How much of its turn a task has left.
///
/// All tasks share one thread, and one that always finds something to read never has to wait: tokio's
/// own budget knows nothing of descriptors. So whoever moves what a process writes counts it, and
/// lets the others go first once it has moved a pipe full.
#[derive(Debug)]
pub struct Turn {
    left: usize,
}

impl Default for Turn {
    fn default() -> Self {
        Self { left: TURN }
    }
}

impl Turn {
    /// Counts what was moved.
    pub fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes.max(LEAST));
    }

    /// Waits for the next turn if this one is over. Safe to drop.
    pub async fn go_on(&mut self) {
        if self.left == 0 {
            tokio::task::yield_now().await;
            self.left = TURN;
        }
    }
}

/// A descriptor that never blocks the runtime.
pub type Shared = Arc<AsyncFd<OwnedFd>>;

/// Which stream of a process some bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// The terminal, which does not tell the two apart.
    Terminal,
}

/// Makes a pipe the agent reads from; the other end is for the child.
///
/// # Errors
///
/// The kernel's, when there are no descriptors left.
pub fn output_pipe() -> io::Result<(Shared, OwnedFd)> {
    let (ours, theirs) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((ours_of(ours, Interest::READABLE)?, theirs))
}

/// Makes a pipe the agent writes to; the other end is for the child.
///
/// # Errors
///
/// The kernel's, when there are no descriptors left.
pub fn input_pipe() -> io::Result<(Shared, OwnedFd)> {
    let (theirs, ours) = pipe2(OFlag::O_CLOEXEC)?;
    Ok((ours_of(ours, Interest::WRITABLE)?, theirs))
}

/// Has the runtime watch a descriptor.
///
/// # Errors
///
/// The kernel's, with the descriptor unchanged inside.
pub fn watched(
    fd: OwnedFd,
    interest: Interest,
) -> Result<AsyncFd<OwnedFd>, AsyncFdRegisterError<OwnedFd>> {
    // SAFETY: an OwnedFd is open and names one and the same descriptor until it is dropped.
    unsafe { AsyncFd::register_with_interest(fd, interest) }
}

fn ours_of(fd: OwnedFd, interest: Interest) -> io::Result<Shared> {
    // Only this end: the child expects its own to block.
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    Ok(Arc::new(watched(fd, interest)?))
}

/// Makes a terminal that belongs to `owner`: the agent's end, and the child's.
///
/// # Errors
///
/// The kernel's, e.g. when there are no terminals left.
pub fn terminal(size: Winsize, owner: u32) -> io::Result<(Shared, OwnedFd)> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let master = posix_openpt(flags)?;
    unlockpt(&master)?;
    // Opens the other end without a path, so it works whatever is mounted on /dev/pts.
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    // SAFETY: the ioctl takes plain flags and answers with a descriptor or -1.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) };
    let slave = Errno::result(slave)?;
    // SAFETY: the kernel has just made it for us.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    resize(slave.as_fd(), size)?;
    // A program may open its terminal again by name. If this fails, all else still works.
    let _ = fchown(&slave, Some(Uid::from_raw(owner)), None::<Gid>);
    let master: OwnedFd = {
        // SAFETY: PtyMaster gives up its descriptor, which nobody else closes.
        unsafe { OwnedFd::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(master)) }
    };
    let interest = Interest::READABLE | Interest::WRITABLE;
    Ok((Arc::new(watched(master, interest)?), slave))
}

/// Sets a terminal's size; programs on it get SIGWINCH.
///
/// # Errors
///
/// The kernel's, when it is not a terminal.
pub fn resize(fd: BorrowedFd<'_>, size: Winsize) -> io::Result<()> {
    // SAFETY: the ioctl reads one winsize.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
    Errno::result(result)?;
    Ok(())
}

/// Writes all of `data`, waiting for the process to read where it has to.
///
/// # Errors
///
/// `BrokenPipe` when nobody can read it any more.
pub async fn write_all(fd: &Shared, mut data: &[u8]) -> io::Result<()> {
    let mut turn = Turn::default();
    while !data.is_empty() {
        turn.go_on().await;
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| write(fd.get_ref(), data).map_err(io::Error::from)) {
            Ok(Ok(written)) => {
                turn.spend(written);
                data = &data[written..];
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// What is left to read of one stream.
#[derive(Debug)]
pub struct Source {
    kind: Kind,
    fd: Option<Shared>,
}

impl Source {
    /// A stream that is still open.
    pub fn new(kind: Kind, fd: Shared) -> Self {
        Self { kind, fd: Some(fd) }
    }

    /// Which one it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Whether its end has not been seen yet.
    pub fn is_open(&self) -> bool {
        self.fd.is_some()
    }

    /// Waits for the next bytes; `None` at the end of the stream and ever after. Nothing is lost
    /// when the future is dropped.
    pub async fn next(&mut self) -> Option<Bytes> {
        let fd = self.fd.clone()?;
        loop {
            let Ok(mut ready) = fd.readable().await else { break };
            match ready.try_io(|fd| read_some(fd.get_ref().as_fd(), CHUNK)) {
                Ok(Ok(bytes)) if bytes.is_empty() => break,
                Ok(Ok(bytes)) => return Some(bytes),
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                // EIO is how a terminal says that nobody has its other end open.
                Ok(Err(_)) => break,
                Err(_would_block) => {}
            }
        }
        self.fd = None;
        None
    }

    /// Bytes that wait to be read right now.
    pub fn waiting(&self) -> usize {
        let Some(fd) = &self.fd else { return 0 };
        let mut count: libc::c_int = 0;
        // SAFETY: the ioctl stores one int.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut count) };
        if result < 0 { 0 } else { usize::try_from(count).unwrap_or(0) }
    }

    /// Reads at most `limit` bytes of what is there already; `None` when there is nothing.
    pub fn next_waiting(&mut self, limit: usize) -> Option<Bytes> {
        let fd = self.fd.as_ref()?;
        match read_some(fd.get_ref().as_fd(), limit.min(CHUNK)) {
            Ok(bytes) if bytes.is_empty() => {
                self.fd = None;
                None
            }
            Ok(bytes) => Some(bytes),
            Err(_) => None,
        }
    }
}

thread_local! {
    /// Read into here and copied out at its true length: most output is short, and a fresh buffer
    /// for each read would cost a page fault for every 4 KiB.
    static SCRATCH: RefCell<Box<[u8]>> = RefCell::new(vec![0; CHUNK].into());
}

fn read_some(fd: BorrowedFd<'_>, limit: usize) -> io::Result<Bytes> {
    SCRATCH.with_borrow_mut(|scratch| {
        let length = read(fd, &mut scratch[..limit])?;
        Ok(Bytes::copy_from_slice(&scratch[..length]))
    })
}
