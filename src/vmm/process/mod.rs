//! The process of one VM: started confined, outliving the daemon, found again after a restart.
//!
//! A VM's process is in a session of its own and nobody's child in spirit: it is known by its pid
//! *and* start time, watched through a pidfd, and only reaped when it happens to be ours.

pub mod answered_calls;
pub mod cgroup;
pub mod process_usage;
pub mod seccomp;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Gid, Uid, setgid, setgroups, setsid, setuid};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::vmm::process::answered_calls::AnsweredCalls;
use crate::vmm::process::cgroup::CgroupEntry;

/// A killed process is gone in milliseconds, unless the host is in trouble.
pub const KILL_LIMIT: Duration = Duration::from_secs(10);

/// What went wrong with a VM's process.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// A file that the process needs could not be opened.
    #[error("cannot open {path}")]
    Open { path: PathBuf, source: io::Error },
    /// The program could not be started.
    #[error("cannot start {program}")]
    Spawn { program: PathBuf, source: io::Error },
    /// No such process any more, or its pid names another one by now.
    #[error("process {pid} is gone")]
    Gone { pid: i32 },
    /// The kernel refused to watch or signal it.
    #[error("cannot {verb} process {pid}")]
    Control { verb: &'static str, pid: i32, source: io::Error },
    /// It did not die of SIGKILL in time: it hangs in the kernel.
    #[error("process {pid} did not end within {waited:?} of being killed")]
    Stuck { pid: i32, waited: Duration },
}

/// Names a process beyond the reuse of its pid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process id in the host's initial namespace.
    pub pid: i32,
    /// Start time in clock ticks since the host booted: field 22 of `/proc/PID/stat`, proc(5).
    pub start_ticks: u64,
}

/// How a process starts: everything that must be in force before its first instruction.
pub struct Confinement {
    /// Network namespace to enter.
    pub namespace: PathBuf,
    /// Cgroup to enter.
    pub cgroup: CgroupEntry,
    /// Whom it runs as.
    pub user: User,
    /// Which files it sees.
    pub files: Files,
    /// Which processes it sees.
    pub processes: Processes,
    /// What the kernel lets it have beside its cgroup's limits.
    pub limits: ProcessLimits,
    /// Descriptors that the process inherits under their present numbers; no others.
    pub inherited: Vec<OwnedFd>,
    /// Takes the process's standard output.
    pub output: OwnedFd,
    /// Takes the process's standard error.
    pub log: OwnedFd,
    /// What has to answer for some of its system calls.
    pub answered: Option<AnsweredCalls>,
}

/// Which files a process sees.
pub enum Files {
    /// The host's, from this working directory on. It is entered while still root, so that directories
    /// above it need not be open to the user.
    Host(PathBuf),
    /// Those of a mount namespace, from its root on.
    Namespace(Arc<File>),
}

/// Which processes a process sees, and who ends with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Processes {
    /// The host's.
    Host,
    /// Itself and what it starts, which ends with it: pid_namespaces(7).
    Own,
}

/// Threads of one hypervisor or pager, one for each vCPU and some for I/O: by its limits and by its cgroup.
pub const MOST_THREADS: u32 = 64;

/// Limits of a process that its cgroup does not know: setrlimit(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcessLimits {
    /// Descriptors.
    pub open_files: u64,
    /// Bytes of a file that it may write to. What is beyond is an error to it, and no signal.
    pub file_bytes: u64,
    /// Threads and processes of its user.
    pub threads: u32,
}

/// Whom a process runs as.
#[derive(Debug, Clone)]
pub enum User {
    /// A user and group of this VM alone.
    Unprivileged {
        /// Both their numbers.
        uid: u32,
        /// Supplementary groups, for devices that only a group may open.
        groups: Vec<u32>,
    },
    /// Root, for a program that confines itself further and then becomes another user.
    Root,
}

/// A VM's process, watched. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct VmProcess {
    id: ProcessId,
    pidfd: AsyncFd<OwnedFd>,
}

