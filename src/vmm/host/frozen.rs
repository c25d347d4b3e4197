//! A machine of this host that is frozen: a directory with a record and a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::Host;
use super::capture::seal;
use super::resources::{MachineResources, snapshot_dir};
use super::running::HostMachine;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::name::TemplateName;
use crate::domain::snapshot::{Existing, SnapshotInfo, Storage};
use crate::domain::status::SandboxStatus;
use crate::vmm::machine::{Frozen, Machine, MachineError, Run};
use crate::vmm::record::{RecordFile, Residency};
use crate::vmm::storage::memory::Durability;
use crate::vmm::storage::snapshot::{self, Snapshot};

/// A frozen machine.
pub(super) struct HostFrozen {
    host: Arc<Host>,
    dir: PathBuf,
    record: Arc<RecordFile>,
    /// Held while its files are used, so that they are not merged under somebody's hands.
    files: Arc<Mutex<()>>,
    /// Somebody needs the files now.
    wanted: Arc<AtomicBool>,
}

impl HostFrozen {
    pub fn new(host: Arc<Host>, dir: PathBuf, record: Arc<RecordFile>) -> Self {
        let (files, wanted) = (Arc::default(), Arc::default());
        Self { host, dir, record, files, wanted }
    }

    /// Where its snapshot is.
    fn snapshot_dir(&self) -> PathBuf {
        let build = self.record.get().snapshot.expect("what is frozen has a snapshot");
        snapshot_dir(&self.dir, build)
    }

    async fn open(&self) -> Result<Arc<Snapshot>, MachineError> {
        let dir = self.snapshot_dir();
        let opened = tokio::task::spawn_blocking(move || Snapshot::open(&dir)).await;
        Ok(Arc::new(opened.expect("opening files does not panic")?))
    }

    /// Interrupts the merging of files, and keeps it from beginning.
    async fn claim(&self) -> tokio::sync::OwnedMutexGuard<()> {
        self.wanted.store(true, Ordering::SeqCst);
        let files = self.files.clone().lock_owned().await;
        self.wanted.store(false, Ordering::SeqCst);
        files
    }
}

/// Makes a machine of what is in `dir`; on failure it is as it was.
async fn resume(
    host: &Arc<Host>,
    dir: &Path,
    record: Arc<RecordFile>,
    snapshot: Arc<Snapshot>,
    run: &Run,
) -> Result<HostMachine, MachineError> {
    let mut resources = MachineResources::new(dir.to_owned());
    resources.record = Some(record.clone());
    resources.snapshot = Some(snapshot);
    let restored = match host.restore(&mut resources, run).await {
        // From here on its VM is what counts; a daemon that ends before leaves it paused.
        Ok(agent) => match record.update(|record| record.residency = Residency::Vm) {
            Ok(()) => Ok(agent),
            Err(error) => Err(error.into()),
        },
        Err(error) => Err(error),
    };
    match restored {
        Ok(agent) => Ok(HostMachine::new(host.clone(), resources, agent)),
        Err(error) => {
            let remains = resources.release().await;
            if !remains.is_empty() {
                tracing::error!(dir = %dir.display(), remains = remains.join("; "),
                    "something is left of a VM that could not be resumed");
            }
            Err(error)
        }
    }
}

#[async_trait]
impl Frozen for HostFrozen {
    fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError> {
        Ok(self.record.update(|record| record.status = status.clone())?)
    }

    fn network(&self) -> PolicyRevision {
        self.record.get().policy()
    }

    fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError> {
        // A paused sandbox outlives a crash of the host, and so does what it may reach.
        self.record.commit(|record| record.set_policy(policy))?;
        Ok(self.record.get().policy())
    }

    async fn storage(&self) -> Result<Storage, MachineError> {
        Ok(self.open().await?.storage()?)
    }

    async fn resume(&self, run: &Run) -> Result<Arc<dyn Machine>, MachineError> {
        let files = self.claim().await;
        let snapshot = run.trace.span("open", self.open()).await?;
        // Sealed since it was paused, but for what a crash or an older version has left.
        run.trace.span("seal", seal(&snapshot, Durability::Synced, run)).await?;
        let (host, dir) = (self.host.clone(), self.dir.clone());
        let (record, run) = (self.record.clone(), run.clone());
        let work = async move {
            let _files = files;
            resume(&host, &dir, record, snapshot, &run).await
        };
        Ok(Arc::new(self.host.run(work).await?))
    }

    async fn snapshot(
        &self,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, MachineError> {
        self.host.check_name(name, existing).await?;
        let _files = self.claim().await;
        self.host.name(self.open().await?, name, existing).await
    }

    async fn tidy(&self) {
        let files = self.files.clone().lock_owned().await;
        let (dir, wanted) = (self.snapshot_dir(), self.wanted.clone());
        let work = move || {
            let _files = files;
            snapshot::merge(&dir, &|| wanted.load(Ordering::SeqCst))
        };
        match tokio::task::spawn_blocking(work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(dir = %self.dir.display(), error = %crate::chain(&error),
                    "a snapshot was not merged");
            }
            Err(error) => tracing::error!(%error, "merging a snapshot was interrupted"),
        }
    }

    async fn destroy(&self) -> Result<(), MachineError> {
        let _files = self.claim().await;
        let remains = MachineResources::new(self.dir.clone()).dismantle().await;
        match remains.is_empty() {
            true => Ok(()),
            false => Err(MachineError::Remains(remains)),
        }
    }
}
