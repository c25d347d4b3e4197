//! One host, one actor: decides whether a sandbox fits, and lets the control plane hear of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ArbiterHandle, AsyncContext, Context, Handler, Message};
use chrono::Utc;

use super::mailbox::{CAPACITY, CallError, Reply, call};
use super::sandbox::{OperationError, SandboxHandle};
use super::sandbox_manager::ManagerHandle;
use super::supervisor::{ExitSignal, Supervised};
use crate::domain::id::SandboxId;
use crate::domain::rates::{InvalidRate, RateLimits};
use crate::domain::sandbox::SandboxState;
use crate::domain::shape::Shape;
use crate::entity::Database;
use crate::vmm::host_memory::host_memory;
use crate::vmm::machine::{MachineError, MachineSpec};
use crate::vmm::trace::Trace;

/// How often a host says that it is there.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Host memory that a VM takes beside its guest's: the hypervisor itself and its translations.
const VM_OVERHEAD_MIB: u64 = 96;

/// What a host has to give.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// CPUs, and thus the largest number of vCPUs of one sandbox.
    pub cpus: u32,
    /// Memory of the host.
    pub memory_mib: u64,
    /// Memory that is kept free for the host itself and for running sandboxes to grow into.
    pub reserve_mib: u64,
    /// How fast any sandbox is at most.
    pub rates: RateLimits,
}

/// Why a host does not take a sandbox.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// It has not as many CPUs.
    #[error("this host has {cpus} CPUs, so a sandbox has from 1 to {cpus} vCPUs")]
    TooManyVcpus { cpus: u32 },
    /// No sandbox can have as much memory here, or as little.
    #[error("memory of a sandbox is from {least} to {most} MiB on this host")]
    MemoryOutOfRange { least: u64, most: u64 },
    /// No sandbox may be so fast here.
    #[error(transparent)]
    Rates(#[from] InvalidRate),
    /// It has no memory left for another one now.
    #[error(
        "the host has no memory left for it: {needed} MiB are needed, {available} MiB are \
         available beyond the {reserve} MiB that are kept free"
    )]
    OutOfMemory { needed: u64, available: u64, reserve: u64 },
    /// Its memory cannot be read.
    #[error("the host's memory is unknown")]
    UnknownMemory(#[source] std::io::Error),
    /// It cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// It failed to make the machine.
    #[error(transparent)]
    Machine(Arc<MachineError>),
    /// The sandbox did not do it.
    #[error(transparent)]
    Operation(#[from] OperationError),
}

struct HostActor {
    id: String,
    limits: Limits,
    database: Database,
    /// Memory of sandboxes that are starting: they have not taken it yet.
    promised_mib: HashMap<SandboxId, u64>,
    _exit: ExitSignal,
}

/// What others hold of a host.
#[derive(Clone)]
pub struct HostHandle {
    id: String,
    limits: Limits,
    actor: Supervised<HostActor>,
    manager: ManagerHandle,
}

impl HostHandle {
    /// Starts the actor of the host that this process is.
    pub fn start(
        arbiter: &ArbiterHandle,
        id: String,
        limits: Limits,
        database: Database,
        manager: ManagerHandle,
    ) -> Self {
        let make = {
            let id = id.clone();
            move |exit| HostActor {
                id: id.clone(),
                limits,
                database: database.clone(),
                promised_mib: HashMap::new(),
                _exit: exit,
            }
        };
        let actor = Supervised::start(arbiter, "host", make);
        Self { id, limits, actor, manager }
    }

    /// The host's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Checks that the host could ever run a VM of this shape.
    ///
    /// # Errors
    ///
    /// [`HostError::TooManyVcpus`], [`HostError::MemoryOutOfRange`].
    pub fn check_shape(&self, shape: Shape) -> Result<(), HostError> {
        let Limits { cpus, memory_mib, .. } = self.limits;
        if !(1..=cpus).contains(&shape.vcpus) {
            return Err(HostError::TooManyVcpus { cpus });
        }
        let least = u64::from(Shape::MIN_MEMORY_MIB);
        // What the host has, not what it can spare now: that is asked when the sandbox is made.
        let most = memory_mib.saturating_sub(VM_OVERHEAD_MIB).max(least);
        if !(least..=most).contains(&shape.memory_mib.into()) {
            return Err(HostError::MemoryOutOfRange { least, most });
        }
        Ok(())
    }

    /// The rates of a sandbox that asks for these.
    ///
    /// # Errors
    ///
    /// [`HostError::Rates`].
    pub fn rates(&self, wanted: RateLimits) -> Result<RateLimits, HostError> {
        Ok(wanted.within(&self.limits.rates)?)
    }

    /// Makes a sandbox here and waits until it runs.
    ///
    /// # Errors
    ///
    /// [`HostError::OutOfMemory`] before anything is made; else nothing is left of it.
    pub async fn create(&self, spec: MachineSpec, trace: Trace) -> Result<(), HostError> {
        let (id, shape) = (spec.id.clone(), spec.shape);
        let made = self.with_memory(&id, shape, self.manager.create(spec, trace)).await?;
        made?.map_err(HostError::Machine)
    }

    /// Makes a paused sandbox run again.
    ///
    /// # Errors
    ///
    /// [`HostError::OutOfMemory`] before anything is done; it is still paused.
    pub async fn resume(
        &self,
        sandbox: &SandboxHandle,
        shape: Shape,
        trace: Trace,
    ) -> Result<(), HostError> {
        let resumed = match sandbox.life().state == SandboxState::Paused {
            true => self.with_memory(sandbox.id(), shape, sandbox.resume(trace)).await?,
            // It has its memory already, or will be refused.
            false => sandbox.resume(trace).await,
        };
        Ok(resumed?)
    }

    /// Does what takes the memory of a VM, if there is as much.
    async fn with_memory<T>(
        &self,
        id: &SandboxId,
        shape: Shape,
        work: impl Future<Output = T>,
    ) -> Result<T, HostError> {
        let memory_mib = u64::from(shape.memory_mib) + VM_OVERHEAD_MIB;
        let promise = |reply| Promise { id: id.clone(), memory_mib, reply };
        call(&self.actor.address(), promise).await??;
        let done = work.await;
        self.actor.address().do_send(Kept(id.clone()));
        Ok(done)
    }

    /// The sandbox called `id`, if it lives here.
    pub fn find(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.manager.find(id)
    }

    /// Has what all sandboxes here take now be kept, out of turn.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn sample(&self) -> Result<(), CallError> {
        self.manager.sample().await
    }

    /// All sandboxes that live here.
    pub fn sandboxes(&self) -> Vec<SandboxHandle> {
        self.manager.all()
    }
}

