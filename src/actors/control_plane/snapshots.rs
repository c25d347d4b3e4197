//! Named snapshots: the files are on the host, and the records follow them.
//!
//! A record is written only after its files, and taken away only after them; a crash in between is
//! mended by the next start, or by asking for the same again.

use std::num::NonZeroU32;

use chrono::{SubsecRound, Utc};

use super::{ControlError, ControlPlane, to_the_end};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::Command;
use crate::entity::Cursor;
use crate::entity::snapshots::{Page, Snapshot};
use crate::vmm::machine::{Existing, MachineError, SnapshotInfo};

impl ControlPlane {
    /// Keeps what a running or paused sandbox is now under a name. A caller that goes away does not
    /// cancel it.
    ///
    /// # Errors
    ///
    /// The sandbox is as it was, or its state says what became of it.
    /// [`MachineError::SnapshotExists`] and [`MachineError::NameOfImage`] within.
    pub async fn create_snapshot(
        &self,
        id: &SandboxId,
        name: TemplateName,
        existing: Existing,
    ) -> Result<Snapshot, ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move {
            let handle = control.find_live(&id, Command::Snapshot).await?;
            let taken = async { Ok(handle.snapshot(name.clone(), existing).await?) };
            let info = control.measured("snapshot", taken).await?;
            control.follow(&name).await?;
            Ok(control.record(info))
        })
        .await
    }

    /// The snapshot called `name`.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSnapshot`].
    pub async fn snapshot(&self, name: &TemplateName) -> Result<Snapshot, ControlError> {
        let found = self.database.snapshots().find(name).await?;
        found.ok_or_else(|| ControlError::NoSnapshot(name.clone()))
    }

    /// One page of the snapshots, newest first.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn snapshots(
        &self,
        limit: NonZeroU32,
        after: Option<Cursor<TemplateName>>,
    ) -> Result<Page, ControlError> {
        Ok(self.database.snapshots().list(limit, after.as_ref()).await?)
    }

    /// Removes a snapshot; sandboxes that were made from it live on. A caller that goes away does
    /// not cancel it.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSnapshot`]. After any other one it can be removed again.
    pub async fn remove_snapshot(&self, name: &TemplateName) -> Result<(), ControlError> {
        let (control, name) = (self.clone(), name.clone());
        to_the_end(async move {
            let known = control.database.snapshots().find(&name).await?;
            match (control.machines.remove_snapshot(&name).await, known) {
                (Err(MachineError::UnknownTemplate(_)), None) => {
                    Err(ControlError::NoSnapshot(name))
                }
                // A record without files: the daemon ended in between.
                (Ok(()), _) | (Err(MachineError::UnknownTemplate(_)), Some(_)) => {
                    control.follow(&name).await
                }
                (Err(error), _) => Err(ControlError::Machine(error)),
            }
        })
        .await
    }

    /// Makes the record of a snapshot say what is on the host's disk now. Whatever else is done to
    /// the same name meanwhile, the last one to look is right.
    async fn follow(&self, name: &TemplateName) -> Result<(), ControlError> {
        let _alone = self.snapshot_records.lock().await;
        let on_disk = self.machines.snapshots().await.map_err(ControlError::Machine)?;
        let records = self.database.snapshots();
        match on_disk.into_iter().find(|snapshot| snapshot.name == *name) {
            Some(snapshot) => records.put(&self.record(snapshot)).await?,
            None => {
                if let Some(known) = records.find(name).await? {
                    records.remove(name, &known.build, Utc::now()).await?;
                }
            }
        }
        Ok(())
    }

    /// Makes all records of this host say what is on its disk.
    pub(super) async fn reconcile_snapshots(&self) -> Result<(), ControlError> {
        let on_disk = self.machines.snapshots().await.map_err(ControlError::Machine)?;
        let records: Vec<Snapshot> =
            on_disk.into_iter().map(|snapshot| self.record(snapshot)).collect();
        let all = self.database.snapshots();
        for name in all.replace_all(self.host.id(), &records, Utc::now()).await? {
            tracing::warn!(%name, "another host has a snapshot of that name, this one is not used");
        }
        Ok(())
    }

    fn record(&self, snapshot: SnapshotInfo) -> Snapshot {
        let SnapshotInfo { name, build, sandbox_id, image, shape, engine, storage, created_at } =
            snapshot;
        Snapshot {
            name,
            host_id: self.host.id().to_owned(),
            build,
            sandbox_id,
            image,
            shape,
            hypervisor: engine.as_str().to_owned(),
            memory_bytes: storage.memory_bytes,
            disk_bytes: storage.disk_bytes,
            shared_bytes: storage.shared_bytes,
            memory_generations: storage.memory_generations,
            // As exactly as a database keeps it.
            created_at: created_at.trunc_subsecs(6),
        }
    }
}
