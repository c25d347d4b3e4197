//! One sandbox's cgroup: entering it, counting, killing, removing.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{CgroupError, Controller, Limits, PATIENCE, Share, Version, blocking};
use crate::domain::id::SandboxId;

/// The time over which a quota of processor time is counted, in microseconds; the kernel's default.
const PERIOD_US: u64 = 100_000;

const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

/// The cgroup of one sandbox. [`Cgroup::release`] is the way out; one that is dropped is removed if
/// no process is in it, and stays for [`Cgroups::list`] to find otherwise.
#[derive(Debug)]
pub struct Cgroup {
    id: SandboxId,
    /// In the order of the hierarchies; those that exist.
    places: Vec<Place>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Present,
    Released,
}

/// One directory of a sandbox's cgroup.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) version: Version,
    pub(super) controllers: Vec<Controller>,
}

/// Counts the processor time of a cgroup, also when somebody else has that.
#[derive(Debug)]
pub struct CpuMeter {
    path: PathBuf,
    version: Version,
}

/// A way for a child process to enter a cgroup before it executes anything.
#[derive(Debug)]
pub struct CgroupEntry {
    procs: Vec<OwnedFd>,
}

impl Cgroup {
    pub(super) fn new(id: SandboxId, places: Vec<Place>) -> Self {
        Self { id, places, state: State::Present }
    }

    pub(super) fn places(&self) -> &[Place] {
        &self.places
    }

    /// Changes what the sandbox may use.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Write`].
    pub fn set_limits(&self, limits: Limits) -> Result<(), CgroupError> {
        self.places.iter().try_for_each(|place| place.limit(limits))
    }

    /// Changes what the sandbox gets of processors that others want too.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Write`].
    pub fn set_share(&self, vcpus: u32, share: Share) -> Result<(), CgroupError> {
        self.places.iter().try_for_each(|place| place.share(vcpus, share))
    }

    /// Whose cgroup this is.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Opens the way in for a child process.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Write`].
    pub fn entry(&self) -> Result<CgroupEntry, CgroupError> {
        let open = |place: &Place| {
            let path = place.procs();
            let file = File::options().write(true).open(&path);
            file.map(OwnedFd::from).map_err(|source| CgroupError::Write {
                path,
                value: String::new(),
                source,
            })
        };
        Ok(CgroupEntry { procs: self.places.iter().map(open).collect::<Result<_, _>>()? })
    }

    /// Moves a running process into the cgroup. What it has started before stays where it is.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Write`].
    pub async fn add(&self, pid: u32) -> Result<(), CgroupError> {
        let places = self.places.clone();
        let add =
            move || places.iter().try_for_each(|place| write(&place.procs(), &pid.to_string()));
        blocking(add).await
    }

    /// Kills every process in the cgroup and waits until all are gone.
    ///
    /// # Errors
    ///
    /// [`CgroupError::StillAlive`] when some are left after seconds.
    pub async fn kill(&self) -> Result<(), CgroupError> {
        let (places, id) = (self.places.clone(), self.id.clone());
        blocking(move || {
            let mut pause = Pause::new();
            loop {
                let mut alive = BTreeSet::new();
                for place in &places {
                    alive.extend(place.pids()?);
                }
                if alive.is_empty() {
                    return Ok(());
                }
                let at_once = places.iter().any(|place| place.kill_all().is_ok());
                if !at_once {
                    for pid in alive {
                        // One that ended meanwhile is what is wanted.
                        let _ = kill(pid, Signal::SIGKILL);
                    }
                }
                if !pause.wait() {
                    return Err(CgroupError::StillAlive { id });
                }
            }
        })
        .await
    }

    /// What counts its processor time; none if this machine does not.
    pub fn cpu_meter(&self) -> Option<CpuMeter> {
        let counts = |place: &&Place| place.controllers.contains(&Controller::CpuAccounting);
        let place = self.places.iter().find(counts)?;
        let file = match place.version {
            Version::V1 => "cpuacct.usage",
            Version::V2 => "cpu.stat",
        };
        Some(CpuMeter { path: place.dir.join(file), version: place.version })
    }

    /// Removes the cgroup. Waits while the kernel is not yet done with processes that ended, and ends
    /// those that come late: one that a daemon forked just before it was killed itself enters when it
    /// gets to it. Once polled, it goes on even if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Remove`] with the first directory that could not be removed; the others are.
    pub async fn release(mut self) -> Result<(), CgroupError> {
        self.state = State::Released;
        let places = std::mem::take(&mut self.places);
        blocking(move || {
            let mut pause = Pause::new();
            let removals = places.iter().map(|place| {
                let removed = place.remove(&mut pause);
                place.remove_empty_parents();
                removed
            });
            removals.collect::<Vec<_>>().into_iter().collect()
        })
        .await
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.state == State::Present {
            for place in &self.places {
                // Refused while a process is in it, which is then meant to live on.
                if fs::remove_dir(&place.dir).is_ok() {
                    place.remove_empty_parents();
                }
            }
        }
    }
}

impl CpuMeter {
    /// Processor time since the cgroup was made, of all that is or was in it; none once it is gone.
    /// Reads one small file.
    pub fn read(&self) -> Option<Duration> {
        cpu_time(self.version, &fs::read_to_string(&self.path).ok()?)
    }
}

