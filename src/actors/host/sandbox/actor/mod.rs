//! The actor itself: where its sandbox is in its life, and who comes to know. Private to its handle.
//!
//! [`commands`] decides about what others ask for, [`operations`] does it.

mod commands;
mod operations;

use std::sync::Arc;
use std::time::{Duration, Instant};

use actix::{Actor, AsyncContext, Context, Handler, Message};
use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::operations::Underway;

use super::idleness::ActivityTracker;
use super::instance::{Instance, InstanceCell};
use super::publisher::{Generation, Publisher, PublisherDeps, Then};
use super::usage_log::UsageLog;
use crate::actors::host::janitor::JanitorHandle;
use crate::actors::host::reaper::ReaperHandle;
use crate::actors::host_client::StatusSink;
use crate::actors::mailbox::{CAPACITY, Reply};
use crate::actors::metrics::Metrics;
use crate::actors::supervisor::{Exit, ExitSignal};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::status::{HostEpoch, SandboxStatus};
use crate::domain::trace::Trace;
use crate::vmm::machine::{Found, Machine, MachineError, MachineSpec, Machines};

pub(super) use commands::{
    BeginWork, Destroy, Expire, Fork, Pause, Resume, SetLease, SetNetwork, Snapshot,
};

/// What every sandbox of a host works with.
#[derive(Clone)]
pub struct SandboxDeps {
    /// Makes machines.
    pub machines: Arc<dyn Machines>,
    /// Which run of the host's daemon this is.
    pub epoch: HostEpoch,
    /// Where decisions become known.
    pub sink: Arc<dyn StatusSink>,
    /// Reminds of deadlines.
    pub reaper: ReaperHandle,
    /// Takes away what could not be taken away at once.
    pub janitor: JanitorHandle,
    /// Counts what sandboxes use.
    pub metrics: Arc<Metrics>,
}

/// How an actor comes to its sandbox.
pub enum StartMode {
    /// A new machine is to be made.
    Create {
        /// Of what kind.
        spec: Box<MachineSpec>,
        /// Where its time goes.
        trace: Trace,
        /// Who waits for it.
        creator: Reply<Result<(), Arc<MachineError>>>,
    },
    /// It is there already.
    Adopted(Found),
    /// Its machine is gone, and why.
    Lost(String),
}

/// What of a sandbox outlives an actor that panics.
#[derive(Clone)]
pub(super) struct Lasting {
    pub published: watch::Sender<SandboxStatus>,
    pub generation: Arc<Generation>,
    pub activity: Arc<ActivityTracker>,
    pub instance: InstanceCell,
    pub usage: Arc<UsageLog>,
    /// Operations under way: whoever adopts the sandbox waits for them.
    pub tasks: TaskTracker,
}

pub(super) struct SandboxActor {
    id: SandboxId,
    deps: SandboxDeps,
    start: Option<StartMode>,
    status: SandboxStatus,
    published: watch::Sender<SandboxStatus>,
    generation: Arc<Generation>,
    publisher: Publisher,
    activity: Arc<ActivityTracker>,
    instance: InstanceCell,
    usage: Arc<UsageLog>,
    tasks: TaskTracker,
    /// What is being done. It stays until its outcome has come, even when it is cancelled: so there
    /// is one at a time, and no outcome can be taken for another's.
    underway: Option<Underway>,
    /// Cancelled when the VM is no longer there to work in.
    alive: CancellationToken,
    destroyers: Vec<Reply<()>>,
    /// When its client has to have renewed its lease. By a clock that stands still with the host, as the
    /// client does.
    leased_until: Option<Instant>,
    exit: ExitSignal,
}

impl SandboxActor {
    pub(super) fn new(
        id: SandboxId,
        deps: SandboxDeps,
        start: StartMode,
        lasting: Lasting,
        exit: ExitSignal,
    ) -> Self {
        let Lasting { published, generation, activity, instance, usage, tasks } = lasting;
        let status = published.borrow().clone();
        let publisher = Publisher::start(PublisherDeps {
            id: id.clone(),
            epoch: deps.epoch,
            sink: deps.sink.clone(),
            activity: activity.clone(),
            generation: generation.clone(),
        });
        Self {
            id,
            deps,
            start: Some(start),
            status,
            published,
            generation,
            publisher,
            activity,
            instance,
            usage,
            tasks,
            underway: None,
            alive: CancellationToken::new(),
            destroyers: Vec::new(),
            leased_until: None,
            exit,
        }
    }

