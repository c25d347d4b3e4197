//! The control plane: everything the API can ask for, as one handle.
//!
//! It owns the database and the order of things: a sandbox is recorded before a host is asked to
//! make it, and an answer is given only when everybody can read what it says. Whatever changes
//! something runs to its end even if nobody waits for it any more.
//!
//! Architecture invariant: hosts are known as [`HostClient`]s alone. Nothing here knows a machine, an
//! actor of a host or a guest's agent.

mod create;
#[cfg(test)]
mod create_tests;
mod destroy;
mod error;
mod events;
mod fork;
mod host;
mod hosts;
mod idempotency;
mod keys;
mod network;
mod pause;
mod records;
mod sink;
mod snapshots;
mod usage;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::Instant;

use super::host_client::HostClient;
use super::metrics::Metrics;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::{Admission, Command, Refused, admit};
use crate::domain::snapshot::Storage;
use crate::entity::sandboxes::{Filter, Page, Sandbox, Window};
use crate::entity::{Cursor, Database};

pub use super::host::workplace::{
    Bytestream, ExecEvents, FileContent, FileFeed, FollowHandle, PortStream, PortWatch, Workplace,
};
pub use create::CreateSandbox;
pub use error::ControlError;
pub use events::{EventFeed, EventPage};
pub use host::start_host;
pub use hosts::Hosts;
pub use keys::{CallerId, NewKey, TokenSecret};
pub use sink::DatabaseSink;

/// A row that is ahead of its host, or behind it, is so for moments only.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// The control plane's handle; cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    database: Database,
    hosts: Hosts,
    metrics: Arc<Metrics>,
    secret: TokenSecret,
}

impl ControlPlane {
    /// Puts the control plane together.
    pub fn new(
        database: Database,
        hosts: Hosts,
        metrics: Arc<Metrics>,
        secret: TokenSecret,
    ) -> Self {
        Self { database, hosts, metrics, secret }
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The sandbox called `id`.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`].
    pub async fn get(&self, id: &SandboxId) -> Result<Sandbox, ControlError> {
        let found = self.database.sandboxes().find(id).await?;
        found.ok_or_else(|| ControlError::NoSandbox(id.clone()))
    }

    /// One page of the sandboxes, newest first.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn list(
        &self,
        filter: &Filter,
        limit: NonZeroU32,
        after: Option<Cursor>,
    ) -> Result<Page, ControlError> {
        Ok(self.database.sandboxes().list(filter, &Window { limit, after }).await?)
    }

    /// Forgets the sandboxes that have ended; gives their number.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn forget_ended(&self) -> Result<u64, ControlError> {
        Ok(self.database.sandboxes().delete_over_before(Utc::now()).await?)
    }

    /// What a sandbox takes on disk; none if nothing is left of it, or it cannot be told.
    pub async fn storage(&self, id: &SandboxId) -> Option<Storage> {
        let host = self.hosts.holding(id)?;
        host.storage(id).await.unwrap_or_else(|error| {
            tracing::warn!(sandbox_id = %id, error = error.cause,
                "failed to read what a sandbox takes on disk");
            None
        })
    }

    /// Leads into a sandbox, to work in it.
    ///
    /// # Errors
    ///
    /// [`ControlError::Refused`], [`ControlError::NoSandbox`].
    pub async fn workplace(&self, id: &SandboxId) -> Result<Workplace, ControlError> {
        if let Some(workplace) = self.hosts.workplace(id) {
            return Ok(workplace);
        }
        let host = self.host_of(id, Command::Work).await?;
        host.workplace(id).ok_or(ControlError::Gone)
    }

    /// Has a sandbox destroyed unless this is said again within so many seconds; or no more, if that is
    /// none.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`], [`ControlError::Refused`] if it is gone.
    pub async fn set_lease(
        &self,
        id: &SandboxId,
        lease_sec: Option<u32>,
    ) -> Result<(), ControlError> {
        Ok(self.host_of(id, Command::Work).await?.set_lease(id, lease_sec).await?)
    }

    /// The host of the sandbox that `command` is for, if that may be done to it.
    async fn host_of(
        &self,
        id: &SandboxId,
        command: Command,
    ) -> Result<Arc<dyn HostClient>, ControlError> {
        // Whoever has it knows best.
        if let Some(host) = self.hosts.holding(id) {
            return Ok(host);
        }
        let sandbox = self.get(id).await?;
        match admit(sandbox.state, None, command) {
            Admission::Refused(refusal) => Err(Refused { refusal, reason: sandbox.reason }.into()),
            // Recorded as living: its host says whether it is.
            Admission::Accept | Admission::AlreadySo => self.hosts.get(&sandbox.host_id),
        }
    }

    /// Does `work` and counts how it went.
    async fn measured<T>(
        &self,
        operation: &'static str,
        work: impl Future<Output = Result<T, ControlError>>,
    ) -> Result<T, ControlError> {
        let started = Instant::now();
        let outcome = work.await;
        match &outcome {
            Ok(_) => self.metrics.operation_done(operation, started.elapsed()),
            Err(error) if error.kind().is_failure() => self.metrics.operation_failed(operation),
            Err(_) => {}
        }
        outcome
    }
}

/// Runs `work` to its end, even if the caller goes away.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ControlError>> + Send + 'static,
) -> Result<T, ControlError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(ControlError::ShuttingDown),
    }
}
