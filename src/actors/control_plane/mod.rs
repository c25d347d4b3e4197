//! The control plane: everything the API can ask for, as one handle.
//!
//! It owns the database and the order of things: a sandbox is recorded before a host is asked to
//! make it, and an answer is given only when everybody can read what it says. Whatever changes
//! something runs to its end even if nobody waits for it any more.

mod error;
mod keys;
mod work;

use std::collections::{BTreeMap, HashSet};
use std::future::Future;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use chrono::{TimeDelta, Utc};
use tokio::time::{Instant, sleep};

use super::host::HostHandle;
use super::metrics::Metrics;
use super::sandbox::{SandboxHandle, SinkError, StatusSink};
use super::sandbox_manager::Adoption;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::SandboxState;
use crate::domain::shape::Shape;
use crate::entity::sandboxes::{
    Change, Filter, Idempotency, Insert, NewSandbox, Page, Sandbox, Window,
};
use crate::entity::{Cursor, Database};
use crate::vmm::machine::{MachineSpec, Machines, Origin};
use crate::vmm::record::Life;

pub use error::{ControlError, ErrorKind};
pub use keys::{CallerId, NewKey};
pub use work::FileContent;

/// A row that is ahead of its actor, or behind it, is so for moments only.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);
const SETTLE_PAUSE: Duration = Duration::from_millis(20);

/// What a caller wants to have made.
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// An image or a named snapshot.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Seconds without work after which it is destroyed; never if absent.
    pub timeout_sec: Option<u32>,
    /// Environment of its processes.
    pub envs: BTreeMap<String, String>,
    /// The caller's own labels.
    pub metadata: BTreeMap<String, String>,
    /// The caller's name for this request.
    pub idempotency: Option<Idempotency>,
}

/// The control plane's handle; cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    database: Database,
    host: HostHandle,
    machines: Arc<dyn Machines>,
    metrics: Arc<Metrics>,
    /// Held while a key is deleted: of two at once, neither would see that the other takes the last.
    key_removal: Arc<tokio::sync::Mutex<()>>,
}

impl ControlPlane {
    /// Puts the control plane together.
    pub fn new(
        database: Database,
        host: HostHandle,
        machines: Arc<dyn Machines>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { database, host, machines, metrics, key_removal: Arc::default() }
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

    /// Makes a sandbox and returns it running.
    ///
    /// # Errors
    ///
    /// Nothing is left of it then, but for a record in state `error` if its start failed.
    /// A caller that goes away does not cancel it.
    pub async fn create(
        &self,
        request: CreateSandbox,
        caller: &CallerId,
    ) -> Result<Sandbox, ControlError> {
        let (control, caller) = (self.clone(), caller.clone());
        to_the_end(async move { control.create_now(request, caller).await }).await
    }

    async fn create_now(
        &self,
        request: CreateSandbox,
        caller: CallerId,
    ) -> Result<Sandbox, ControlError> {
        self.host.check_shape(request.shape)?;
        self.machines.template(&request.template).await.map_err(ControlError::Template)?;
        let started = Instant::now();
        let new = self.new_sandbox(request, caller);
        match self.database.sandboxes().insert(&new).await? {
            Insert::Created(_) => {}
            Insert::AlreadyExists(existing) => return self.settled(existing.id).await,
            Insert::Conflict(id) => return Err(ControlError::IdempotencyConflict(id)),
        }
        let id = new.id.clone();
        match self.host.create(machine_spec(new)).await {
            Ok(()) => {
                self.metrics.sandbox_created(started.elapsed());
                self.get(&id).await
            }
            Err(error) => {
                self.metrics.sandbox_failed();
                self.database.sandboxes().free_idempotency_key(&id).await?;
                self.database.sandboxes().discard(&id).await?;
                Err(error.into())
            }
        }
    }

    fn new_sandbox(&self, request: CreateSandbox, caller: CallerId) -> NewSandbox {
        let created_at = Utc::now();
        NewSandbox {
            id: SandboxId::random(),
            host_id: self.host.id().to_owned(),
            template: request.template,
            shape: request.shape,
            timeout_sec: request.timeout_sec,
            envs: request.envs,
            metadata: request.metadata,
            hypervisor: self.machines.engine().engine.as_str().to_owned(),
            access_token: keys::random_token(),
            api_key_id: caller.0,
            idempotency: request.idempotency,
            created_at,
            expires_at: expiry(request.timeout_sec, created_at),
        }
    }

    /// The sandbox of an earlier request with the same idempotency key, once it has started.
    async fn settled(&self, id: SandboxId) -> Result<Sandbox, ControlError> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            if let Some(handle) = self.host.find(&id) {
                handle.started().await;
            }
            let sandbox = self.get(&id).await?;
            let coming = matches!(sandbox.state, SandboxState::Pending | SandboxState::Starting);
            if !coming || Instant::now() > deadline {
                return Ok(sandbox);
            }
            sleep(SETTLE_PAUSE).await;
        }
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

    fn find_live(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.host.find(id)
    }

    /// Brings the records in line with what a start of the daemon found.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`].
    pub async fn reconcile(&self, adoption: &Adoption) -> Result<Vec<SandboxId>, ControlError> {
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

fn machine_spec(new: NewSandbox) -> MachineSpec {
    MachineSpec {
        id: new.id,
        origin: Origin::Template(new.template.clone()),
        template: new.template,
        shape: new.shape,
        envs: new.envs,
        access_token: new.access_token,
        life: Life {
            state: SandboxState::Starting,
            reason: None,
            generation: 1,
            timeout_sec: new.timeout_sec,
            last_active_at: new.created_at,
        },
    }
}

fn expiry(timeout_sec: Option<u32>, from: chrono::DateTime<Utc>) -> Option<chrono::DateTime<Utc>> {
    timeout_sec.map(|seconds| from + TimeDelta::seconds(seconds.into()))
}

/// Writes what the built-in host decides straight into the database.
#[derive(Clone)]
pub struct DatabaseSink(pub Database);

#[async_trait]
impl StatusSink for DatabaseSink {
    async fn publish(
        &self,
        id: &SandboxId,
        life: &Life,
        slot: Option<u32>,
    ) -> Result<(), SinkError> {
        let change =
            Change { state: life.state, reason: life.reason.clone(), slot, at: Utc::now() };
        match self.0.sandboxes().publish(id, life.generation, &change).await {
            Ok(_) => Ok(()),
            Err(error) => Err(SinkError(Box::new(error))),
        }
    }

    async fn touch(&self, id: &SandboxId, life: &Life) -> Result<(), SinkError> {
        let expires_at = expiry(life.timeout_sec, life.last_active_at);
        let touched = self.0.sandboxes().touch(id, life.last_active_at, expires_at).await;
        touched.map_err(|error| SinkError(Box::new(error)))
    }
}
