//! What stands for a VM: a process of the real guest agent on this host.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::vmm::hypervisor::HypervisorError;
use crate::vmm::image::envd;
use crate::vmm::machine::MachineError;
use crate::vmm::process::process_usage::ProcessUsage;
use crate::vmm::process::{ProcessError, ProcessId, VmProcess, start_ticks};

/// A killed process is gone within this, unless the kernel is in trouble.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Where the agent makes a cgroup for each command, if it can.
const CGROUPS: [&str; 2] = ["/sys/fs/cgroup/nestbox", "/sys/fs/cgroup/unified/nestbox"];

/// A running agent.
pub(super) struct Guest {
    process: ProcessId,
    /// Where it listens.
    pub(super) address: SocketAddr,
    /// Kept open, so that whatever it says later does not fail.
    _stdout: ChildStdout,
}

impl Guest {
    /// Starts an agent; returns when it listens. Blocks for some ten milliseconds.
    pub(super) fn start() -> Result<Self, MachineError> {
        let program = program().map_err(|source| spawn_error(Path::new("envd"), source))?;
        let mut command = Command::new(program);
        command.arg0("envd").args(["agent", "--port", "0"]).env_clear().current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        // So that what its commands leave behind becomes its child, and ends with it as in a VM. The
        // setting is kept by execve(2), see PR_SET_CHILD_SUBREAPER in prctl(2).
        let adopt_orphans = || Ok(nix::sys::prctl::set_child_subreaper(true)?);
        // SAFETY: between fork and exec only one system call on constants.
        unsafe { command.pre_exec(adopt_orphans) };
        let mut child = command.spawn().map_err(|source| spawn_error(program, source))?;
        let pid = i32::try_from(child.id()).expect("a pid is a positive i32");
        let mut stdout = child.stdout.take().expect("it was asked for");
        // It is watched and reaped through its pidfd from here on.
        drop(child);
        let ended = |how: &str| {
            end_tree(pid);
            MachineError::EndedEarly { how: how.to_owned(), console: String::new() }
        };
        let mut line = String::new();
        let read = BufReader::with_capacity(1, &mut stdout).read_line(&mut line);
        read.map_err(|error| ended(&error.to_string()))?;
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        let port: u16 = port.ok_or_else(|| ended("did not say where it listens"))?;
        let ticks = start_ticks(pid).ok_or_else(|| ended("ended"))?;
        let process = ProcessId { pid, start_ticks: ticks };
        Ok(Self { process, address: (Ipv4Addr::LOCALHOST, port).into(), _stdout: stdout })
    }

    /// Its process.
    pub(super) fn process(&self) -> ProcessId {
        self.process
    }

    /// What it and everything in it take; none if it has ended.
    pub(super) fn usage(&self) -> Option<ProcessUsage> {
        let mut all = ProcessUsage::of(self.process)?;
        let children = children();
        let mut parents = vec![self.process.pid];
        while let Some(parent) = parents.pop() {
            for &pid in children.get(&parent).into_iter().flatten() {
                let id = start_ticks(pid).map(|start_ticks| ProcessId { pid, start_ticks });
                if let Some(child) = id.and_then(ProcessUsage::of) {
                    all.cpu_time += child.cpu_time + child.children_cpu_time;
                    all.private_bytes += child.private_bytes;
                }
                parents.push(pid);
            }
        }
        all.cpu_time += all.children_cpu_time;
        Some(all)
    }

    /// Ends it and everything in it at once, as a VM's end does, and waits for that.
    pub(super) async fn destroy(&self, process: &VmProcess) -> Result<(), MachineError> {
        end_tree(self.process.pid);
        process.kill(KILL_LIMIT).await.map_err(HypervisorError::from)?;
        self.forget();
        Ok(())
    }

    /// Stops it and everything in it where it is, as a VM that is frozen.
    pub(super) fn freeze(&self) {
        if self.lives() {
            stop_tree(self.process.pid);
        }
    }

    /// Lets it and everything in it go on.
    pub(super) fn thaw(&self) {
        if self.lives() {
            walk_tree(self.process.pid, |pid| signal(pid, Signal::SIGCONT));
        }
    }

    /// While it was not waited for its pid cannot come to mean another process.
    fn lives(&self) -> bool {
        start_ticks(self.process.pid) == Some(self.process.start_ticks)
    }

    /// Takes away what an agent leaves that ended before its time.
    pub(super) fn forget(&self) {
        remove_cgroups(self.process.pid);
    }

    /// Ends it and everything in it at once, and tells nobody.
    pub(super) fn kill(&self) {
        if self.lives() {
            end_tree(self.process.pid);
        }
    }

    /// Ends it, without a runtime.
    pub(super) fn kill_and_reap(&self) {
        self.kill();
        let pid = Pid::from_raw(self.process.pid);
        // Fails if somebody else was quicker, which is as good.
        let _ = waitpid(pid, Some(WaitPidFlag::empty()));
        self.forget();
    }
}

/// The agent's binary, in memory: nothing is left of it when the process ends.
fn program() -> io::Result<&'static Path> {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    if let Some(path) = PROGRAM.get() {
        return Ok(path);
    }
    let mut file = std::fs::File::from(memfd_create(c"envd", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&envd())?;
    let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
    let kept = PROGRAM.get_or_init(|| path.clone());
    // The one whose path is kept stays open for as long as this process lives.
    if *kept == path {
        std::mem::forget(file);
    }
    Ok(kept)
}

fn spawn_error(program: &Path, source: io::Error) -> MachineError {
    HypervisorError::from(ProcessError::Spawn { program: program.to_owned(), source }).into()
}

/// Kills a process and all its descendants.
fn end_tree(pid: i32) {
    for pid in stop_tree(pid) {
        signal(pid, Signal::SIGKILL);
    }
}

/// Stops a process and all its descendants. Stopped, none of them can start another one that would
/// be missed.
fn stop_tree(pid: i32) -> Vec<i32> {
    walk_tree(pid, |pid| signal(pid, Signal::SIGSTOP))
}

/// Visits a process and all its descendants, those included that come meanwhile.
fn walk_tree(pid: i32, visit: impl Fn(i32)) -> Vec<i32> {
    let mut tree = vec![pid];
    let mut next = 0;
    while let Some(&parent) = tree.get(next) {
        visit(parent);
        next += 1;
        if next == tree.len() {
            let children = children();
            let of = |parent: &i32| children.get(parent).cloned().unwrap_or_default();
            let known = tree.clone();
            tree.extend(known.iter().flat_map(of).filter(|pid| !known.contains(pid)));
        }
    }
    tree
}

fn signal(pid: i32, signal: Signal) {
    // What has ended by itself need not be ended.
    let _ = kill(Pid::from_raw(pid), signal);
}

/// All processes by their parents, from `/proc`.
fn children() -> BTreeMap<i32, Vec<i32>> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The second field is the name in parentheses, the fourth the parent: proc(5).
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1));
        if let Some(parent) = parent.and_then(|parent| parent.parse().ok()) {
            children.entry(parent).or_default().push(pid);
        }
    }
    children
}

/// Removes the cgroups that an agent which was killed could not remove. Those that are not empty
/// yet are removed by the next agent that starts.
fn remove_cgroups(pid: i32) {
    let prefix = format!("{pid}-");
    for entry in CGROUPS.iter().flat_map(std::fs::read_dir).flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}
