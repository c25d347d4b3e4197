//! Named snapshots: the files are on the host, and the records follow them.
//!
//! A record is written only after its files, and taken away only after them; a crash in between is
//! mended by the next start, or by asking for the same again.

use std::num::NonZeroU32;
use std::sync::Arc;

use chrono::{SubsecRound, Utc};

use super::{ControlError, ControlPlane, to_the_end};
use crate::actors::host_client::HostClient;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::Command;
use crate::domain::name::TemplateName;
use crate::domain::snapshot::{Existing, SnapshotInfo};
use crate::entity::Cursor;
use crate::entity::snapshots::{Page, Snapshot};

impl ControlPlane {
    /// Keeps what a running or paused sandbox is now under a name. A caller that goes away does not
    /// cancel it.
    ///
    /// # Errors
    ///
    /// The sandbox is as it was, or its state says what became of it.
    /// A name that is taken is a conflict.
    pub async fn create_snapshot(
        &self,
        id: &SandboxId,
        name: TemplateName,
        existing: Existing,
    ) -> Result<Snapshot, ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move {
            let host = control.host_of(&id, Command::Snapshot).await?;
            let taken = async { Ok(host.snapshot(&id, &name, existing).await?) };
            let info = control.measured("snapshot", taken).await?;
            control.follow_snapshot(&host, &name).await?;
            Ok(snapshot_of(host.id(), info))
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
            // A snapshot that is not recorded is on the host that makes new sandboxes, if anywhere.
            let host = match &known {
                Some(known) => control.hosts.get(&known.host_id)?,
                None => control.hosts.all().next().cloned().ok_or(ControlError::NoHost)?,
            };
            match (host.remove_snapshot(&name).await?, known) {
                (false, None) => Err(ControlError::NoSnapshot(name)),
                // A record without files: the daemon ended in between.
                (true, _) | (false, Some(_)) => control.follow_snapshot(&host, &name).await,
            }
        })
        .await
    }

    /// Makes the record of a snapshot say what is on a host's disk now. Whatever else is done to the
    /// same name meanwhile, the last one to look is right: who finds the record changed since looks
    /// again.
    async fn follow_snapshot(
        &self,
        host: &Arc<dyn HostClient>,
        name: &TemplateName,
    ) -> Result<(), ControlError> {
        let records = self.database.snapshots();
        loop {
            let known = records.find(name).await?.map(|known| known.build);
            let on_disk = host.snapshots().await?;
            let on_disk = on_disk.into_iter().find(|snapshot| snapshot.name == *name);
            let written = match (on_disk, known) {
                (Some(snapshot), known) => {
                    records.put(&snapshot_of(host.id(), snapshot), known.as_deref()).await?
                }
                (None, Some(known)) => records.remove(name, &known, Utc::now()).await?,
                (None, None) => true,
            };
            if written {
                return Ok(());
            }
        }
    }

    /// Makes all records of a host say what is on its disk.
    pub(super) async fn reconcile_snapshots(
        &self,
        host: &Arc<dyn HostClient>,
    ) -> Result<(), ControlError> {
        let on_disk = host.snapshots().await?;
        let records: Vec<Snapshot> =
            on_disk.into_iter().map(|snapshot| snapshot_of(host.id(), snapshot)).collect();
        let all = self.database.snapshots();
        for name in all.replace_all(host.id(), &records, Utc::now()).await? {
            tracing::warn!(%name, "another host has a snapshot of that name, this one is not used");
        }
        Ok(())
    }
}

/// The record of a snapshot on a host.
fn snapshot_of(host_id: &str, snapshot: SnapshotInfo) -> Snapshot {
    let SnapshotInfo { name, build, sandbox_id, image, shape, engine, storage, created_at } =
        snapshot;
    Snapshot {
        name,
        host_id: host_id.to_owned(),
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
