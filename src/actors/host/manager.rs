//! Owns the sandboxes of one host: starts their actors, finds those that a former daemon left.

use std::collections::HashMap;
use std::sync::Arc;

use actix::{Actor, ArbiterHandle, Context, Handler, Message};

use super::janitor::JanitorHandle;
use super::reaper::ReaperHandle;
use super::registry::Registry;
use super::sampler::SamplerHandle;
use super::sandbox::{self, SandboxDeps, SandboxFacts, SandboxHandle, StartMode};
use crate::actors::host_client::StatusSink;
use crate::actors::mailbox::{CAPACITY, CallError, Reply, call};
use crate::actors::metrics::Metrics;
use crate::actors::supervisor::{ExitSignal, Supervised};
use crate::domain::id::SandboxId;
use crate::domain::status::{HostEpoch, SandboxStatus};
use crate::domain::trace::Trace;
use crate::vmm::machine::{MachineError, MachineSpec, Machines, Survivor};

struct SandboxManager {
    arbiter: ArbiterHandle,
    registry: Registry,
    deps: SandboxDeps,
    _exit: ExitSignal,
}

/// What others hold of the manager.
#[derive(Clone)]
pub struct ManagerHandle {
    actor: Supervised<SandboxManager>,
    registry: Registry,
    sampler: SamplerHandle,
    machines: Arc<dyn Machines>,
}

/// What became of the sandboxes that a former daemon left.
#[derive(Default)]
pub struct Adoption {
    /// They run on, or are still paused.
    pub adopted: Vec<SandboxId>,
    /// They could not be found again, and why; nothing is left of them.
    pub lost: HashMap<SandboxId, String>,
}

impl ManagerHandle {
    /// Starts the manager with its reaper, janitor and sampler.
    pub fn start(
        arbiter: &ArbiterHandle,
        epoch: HostEpoch,
        machines: Arc<dyn Machines>,
        sink: Arc<dyn StatusSink>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let registry = Registry::default();
        let deps = SandboxDeps {
            machines: machines.clone(),
            epoch,
            sink,
            reaper: ReaperHandle::start(arbiter, registry.clone()),
            janitor: JanitorHandle::start(arbiter, machines.clone()),
            metrics,
        };
        let sampler = SamplerHandle::start(arbiter, registry.clone());
        let make = {
            let (arbiter, registry) = (arbiter.clone(), registry.clone());
            move |exit| SandboxManager {
                arbiter: arbiter.clone(),
                registry: registry.clone(),
                deps: deps.clone(),
                _exit: exit,
            }
        };
        let actor = Supervised::start(arbiter, "sandbox manager", make);
        Self { actor, registry, sampler, machines }
    }

    /// The sandbox called `id`, if it lives on this host.
    pub fn find(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.registry.find(id)
    }

    /// The sandboxes that live on this host.
    pub fn all(&self) -> Vec<SandboxHandle> {
        self.registry.all()
    }

    /// Has what all of them take now be kept, out of turn.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn sample(&self) -> Result<(), CallError> {
        self.sampler.sample().await
    }

    /// Makes a sandbox and waits until it runs. Once this has been polled the sandbox is made,
    /// whether or not the answer is waited for.
    ///
    /// # Errors
    ///
    /// Outer: the wish could not be queued. Inner: the machine could not be made, and nothing is
    /// left of it.
    pub async fn create(
        &self,
        spec: MachineSpec,
        trace: Trace,
    ) -> Result<Result<(), Arc<MachineError>>, CallError> {
        call(&self.actor.address(), |creator| Create { spec: Box::new(spec), trace, creator }).await
    }

    /// Takes over what a former daemon left; called once, before the first create.
    pub async fn adopt_survivors(&self) -> Adoption {
        let mut adoption = Adoption::default();
        for survivor in self.machines.survivors().await {
            let Survivor { id, status, template, shape, envs, rates } = survivor;
            let facts = SandboxFacts { template, shape, envs, rates };
            let start_mode = match self.machines.adopt(&id).await {
                Ok(found) => {
                    adoption.adopted.push(id.clone());
                    StartMode::Adopted(found)
                }
                Err(error) => {
                    let reason = crate::chain(&error).to_string();
                    adoption.lost.insert(id.clone(), reason.clone());
                    StartMode::Lost(reason)
                }
            };
            let message = |reply| Begin { id: id.clone(), status, facts, start_mode, reply };
            if let Err(error) = call(&self.actor.address(), message).await {
                tracing::error!(sandbox_id = %id, %error, "a sandbox got no actor");
            }
        }
        adoption
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Create {
    spec: Box<MachineSpec>,
    trace: Trace,
    creator: Reply<Result<(), Arc<MachineError>>>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Begin {
    id: SandboxId,
    status: SandboxStatus,
    facts: SandboxFacts,
    start_mode: StartMode,
    reply: Reply<()>,
}

impl SandboxManager {
    fn begin(
        &mut self,
        id: SandboxId,
        status: SandboxStatus,
        facts: SandboxFacts,
        start_mode: StartMode,
    ) {
        let deps = self.deps.clone();
        let (handle, supervision) =
            sandbox::start(&self.arbiter, id.clone(), deps, start_mode, facts, status);
        self.registry.insert(handle);
        let registry = self.registry.clone();
        tokio::spawn(async move {
            supervision.await;
            registry.remove(&id);
        });
    }
}

impl Actor for SandboxManager {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
    }
}

impl Handler<Create> for SandboxManager {
    type Result = ();

    fn handle(&mut self, Create { spec, trace, creator }: Create, _: &mut Context<Self>) {
        let (id, status) = (spec.id.clone(), spec.status.clone());
        let facts = SandboxFacts {
            template: spec.template.clone(),
            shape: spec.shape,
            envs: spec.envs.clone(),
            rates: spec.rates,
        };
        self.begin(id, status, facts, StartMode::Create { spec, trace, creator });
    }
}

impl Handler<Begin> for SandboxManager {
    type Result = ();

    fn handle(&mut self, message: Begin, _: &mut Context<Self>) {
        let Begin { id, status, facts, start_mode, reply } = message;
        self.begin(id, status, facts, start_mode);
        let _ = reply.send(());
    }
}
