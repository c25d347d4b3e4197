//! The few calls of userfaultfd(2) that a pager makes, on a descriptor that a VM gave it.
//!
//! The `userfaultfd` crate takes the return of a copy that must be tried again for a huge number of
//! copied bytes, so these are calls of our own. Structures and numbers are those of the kernel's
//! `include/uapi/linux/userfaultfd.h`.

use std::io;
use std::mem::{offset_of, size_of};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

const UFFDIO: u8 = 0xaa;

#[repr(C)]
struct UffdioRange {
    start: u64,
    len: u64,
}

#[repr(C)]
struct UffdioCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copy: i64,
}

#[repr(C)]
struct UffdioZeropage {
    range: UffdioRange,
    mode: u64,
    zeropage: i64,
}

/// One message; `arg` is the union of what the kinds of events have.
#[repr(C)]
struct UffdMsg {
    event: u8,
    reserved: [u8; 7],
    arg: [u64; 3],
}

const _: () = assert!(size_of::<UffdioRange>() == 16);
const _: () = assert!(size_of::<UffdioCopy>() == 40 && offset_of!(UffdioCopy, copy) == 32);
const _: () = assert!(size_of::<UffdioZeropage>() == 32);
const _: () = assert!(size_of::<UffdMsg>() == 32 && offset_of!(UffdMsg, arg) == 8);

nix::ioctl_read!(uffdio_wake, UFFDIO, 0x02, UffdioRange);
nix::ioctl_readwrite!(uffdio_copy, UFFDIO, 0x03, UffdioCopy);
nix::ioctl_readwrite!(uffdio_zeropage, UFFDIO, 0x04, UffdioZeropage);

const EVENT_PAGEFAULT: u8 = 0x12;
const EVENT_REMOVE: u8 = 0x15;

/// Flags of a fault of a page that is there: write protection, minor faults.
const FLAGS_OF_PRESENT: u64 = 1 << 1 | 1 << 2;

/// Messages that are read at once.
const MESSAGES: usize = 16;

/// What a VM's memory tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Event {
    /// Somebody waits for the page at this address.
    Fault(u64),
    /// These addresses are being given back.
    Removed(Range<u64>),
    /// Something that was not asked for.
    Unexpected(u8),
}

/// A VM's userfaultfd.
#[derive(Debug)]
pub(super) struct Uffd(OwnedFd);

impl Uffd {
    /// Takes a descriptor that a VM gave, and makes sure that it serves these addresses: a wake-up
    /// of nobody tells.
    ///
    /// # Errors
    ///
    /// What the kernel says, such as `ENOTTY` if it is something else.
    pub fn new(fd: OwnedFd, addresses: &Range<u64>) -> io::Result<Self> {
        // poll(2) reports an error for one that blocks.
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let uffd = Self(fd);
        uffd.wake(addresses)?;
        Ok(uffd)
    }

    /// Appends what there is to be read.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn read(&self, events: &mut Vec<Event>) -> io::Result<()> {
        let mut buffer = [0; MESSAGES * size_of::<UffdMsg>()];
        loop {
            let length = match nix::unistd::read(&self.0, &mut buffer) {
                Ok(length) => length,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            events.extend(buffer[..length].chunks_exact(size_of::<UffdMsg>()).map(event));
        }
    }

    /// Puts copies of pages at an address and wakes who waits for them. Says how many bytes it was
    /// before something was in the way; what that was, the next call says.
    ///
    /// # Errors
    ///
    /// `EEXIST` if the first page is there, `EAGAIN` if an event has to be read or pages are being
    /// given back, `ESRCH` if the VM has no memory any more.
    pub fn copy(&self, address: u64, pages: &[u8]) -> Result<u64, Errno> {
        let src = pages.as_ptr() as u64;
        let mut call = UffdioCopy { dst: address, src, len: pages.len() as u64, mode: 0, copy: 0 };
        // SAFETY: the structure is the kernel's and lives through the call, which reads from a
        // slice that does so too. What it writes to is another process's memory.
        let outcome = unsafe { uffdio_copy(self.0.as_raw_fd(), &mut call) };
        progress(outcome, call.copy)
    }

