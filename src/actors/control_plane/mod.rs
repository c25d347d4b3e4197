//! The control plane: everything the API can ask for, as one handle.
//!
//! It owns the database and the order of things: a sandbox is recorded before a host is asked to
//! make it, and an answer is given only when everybody can read what it says. Whatever changes
//! something runs to its end even if nobody waits for it any more.

mod create;
mod error;
mod events;
mod files;
mod follow;
mod fork;
mod keys;
mod lease;
mod network;
mod pause;
mod ports;
mod processes;
mod records;
mod sink;
mod snapshots;
mod usage;
mod watch;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::{Instant, sleep};

use super::host::HostHandle;
use super::mailbox::CallError;
use super::metrics::Metrics;
use super::sandbox::{OperationError, Refused, SandboxHandle};
use super::sandbox_manager::Adoption;
use crate::domain::id::SandboxId;
use crate::domain::sandbox::{Admission, Command, SandboxState, admit};
use crate::entity::sandboxes::{Change, Filter, Page, Sandbox, Window};
use crate::entity::{Cursor, Database};
use crate::vmm::machine::Machines;

pub use create::CreateSandbox;
pub use error::{ControlError, ErrorKind};
pub use events::{EventFeed, EventPage};
pub use files::{Bytestream, FileContent};
pub use follow::{ExecEvents, FollowHandle};
pub use keys::{CallerId, NewKey, TokenSecret};
pub use ports::{PortStream, PortWatch};
pub use sink::DatabaseSink;
pub use usage::UsageReport;
pub use watch::FileFeed;

// What passes through from the host's edge to the API.
pub use crate::actors::sandbox::Sample;
pub use crate::vmm::machine::{Existing, Storage};
pub use crate::vmm::trace::{Span, Trace};

/// A row that is ahead of its actor, or behind it, is so for moments only.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// The control plane's handle; cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    database: Database,
    host: HostHandle,
    machines: Arc<dyn Machines>,
    metrics: Arc<Metrics>,
    secret: TokenSecret,
    /// Held while a key is deleted: of two at once, neither would see that the other takes the last.
    key_removal: Arc<tokio::sync::Mutex<()>>,
    /// Held while a record follows what a sandbox may reach: of two changes the later one stays.
    network_records: Arc<tokio::sync::Mutex<()>>,
    /// Held while the record of a snapshot follows its files.
    snapshot_records: Arc<tokio::sync::Mutex<()>>,
}

impl ControlPlane {
    /// Puts the control plane together.
    pub fn new(
        database: Database,
        host: HostHandle,
        machines: Arc<dyn Machines>,
        metrics: Arc<Metrics>,
        secret: TokenSecret,
    ) -> Self {
        Self {
            database,
            host,
            machines,
            metrics,
            secret,
            key_removal: Arc::default(),
            network_records: Arc::default(),
            snapshot_records: Arc::default(),
        }
    }

    /// What is counted and timed.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// How many sandboxes live here, by state.
    pub fn population(&self) -> BTreeMap<&'static str, usize> {
        let mut population = BTreeMap::new();
        for sandbox in self.host.sandboxes() {
            *population.entry(sandbox.life().state.as_str()).or_default() += 1;
        }
        population
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

    /// Ends a sandbox and gives back all it holds; idempotent, from every state. A caller that goes
    /// away does not cancel it.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`].
    pub async fn destroy(&self, id: &SandboxId) -> Result<(), ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move { control.destroy_now(&id).await }).await
    }

    async fn destroy_now(&self, id: &SandboxId) -> Result<(), ControlError> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            if let Some(handle) = self.host.find(id) {
                handle.destroy().await?;
            }
            let sandbox = self.get(id).await?;
            match sandbox.state {
                SandboxState::Stopped => return Ok(()),
                // Recorded a moment ago, or just over: its actor is about to come or to tell.
                _ if !sandbox.state.is_final() && Instant::now() < deadline => {
                    sleep(SETTLE_PAUSE).await;
                }
                // Only the record is left of it.
                _ => {
                    let change = Change {
                        state: SandboxState::Stopped,
                        reason: sandbox.reason,
                        slot: None,
                        at: Utc::now(),
                    };
                    let generation = sandbox.generation + 1;
                    self.database.sandboxes().publish(id, generation, &change).await?;
                    return Ok(());
                }
            }
        }
    }

    /// What a sandbox takes on disk; none if nothing is left of it, or it cannot be told.
    pub async fn storage(&self, id: &SandboxId) -> Option<Storage> {
        let storage = self.host.find(id)?.storage().await;
        storage.unwrap_or_else(|error| {
            tracing::warn!(sandbox_id = %id, error = %crate::chain(&error),
                "it is unknown what a sandbox takes on disk");
            None
        })
    }

    /// The sandbox that `command` is for, if it lives.
    async fn find_live(
        &self,
        id: &SandboxId,
        command: Command,
    ) -> Result<SandboxHandle, ControlError> {
        if let Some(handle) = self.host.find(id) {
            return Ok(handle);
        }
        let sandbox = self.get(id).await?;
        Err(match admit(sandbox.state, None, command) {
            Admission::Refused(refusal) => {
                OperationError::from(Refused { refusal, reason: sandbox.reason }).into()
            }
            // Recorded as living, yet nobody looks after it: it has just ended.
            Admission::Accept | Admission::AlreadySo => CallError::Gone.into(),
        })
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

    /// Brings the records in line with what a start of the daemon found. Gives the sandboxes that
    /// are not there.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`]; [`ControlError::Machine`] if the snapshots cannot be found.
    pub async fn reconcile(&self, adoption: &Adoption) -> Result<Vec<SandboxId>, ControlError> {
        self.reconcile_snapshots().await?;
        self.record_again(&adoption.known).await?;
        self.reconcile_networks(&adoption.adopted).await?;
        let found: HashSet<SandboxId> =
            adoption.adopted.iter().chain(adoption.lost.keys()).cloned().collect();
        let reason = "it was not there any more when the daemon started";
        let host = self.host.id();
        Ok(self.database.sandboxes().stop_all_except(host, &found, reason, Utc::now()).await?)
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
