//! The one small file per sandbox that lets a later daemon find its VM again.
//!
//! It is written before anything it names is made, so that a crash at any moment leaves enough to
//! clean up. It need not survive a crash of the host while the sandbox is in a VM, for that does not
//! either; that a sandbox is in its snapshot now is brought to disk before it is so.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::status::SandboxStatus;
use crate::vmm::process::ProcessId;
use crate::vmm::storage::memory::BuildId;

/// Name of the file in a sandbox's directory.
const FILE: &str = "sandbox.json";

/// What went wrong with a record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// It could not be written.
    #[error("cannot write {path}")]
    Write { path: PathBuf, source: io::Error },
    /// It is not there, or cannot be read.
    #[error("cannot read {path}")]
    Read { path: PathBuf, source: io::Error },
    /// It is not what this version writes.
    #[error("{path} is no sandbox record")]
    Malformed { path: PathBuf, source: serde_json::Error },
}

/// Where everything is that a sandbox consists of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Residency {
    /// In its VM. Its snapshot is what the VM was restored from.
    Vm,
    /// In its snapshot. Whatever else there is has been left over, or is about to be made from it.
    Snapshot,
}

/// Everything a host needs to find a sandbox again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The sandbox's id.
    pub id: SandboxId,
    /// What it was created from.
    pub template: TemplateName,
    /// The image that it all began with.
    pub image: TemplateName,
    /// Its VM's shape.
    pub shape: Shape,
    /// What runs its VM.
    pub engine: Engine,
    /// What its agent expects with every request; nothing yet, while it has no guest.
    pub access_token: String,
    /// Environment that its agent gives to processes.
    pub envs: BTreeMap<String, String>,
    /// What it may reach.
    #[serde(default)]
    pub network: Policy,
    /// How often that was changed.
    #[serde(default)]
    pub network_revision: i64,
    /// How fast it may use its disk and its network.
    #[serde(default)]
    pub rates: RateLimits,
    /// Where it all is.
    #[serde(rename = "home")]
    pub residency: Residency,
    /// Build of the snapshot that it was last restored from or captured in.
    pub snapshot: Option<BuildId>,
    /// Number of its network slot, once it has one.
    pub slot: Option<u32>,
    /// Its VM's process, once there is one. Sockets have fixed names beside the record.
    pub process: Option<ProcessId>,
    /// Where it is in its life.
    #[serde(rename = "life")]
    pub status: SandboxStatus,
}

impl Record {
    /// What it may reach, and how often that was changed.
    pub fn policy(&self) -> PolicyRevision {
        PolicyRevision { policy: self.network.clone(), revision: self.network_revision }
    }

    /// Changes what it may reach.
    pub fn set_policy(&mut self, policy: &Policy) {
        self.network = policy.clone();
        self.network_revision += 1;
    }

    /// That of a machine that is no sandbox, or not yet, so that a later daemon takes away what is left of
    /// it.
    pub fn unassigned(
        id: &SandboxId,
        image: &TemplateName,
        shape: Shape,
        rates: RateLimits,
        engine: Engine,
    ) -> Self {
        Self {
            id: id.clone(),
            template: image.clone(),
            image: image.clone(),
            shape,
            engine,
            access_token: String::new(),
            envs: BTreeMap::new(),
            network: Policy::default(),
            network_revision: 0,
            rates,
            residency: Residency::Vm,
            snapshot: None,
            slot: None,
            process: None,
            status: SandboxStatus::unassigned(),
        }
    }

    /// Makes the record of something that was made ahead that of a sandbox, which has its slot and its
    /// process.
    pub fn hand_over_to(&mut self, sandbox: Self) {
        *self = Self { slot: self.slot, process: self.process, ..sandbox };
    }
}

/// A record together with its file.
#[derive(Debug)]
pub struct RecordFile {
    path: PathBuf,
    record: Mutex<Record>,
}

