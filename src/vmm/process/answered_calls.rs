//! System calls of a process that the daemon answers in the kernel's place.
//!
//! QEMU before 8.2 opens the file that it maps a guest's memory from for reading and writing, also where it
//! maps it privately and so writes to its own copies only. Such a descriptor would let whoever has taken
//! one QEMU over change what all others read. So the file is nobody's to write, and its opening, which the
//! kernel would refuse then, is answered with a descriptor for reading.
//!
//! A seccomp filter stops the process in `openat` with `O_RDWR` and tells whoever holds the listener,
//! seccomp_unotify(2). It is no wall: what may be opened is up to the file's rights, and all else that the
//! process opens goes to the kernel. When the listener is closed, such calls fail with `ENOSYS`.

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::uio::{RemoteIoVec, process_vm_readv};
use nix::unistd::Pid;

use crate::vmm::process::seccomp;

/// Longest name that is compared, in bytes.
const MAX_NAME: usize = 256;

/// What the kernel can do with a call that a filter stops.
const ACTIONS: &str = "/proc/sys/kernel/seccomp/actions_avail";

nix::ioctl_readwrite!(notif_receive, b'!', 0, libc::seccomp_notif);
nix::ioctl_readwrite!(notif_send, b'!', 1, libc::seccomp_notif_resp);
nix::ioctl_write_ptr!(notif_add_fd, b'!', 3, libc::seccomp_notif_addfd);

/// Says whether this kernel can stop calls for others to answer.
///
/// # Errors
///
/// `Unsupported`, with what is missing.
pub fn check_support() -> io::Result<()> {
    let actions = std::fs::read_to_string(ACTIONS).unwrap_or_default();
    match actions.split_ascii_whitespace().any(|action| action == "user_notif") {
        true => Ok(()),
        false => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            "the kernel has no seccomp notifications (Linux 5.9 or newer has)",
        )),
    }
}

/// The asking end: for the process, before it executes its program.
pub struct AnsweredCalls {
    asker: OwnedFd,
}

/// The answering end.
pub struct Answering {
    listener: OwnedFd,
}

/// Gets the listener of a process that was started with the other end.
pub struct Pending {
    receiver: OwnedFd,
}

/// Makes both ends.
///
/// # Errors
///
/// Those of socketpair(2).
pub fn pair() -> io::Result<(AnsweredCalls, Pending)> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let (asker, receiver) = socketpair(AddressFamily::Unix, SockType::Stream, None, flags)?;
    Ok((AnsweredCalls { asker }, Pending { receiver }))
}

impl AnsweredCalls {
    /// Stops such calls of the calling process from now on, and hands the listener over. Called between
    /// fork and exec: it allocates nothing. The process has given up to get new privileges.
    pub(in crate::vmm) fn ask(&self) -> io::Result<()> {
        let listener = install()?;
        send(self.asker.as_fd(), listener)?;
        // SAFETY: it was just made, and nothing else knows it. The process must not answer itself.
        drop(unsafe { OwnedFd::from_raw_fd(listener) });
        Ok(())
    }
}

impl Pending {
    /// Gets the listener of the process, which has executed its program by now.
    ///
    /// # Errors
    ///
    /// Those of recvmsg(2); `InvalidData` if something else came.
    pub fn answering(self) -> io::Result<Answering> {
        Ok(Answering { listener: receive(self.receiver.as_fd())? })
    }
}

impl Answering {
    /// Waits until the process opens `path` for reading and writing, and gives it `file`, which is open
    /// for reading, instead. Other files are opened by the kernel. Blocks until then, until the process
    /// ends, or for `limit`.
    ///
    /// # Errors
    ///
    /// `TimedOut`; those of the system calls.
    pub fn give_for(self, path: &Path, file: BorrowedFd<'_>, limit: Duration) -> io::Result<()> {
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let mut ready = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
            let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            match poll(&mut ready, wait) {
                Err(Errno::EINTR) => continue,
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                other => drop(other?),
            }
            let events = ready[0].revents().unwrap_or(PollFlags::empty());
            if !events.contains(PollFlags::POLLIN) {
                // It has ended; that is seen elsewhere.
                return Ok(());
            }
            if self.answer(path, file)? {
                return Ok(());
            }
        }
    }

    /// Answers one call; says whether it was the one that is waited for.
    fn answer(&self, path: &Path, file: BorrowedFd<'_>) -> io::Result<bool> {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: a structure of numbers, for which zeros are valid; the kernel wants it zeroed.
        let mut call: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        let fd = self.listener.as_raw_fd();
        // SAFETY: the kernel fills a structure of the size that the request's number has in it.
        match unsafe { notif_receive(fd, &mut call) } {
            // It was killed meanwhile, or a signal came in between.
            Err(Errno::ENOENT | Errno::EINTR) => return Ok(false),
            received => drop(received?),
        }
        let name = read_name(call.pid, call.data.args[1]);
        let wanted = name.as_deref() == Some(path.as_os_str().as_bytes());
        let mut answer = libc::seccomp_notif_resp { id: call.id, val: 0, error: 0, flags: 0 };
        if wanted {
            let give = libc::seccomp_notif_addfd {
                id: call.id,
                flags: 0,
                srcfd: file.as_raw_fd() as u32,
                newfd: 0,
                newfd_flags: libc::O_CLOEXEC as u32,
            };
            // SAFETY: the structure is the one that the request's number is made of.
            match unsafe { notif_add_fd(fd, &give) } {
                // A signal came in between: the call is made once more, and asked about again.
                Err(Errno::ENOENT) => return Ok(false),
                given => answer.val = i64::from(given?),
            }
        } else {
            // Whatever stands at that address by the time the kernel looks: it is opened with the
            // rights of the process, as if nobody had looked.
            answer.flags = libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32;
        }
        // SAFETY: the structure is the one that the request's number is made of.
        match unsafe { notif_send(fd, &mut answer) } {
            Err(Errno::ENOENT) => Ok(false),
            sent => sent.map(|_| wanted).map_err(io::Error::from),
        }
    }
}

