//! Starts a program as cheaply as the kernel allows.
//!
//! One `clone3` that shares the agent's memory until `execve` (as `vfork` does), puts the child
//! straight into its cgroup and answers with a pidfd. A `fork` would copy page tables, and moving
//! a process into a cgroup afterwards waits for an RCU grace period; both are slow in emulation.
//!
//! Between `clone3` and `execve` the child runs on a stack of its own but in the agent's memory,
//! so it only makes system calls: it takes no lock, allocates nothing and never returns.

use std::ffi::{CStr, CString, c_void};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::errno::Errno;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use thiserror::Error;

#[cfg(not(target_arch = "x86_64"))]
compile_error!("clone3 with a new stack is written for x86_64 only");

/// Where the child's standard streams come from.
#[derive(Debug, Clone, Copy)]
pub enum Streams<'a> {
    /// One descriptor each for input, output and errors.
    Separate([BorrowedFd<'a>; 3]),
    /// A terminal for all three, which also becomes the controlling one.
    Terminal(BorrowedFd<'a>),
}

/// Who the child becomes.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// User id.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: &'a [u32],
}

/// What the child has of the agent's standing: how early the kernel runs it, and how late it kills it
/// when memory is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// All of it.
    Inherited,
    /// Nothing: it is any process's.
    Usual,
}

/// All the child needs, prepared while it does not exist yet.
#[derive(Debug)]
pub struct Program<'a> {
    /// Files to try in turn, as a search along `PATH` would.
    pub candidates: &'a [CString],
    /// Arguments, the program's name first.
    pub args: &'a [CString],
    /// `NAME=value` pairs.
    pub env: &'a [CString],
    /// Working directories to try in turn.
    pub workdirs: &'a [CString],
    /// Who to become; `None` stays who the agent is.
    pub identity: Option<Identity<'a>>,
    /// Standard streams.
    pub streams: Streams<'a>,
    /// Directory of the cgroup to be born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Where it stands among processes.
    pub standing: Standing,
}

/// A program that runs.
#[derive(Debug)]
pub struct Child {
    /// Its process id, which is also the id of its group and its session.
    pub pid: i32,
    /// Readable once it has ended; it must then be waited for.
    pub pidfd: OwnedFd,
}