/// Asks for memory before a sandbox is started.
#[derive(Message)]
#[rtype(result = "()")]
struct Promise {
    id: SandboxId,
    memory_mib: u64,
    reply: Reply<Result<(), HostError>>,
}

/// The sandbox has its memory, or will never need it.
#[derive(Message)]
#[rtype(result = "()")]
struct Kept(SandboxId);

impl HostActor {
    /// Real memory decides: what is available now, less what is promised to those that start.
    fn promise(&mut self, id: SandboxId, needed: u64) -> Result<(), HostError> {
        let memory = host_memory().map_err(HostError::UnknownMemory)?;
        let reserve = self.limits.reserve_mib;
        let promised: u64 = self.promised_mib.values().sum();
        let available = memory.available_mib.saturating_sub(promised + reserve);
        if needed > available {
            return Err(HostError::OutOfMemory { needed, available, reserve });
        }
        self.promised_mib.insert(id, needed);
        Ok(())
    }
}

impl Actor for HostActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
        ctx.run_interval(HEARTBEAT, |host, _| {
            let (database, id) = (host.database.clone(), host.id.clone());
            tokio::spawn(async move {
                if let Err(error) = database.hosts().heartbeat(&id, Utc::now()).await {
                    tracing::warn!(host_id = %id, error = %crate::chain(&error),
                        "a heartbeat was not recorded");
                }
            });
        });
    }
}

impl Handler<Promise> for HostActor {
    type Result = ();

    fn handle(&mut self, Promise { id, memory_mib, reply }: Promise, _: &mut Context<Self>) {
        let answer = self.promise(id.clone(), memory_mib);
        if reply.send(answer).is_err() {
            // Nobody waits for it any more, so nobody will start it.
            self.promised_mib.remove(&id);
        }
    }
}

impl Handler<Kept> for HostActor {
    type Result = ();

    fn handle(&mut self, Kept(id): Kept, _: &mut Context<Self>) {
        self.promised_mib.remove(&id);
    }
}
