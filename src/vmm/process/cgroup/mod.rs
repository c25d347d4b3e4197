//! Control groups: what a VM and everything it starts may use, and a way to kill all of it.
//!
//! A sandbox's cgroup is `nestbox/{daemon}/{sandbox id}` in every hierarchy that has something to
//! offer, where `{daemon}` stands for the daemon's data directory, so that daemons on one machine
//! tell their own from the others'. A controller that the machine lacks is passed over, and
//! [`Cgroups::describe`] says so. This module knows ids and limits, but no VM.

mod devices;
mod group;
mod hierarchy;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::domain::id::SandboxId;

pub use devices::DeviceAccess;
use group::Place;
pub use group::{Cgroup, CgroupEntry, CpuMeter};
use hierarchy::Hierarchy;
pub use hierarchy::{Controller, Version};

/// Parent of everything of ours in each hierarchy.
const PARENT: &str = "nestbox";

/// How long the kernel may take to let go of killed processes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why an operation on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The machine's cgroup mounts cannot be listed.
    #[error("cannot find out which cgroups this machine has")]
    Discover(#[source] io::Error),

    /// The data directory of the daemon cannot be named.
    #[error("cannot resolve the data directory {}", path.display())]
    DataDir { path: PathBuf, source: io::Error },

    /// A directory of a cgroup cannot be made.
    #[error("cannot create the cgroup {}", path.display())]
    Create { path: PathBuf, source: io::Error },

    /// A file of a cgroup cannot be read.
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },

    /// A file of a cgroup does not take a value.
    #[error("cannot write {value:?} to {}", path.display())]
    Write { path: PathBuf, value: String, source: io::Error },

    /// The devices of a cgroup cannot be restricted.
    #[error("cannot restrict the devices of {}", path.display())]
    Devices { path: PathBuf, source: io::Error },

    /// A directory of a cgroup cannot be removed, perhaps because processes are left in it.
    #[error("cannot remove the cgroup {}", path.display())]
    Remove { path: PathBuf, source: io::Error },

    /// The sandbox has no cgroup that could be adopted.
    #[error("sandbox {id} has no cgroup")]
    NotFound { id: SandboxId },

    /// Processes of the sandbox live on after they were killed.
    #[error("processes of sandbox {id} are still alive {} s after they were killed", PATIENCE.as_secs())]
    StillAlive { id: SandboxId },

    /// The thread that did the work ended without an answer.
    #[error("the worker thread of a cgroup operation died")]
    WorkerDied,
}

/// What a sandbox may use on the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the VM process and its helpers, in bytes: more than the guest is given.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub pids: u32,
    /// vCPUs of the guest: its share when processors are scarce, and one processor more than that
    /// at most, so that the work a device does for the guest never slows down a busy vCPU.
    pub vcpus: u32,
    /// What it gets of processors that others want too.
    pub share: Share,
    /// Which devices its processes may open.
    pub devices: DeviceAccess,
}

/// What a sandbox gets of processors that others want too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Share {
    /// As much as its vCPUs say.
    #[default]
    Full,
    /// A tenth of that: nobody waits for it.
    Background,
}

impl Share {
    /// `full` in this share.
    fn of(self, full: u64) -> u64 {
        match self {
            Self::Full => full,
            Self::Background => full / 10,
        }
    }
}

/// Where a controller is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Support {
    /// What is asked about.
    pub controller: Controller,
    /// The hierarchy that offers it; `None` if this machine does not, and sandboxes do without.
    pub offered_by: Option<(Version, PathBuf)>,
}

/// All cgroups of one daemon.
#[derive(Debug, Clone)]
pub struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    daemon: String,
}

impl Cgroups {
    /// Finds what this machine offers, on behalf of a data directory, which has to exist.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Discover`], [`CgroupError::DataDir`]. A machine without any cgroup is no
    /// error.
    pub fn open(data_dir: &Path) -> Result<Self, CgroupError> {
        let data_dir = data_dir
            .canonicalize()
            .map_err(|source| CgroupError::DataDir { path: data_dir.to_owned(), source })?;
        let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
        let daemon = hex::encode(&digest[..6]);
        let hierarchies = hierarchy::discover().map_err(CgroupError::Discover)?;
        Ok(Self { hierarchies, daemon })
    }

    /// What this machine can do for sandboxes, and what it cannot.
    pub fn describe(&self) -> Vec<Support> {
        let offering = |controller| {
            let has = |hierarchy: &&Hierarchy| hierarchy.controllers.contains(&controller);
            self.hierarchies.iter().find(has).map(|found| (found.version, found.root.clone()))
        };
        let support = |controller| Support { controller, offered_by: offering(controller) };
        Controller::ALL.into_iter().map(support).collect()
    }

