//! A cgroup for each process, so that a kill reaches descendants that left its session.
//!
//! Making and removing a cgroup costs more than starting a small program, so an empty one is used
//! again. One that still holds descendants of an ended process is kept aside until they are gone,
//! and one that was ever killed is removed: seen with Linux 6.18, whatever is born into it by
//! `CLONE_INTO_CGROUP` later on is killed as well.
//! Where cgroup2 is missing or not writable there are none, and a kill goes to the process group.
//!
//! In a guest they also share the processors: each command as much as any other, however many processes
//! it is, and all of them together as much as whatever else there is, the agent first (`agent::run`
//! gives it its priority). And a command has not all of the guest's processes to itself, so that another
//! one can still be started beside it.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::write;

use crate::agent::settings::Place;

/// Where cgroup2 is mounted: in our guests, and beside the older hierarchy on some hosts.
const MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
/// The directory that holds all of ours; on a host the daemon has another one.
const PARENT: &str = "envd";
/// Empty ones kept for the next start.
const READY: usize = 8;
/// What is shared out, where the kernel has it.
const CONTROLLERS: [&str; 2] = ["+cpu", "+pids"];
/// Of eight tasks that the kernel allows a command may be three, and all of them seven. A user without
/// rights has four from the kernel (`RLIMIT_NPROC`), so one command leaves him some as well.
const TASKS: (u64, u64, u64) = (3, 7, 8);

/// One cgroup, owned by whoever runs a process in it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: OwnedFd,
    events: OwnedFd,
    killed: AtomicBool,
}

impl Cgroup {
    /// Its directory, to be born in.
    pub fn dir(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }

    /// Kills every process in it, and those they are starting (`cgroup.kill`, Linux 5.14).
    ///
    /// # Errors
    ///
    /// The kernel's, e.g. when it is older.
    pub fn kill(&self) -> io::Result<()> {
        let file =
            openat(&self.dir, c"cgroup.kill", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
        write(&file, b"1")?;
        self.killed.store(true, Ordering::Relaxed);
        Ok(())
    }

    fn is_empty(&self) -> bool {
        let mut text = [0u8; 128];
        let Ok(length) = nix::sys::uio::pread(&self.events, &mut text, 0) else { return false };
        text[..length].split(|&byte| byte == b'\n').any(|line| line == b"populated 0")
    }
}

/// The cgroups of all processes.
#[derive(Debug)]
pub struct Cgroups {
    parent: Option<PathBuf>,
    /// The most tasks in one, as the kernel is told.
    tasks: Option<String>,
    pool: Mutex<Pool>,
}

#[derive(Debug, Default)]
struct Pool {
    made: u64,
    ready: Vec<Cgroup>,
    lingering: Vec<Cgroup>,
}

impl Cgroups {
    /// Finds cgroup2, and removes what agents before this one left empty.
    pub fn new(place: Place) -> Self {
        let parent = MOUNTS
            .iter()
            .find(|mount| {
                statfs(**mount).is_ok_and(|fs| fs.filesystem_type() == CGROUP2_SUPER_MAGIC)
            })
            .map(|mount| Path::new(mount).join(PARENT))
            .filter(|parent| {
                std::fs::create_dir(parent).is_ok() || parent.join("cgroup.procs").exists()
            });
        if let Some(parent) = &parent {
            remove_orphans(parent);
        }
        let tasks = match (place, &parent) {
            (Place::Guest, Some(parent)) => share_out(parent),
            (Place::Guest, None) | (Place::Host, _) => None,
        };
        Self { parent, tasks, pool: Mutex::new(Pool::default()) }
    }

    /// Makes one ahead of the first start.
    pub fn prepare(&self) {
        if let Some(cgroup) = self.acquire() {
            self.release(cgroup);
        }
    }

    /// An empty cgroup, or `None` where there are none to be had.
    pub fn acquire(&self) -> Option<Cgroup> {
        let parent = self.parent.as_ref()?;
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cgroup) = pool.ready.pop() {
            return Some(cgroup);
        }
        pool.made += 1;
        // The pid tells apart agents that share a host, and a restarted one from its predecessor.
        let name = format!("{}-{}", std::process::id(), pool.made);
        make(&parent.join(name), self.tasks.as_deref()).ok()
    }

    /// Takes one back, whose process has been waited for.
    pub fn release(&self, cgroup: Cgroup) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        pool.lingering.push(cgroup);
        let (empty, lingering): (Vec<_>, Vec<_>) =
            std::mem::take(&mut pool.lingering).into_iter().partition(Cgroup::is_empty);
        pool.lingering = lingering;
        for cgroup in empty {
            let reusable = !cgroup.killed.load(Ordering::Relaxed);
            if reusable && pool.ready.len() < READY {
                pool.ready.push(cgroup);
            } else {
                let _ = std::fs::remove_dir(&cgroup.path);
            }
        }
    }

    /// Removes those that are empty; called when the agent ends.
    pub fn remove_all(&self) {
        let mut pool = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let Pool { ready, lingering, .. } = std::mem::take(&mut *pool);
        for cgroup in ready.into_iter().chain(lingering) {
            let _ = std::fs::remove_dir(&cgroup.path);
        }
    }
}

/// Has the kernel share processors and processes out among the cgroups in `parent`, as far as it
/// can. Tells the most tasks that one of them may have.
fn share_out(parent: &Path) -> Option<String> {
    for dir in [parent.parent()?, parent] {
        for controller in CONTROLLERS {
            // Each by itself: one that the kernel has not keeps none of the others away.
            let _ = std::fs::write(dir.join("cgroup.subtree_control"), controller);
        }
    }
    let most = std::fs::read_to_string("/proc/sys/kernel/threads-max").ok()?;
    let most: u64 = most.trim().parse().ok()?;
    let (one, all, of) = TASKS;
    let _ = std::fs::write(parent.join("pids.max"), (most / of * all).to_string());
    Some((most / of * one).to_string())
}

fn make(path: &Path, tasks: Option<&str>) -> io::Result<Cgroup> {
    std::fs::create_dir(path)?;
    if let Some(tasks) = tasks {
        // Not there if the kernel has no such controller.
        let _ = std::fs::write(path.join("pids.max"), tasks);
    }
    let read = |dir: Option<&OwnedFd>, name: &CStr| match dir {
        Some(dir) => openat(dir, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()),
        None => open(name, OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()),
    };
    let name = CString::new(path.as_os_str().as_encoded_bytes())?;
    let dir = read(None, &name)?;
    let events = read(Some(&dir), c"cgroup.events")?;
    debug_assert!(events.as_raw_fd() > 2, "the agent's own standard streams stay open");
    Ok(Cgroup { path: path.to_owned(), dir, events, killed: AtomicBool::new(false) })
}

fn remove_orphans(parent: &Path) {
    for entry in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name.to_string_lossy().split('-').next().map(str::to_owned);
        let alive = owner.is_some_and(|pid| Path::new("/proc").join(pid).exists());
        if !alive {
            let _ = std::fs::remove_dir(entry.path());
        }
    }
}