/// The name at an address of another process; none if it cannot be read or is longer than any that is
/// waited for.
fn read_name(pid: u32, address: u64) -> Option<Vec<u8>> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?);
    let mut bytes = vec![0; MAX_NAME];
    let mut read = 0;
    while read < MAX_NAME {
        // Not beyond a page at once: what is behind may not be there.
        let base = usize::try_from(address).ok()?.checked_add(read)?;
        let len = (4096 - base % 4096).min(MAX_NAME - read);
        let mut to = [io::IoSliceMut::new(&mut bytes[read..read + len])];
        let count = process_vm_readv(pid, &mut to, &[RemoteIoVec { base, len }]).ok()?;
        let end = bytes[read..read + count].iter().position(|byte| *byte == 0);
        if let Some(end) = end {
            bytes.truncate(read + end);
            return Some(bytes);
        }
        read += count;
        if count == 0 {
            return None;
        }
    }
    None
}

/// Installs the filter for the calling process and gives the listener.
fn install() -> io::Result<RawFd> {
    let mut program = [
        seccomp::load(seccomp::ARCH),
        seccomp::if_equal(seccomp::ARCH_X86_64, 0, 5),
        seccomp::load(seccomp::NR),
        seccomp::if_equal(libc::SYS_openat as u32, 0, 3),
        seccomp::load(seccomp::THIRD_ARGUMENT),
        seccomp::and(libc::O_ACCMODE as u32),
        seccomp::if_equal(libc::O_RDWR as u32, 1, 0),
        seccomp::give(libc::SECCOMP_RET_ALLOW),
        seccomp::give(libc::SECCOMP_RET_USER_NOTIF),
    ];
    Ok(seccomp::install(&mut program, libc::SECCOMP_FILTER_FLAG_NEW_LISTENER)? as RawFd)
}

/// Space for one descriptor beside a message, aligned as the kernel wants it: cmsg(3).
#[repr(C)]
union Beside {
    header: libc::cmsghdr,
    bytes: [u8; 64],
}

/// Sends a descriptor beside one byte. Without what allocates: see [`AnsweredCalls::ask`].
fn send(socket: BorrowedFd<'_>, fd: RawFd) -> io::Result<()> {
    let mut byte = 0_u8;
    let mut data = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let mut beside = Beside { bytes: [0; 64] };
    // SAFETY: a structure of numbers and pointers, for which zeros are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut data;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut beside).cast();
    // SAFETY: both compute sizes.
    let (space, length) = unsafe {
        let size = size_of::<RawFd>() as u32;
        (libc::CMSG_SPACE(size) as usize, libc::CMSG_LEN(size) as usize)
    };
    message.msg_controllen = space;
    // SAFETY: the space is larger than one header with one descriptor, and aligned.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = length;
        libc::CMSG_DATA(header).cast::<RawFd>().write_unaligned(fd);
    }
    // SAFETY: everything that the message points to lives until the call returns.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, 0) };
    Errno::result(sent)?;
    Ok(())
}

/// Receives a descriptor beside one byte.
fn receive(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0];
    let mut data = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(socket.as_raw_fd(), &mut data, Some(&mut space), flags)?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = part
            && let [fd] = fds[..]
        {
            // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
            return Ok(unsafe { OwnedFd::from_raw_fd(fd) });
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn a_file_that_is_opened_for_writing_is_given_for_reading() {
        check_support().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let (shared, own) = (dir.path().join("shared"), dir.path().join("own"));
        for path in [&shared, &own] {
            fs::write(path, "as it was").unwrap();
        }
        fs::set_permissions(&own, Permissions::from_mode(0o666)).unwrap();

        let (asking, pending) = pair().unwrap();
        let script = "own = open('own', 'r+b', 0); own.write(b'written')\n\
             shared = open('shared', 'r+b', 0); print(shared.read().decode())\n\
             try: shared.write(b'changed')\n\
             except OSError as error: print(error.strerror)";
        let mut command = Command::new("python3");
        command.args(["-c", script]).current_dir(dir.path());
        let confine = move || {
            nix::unistd::setgid(65534.into())?;
            nix::unistd::setuid(65534.into())?;
            nix::sys::prctl::set_no_new_privs()?;
            asking.ask()
        };
        // SAFETY: system calls only.
        unsafe { command.pre_exec(confine) };
        command.stdout(std::process::Stdio::piped());
        let child = command.spawn().unwrap();
        let file = File::open(&shared).unwrap();
        let answering = pending.answering().unwrap();
        answering.give_for(Path::new("shared"), file.as_fd(), Duration::from_secs(60)).unwrap();

        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(said, "as it was\nBad file descriptor\n");
        assert_eq!(fs::read_to_string(&shared).unwrap(), "as it was");
        assert_eq!(fs::read_to_string(&own).unwrap(), "writtenas");
    }
}
