//! How a VM gives its memory to its pager.
//!
//! It connects, and sends one message with its userfaultfd and a JSON list of regions. Nothing
//! follows. It keeps its end of the connection open for as long as it lives.

use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, getsockopt, recvmsg};
use nix::unistd::geteuid;
use serde::Deserialize;

use super::PagerError;
use super::state::MOST_REGIONS;
use crate::vmm::storage::memory::{PAGE_SIZE, Region};

/// Longest message. Each region takes some 120 bytes.
const MOST_BYTES: usize = 16 << 10;

/// A VM that has connected.
#[derive(Debug)]
pub(super) struct Peer {
    socket: UnixStream,
    pidfd: OwnedFd,
    /// Its process.
    pub pid: i32,
}

/// What a VM gives.
#[derive(Debug)]
pub(super) struct Handshake {
    /// Its userfaultfd, it says.
    pub uffd: OwnedFd,
    /// Where its memory is, it says.
    pub regions: Vec<Region>,
}

/// A region as Firecracker 1.16 writes it. What else it says, such as a `page_size_kib` that is in
/// bytes, is not needed.
#[derive(Debug, Deserialize)]
struct Mapping {
    base_host_virt_addr: u64,
    size: u64,
    offset: u64,
    page_size: u64,
}

impl Peer {
    /// Waits for a VM to connect. Whoever comes later is not listened to.
    ///
    /// # Errors
    ///
    /// [`PagerError::NoVm`] after `limit`, [`PagerError::Stranger`] if another user's process has
    /// connected, [`PagerError::Socket`].
    pub fn accept(listener: UnixListener, limit: Duration) -> Result<Self, PagerError> {
        let failed = |verb| move |source| PagerError::Socket { verb, source };
        if !readable(listener.as_fd(), limit).map_err(failed("wait for the VM on"))? {
            return Err(PagerError::NoVm { waited: limit });
        }
        let (socket, _) = listener.accept().map_err(failed("accept the VM on"))?;
        let credentials = getsockopt(&socket, PeerCredentials)
            .map_err(|errno| failed("ask who has connected to")(errno.into()))?;
        let pid = credentials.pid();
        // A pid can name another process by now. One of this user is this VM's all the same, and a
        // VM that ended has hung up.
        let pidfd = pidfd_open(pid).map_err(|source| PagerError::Peer { pid, source })?;
        if credentials.uid() != geteuid().as_raw() {
            return Err(PagerError::Stranger { pid, uid: credentials.uid() });
        }
        Ok(Self { socket, pidfd, pid })
    }

    /// Receives what the VM gives.
    ///
    /// # Errors
    ///
    /// [`PagerError::NoHandshake`] after `limit`, [`PagerError::Handshake`] for anything that does
    /// not look right, [`PagerError::Socket`].
    pub fn receive(&self, limit: Duration) -> Result<Handshake, PagerError> {
        let failed = |source| PagerError::Socket { verb: "receive the handshake from", source };
        if !readable(self.socket.as_fd(), limit).map_err(failed)? {
            return Err(PagerError::NoHandshake { waited: limit });
        }
        let (text, fds) = self.message().map_err(failed)?;
        let wrong = |problem| PagerError::Handshake { problem };
        let [uffd] = <[OwnedFd; 1]>::try_from(fds)
            .map_err(|fds| wrong(format!("it comes with {} descriptors", fds.len())))?;
        Ok(Handshake { uffd, regions: regions(&text).map_err(wrong)? })
    }

    fn message(&self) -> io::Result<(Vec<u8>, Vec<OwnedFd>)> {
        let mut text = vec![0; MOST_BYTES];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let mut parts = [IoSliceMut::new(&mut text)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<()>(self.socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = control {
                // SAFETY: the kernel has just given us these descriptors; nobody else owns them.
                fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        let length = message.bytes;
        text.truncate(length);
        Ok((text, fds))
    }

    /// The connection: hung up when the VM ends.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// The process: readable when the VM has ended.
    pub fn process(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Kills the VM, if it is still there.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn kill(&self) -> io::Result<()> {
        // SAFETY: a valid descriptor, a signal, no information, no flags.
        let sent = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_pidfd_send_signal,
                self.pidfd.as_raw_fd(),
                Signal::SIGKILL as i32,
                std::ptr::null::<nix::libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers.
    let fd = Errno::result(unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Waits until there is something to read, or the end of it.
fn readable(fd: BorrowedFd<'_>, limit: Duration) -> io::Result<bool> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
            Ok(0) if left.is_zero() => return Ok(false),
            Ok(0) | Err(Errno::EINTR) => {}
            Ok(_) => return Ok(true),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Reads the list of regions; whether they are one memory is checked by who uses them.
fn regions(text: &[u8]) -> Result<Vec<Region>, String> {
    let mappings: Vec<Mapping> = serde_json::from_slice(text)
        .map_err(|error| format!("{} bytes are no list of regions: {error}", text.len()))?;
    if mappings.len() > MOST_REGIONS {
        return Err(format!("{} regions are more than {MOST_REGIONS}", mappings.len()));
    }
    let region = |Mapping { base_host_virt_addr, size, offset, page_size }| match page_size
        == PAGE_SIZE as u64
    {
        true => Ok(Region { address: base_host_virt_addr, bytes: size, offset }),
        false => Err(format!("pages of {page_size} bytes are not of {PAGE_SIZE}")),
    };
    mappings.into_iter().map(region).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_regions_is_read_whatever_else_it_says() {
        let text = br#"[{"base_host_virt_addr":1048576,"size":8192,"offset":0,"page_size":4096,
            "page_size_kib":4096},{"offset":8192,"size":4096,"base_host_virt_addr":2097152,
            "page_size":4096,"colour":"blue"}]"#;
        let expected = [
            Region { address: 1 << 20, bytes: 8192, offset: 0 },
            Region { address: 2 << 20, bytes: 4096, offset: 8192 },
        ];
        assert_eq!(regions(text).unwrap(), expected);
    }

    #[test]
    fn what_is_no_list_of_regions_is_refused() {
        for text in ["", "{}", "[1]", r#"[{"size":1,"offset":0,"page_size":4096}]"#, "[] []"] {
            assert!(regions(text.as_bytes()).is_err(), "{text}");
        }
        let huge = br#"[{"base_host_virt_addr":0,"size":2097152,"offset":0,"page_size":2097152}]"#;
        assert!(regions(huge).unwrap_err().contains("2097152"));
        let negative = br#"[{"base_host_virt_addr":-1,"size":4096,"offset":0,"page_size":4096}]"#;
        assert!(regions(negative).is_err());
        let one = r#"{"base_host_virt_addr":0,"size":4096,"offset":0,"page_size":4096}"#;
        let many = format!("[{}]", [one; 17].join(","));
        assert!(regions(many.as_bytes()).is_err());
    }
}
