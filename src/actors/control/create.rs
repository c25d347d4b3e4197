//! Sandboxes are made: recorded first, then asked of a host.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use tokio::time::Instant;

use super::{CallerId, ControlError, ControlPlane, to_the_end};
use crate::actors::host_client::HostClient;
use crate::domain::egress::Policy;
use crate::domain::host::{ErrorKind, HostError, Origin, Prepare, Prepared, SandboxSpec};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::port::GuestPort;
use crate::domain::rates::RateLimits;
use crate::domain::trace::Trace;
use crate::entity::sandboxes::{Idempotency, Insert, NewSandbox, Sandbox};

/// What a caller wants to have made.
#[derive(Debug, Clone)]
pub struct CreateSandbox {
    /// An image or a named snapshot.
    pub template: TemplateName,
    /// Number of vCPUs; that of the snapshot, or the default, if absent.
    pub vcpus: Option<u32>,
    /// Memory in MiB; that of the snapshot, or the default, if absent.
    pub memory_mib: Option<u32>,
    /// Seconds without work after which it is destroyed; never if absent.
    pub timeout_sec: Option<u32>,
    /// Seconds after which it is destroyed unless its lease is renewed; it needs none if absent.
    pub lease_sec: Option<u32>,
    /// Environment of its processes.
    pub envs: BTreeMap<String, String>,
    /// The caller's own labels.
    pub metadata: BTreeMap<String, String>,
    /// Ports that anybody may reach.
    pub public_ports: BTreeSet<GuestPort>,
    /// What it may reach.
    pub network: Policy,
    /// How fast it may use its disk and its network; where nothing is said, as the host's settings say.
    pub rates: RateLimits,
    /// The caller's name for this request.
    pub idempotency: Option<Idempotency>,
}

impl ControlPlane {
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
        trace: Trace,
    ) -> Result<Sandbox, ControlError> {
        let (control, caller) = (self.clone(), caller.clone());
        to_the_end(async move { control.create_now(request, caller, trace).await }).await
    }

    async fn create_now(
        &self,
        request: CreateSandbox,
        caller: CallerId,
        trace: Trace,
    ) -> Result<Sandbox, ControlError> {
        if let Some(idempotency) = &request.idempotency
            && let Some(earlier) = self.find_repeated(&caller, idempotency).await?
        {
            return Ok(earlier);
        }
        let made = self.create_somewhere(&request, &caller, &trace).await;
        if let Err(ControlError::Host(error)) = &made
            && !matches!(error.kind, ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Conflict)
        {
            self.metrics.sandbox_failed();
        }
        made
    }

    /// Makes a sandbox on the first host that takes it.
    async fn create_somewhere(
        &self,
        request: &CreateSandbox,
        caller: &CallerId,
        trace: &Trace,
    ) -> Result<Sandbox, ControlError> {
        let mut refusal = None;
        for host in self.hosts.all() {
            match self.create_on(host, request, caller, trace).await {
                Err(ControlError::Host(error)) if error.retryable => {
                    tracing::info!(
                        host_id = host.id(),
                        error = error.cause,
                        "a host does not take a sandbox"
                    );
                    // What the preferred host said is what the caller can do something about.
                    refusal.get_or_insert(error);
                }
                outcome => return outcome,
            }
        }
        Err(refusal.map_or(ControlError::NoHost, ControlError::Host))
    }

    /// Makes a sandbox on one host. After a retryable error nothing is left of it, so that another host
    /// can be asked.
    async fn create_on(
        &self,
        host: &Arc<dyn HostClient>,
        request: &CreateSandbox,
        caller: &CallerId,
        trace: &Trace,
    ) -> Result<Sandbox, ControlError> {
        let asked = Prepare {
            origin: Origin::Template(request.template.clone()),
            vcpus: request.vcpus,
            memory_mib: request.memory_mib,
            rates: request.rates,
            count: 1,
        };
        let new = new_sandbox(host.id(), host.prepare(asked).await?, request, caller)?;
        let started = Instant::now();
        match trace.span("record", self.database.sandboxes().insert(&new)).await? {
            Insert::Created(_) => {}
            Insert::AlreadyExists(existing) => return self.settled(&existing.id).await,
            Insert::Conflict(id) => return Err(ControlError::IdempotencyConflict(id)),
        }
        match host.create(spec_of(&new, request.lease_sec), trace.clone()).await {
            Ok(report) => {
                let recorded = self.record(&report).await;
                match &recorded {
                    Ok(_) => self.metrics.sandbox_created(started.elapsed()),
                    // Nobody could find it.
                    Err(_) => self.end_unrecorded(host, &new.id).await,
                }
                recorded
            }
            Err(error) => {
                self.forget(&new.id, error.message.clone()).await;
                Err(error.into())
            }
        }
    }

    /// Ends a sandbox that runs and that the database has not taken.
    pub(super) async fn end_unrecorded(&self, host: &Arc<dyn HostClient>, id: &SandboxId) {
        self.metrics.sandbox_failed();
        if let Err(error) = host.destroy(id).await {
            tracing::error!(sandbox_id = %id, error = error.cause,
                "failed to destroy a sandbox that the database did not take");
        }
        self.forget(id, "the database did not take its state".to_owned()).await;
    }
}

fn new_sandbox(
    host_id: &str,
    prepared: Prepared,
    request: &CreateSandbox,
    caller: &CallerId,
) -> Result<NewSandbox, ControlError> {
    let Prepared { ids, shape, rates, engine } = prepared;
    let created_at = Utc::now();
    // A host may be of another version.
    let id = ids.into_iter().next().ok_or_else(|| {
        HostError::new(ErrorKind::Internal, "the host has taken a sandbox and given it no id")
    })?;
    Ok(NewSandbox {
        id,
        host_id: host_id.to_owned(),
        template: request.template.clone(),
        shape,
        timeout_sec: request.timeout_sec,
        envs: request.envs.clone(),
        metadata: request.metadata.clone(),
        public_ports: request.public_ports.clone(),
        network: request.network.clone(),
        rates,
        hypervisor: engine.as_str().to_owned(),
        api_key_id: caller.0.clone(),
        idempotency: request.idempotency.clone(),
        created_at,
        expires_at: expiry(request.timeout_sec, created_at),
    })
}

/// What a host is asked to make of a sandbox that is recorded.
pub(super) fn spec_of(new: &NewSandbox, lease_sec: Option<u32>) -> SandboxSpec {
    SandboxSpec {
        id: new.id.clone(),
        template: new.template.clone(),
        shape: new.shape,
        envs: new.envs.clone(),
        network: new.network.clone(),
        rates: new.rates,
        timeout_sec: new.timeout_sec,
        lease_sec,
        created_at: new.created_at,
    }
}

/// When a sandbox's time is over in which work was last done at `from`.
pub(super) fn expiry(timeout_sec: Option<u32>, from: DateTime<Utc>) -> Option<DateTime<Utc>> {
    timeout_sec.map(|seconds| from + TimeDelta::seconds(seconds.into()))
}
