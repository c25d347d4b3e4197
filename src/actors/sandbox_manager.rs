//! Owns the sandboxes of one host: starts their actors, finds those that a former daemon left.

use std::collections::HashMap;
use std::sync::Arc;

use actix::{Actor, ArbiterHandle, AsyncContext, Context, Handler, Message};

use super::janitor::JanitorHandle;
use super::mailbox::{CAPACITY, CallError, Reply, Shared, call};
use super::reaper::ReaperHandle;
use super::registry::Registry;
use super::sandbox::{self, Beginning, Outfit, SandboxHandle, StatusSink};
use crate::domain::id::SandboxId;
use crate::vmm::machine::{MachineError, MachineSpec, Machines};
use crate::vmm::record::Life;

struct SandboxManager {
    arbiter: ArbiterHandle,
    registry: Registry,
    outfit: Outfit,
}

/// What others hold of the manager.
#[derive(Clone)]
pub struct ManagerHandle {
    address: Shared<SandboxManager>,
    registry: Registry,
    machines: Arc<dyn Machines>,
}

/// What became of the sandboxes that a former daemon left.
#[derive(Debug, Default)]
pub struct Adoption {
    /// They run on.
    pub adopted: Vec<SandboxId>,
    /// They could not be found again, and why; nothing is left of them.
    pub lost: HashMap<SandboxId, String>,
}

impl ManagerHandle {
    /// Starts the manager with its reaper and janitor.
    pub fn start(
        arbiter: &ArbiterHandle,
        machines: Arc<dyn Machines>,
        sink: Arc<dyn StatusSink>,
    ) -> Self {
        let registry = Registry::default();
        let outfit = Outfit {
            machines: machines.clone(),
            sink,
            reaper: ReaperHandle::start(arbiter, registry.clone()),
            janitor: JanitorHandle::start(arbiter, machines.clone()),
        };
        let manager =
            SandboxManager { arbiter: arbiter.clone(), registry: registry.clone(), outfit };
        let address = Arc::new(SandboxManager::start_in_arbiter(arbiter, |_| manager));
        Self { address, registry, machines }
    }

    /// The sandbox called `id`, if it lives on this host.
    pub fn find(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.registry.find(id)
    }

    /// The sandboxes that live on this host.
    pub fn all(&self) -> Vec<SandboxHandle> {
        self.registry.all()
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
    ) -> Result<Result<(), Arc<MachineError>>, CallError> {
        call(&self.address, |reply| Create(Box::new(spec), reply)).await
    }

    /// Takes over what a former daemon left; called once, before the first create.
    pub async fn adopt_survivors(&self) -> Adoption {
        let mut adoption = Adoption::default();
        for survivor in self.machines.survivors().await {
            let (id, life) = (survivor.id, survivor.life);
            let beginning = match self.machines.adopt(&id).await {
                Ok(machine) => {
                    adoption.adopted.push(id.clone());
                    Beginning::Adopted(machine)
                }
                Err(error) => {
                    let reason = crate::chain(&error).to_string();
                    adoption.lost.insert(id.clone(), reason.clone());
                    Beginning::Lost(reason)
                }
            };
            let message = |reply| Begin { id: id.clone(), life, beginning, reply };
            if let Err(error) = call(&self.address, message).await {
                tracing::error!(sandbox_id = %id, %error, "a sandbox got no actor");
            }
        }
        adoption
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Create(Box<MachineSpec>, Reply<Result<(), Arc<MachineError>>>);

#[derive(Message)]
#[rtype(result = "()")]
struct Begin {
    id: SandboxId,
    life: Life,
    beginning: Beginning,
    reply: Reply<()>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Finished(SandboxId);

impl SandboxManager {
    fn begin(&mut self, id: SandboxId, life: Life, beginning: Beginning, ctx: &mut Context<Self>) {
        let (handle, supervision) =
            sandbox::start(&self.arbiter, id.clone(), self.outfit.clone(), beginning, life);
        self.registry.insert(handle);
        let address = ctx.address();
        tokio::spawn(async move {
            supervision.await;
            address.do_send(Finished(id));
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

    fn handle(&mut self, Create(spec, reply): Create, ctx: &mut Context<Self>) {
        let (id, life) = (spec.id.clone(), spec.life.clone());
        self.begin(id, life, Beginning::Boot(spec, reply), ctx);
    }
}

impl Handler<Begin> for SandboxManager {
    type Result = ();

    fn handle(&mut self, message: Begin, ctx: &mut Context<Self>) {
        let Begin { id, life, beginning, reply } = message;
        self.begin(id, life, beginning, ctx);
        let _ = reply.send(());
    }
}

impl Handler<Finished> for SandboxManager {
    type Result = ();

    fn handle(&mut self, Finished(id): Finished, _: &mut Context<Self>) {
        self.registry.remove(&id);
    }
}