impl VmProcess {
    /// Starts `program` confined.
    ///
    /// Blocks for a fork and an exec, about a millisecond; call it where blocking is allowed.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Spawn`] also when any part of the confinement fails: then nothing runs.
    pub fn spawn(
        program: &Path,
        args: &[String],
        confinement: Confinement,
    ) -> Result<ProcessId, ProcessError> {
        let namespace = File::open(&confinement.namespace)
            .map_err(|source| ProcessError::Open { path: confinement.namespace.clone(), source })?;
        let Confinement { cgroup, files, processes, limits, answered, .. } = confinement;
        let inherited: Vec<RawFd> = confinement.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let user = match confinement.user {
            User::Root => None,
            User::Unprivileged { uid, groups } => {
                let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
                Some((Uid::from_raw(uid), Gid::from_raw(uid), groups))
            }
        };

        let mut command = Command::new(program);
        let mounts = match files {
            Files::Host(dir) => {
                command.current_dir(dir);
                None
            }
            Files::Namespace(mounts) => Some(mounts),
        };
        command
            .args(args)
            .env_clear()
            .stdin(Stdio::null())
            .stdout(confinement.output)
            .stderr(confinement.log);
        let enter = move || -> io::Result<()> {
            setsid()?;
            cgroup.enter()?;
            setns(&namespace, CloneFlags::CLONE_NEWNET)?;
            unshare(CloneFlags::CLONE_NEWIPC)?;
            if let Some(mounts) = &mounts {
                // Root and working directory are its root then.
                setns(mounts, CloneFlags::CLONE_NEWNS)?;
            }
            close_on_exec()?;
            for fd in &inherited {
                // SAFETY: the descriptor is open in the parent, thus in this copy of it.
                let fd = unsafe { BorrowedFd::borrow_raw(*fd) };
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            limits.set()?;
            if let Some((uid, gid, groups)) = &user {
                setgroups(groups)?;
                setgid(*gid)?;
                setuid(*uid)?;
            }
            nix::sys::prctl::set_no_new_privs()?;
            // QEMU asks for huge pages for its translations and touches few of each: 3 of 32 MB of an
            // idle guest. Guest memory is a private mapping of a file, which has none either way.
            nix::sys::prctl::set_thp_disable(true)?;
            seccomp::deny_io_uring()?;
            if let Some(answered) = &answered {
                answered.ask()?;
            }
            // Last of all: the daemon's descriptors are still open here, perhaps more than these, and
            // nothing can be opened beyond the limit.
            limits.set_open_files()
        };
        // SAFETY: between fork and exec only system calls on values made before the fork; nothing
        // allocates or takes a lock.
        unsafe { command.pre_exec(enter) };
        let started = match processes {
            Processes::Host => command.spawn(),
            Processes::Own => spawn_in_own_pid_namespace(&mut command),
        };
        let child = started
            .map_err(|source| ProcessError::Spawn { program: program.to_owned(), source })?;
        let pid = i32::try_from(child.id()).expect("a pid is a positive i32");
        match start_ticks(pid) {
            Some(start_ticks) => Ok(ProcessId { pid, start_ticks }),
            None => Err(ProcessError::Gone { pid }),
        }
    }

    /// Watches a process that runs already; needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Gone`] if it ended, or its pid is another process by now.
    pub fn watch(id: ProcessId) -> Result<Self, ProcessError> {
        let control = |source| ProcessError::Control { verb: "watch", pid: id.pid, source };
        // SAFETY: the call takes two integers.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_open, id.pid, 0) };
        match Errno::result(fd) {
            Ok(_) => {}
            Err(Errno::ESRCH) => return Err(ProcessError::Gone { pid: id.pid }),
            Err(errno) => return Err(control(errno.into())),
        }
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        // The descriptor pins the process: from here on the pid cannot come to mean another one.
        if start_ticks(id.pid) != Some(id.start_ticks) {
            return Err(ProcessError::Gone { pid: id.pid });
        }
        // A process that ended stays visible until its parent asks, which after a restart of the
        // daemon is somebody else; nothing of it can be used any more.
        if has_ended(pidfd.as_fd()).map_err(control)? {
            reap(pidfd.as_fd());
            return Err(ProcessError::Gone { pid: id.pid });
        }
        // SAFETY: an `OwnedFd` names the same open descriptor until it is dropped.
        let pidfd = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }
            .map_err(|error| control(error.into()))?;
        Ok(Self { id, pidfd })
    }

    /// Kills the process of that id, if it has not ended, and waits until it is gone.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Control`]; [`ProcessError::Stuck`] if it is still there after [`KILL_LIMIT`].
    pub async fn end(id: ProcessId) -> Result<(), ProcessError> {
        match Self::watch(id) {
            Ok(process) => process.kill(KILL_LIMIT).await,
            Err(ProcessError::Gone { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Which process this is.
    pub fn id(&self) -> ProcessId {
        self.id
    }

    /// A copy of the process's descriptor `number`, pidfd_getfd(2). It is close-on-exec.
    ///
    /// # Errors
    ///
    /// Those of the system call.
    pub fn descriptor(&self, number: RawFd) -> io::Result<OwnedFd> {
        let pidfd = self.pidfd.get_ref().as_raw_fd();
        // SAFETY: the call takes three numbers and touches no memory.
        let fd = unsafe { nix::libc::syscall(nix::libc::SYS_pidfd_getfd, pidfd, number, 0) };
        let fd = Errno::result(fd)?;
        // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
    }

    /// Waits for the process to end and says how, as far as the kernel tells. May be cancelled and
    /// called again, also by several waiters.
    pub async fn ended(&self) -> String {
        // A pidfd becomes readable when the process ends and stays so: pidfd_open(2).
        match self.pidfd.readable().await {
            Ok(mut guard) => guard.retain_ready(),
            Err(error) => tracing::error!(pid = self.id.pid, %error, "cannot watch a process"),
        }
        reap(self.pidfd.get_ref().as_fd())
    }

    /// Kills the process and waits until it is gone; idempotent.
    ///
    /// # Errors
    ///
    /// [`ProcessError::Stuck`] if it is still there after `limit`.
    pub async fn kill(&self, limit: Duration) -> Result<(), ProcessError> {
        let pid = self.id.pid;
        // SAFETY: a valid descriptor, a signal, no information, no flags.
        let sent = unsafe {
            nix::libc::syscall(
                nix::libc::SYS_pidfd_send_signal,
                self.pidfd.get_ref().as_raw_fd(),
                Signal::SIGKILL as i32,
                std::ptr::null::<nix::libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(sent) {
            Ok(_) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(ProcessError::Control { verb: "kill", pid, source: errno.into() });
            }
        }
        match tokio::time::timeout(limit, self.ended()).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ProcessError::Stuck { pid, waited: limit }),
        }
    }
}

impl ProcessLimits {
    /// Sets them, but for that of descriptors, for the calling process. Allocates nothing: it is called
    /// between fork and exec.
    fn set(&self) -> io::Result<()> {
        let Self { open_files: _, file_bytes, threads } = *self;
        for (what, most) in [
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_FSIZE, file_bytes),
            (Resource::RLIMIT_NPROC, threads.into()),
        ] {
            setrlimit(what, most, most)?;
        }
        // SAFETY: to ignore a signal installs no handler.
        unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn)? };
        Ok(())
    }

