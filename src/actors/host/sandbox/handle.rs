//! What others hold of a sandbox's actor.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use actix::{Actor, ArbiterHandle, Handler, Message};
use chrono::{DateTime, Utc};
use tokio::sync::{oneshot, watch};
use tokio_util::task::TaskTracker;

use super::actor::{
    BeginWork, Destroy, Expire, Fork, Lasting, Pause, Resume, SandboxActor, SandboxDeps, SetLease,
    SetNetwork, Snapshot, StartMode,
};
use super::error::OperationError;
use super::idleness::ActivityTracker;
use super::instance::{Instance, InstanceCell};
use super::lease::{Lease, WorkError};
use super::publisher::{Generation, Publisher, PublisherDeps, Then};
use super::usage_log::UsageLog;
use crate::actors::mailbox::{CallError, Reply, Shared, call, post};
use crate::actors::metrics::Metrics;
use crate::actors::supervisor::{Exit, ExitSignal};
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::host::SandboxEntry;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::{Admission, Command, Refused, SandboxState, admit};
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::snapshot::{Existing, ForkPoint, SnapshotInfo, Storage};
use crate::domain::status::{HostEpoch, SandboxReport, SandboxStatus};
use crate::domain::trace::Trace;
use crate::domain::usage::Sample;
use crate::vmm::machine::MachineError;

/// How often an actor is built again before its sandbox is given up.
const MAX_RESTARTS: u32 = 5;
/// What a sandbox was asked to be.
#[derive(Debug, Clone)]
pub struct SandboxFacts {
    /// What it was created from.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Environment of its processes.
    pub envs: BTreeMap<String, String>,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
}

/// A sandbox, as everything above the actors sees it.
#[derive(Clone)]
pub struct SandboxHandle {
    id: SandboxId,
    epoch: HostEpoch,
    facts: Arc<SandboxFacts>,
    address: Arc<RwLock<Shared<SandboxActor>>>,
    published: watch::Receiver<SandboxStatus>,
    instance: InstanceCell,
    usage: Arc<UsageLog>,
    metrics: Arc<Metrics>,
}

impl SandboxHandle {
    /// The sandbox's id.
    pub fn id(&self) -> &SandboxId {
        &self.id
    }

    /// Where it is in its life, as last decided.
    pub fn status(&self) -> SandboxStatus {
        self.published.borrow().clone()
    }

    /// What it was asked to be.
    pub fn facts(&self) -> &SandboxFacts {
        &self.facts
    }

    /// What its host tells of it.
    pub fn report(&self) -> SandboxReport {
        let id = self.id.clone();
        SandboxReport { id, status: self.status(), slot: self.slot(), epoch: self.epoch }
    }

    /// All that its host knows of it.
    pub fn entry(&self) -> SandboxEntry {
        let SandboxFacts { template, shape, envs, rates } = (*self.facts).clone();
        SandboxEntry {
            report: self.report(),
            template,
            shape,
            envs,
            rates,
            network: self.network(),
        }
    }

    /// Waits until it has left the states before `running`.
    pub async fn started(&self) {
        let mut published = self.published.clone();
        let coming = |status: &SandboxStatus| {
            matches!(status.state, SandboxState::Pending | SandboxState::Starting)
        };
        // An actor that ended has left those states too.
        let _ = published.wait_for(|status| !coming(status)).await;
    }

    /// Asks for leave to work in it.
    ///
    /// # Errors
    ///
    /// [`WorkError::Refused`] unless it is running.
    pub async fn begin_work(&self) -> Result<Lease, WorkError> {
        self.ask(Command::Work, BeginWork).await
    }

    /// Freezes it to disk. Once this has been polled that is done, whether or not the answer is
    /// waited for; so are all that follow.
    ///
    /// # Errors
    ///
    /// It runs on, or its state says what became of it. [`OperationError::Refused`] unless it is
    /// running or paused.
    pub async fn pause(&self, trace: Trace) -> Result<(), OperationError> {
        self.ask(Command::Pause, |reply| Pause(trace, reply)).await
    }

    /// Makes it run again where it was paused.
    ///
    /// # Errors
    ///
    /// It is still paused. [`OperationError::Refused`] unless it is paused or running.
    pub async fn resume(&self, trace: Trace) -> Result<(), OperationError> {
        self.ask(Command::Resume, |reply| Resume(trace, reply)).await
    }