    /// Goes to another state and makes that known.
    fn transition(&mut self, state: SandboxState, reason: Option<String>, then: Then) {
        debug_assert!(self.status.state.may_become(state), "{} -> {state}", self.status.state);
        tracing::info!(sandbox_id = %self.id, from = %self.status.state, to = %state,
            reason = reason.as_deref(), "state");
        self.status.state = state;
        self.status.reason = reason;
        self.status.generation = self.generation.next();
        self.published.send_replace(self.status.clone());
        self.publish(then);
    }

    fn publish(&self, then: Then) {
        // What is over keeps no record: it goes with the instance.
        let instance = self.instance.get().filter(|_| !self.status.state.is_final());
        self.publisher.publish(&self.status, instance, then);
    }

    /// Takes over what a former daemon, or an actor that panicked, left.
    fn adopt(&mut self, found: Found, ctx: &mut Context<Self>) {
        self.instance.set(Some(found.into()));
        if self.status.state == SandboxState::Stopping || self.status.state.is_final() {
            // It was to be taken away: that goes on. The control plane may not have heard of it.
            self.publish(Then::Nothing);
            return self.dismantle(ctx);
        }
        match self.instance.get() {
            Some(Instance::Machine(machine)) => {
                if self.status.state == SandboxState::Resuming {
                    self.activity.restart(chrono::Utc::now());
                }
                self.find_itself(SandboxState::Running, SandboxState::Resuming);
                self.attend(&machine, ctx);
            }
            Some(Instance::Frozen(_)) => {
                self.find_itself(SandboxState::Paused, SandboxState::Pausing);
                self.renew_lease();
            }
            None => unreachable!("it was set above"),
        }
    }

    /// Is in `state`, whatever was last said: an operation under way has happened or has not.
    fn find_itself(&mut self, state: SandboxState, on_the_way: SandboxState) {
        if self.status.state == state {
            return self.publish(Then::Nothing);
        }
        if !self.status.state.may_become(state) {
            self.transition(on_the_way, None, Then::Nothing);
        }
        self.transition(state, None, Then::Nothing);
    }

    /// Sees to a VM that has begun to run, or runs on: its end is noticed, and that of its time.
    fn attend(&mut self, machine: &Arc<dyn Machine>, ctx: &mut Context<Self>) {
        self.alive = CancellationToken::new();
        self.count_from_now(machine.clone());
        let (machine, alive) = (machine.clone(), self.alive.clone());
        let address = ctx.address();
        tokio::spawn(async move {
            tokio::select! {
                // First: a VM that is ended on purpose is no news.
                biased;
                () = alive.cancelled() => {}
                how = machine.ended() => address.do_send(VmEnded { how }),
            }
        });
        // Nobody could renew it while it was made, or while no daemon was there. Its idle time runs, too.
        self.renew_lease();
    }

    /// What the VM uses is counted from here on.
    fn count_from_now(&self, machine: Arc<dyn Machine>) {
        let log = self.usage.clone();
        tokio::task::spawn_blocking(move || {
            if let Some(usage) = machine.usage() {
                log.begin(&usage, Instant::now(), chrono::Utc::now());
            }
        });
    }