    fn set_open_files(&self) -> io::Result<()> {
        Ok(setrlimit(Resource::RLIMIT_NOFILE, self.open_files, self.open_files)?)
    }
}

/// Has all descriptors of the calling process beyond the standard streams be closed when it executes a
/// program: the daemon's own are already, but not what whoever started the daemon left open.
///
/// # Errors
///
/// Those of close_range(2), which Linux has from 5.11 on with what is asked of it.
pub fn close_on_exec() -> io::Result<()> {
    const FIRST: nix::libc::c_uint = 3;
    // SAFETY: the call takes three numbers and touches no memory.
    let done = unsafe {
        nix::libc::syscall(
            nix::libc::SYS_close_range,
            FIRST,
            nix::libc::c_uint::MAX,
            nix::libc::CLOSE_RANGE_CLOEXEC,
        )
    };
    Errno::result(done)?;
    Ok(())
}

/// Starts a process that is the first of a pid namespace. The namespace is one of the calling thread's
/// children and not of its own, so that a thread is made for it: pid_namespaces(7).
fn spawn_in_own_pid_namespace(command: &mut Command) -> io::Result<Child> {
    let spawn = || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        command.spawn()
    };
    std::thread::scope(|scope| scope.spawn(spawn).join()).expect("starting does not panic")
}

/// Whether a process has ended: its pidfd is readable then, pidfd_open(2).
fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut ready = [PollFd::new(pidfd, PollFlags::POLLIN)];
    Ok(poll(&mut ready, PollTimeout::ZERO)? > 0)
}

/// Takes the exit status if the process was our child; says how it ended.
fn reap(pidfd: BorrowedFd<'_>) -> String {
    match waitid(Id::PIDFd(pidfd), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
        Ok(WaitStatus::Exited(_, code)) => format!("exited with code {code}"),
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("was ended by {signal}"),
        // Another waiter was quicker, or a former daemon was its parent.
        Ok(_) | Err(_) => "ended".to_owned(),
    }
}

/// Start time of a process in clock ticks since boot; `None` if there is no such process.
pub(in crate::vmm) fn start_ticks(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat_fields(&stat)?.nth(19)?.parse().ok()
}

/// What follows the name in `/proc/PID/stat`: the first is the third field of proc(5).
pub(in crate::vmm) fn stat_fields(stat: &str) -> Option<impl Iterator<Item = &str>> {
    // The second field is the name in parentheses, which may itself hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    Some(after_name.split_ascii_whitespace())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_process_is_watched_killed_and_reaped() {
        let mut child = Command::new("sleep").arg("60").spawn().expect("sleep starts");
        let pid = child.id() as i32;
        let id = ProcessId { pid, start_ticks: start_ticks(pid).expect("it runs") };
        let process = VmProcess::watch(id).expect("it can be watched");
        VmProcess::end(id).await.expect("it dies");
        VmProcess::end(id).await.expect("one that has ended is as good");
        process.kill(KILL_LIMIT).await.expect("killing again is fine");
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "it was reaped");
        child.wait().expect_err("there is nothing left to wait for");
        assert!(matches!(VmProcess::watch(id), Err(ProcessError::Gone { .. })));
    }

    #[tokio::test]
    async fn a_process_that_nobody_has_asked_after_is_gone_all_the_same() {
        let mut child = Command::new("true").spawn().expect("true starts");
        let pid = child.id() as i32;
        let id = ProcessId { pid, start_ticks: start_ticks(pid).expect("it is visible") };
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|s| !s.contains(") Z"))
        {
            tokio::task::yield_now().await;
        }
        assert!(matches!(VmProcess::watch(id), Err(ProcessError::Gone { .. })));
        // Reaped by the attempt, so there is nothing left to wait for.
        child.wait().expect_err("it was reaped");
    }

    #[tokio::test]
    async fn a_pid_with_another_start_time_is_another_process() {
        let pid = std::process::id() as i32;
        let id = ProcessId { pid, start_ticks: 1 };
        assert!(matches!(VmProcess::watch(id), Err(ProcessError::Gone { .. })));
    }
}