    /// Keeps what it is now under a name.
    ///
    /// # Errors
    ///
    /// It is as it was, or its state says what became of it. [`OperationError::Refused`] unless it
    /// is running or paused.
    pub async fn snapshot(
        &self,
        name: TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, OperationError> {
        self.ask(Command::Snapshot, |reply| Snapshot { name, existing, reply }).await
    }

    /// Freezes what it is now for others that begin so.
    ///
    /// # Errors
    ///
    /// It runs on, or its state says what became of it. [`OperationError::Refused`] unless it is
    /// running.
    pub async fn fork(&self, trace: Trace) -> Result<ForkPoint, OperationError> {
        self.ask(Command::Fork, |reply| Fork(trace, reply)).await
    }

    /// What it may reach, as its host enforces it; none if nothing is left of it.
    pub fn network(&self) -> Option<PolicyRevision> {
        Some(self.instance.get()?.network())
    }

    /// The network slot that it holds.
    pub fn slot(&self) -> Option<u32> {
        self.instance.get()?.slot()
    }

    /// Changes what it may reach.
    ///
    /// # Errors
    ///
    /// It reaches what it did before. [`OperationError::Refused`] unless it is running or paused.
    pub async fn set_network(&self, policy: Policy) -> Result<PolicyRevision, OperationError> {
        self.ask(Command::Network, |reply| SetNetwork(policy, reply)).await
    }

    /// Has it destroyed unless this is said again within so many seconds; or no more, if that is none.
    ///
    /// # Errors
    ///
    /// [`OperationError::Refused`] if it is gone.
    pub async fn set_lease(&self, lease_sec: Option<u32>) -> Result<(), OperationError> {
        self.ask(Command::Work, |reply| SetLease(lease_sec, reply)).await
    }

    /// What it takes on disk; none if nothing is left of it.
    ///
    /// # Errors
    ///
    /// As [`crate::vmm::machine::Machine::storage`].
    pub async fn storage(&self) -> Result<Option<Storage>, MachineError> {
        match self.instance.get() {
            Some(instance) => instance.storage().await.map(Some),
            None => Ok(None),
        }
    }

    /// What it takes of the host now, from outside: no work done in it. None unless its VM runs.
    /// Blocks for some small reads.
    pub fn look(&self) -> Option<Sample> {
        let Some(Instance::Machine(machine)) = self.instance.get() else { return None };
        Some(self.usage.look(&machine.usage()?, Instant::now(), Utc::now()))
    }

    /// What was last seen of its VM, if that runs. Does not look.
    pub fn last_seen(&self) -> Option<Sample> {
        match self.instance.get()? {
            Instance::Machine(_) => self.usage.seen(),
            Instance::Frozen(_) => None,
        }
    }

    /// What it took during the last hour that it ran, the oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.usage.samples()
    }

    /// Keeps what it takes now, if its VM runs. Blocks for some small reads.
    pub(in crate::actors) fn sample(&self, now: Instant, at: DateTime<Utc>) {
        let Some(Instance::Machine(machine)) = self.instance.get() else { return };
        if let Some(usage) = machine.usage() {
            self.metrics.cpu_used(self.usage.sample(&usage, now, at));
        }
    }

    /// Ends it and gives back all it holds; idempotent. Once this has been polled the sandbox ends,
    /// whether or not the answer is waited for.
    ///
    /// # Errors
    ///
    /// [`CallError::Overloaded`] if the wish could not even be queued.
    pub async fn destroy(&self) -> Result<(), CallError> {
        match call(&self.address(), Destroy).await {
            // It ended in the meantime, which is what was asked for.
            Ok(()) | Err(CallError::Gone) => Ok(()),
            Err(CallError::Overloaded) => Err(CallError::Overloaded),
        }
    }