    /// Counts the last of what a VM uses; for the task that is about to end it. Else an operator
    /// would not see what sandboxes use that live for seconds.
    fn last_count(&self, machine: Arc<dyn Machine>) -> impl Future<Output = ()> + Send + 'static {
        let (log, metrics) = (self.usage.clone(), self.deps.metrics.clone());
        async move {
            let count = move || {
                if let Some(usage) = machine.usage() {
                    metrics.cpu_used(log.end(&usage));
                }
            };
            // What cannot be counted is no reason for anything.
            let _ = tokio::task::spawn_blocking(count).await;
        }
    }

    /// Has it reminded of its time as it is now.
    fn arm_reaper(&self) {
        let seconds = self.status.timeout_sec.map(|seconds| TimeDelta::seconds(seconds.into()));
        self.arm_for(seconds.map(|seconds| self.activity.last_active_at() + seconds));
    }

    /// Has it reminded when its idle time may be over, or its lease is: one reminder for both.
    fn arm_for(&self, idle: Option<DateTime<Utc>>) {
        if let Some(first) = idle.into_iter().chain(self.end_of_lease()).min() {
            self.deps.reaper.arm(self.id.clone(), first);
        }
    }

    /// Its lease counts from now on, if it has one.
    fn renew_lease(&mut self) {
        let seconds = self.status.lease_sec.map(u64::from);
        self.leased_until = seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        self.arm_reaper();
    }

    /// How long its lease is, and until when it has it. None while it is made.
    fn lease(&self) -> Option<(u32, Instant)> {
        let over = self.status.state == SandboxState::Stopping || self.status.state.is_final();
        Some((self.status.lease_sec?, self.leased_until?)).filter(|_| !over)
    }

    fn end_of_lease(&self) -> Option<DateTime<Utc>> {
        let (_, until) = self.lease()?;
        let left = until.saturating_duration_since(Instant::now());
        Some(Utc::now() + TimeDelta::from_std(left).unwrap_or(TimeDelta::MAX))
    }

    /// Starts to take everything away, whatever is being done now.
    fn stop(&mut self, reason: Option<String>, ctx: &mut Context<Self>) {
        self.cancel_operation();
        let address = ctx.address();
        // The intention is on disk before anything is taken away: a later daemon carries it out. The
        // control plane may hear of it when it can.
        let dismantle = Then::once_kept(move || address.do_send(Dismantle));
        self.transition(SandboxState::Stopping, reason, dismantle);
        // After that, so that whoever works in it learns of the new state.
        self.alive.cancel();
    }

    /// The VM is gone against its will: says so at once, not after the clean-up.
    fn lose(&mut self, reason: String, then: Then, ctx: &mut Context<Self>) {
        self.transition(SandboxState::Error, Some(reason), then);
        self.alive.cancel();
        match self.underway {
            Some(_) => self.cancel_operation(),
            None => self.dismantle(ctx),
        }
    }

    /// The life is over: says so, answers everybody, ends the actor.
    fn finish(&mut self, state: SandboxState, reason: Option<String>, ctx: &mut Context<Self>) {
        self.instance.set(None);
        let destroyers = std::mem::take(&mut self.destroyers);
        let address = ctx.address();
        let answer = Then::once_told(move || {
            for reply in destroyers {
                // Whoever asked may have hung up.
                let _ = reply.send(());
            }
            address.do_send(Ended);
        });
        self.transition(state, reason, answer);
        self.alive.cancel();
    }

    /// Something of the sandbox is left on the host; the janitor goes on trying.
    fn leave_to_janitor(&mut self, error: &MachineError) {
        tracing::error!(sandbox_id = %self.id, error = %crate::chain(error),
            "a sandbox was not taken away completely");
        self.deps.janitor.sweep(self.id.clone());
    }
}

impl Actor for SandboxActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
        match self.start.take() {
            Some(StartMode::Create { spec, trace, creator }) => {
                self.publish(Then::Nothing);
                self.create(*spec, trace, creator, ctx);
            }
            Some(StartMode::Adopted(found)) => self.adopt(found, ctx),
            Some(StartMode::Lost(reason)) => match self.status.state {
                SandboxState::Stopping => self.finish(SandboxState::Stopped, None, ctx),
                _ => self.finish(SandboxState::Error, Some(reason), ctx),
            },
            None => unreachable!("an actor starts once"),
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct VmEnded {
    how: String,
}

/// Everybody knows that it is to be taken away.
#[derive(Message)]
#[rtype(result = "()")]
struct Dismantle;

/// The last state is known to everybody.
#[derive(Message)]
#[rtype(result = "()")]
struct Ended;

impl Handler<VmEnded> for SandboxActor {
    type Result = ();

    fn handle(&mut self, VmEnded { how }: VmEnded, ctx: &mut Context<Self>) {
        // While it is being paused the pause itself finds out, and says whether anything is left.
        if self.status.state == SandboxState::Running {
            self.lose(format!("its VM {how}"), Then::Nothing, ctx);
        }
    }
}

impl Handler<Dismantle> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Dismantle: Dismantle, ctx: &mut Context<Self>) {
        // What was cancelled is waited for; its end comes here too, and may have come before.
        if self.status.state == SandboxState::Stopping && self.underway.is_none() {
            self.dismantle(ctx);
        }
    }
}

impl Handler<Ended> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Ended: Ended, ctx: &mut Context<Self>) {
        self.exit.set(Exit::Finished);
        // Requests that came in the meantime are answered before the mailbox closes.
        ctx.run_later(Duration::ZERO, |_, ctx| actix::ActorContext::stop(ctx));
    }
}

/// Makes the actor panic, as a bug would.
#[cfg(test)]
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Panic;

#[cfg(test)]
impl Handler<Panic> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Panic: Panic, _: &mut Context<Self>) {
        panic!("a bug")
    }
}