impl CgroupEntry {
    /// Another one, for a second process.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { procs: self.procs.iter().map(OwnedFd::try_clone).collect::<Result<_, _>>()? })
    }

    /// Moves the calling process into the cgroup. Safe between fork and exec: it only writes to
    /// descriptors that are open already.
    ///
    /// # Errors
    ///
    /// What the kernel says, for instance `EAGAIN` when the limit of processes is reached.
    pub fn enter(&self) -> io::Result<()> {
        for procs in &self.procs {
            // Zero stands for the writer.
            nix::unistd::write(procs, b"0")?;
        }
        Ok(())
    }
}

impl Place {
    fn procs(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    pub(super) fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        let path = self.procs();
        match fs::read_to_string(&path) {
            Ok(text) => {
                Ok(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect())
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(source) => Err(CgroupError::Read { path, source }),
        }
    }

    fn kill_all(&self) -> io::Result<()> {
        if !self.controllers.contains(&Controller::Kill) {
            return Err(io::ErrorKind::Unsupported.into());
        }
        // The file is there from Linux 5.14 on; it must not be made where it is not.
        let mut file = File::options().write(true).open(self.dir.join("cgroup.kill"))?;
        io::Write::write_all(&mut file, b"1")
    }

    /// Sets the limits that this directory's controllers have.
    pub(super) fn limit(&self, limits: Limits) -> Result<(), CgroupError> {
        let quota = u64::from(limits.vcpus + 1) * PERIOD_US;
        for controller in &self.controllers {
            let settings = match (controller, self.version) {
                (Controller::Memory, Version::V1) => {
                    vec![("memory.limit_in_bytes", limits.memory_bytes.to_string())]
                }
                (Controller::Memory, Version::V2) => vec![
                    ("memory.max", limits.memory_bytes.to_string()),
                    // Half a sandbox is of no use to anybody.
                    ("memory.oom.group", "1".to_owned()),
                ],
                (Controller::Pids, _) => vec![("pids.max", limits.pids.to_string())],
                (Controller::Cpu, Version::V1) => vec![
                    ("cpu.shares", shares(limits.vcpus, limits.share).to_string()),
                    ("cpu.cfs_quota_us", quota.to_string()),
                ],
                (Controller::Cpu, Version::V2) => vec![
                    ("cpu.weight", weight(limits.vcpus, limits.share).to_string()),
                    ("cpu.max", format!("{quota} {PERIOD_US}")),
                ],
                (Controller::Devices, Version::V1) => limits.devices.v1_settings(),
                (Controller::Devices, Version::V2) => {
                    let restricted = limits.devices.restrict(&self.dir);
                    restricted.map_err(|source| CgroupError::Devices {
                        path: self.dir.clone(),
                        source,
                    })?;
                    Vec::new()
                }
                (Controller::CpuAccounting | Controller::Kill, _) => Vec::new(),
            };
            for (name, value) in settings {
                match write(&self.dir.join(name), &value) {
                    // A kernel may be built without quotas of processor time.
                    Err(CgroupError::Write { source, .. })
                        if *controller == Controller::Cpu
                            && source.kind() == io::ErrorKind::NotFound => {}
                    other => other?,
                }
            }
        }
        Ok(())
    }

    fn share(&self, vcpus: u32, share: Share) -> Result<(), CgroupError> {
        if !self.controllers.contains(&Controller::Cpu) {
            return Ok(());
        }
        match self.version {
            Version::V1 => write(&self.dir.join("cpu.shares"), &shares(vcpus, share).to_string()),
            Version::V2 => write(&self.dir.join("cpu.weight"), &weight(vcpus, share).to_string()),
        }
    }

    fn remove(&self, pause: &mut Pause) -> Result<(), CgroupError> {
        loop {
            match fs::remove_dir(&self.dir) {
                Err(e) if e.raw_os_error() == Some(Errno::EBUSY as i32) && pause.wait() => {
                    self.end_latecomers();
                }
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return Err(CgroupError::Remove { path: self.dir.clone(), source: e });
                }
                _ => return Ok(()),
            }
        }
    }

    fn end_latecomers(&self) {
        if self.kill_all().is_err() {
            for pid in self.pids().unwrap_or_default() {
                // One that ended meanwhile is what is wanted.
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }

    /// Removes what is above this directory if it was the last one in it.
    fn remove_empty_parents(&self) {
        for parent in self.dir.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                return;
            }
        }
    }
}

/// Version 1 counts from 1024 for one processor.
fn shares(vcpus: u32, share: Share) -> u64 {
    share.of(1024 * u64::from(vcpus))
}

/// Version 2 counts from 100 for one processor, to 10,000.
fn weight(vcpus: u32, share: Share) -> u64 {
    share.of(100 * u64::from(vcpus)).min(10_000)
}

/// Growing pauses that add up to [`PATIENCE`].
struct Pause {
    until: Instant,
    next: Duration,
}

impl Pause {
    fn new() -> Self {
        Self { until: Instant::now() + PATIENCE, next: FIRST_PAUSE }
    }

    /// Sleeps a little; says whether there is patience left.
    fn wait(&mut self) -> bool {
        if Instant::now() >= self.until {
            return false;
        }
        std::thread::sleep(self.next);
        self.next = (self.next * 2).min(LAST_PAUSE);
        true
    }
}

pub(super) fn cpu_time(version: Version, text: &str) -> Option<Duration> {
    match version {
        Version::V1 => text.trim().parse().ok().map(Duration::from_nanos),
        Version::V2 => {
            let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec "));
            usage?.trim().parse().ok().map(Duration::from_micros)
        }
    }
}

/// Writes a value to a file that is there; makes none, as a plain directory would let one do.
fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    let file = File::options().write(true).open(path);
    file.and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes())).map_err(|source| {
        CgroupError::Write { path: path.to_owned(), value: value.to_owned(), source }
    })
}