    /// Has the actor do `command`. An actor that has just ended does not answer any more; what it
    /// published last does.
    async fn ask<M, T, E>(
        &self,
        command: Command,
        make: impl FnOnce(Reply<Result<T, E>>) -> M,
    ) -> Result<T, E>
    where
        SandboxActor: Handler<M>,
        M: Message<Result = ()> + Send + 'static,
        E: From<CallError> + From<Refused>,
    {
        match call(&self.address(), make).await {
            Ok(answer) => answer,
            Err(CallError::Gone) => {
                let SandboxStatus { state, reason, .. } = self.status();
                match admit(state, None, command) {
                    Admission::Refused(refusal) => Err(Refused { refusal, reason }.into()),
                    Admission::Accept | Admission::AlreadySo => Err(CallError::Gone.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Reminds it that its time may be over.
    pub(in crate::actors) fn expire(&self) -> Result<(), CallError> {
        post(&self.address(), Expire)
    }

    /// Makes its actor panic, as a bug would.
    #[cfg(test)]
    pub(super) fn crash(&self) {
        // One that is being built again cannot panic more.
        let _ = post(&self.address(), super::actor::Panic);
    }

    fn address(&self) -> Shared<SandboxActor> {
        self.address.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Starts an actor for a sandbox and keeps it alive. The future ends with the sandbox.
pub(in crate::actors) fn start(
    arbiter: &ArbiterHandle,
    id: SandboxId,
    deps: SandboxDeps,
    start_mode: StartMode,
    facts: SandboxFacts,
    status: SandboxStatus,
) -> (SandboxHandle, impl Future<Output = ()> + Send + 'static) {
    let activity = Arc::new(ActivityTracker::new(status.last_active_at));
    let generation = Arc::new(Generation::new(status.generation));
    let (publish, published) = watch::channel(status);
    let instance = InstanceCell::default();
    let usage = Arc::new(UsageLog::default());
    let lasting = Lasting {
        published: publish,
        generation,
        activity,
        instance: instance.clone(),
        usage: usage.clone(),
        tasks: TaskTracker::new(),
    };
    let build = {
        let (arbiter, id, deps) = (arbiter.clone(), id.clone(), deps.clone());
        let lasting = lasting.clone();
        move |start_mode: StartMode| {
            let (exit, exited) = ExitSignal::new();
            let (id, deps, lasting) = (id.clone(), deps.clone(), lasting.clone());
            let address = SandboxActor::start_in_arbiter(&arbiter, move |_| {
                SandboxActor::new(id, deps, start_mode, lasting, exit)
            });
            (Arc::new(address), exited)
        }
    };
    let (first, mut exited) = build(start_mode);
    let address = Arc::new(RwLock::new(first));
    let handle = SandboxHandle {
        id: id.clone(),
        epoch: deps.epoch,
        facts: Arc::new(facts),
        address: address.clone(),
        published,
        instance,
        usage,
        metrics: deps.metrics.clone(),
    };

    let supervision = async move {
        let mut restarts = 0;
        // A dropped signal means that the whole arbiter is gone: the daemon ends.
        while let Ok(Exit::Crashed) = exited.await {
            restarts += 1;
            tracing::error!(sandbox_id = %id, restarts, "a sandbox's actor panicked");
            // Its operation was cancelled with it; what it leaves is found, not what it worked on.
            lasting.tasks.close();
            lasting.tasks.wait().await;
            lasting.tasks.reopen();
            lasting.instance.set(None);
            if lasting.published.borrow().state.is_final() {
                // Its status is over and told; an actor would have nothing to look after.
                break;
            }
            if restarts > MAX_RESTARTS {
                give_up(id, &deps, &lasting).await;
                break;
            }
            let start_mode = match deps.machines.adopt(&id).await {
                Ok(found) => StartMode::Adopted(found),
                Err(error) => StartMode::Lost(crate::chain(&error).to_string()),
            };
            let (again, exit) = build(start_mode);
            *address.write().unwrap_or_else(PoisonError::into_inner) = again;
            exited = exit;
        }
    };
    (handle, supervision)
}

/// Ends a sandbox that no actor can be kept for: nobody would look after its VM.
async fn give_up(id: SandboxId, deps: &SandboxDeps, lasting: &Lasting) {
    deps.janitor.sweep(id.clone());
    let mut status = lasting.published.borrow().clone();
    status.state = SandboxState::Error;
    status.reason = Some("a bug in the daemon: its log has more".to_owned());
    status.generation = lasting.generation.next();
    lasting.published.send_replace(status.clone());
    let publisher = Publisher::start(PublisherDeps {
        id,
        epoch: deps.epoch,
        sink: deps.sink.clone(),
        activity: lasting.activity.clone(),
        generation: lasting.generation.clone(),
    });
    let (tell, told) = oneshot::channel();
    publisher.publish(
        &status,
        None,
        Then::once_told(move || {
            let _ = tell.send(());
        }),
    );
    // What the control plane does not take now the publisher goes on telling.
    let _ = told.await;
}
