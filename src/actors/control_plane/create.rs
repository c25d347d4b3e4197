//! Sandboxes are made: recorded first, then asked of a host.

use std::collections::{BTreeMap, BTreeSet};

use chrono::Utc;
use tokio::time::{Instant, sleep};

use super::sink::expiry;
use super::{CallerId, ControlError, ControlPlane, SETTLE_LIMIT, SETTLE_PAUSE, to_the_end};
use crate::domain::egress::Policy;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::port::GuestPort;
use crate::domain::rates::RateLimits;
use crate::domain::sandbox::SandboxState;
use crate::domain::shape::Shape;
use crate::domain::token;
use crate::entity::sandboxes::{Idempotency, Insert, NewSandbox, Sandbox};
use crate::vmm::machine::{MachineSpec, Origin, Template};
use crate::vmm::record::Life;
use crate::vmm::trace::Trace;

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
        let shape = self.shape(&request).await?;
        self.host.check_shape(shape)?;
        let rates = self.host.rates(request.rates)?;
        let origin = Origin::Template(request.template.clone());
        let lease_sec = request.lease_sec;
        let created_at = Utc::now();
        let new = NewSandbox {
            id: self.machines.reserve(&request.template, shape).await,
            host_id: self.host.id().to_owned(),
            template: request.template,
            shape,
            timeout_sec: request.timeout_sec,
            envs: request.envs,
            metadata: request.metadata,
            public_ports: request.public_ports,
            network: request.network,
            rates,
            hypervisor: self.machines.engine().engine.as_str().to_owned(),
            api_key_id: caller.0,
            idempotency: request.idempotency,
            created_at,
            expires_at: expiry(request.timeout_sec, created_at),
        };
        match self.make(new, origin, lease_sec, trace).await? {
            Made::New(sandbox) => Ok(*sandbox),
            Made::Before(id) => self.settled(id).await,
        }
    }

    /// The shape that was asked for. A snapshot has its own, and an image a usual one.
    async fn shape(&self, request: &CreateSandbox) -> Result<Shape, ControlError> {
        let template = self.machines.template(&request.template).await;
        let (usual, fixed) = match template.map_err(ControlError::Machine)? {
            Template::Image => (Shape::DEFAULT, false),
            Template::Snapshot(shape) => (shape, true),
        };
        let shape = Shape {
            vcpus: request.vcpus.unwrap_or(usual.vcpus),
            memory_mib: request.memory_mib.unwrap_or(usual.memory_mib),
        };
        if fixed && shape != usual {
            let name = request.template.clone();
            return Err(ControlError::FixedShape { name, shape: usual });
        }
        Ok(shape)
    }

    /// Records a sandbox and has it made.
    pub(super) async fn make(
        &self,
        new: NewSandbox,
        origin: Origin,
        lease_sec: Option<u32>,
        trace: Trace,
    ) -> Result<Made, ControlError> {
        let started = Instant::now();
        match trace.span("record", self.database.sandboxes().insert(&new)).await? {
            Insert::Created(_) => {}
            Insert::AlreadyExists(existing) => return Ok(Made::Before(existing.id)),
            Insert::Conflict(id) => return Err(ControlError::IdempotencyConflict(id)),
        }
        let id = new.id.clone();
        match self.host.create(machine_spec(new, origin, lease_sec), trace).await {
            Ok(()) => {
                let sandbox = match self.get_as(&id, SandboxState::Running).await {
                    Ok(sandbox) => sandbox,
                    Err(error) => {
                        // Nobody could find it.
                        self.metrics.sandbox_failed();
                        self.end_unrecorded(&id).await;
                        return Err(error);
                    }
                };
                self.metrics.sandbox_created(started.elapsed());
                Ok(Made::New(Box::new(sandbox)))
            }
            Err(error) => {
                self.metrics.sandbox_failed();
                self.forget(&id, error.to_string()).await;
                Err(error.into())
            }
        }
    }

    async fn end_unrecorded(&self, id: &SandboxId) {
        if let Some(handle) = self.host.find(id)
            && let Err(error) = handle.destroy().await
        {
            tracing::error!(sandbox_id = %id, error = %crate::chain(&error),
                "a sandbox that the database did not take was not taken away");
        }
        self.forget(id, "the database did not take its state".to_owned()).await;
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
}

/// What came of a request for a sandbox.
pub(super) enum Made {
    /// It runs.
    New(Box<Sandbox>),
    /// The same request was made before, for this one.
    Before(SandboxId),
}

fn machine_spec(new: NewSandbox, origin: Origin, lease_sec: Option<u32>) -> MachineSpec {
    MachineSpec {
        id: new.id,
        origin,
        template: new.template,
        shape: new.shape,
        envs: new.envs,
        network: new.network,
        rates: new.rates,
        access_token: token::random(),
        life: Life {
            state: SandboxState::Starting,
            reason: None,
            generation: 1,
            timeout_sec: new.timeout_sec,
            lease_sec,
            last_active_at: new.created_at,
        },
    }
}