    /// Puts zeros at an address, like [`Uffd::copy`].
    ///
    /// # Errors
    ///
    /// Those of [`Uffd::copy`].
    pub fn zero(&self, address: u64, bytes: u64) -> Result<u64, Errno> {
        let range = UffdioRange { start: address, len: bytes };
        let mut call = UffdioZeropage { range, mode: 0, zeropage: 0 };
        // SAFETY: the structure is the kernel's and lives through the call.
        let outcome = unsafe { uffdio_zeropage(self.0.as_raw_fd(), &mut call) };
        progress(outcome, call.zeropage)
    }

    /// Wakes who waits for pages that are there.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn wake(&self, addresses: &Range<u64>) -> Result<(), Errno> {
        let len = addresses.end - addresses.start;
        let mut call = UffdioRange { start: addresses.start, len };
        // SAFETY: the structure is the kernel's and lives through the call.
        unsafe { uffdio_wake(self.0.as_raw_fd(), &mut call) }.map(drop)
    }
}

impl AsFd for Uffd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// ioctl_userfaultfd(2): a call that did a part fails with `EAGAIN` and says how much that was; one
/// that did nothing has a negative number there, or none at all.
fn progress(outcome: nix::Result<i32>, done: i64) -> Result<u64, Errno> {
    match (outcome, u64::try_from(done)) {
        (Ok(_), Ok(bytes)) => Ok(bytes),
        (Err(Errno::EAGAIN), Ok(bytes)) if bytes > 0 => Ok(bytes),
        (Err(errno), _) => Err(errno),
        (Ok(_), Err(_)) => Err(Errno::EIO),
    }
}

fn event(message: &[u8]) -> Event {
    let argument = |number: usize| {
        let start = offset_of!(UffdMsg, arg) + number * size_of::<u64>();
        let bytes = message[start..start + size_of::<u64>()].try_into();
        u64::from_ne_bytes(bytes.expect("the size of an argument"))
    };
    match message[offset_of!(UffdMsg, event)] {
        EVENT_PAGEFAULT if argument(0) & FLAGS_OF_PRESENT == 0 => Event::Fault(argument(1)),
        EVENT_REMOVE => Event::Removed(argument(0)..argument(1)),
        other => Event::Unexpected(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_read_as_the_kernel_writes_them() {
        let mut message = [0; 32];
        message[0] = EVENT_PAGEFAULT;
        message[8] = 1;
        message[16..24].copy_from_slice(&0x7000u64.to_ne_bytes());
        assert_eq!(event(&message), Event::Fault(0x7000), "a write to a page that is missing");
        message[8] = 3;
        assert_eq!(event(&message), Event::Unexpected(EVENT_PAGEFAULT), "write protection");
        message[0] = EVENT_REMOVE;
        message[8..16].copy_from_slice(&0x6000u64.to_ne_bytes());
        assert_eq!(event(&message), Event::Removed(0x6000..0x7000));
        message[0] = 0x13;
        assert_eq!(event(&message), Event::Unexpected(0x13));
    }

    #[test]
    fn a_part_is_progress_and_an_error_is_none() {
        assert_eq!(progress(Ok(0), 8192), Ok(8192));
        assert_eq!(progress(Err(Errno::EAGAIN), 4096), Ok(4096));
        assert_eq!(progress(Err(Errno::EAGAIN), -11), Err(Errno::EAGAIN));
        assert_eq!(progress(Err(Errno::EAGAIN), 0), Err(Errno::EAGAIN));
        assert_eq!(progress(Err(Errno::EEXIST), -17), Err(Errno::EEXIST));
    }

    #[test]
    fn what_is_no_userfaultfd_is_refused() {
        let file = tempfile::tempfile().unwrap();
        assert!(Uffd::new(file.into(), &(0x10000..0x20000)).is_err());
    }
}