    /// Makes the cgroup of a sandbox with its limits. A leftover of the same name is used again.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Create`] or [`CgroupError::Write`]; nothing is left then.
    pub async fn create(&self, id: &SandboxId, limits: Limits) -> Result<Cgroup, CgroupError> {
        let (cgroups, id) = (self.clone(), id.clone());
        blocking(move || {
            let places = cgroups.hierarchies.iter().map(|h| cgroups.place(h, &id)).collect();
            // Before anything is made: dropping the guard on an error removes what there is.
            let cgroup = Cgroup::new(id, places);
            for (hierarchy, place) in cgroups.hierarchies.iter().zip(cgroup.places()) {
                cgroups.make(hierarchy, &place.dir)?;
                place.limit(limits)?;
            }
            Ok(cgroup)
        })
        .await
    }

    /// Takes over the cgroup of a sandbox that outlived its daemon.
    ///
    /// # Errors
    ///
    /// [`CgroupError::NotFound`].
    pub fn adopt(&self, id: &SandboxId) -> Result<Cgroup, CgroupError> {
        let places = self.hierarchies.iter().map(|hierarchy| self.place(hierarchy, id));
        let places: Vec<_> = places.filter(|place| place.dir.is_dir()).collect();
        if places.is_empty() {
            return Err(CgroupError::NotFound { id: id.clone() });
        }
        Ok(Cgroup::new(id.clone(), places))
    }

    /// Every sandbox of this daemon that has a cgroup: those that run and those that were left.
    ///
    /// # Errors
    ///
    /// [`CgroupError::Read`].
    pub fn list(&self) -> Result<Vec<SandboxId>, CgroupError> {
        let mut ids = BTreeSet::new();
        for hierarchy in &self.hierarchies {
            let path = self.parent(hierarchy);
            let entries = match fs::read_dir(&path) {
                Ok(entries) => entries,
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(source) => return Err(CgroupError::Read { path, source }),
            };
            let names = entries.flatten().map(|entry| entry.file_name());
            ids.extend(names.filter_map(|name| name.to_str()?.parse::<SandboxId>().ok()));
        }
        Ok(ids.into_iter().collect())
    }

    /// Removes the directories above sandboxes where there is none: a daemon that was killed between
    /// making the one and the other has left them, and no sandbox goes that could take them along.
    pub fn remove_empty(&self) {
        for hierarchy in &self.hierarchies {
            let parent = self.parent(hierarchy);
            // Refused while something is in it.
            if fs::remove_dir(&parent).is_ok() {
                let _ = fs::remove_dir(hierarchy.root.join(PARENT));
            }
        }
    }

    fn parent(&self, hierarchy: &Hierarchy) -> PathBuf {
        hierarchy.root.join(PARENT).join(&self.daemon)
    }

    fn place(&self, hierarchy: &Hierarchy, id: &SandboxId) -> Place {
        Place {
            dir: self.parent(hierarchy).join(id.as_str()),
            version: hierarchy.version,
            controllers: hierarchy.controllers.clone(),
        }
    }

    /// Makes a directory and those above it, which somebody who removes the last sandbox may be
    /// removing at the same time.
    fn make(&self, hierarchy: &Hierarchy, dir: &Path) -> Result<(), CgroupError> {
        let attempt = || {
            fs::create_dir_all(self.parent(hierarchy))?;
            enable_all(hierarchy, &self.parent(hierarchy))?;
            match fs::create_dir(dir) {
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                other => other,
            }
        };
        let retry = |_: io::Error| attempt();
        attempt()
            .or_else(retry)
            .or_else(retry)
            .map_err(|source| CgroupError::Create { path: dir.to_owned(), source })
    }
}

/// In version 2 a cgroup has only the controllers that every cgroup above it passes on.
fn enable_all(hierarchy: &Hierarchy, parent: &Path) -> io::Result<()> {
    if hierarchy.version == Version::V1 {
        return Ok(());
    }
    let above = parent.parent().expect("lies below the root of its hierarchy");
    for dir in [hierarchy.root.as_path(), above, parent] {
        for controller in hierarchy.controllers.iter().filter_map(|c| c.v2_name()) {
            hierarchy::enable(dir, controller)?;
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CgroupError> + Send + 'static,
) -> Result<T, CgroupError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| CgroupError::WorkerDied)?
}

#[cfg(test)]
#[path = "cgroup_tests.rs"]
mod tests;