impl RecordFile {
    /// Writes a new record into `dir`.
    ///
    /// # Errors
    ///
    /// [`RecordError::Write`].
    pub fn create(dir: &Path, record: Record) -> Result<Self, RecordError> {
        let file = Self { path: dir.join(FILE), record: Mutex::new(record) };
        file.update(|_| {})?;
        Ok(file)
    }

    /// Reads the record in `dir`.
    ///
    /// # Errors
    ///
    /// [`RecordError::Read`] and [`RecordError::Malformed`].
    pub fn read(dir: &Path) -> Result<Self, RecordError> {
        let path = dir.join(FILE);
        let text = std::fs::read(&path)
            .map_err(|source| RecordError::Read { path: path.clone(), source })?;
        match serde_json::from_slice(&text) {
            Ok(record) => Ok(Self { path, record: Mutex::new(record) }),
            Err(source) => Err(RecordError::Malformed { path, source }),
        }
    }

    /// What the record says now.
    pub fn get(&self) -> Record {
        self.lock().clone()
    }

    /// Changes the record and its file together; the file holds the old record or the new one.
    ///
    /// Blocks for a small write into the page cache.
    ///
    /// # Errors
    ///
    /// [`RecordError::Write`]; nothing has changed then.
    pub fn update(&self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        self.replace(change, |_| Ok(()))
    }

    /// The same, and the change survives a crash of the host. Blocks for the disk.
    ///
    /// # Errors
    ///
    /// [`RecordError::Write`]; nothing has changed then.
    pub fn commit(&self, change: impl FnOnce(&mut Record)) -> Result<(), RecordError> {
        let former = self.get();
        self.replace(change, File::sync_all)?;
        let dir = self.path.parent().expect("a record is in a directory");
        let named = File::open(dir).and_then(|dir| dir.sync_all());
        named.map_err(|source| {
            // A daemon that starts now must not believe what the caller is told has failed.
            let _ = self.update(|record| *record = former);
            RecordError::Write { path: self.path.clone(), source }
        })
    }

    fn replace(
        &self,
        change: impl FnOnce(&mut Record),
        sync: impl FnOnce(&File) -> io::Result<()>,
    ) -> Result<(), RecordError> {
        let mut record = self.lock();
        let mut changed = record.clone();
        change(&mut changed);
        let text = serde_json::to_vec_pretty(&changed).expect("a record has only string keys");
        let temporary = self.path.with_extension("json.new");
        let written = write_private(&temporary, &text)
            .and_then(|file| sync(&file))
            .and_then(|()| std::fs::rename(&temporary, &self.path));
        if let Err(source) = written {
            // The error is the one to tell; half a file is of use to nobody.
            let _ = std::fs::remove_file(&temporary);
            return Err(RecordError::Write { path: self.path.clone(), source });
        }
        *record = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        // A panic while it was held cannot have left half a record: changes are assignments.
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The file holds the access token, so only root reads it.
fn write_private(path: &Path, text: &[u8]) -> io::Result<File> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_reads_back_with_its_changes() {
        let dir = tempfile::tempdir().expect("a directory");
        let record = Record {
            id: SandboxId::random(),
            template: "debian".parse().expect("a name"),
            shape: Shape::DEFAULT,
            image: "debian".parse().expect("a name"),
            engine: Engine::QemuTcg,
            access_token: "secret".to_owned(),
            envs: BTreeMap::new(),
            network: Policy::off(),
            network_revision: 0,
            rates: RateLimits::default(),
            residency: Residency::Vm,
            snapshot: None,
            slot: None,
            process: None,
            status: SandboxStatus { timeout_sec: Some(60), ..SandboxStatus::unassigned() },
        };
        let file = RecordFile::create(dir.path(), record.clone()).expect("writes");
        assert_eq!(RecordFile::read(dir.path()).expect("reads").get(), record);
        file.update(|record| record.slot = Some(7)).expect("writes");
        assert_eq!(RecordFile::read(dir.path()).expect("reads").get().slot, Some(7));
    }
}