/// Where the start failed.
#[derive(Debug, Error)]
pub enum SpawnError {
    /// The kernel made no process.
    #[error("no process could be made")]
    Clone(#[source] Errno),
    /// The runtime cannot watch the process.
    #[error("process could not be watched")]
    Watch(#[source] Errno),
    /// The terminal could not become the controlling one.
    #[error("terminal could not be taken over")]
    Terminal(#[source] Errno),
    /// A standard stream could not be put in place.
    #[error("standard streams could not be set")]
    Streams(#[source] Errno),
    /// User or groups could not be changed.
    #[error("user could not be changed")]
    Identity(#[source] Errno),
    /// The working directory could not be entered.
    #[error("working directory could not be entered")]
    Workdir(#[source] Errno),
    /// No candidate could be executed.
    #[error("program could not be executed")]
    Exec(#[source] Errno),
}

/// Enough for a dozen frames of system call wrappers, with a wide margin.
const STACK_SIZE: usize = 64 * 1024;

/// Starts programs, one at a time.
#[derive(Debug)]
pub struct Spawner {
    stack: ptr::NonNull<c_void>,
}

// SAFETY: the stack is memory of this object alone, and only `spawn(&mut self)` uses it.
unsafe impl Send for Spawner {}

impl Spawner {
    /// Reserves the stack that children start on. It lives as long as the agent.
    ///
    /// # Errors
    ///
    /// The kernel's, when there is no memory.
    pub fn new() -> Result<Self, Errno> {
        let size = std::num::NonZeroUsize::new(STACK_SIZE).ok_or(Errno::EINVAL)?;
        // SAFETY: an anonymous mapping at an address of the kernel's choice touches nothing else.
        let stack = unsafe {
            mmap_anonymous(
                None,
                size,
                ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
                MapFlags::MAP_PRIVATE | MapFlags::MAP_STACK,
            )?
        };
        Ok(Self { stack })
    }

    /// Starts `program` in a session of its own. Blocks until it executes or has failed to.
    ///
    /// # Errors
    ///
    /// The variant of [`SpawnError`] for the step that failed; no process is left then.
    pub fn spawn(&mut self, program: &Program<'_>) -> Result<Child, SpawnError> {
        let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
            strings.iter().map(|string| string.as_ptr()).chain([ptr::null()]).collect()
        };
        let (args, env) = (pointers(program.args), pointers(program.env));
        let mut task = Task {
            program,
            args: &args,
            env: &env,
            failed: Stage::None,
            errno: Errno::UnknownErrno,
        };

        let mut pidfd: RawFd = -1;
        let mut flags = libc::CLONE_VM as u64
            | libc::CLONE_VFORK as u64
            | libc::CLONE_PIDFD as u64
            | CLONE_CLEAR_SIGHAND;
        if program.cgroup.is_some() {
            flags |= CLONE_INTO_CGROUP;
        }
        let request = CloneArgs {
            flags,
            pidfd: ptr::from_mut(&mut pidfd) as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: self.stack.as_ptr() as u64,
            stack_size: STACK_SIZE as u64,
            cgroup: program.cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
            ..CloneArgs::default()
        };

        // A handler that ran in the child would run in the agent's memory.
        let mut previous = SigSet::empty();
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), Some(&mut previous))
            .map_err(SpawnError::Clone)?;
        // SAFETY: `request` describes a stack that nobody else uses while `self` is borrowed, and
        // `task` outlives the child's use of it because CLONE_VFORK holds this thread until then.
        let pid = unsafe { clone3(&request, child_main, ptr::from_mut(&mut task).cast()) };
        let restored = sigprocmask(SigmaskHow::SIG_SETMASK, Some(&previous), None);
        debug_assert!(restored.is_ok(), "the previous mask is a valid mask");

        if pid < 0 {
            return Err(SpawnError::Clone(Errno::from_raw(-pid as i32)));
        }
        // SAFETY: clone3 succeeded, so it stored a new descriptor here that nobody else owns.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
        // SAFETY: the child wrote these through a pointer; a volatile read keeps the compiler from
        // assuming the values they had before.
        let (failed, errno) =
            unsafe { (ptr::read_volatile(&task.failed), ptr::read_volatile(&task.errno)) };
        let error = match failed {
            Stage::None => return Ok(Child { pid: pid as i32, pidfd }),
            Stage::Terminal => SpawnError::Terminal(errno),
            Stage::Streams => SpawnError::Streams(errno),
            Stage::Identity => SpawnError::Identity(errno),
            Stage::Workdir => SpawnError::Workdir(errno),
            Stage::Exec => SpawnError::Exec(errno),
        };
        // It has left by `_exit`; nobody else waits for it.
        let _ = waitid(Id::PIDFd(std::os::fd::AsFd::as_fd(&pidfd)), WaitPidFlag::WEXITED);
        Err(error)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Stage {
    None,
    Terminal,
    Streams,
    Identity,
    Workdir,
    Exec,
}

struct Task<'a> {
    program: &'a Program<'a>,
    args: &'a [*const libc::c_char],
    env: &'a [*const libc::c_char],
    failed: Stage,
    errno: Errno,
}

/// `struct clone_args` of `linux/sched.h`, version 2 (Linux 5.7).
#[derive(Default)]
#[repr(C)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);

/// `linux/sched.h`; they do not fit the C `int` that libc gives them.
const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// Calls `entry(argument)` in a new process, on the stack that `request` names.
///
/// Written in assembly because the child may not return through a frame of the parent's stack,
/// which a C wrapper around the system call would do.
///
/// # Safety
///
/// `request` must name a stack for the child alone. With CLONE_VM, `entry` must keep to what the
/// module's documentation allows, and `argument` must stay valid until it has ended or executed.
unsafe fn clone3(
    request: &CloneArgs,
    entry: unsafe extern "C" fn(*mut c_void) -> !,
    argument: *mut c_void,
) -> i64 {
    let result: i64;
    // SAFETY: in the parent only rax, rcx and r11 change, as for any system call. The child has
    // its own registers and stack (16-byte aligned at the call) and never comes back.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r13",
            "call r12",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 => result,
            in("rdi") ptr::from_ref(request),
            in("rsi") size_of::<CloneArgs>(),
            in("r12") entry,
            in("r13") argument,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

/// The child's whole life before `execve`.
///
/// # Safety
///
/// Called by [`clone3`] only, with a pointer to a [`Task`].
unsafe extern "C" fn child_main(argument: *mut c_void) -> ! {
    // SAFETY: the parent is suspended, so this is the only access to the task.
    let task = unsafe { &mut *argument.cast::<Task<'_>>() };
    // SAFETY: all of it is system calls on values the parent prepared.
    let (failed, errno) = unsafe { prepare_and_execute(task) };
    task.failed = failed;
    task.errno = errno;
    // SAFETY: ends this process only; exit handlers belong to the agent.
    unsafe { libc::_exit(127) }
}

/// Returns only with the step that failed.
///
/// # Safety
///
/// For the child only: it changes signal handling, descriptors and identity of the process.
unsafe fn prepare_and_execute(task: &Task<'_>) -> (Stage, Errno) {
    let program = task.program;
    // SAFETY: each call gets valid pointers or plain numbers. libc's wrappers for changing ids
    // would signal the agent's other threads, hence the bare system calls.
    unsafe {
        // CLONE_CLEAR_SIGHAND leaves ignored signals ignored, and Rust ignores this one.
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        let mut none = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(none.as_mut_ptr());
        libc::sigprocmask(libc::SIG_SETMASK, none.as_ptr(), ptr::null_mut());
        libc::setsid();

        let streams = match program.streams {
            Streams::Separate(fds) => fds.map(|fd| fd.as_raw_fd()),
            Streams::Terminal(fd) => {
                if libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) < 0 {
                    return (Stage::Terminal, Errno::last());
                }
                [fd.as_raw_fd(); 3]
            }
        };
        for (target, fd) in streams.into_iter().enumerate() {
            if libc::dup2(fd, target as RawFd) < 0 {
                return (Stage::Streams, Errno::last());
            }
        }
        if program.standing == Standing::Usual {
            reset_oom_score();
            let none = libc::sched_param { sched_priority: 0 };
            libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const none);
            libc::setpriority(libc::PRIO_PROCESS, 0, 0);
        }
        if let Some(identity) = program.identity {
            let (uid, gid, groups) = (identity.uid, identity.gid, identity.groups);
            if libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) < 0
                || libc::syscall(libc::SYS_setresgid, gid, gid, gid) < 0
                || libc::syscall(libc::SYS_setresuid, uid, uid, uid) < 0
            {
                return (Stage::Identity, Errno::last());
            }
        }
        let entered = program.workdirs.iter().any(|dir| libc::chdir(dir.as_ptr()) == 0);
        if !entered {
            return (Stage::Workdir, Errno::last());
        }
        (Stage::Exec, execute(program.candidates, task.args, task.env))
    }
}

/// # Safety
///
/// For the child only. Affects only itself: the kernel leaves the score of a process that shares
/// its memory through `vfork` alone (`__set_oom_adj` in `fs/proc/base.c`).
unsafe fn reset_oom_score() {
    // SAFETY: plain system calls with constant strings.
    unsafe {
        let path: &CStr = c"/proc/self/oom_score_adj";
        let fd = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if fd >= 0 {
            libc::write(fd, c"0".as_ptr().cast(), 1);
            libc::close(fd);
        }
    }
}

/// # Safety
///
/// For the child only: on success the process is another program.
unsafe fn execute(
    candidates: &[CString],
    args: &[*const libc::c_char],
    env: &[*const libc::c_char],
) -> Errno {
    let mut outcome = Errno::ENOENT;
    for candidate in candidates {
        // Looked at first: a failed `execve` costs as much memory work as a successful one.
        // SAFETY: both arrays end with a null pointer, and all of it points to live strings.
        unsafe {
            if libc::access(candidate.as_ptr(), libc::X_OK) == 0 {
                libc::execve(candidate.as_ptr(), args.as_ptr(), env.as_ptr());
            }
        }
        match Errno::last() {
            Errno::ENOENT | Errno::ENOTDIR => {}
            // A later directory may have one that is allowed; if not, this is the better answer.
            Errno::EACCES => outcome = Errno::EACCES,
            other => return other,
        }
    }
    outcome
}
