//! What is done to a sandbox beside the mailbox, and what becomes of the sandbox then.
//!
//! Every operation ends in one message, and a cancelled one has its message too. If the sandbox is
//! to be taken away by then, that begins with whatever the operation has left of it.

use std::sync::Arc;

use actix::{AsyncContext, Context, Handler, Message};
use chrono::Utc;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::commands::Outcome;
use super::{Ended, SandboxActor};
use crate::actors::host::sandbox::error::OperationError;
use crate::actors::host::sandbox::instance::Instance;
use crate::actors::host::sandbox::publisher::Then;
use crate::actors::mailbox::Reply;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::lifecycle::{Capture, SandboxState};
use crate::domain::name::TemplateName;
use crate::domain::snapshot::{Existing, ForkPoint, SnapshotInfo};
use crate::domain::trace::Trace;
use crate::vmm::machine::{CaptureError, Frozen, Machine, MachineError, MachineSpec, Paused, Run};

/// What is done to a sandbox, and who waits for it.
pub(super) enum Operation {
    Create(Reply<Result<(), Arc<MachineError>>>),
    Pause(Vec<Reply<Outcome<()>>>),
    Resume(Vec<Reply<Outcome<()>>>),
    Capture(Capture),
    Dismantle,
}

impl Operation {
    fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "create",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Capture(Capture::Snapshot) => "snapshot",
            Self::Capture(Capture::Fork) => "fork",
            Self::Capture(Capture::Network) => "network",
            Self::Dismantle => "destroy",
        }
    }
}

/// An operation under way.
pub(super) struct Underway {
    pub operation: Operation,
    cancel: CancellationToken,
    /// Cancels it when dropped: nothing goes on behind the back of its actor.
    _guard: DropGuard,
    /// Ends with it.
    _trace: Trace,
}

impl SandboxActor {
    fn begin(&mut self, operation: Operation, trace: &Trace) -> Run {
        let trace = trace.of_operation(operation.name(), &self.id);
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let (kept, _trace) = (cancel.clone(), trace.clone());
        self.underway = Some(Underway { operation, cancel: kept, _guard: guard, _trace });
        Run { cancel, trace, ..Run::default() }
    }

    pub(super) fn cancel_operation(&self) {
        if let Some(underway) = &self.underway {
            underway.cancel.cancel();
        }
    }

    /// The operation whose outcome has come.
    fn end(&mut self) -> Operation {
        self.underway.take().expect("an outcome has its operation").operation
    }

    pub(super) fn create(
        &mut self,
        spec: MachineSpec,
        trace: Trace,
        creator: Reply<Result<(), Arc<MachineError>>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Operation::Create(creator), &trace);
        let (machines, address) = (self.deps.machines.clone(), ctx.address());
        self.tasks.spawn(async move {
            // An outcome is no request: it must arrive, so it may exceed the mailbox's capacity.
            address.do_send(Created(machines.make(spec, &run).await));
        });
    }

    /// Tells whoever wanted a sandbox that there is none, once everybody can read what became of it: of
    /// one that is still said to be pending by then, the control plane takes the row away.
    fn refuse(&self, creator: Reply<Result<(), Arc<MachineError>>>, error: MachineError) {
        // It may have hung up.
        self.publisher.afterwards(move || drop(creator.send(Err(Arc::new(error)))));
    }

    pub(super) fn pause(
        &mut self,
        machine: Arc<dyn Machine>,
        trace: Trace,
        reply: Reply<Outcome<()>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Operation::Pause(vec![reply]), &trace);
        let (tasks, address) = (self.tasks.clone(), ctx.address());
        let last_count = self.last_count(machine.clone());
        let pause = async move {
            last_count.await;
            let outcome = match run.cancel.is_cancelled() {
                true => Err(CaptureError::RunsOn(MachineError::Cancelled)),
                false => machine.pause(&run).await,
            };
            address.do_send(PauseDone(outcome));
        };
        // The intention is on disk before the machine is frozen: a later daemon knows of it.
        let begin = Then::once_kept(move || drop(tasks.spawn(pause)));
        self.transition(SandboxState::Pausing, None, begin);
        // Nothing that goes on in the guest is heard of any more.
        self.alive.cancel();
    }

    pub(super) fn resume(
        &mut self,
        frozen: Arc<dyn Frozen>,
        trace: Trace,
        reply: Reply<Outcome<()>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Operation::Resume(vec![reply]), &trace);
        let (tasks, address) = (self.tasks.clone(), ctx.address());
        let resume = async move {
            let outcome = match run.cancel.is_cancelled() {
                true => Err(MachineError::Cancelled),
                false => frozen.resume(&run).await,
            };
            address.do_send(Resumed(outcome));
        };
        let begin = Then::once_kept(move || drop(tasks.spawn(resume)));
        self.transition(SandboxState::Resuming, None, begin);
    }

    pub(super) fn snapshot(
        &mut self,
        instance: Instance,
        name: TemplateName,
        existing: Existing,
        reply: Reply<Outcome<SnapshotInfo>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Operation::Capture(Capture::Snapshot), &Trace::default());
        let address = ctx.address();
        self.tasks.spawn(async move {
            let outcome = match instance {
                Instance::Machine(machine) => machine.snapshot(&name, existing, &run).await,
                Instance::Frozen(frozen) => {
                    frozen.snapshot(&name, existing).await.map_err(CaptureError::RunsOn)
                }
            };
            address.do_send(Captured::new(outcome, reply));
        });
    }

    pub(super) fn fork(
        &mut self,
        machine: Arc<dyn Machine>,
        trace: Trace,
        reply: Reply<Outcome<ForkPoint>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Operation::Capture(Capture::Fork), &trace);
        let address = ctx.address();
        self.tasks.spawn(async move {
            address.do_send(Captured::new(machine.fork(&run).await, reply));
        });
    }

    pub(super) fn set_network(
        &mut self,
        instance: Instance,
        policy: Policy,
        reply: Reply<Outcome<PolicyRevision>>,
        ctx: &mut Context<Self>,
    ) {
        self.begin(Operation::Capture(Capture::Network), &Trace::default());
        let address = ctx.address();
        self.tasks.spawn(async move {
            let outcome = instance.set_network(&policy).await.map_err(CaptureError::RunsOn);
            address.do_send(Captured::new(outcome, reply));
        });
    }

    /// Takes away whatever there is.
    pub(super) fn dismantle(&mut self, ctx: &mut Context<Self>) {
        let Some(instance) = self.instance.get() else {
            let reason = self.status.reason.clone();
            return self.finish(SandboxState::Stopped, reason, ctx);
        };
        self.begin(Operation::Dismantle, &Trace::default());
        let address = ctx.address();
        // Whoever adopts it need not wait for this: it may be begun again.
        let last_count = match &instance {
            Instance::Machine(machine) => Some(self.last_count(machine.clone())),
            Instance::Frozen(_) => None,
        };
        tokio::spawn(async move {
            if let Some(last_count) = last_count {
                last_count.await;
            }
            address.do_send(Dismantled(instance.destroy().await));
        });
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Created(Result<Arc<dyn Machine>, MachineError>);

#[derive(Message)]
#[rtype(result = "()")]
struct PauseDone(Result<Paused, CaptureError>);

#[derive(Message)]
#[rtype(result = "()")]
struct Resumed(Result<Arc<dyn Machine>, MachineError>);

#[derive(Message)]
#[rtype(result = "()")]
struct Captured {
    /// How the VM was lost, if it was.
    lost: Option<String>,
    /// Tells whoever asked for it.
    answer: Box<dyn FnOnce() + Send>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct Dismantled(Result<(), MachineError>);

impl Captured {
    fn new<T: Send + 'static>(outcome: Result<T, CaptureError>, reply: Reply<Outcome<T>>) -> Self {
        let (lost, answer) = match outcome {
            Ok(captured) => (None, Ok(captured)),
            Err(CaptureError::RunsOn(error)) => (None, failed(error)),
            Err(CaptureError::Lost(error)) => (Some(lost(&error)), failed(error)),
        };
        Self { lost, answer: Box::new(move || drop(reply.send(answer))) }
    }
}

fn failed<T>(error: MachineError) -> Outcome<T> {
    Err(OperationError::Machine(Arc::new(error)))
}

fn lost(error: &MachineError) -> String {
    format!("its VM was lost: {}", crate::chain(error))
}

/// Tells all that wait for an operation; some may have hung up.
fn answer(askers: Vec<Reply<Outcome<()>>>, outcome: Result<(), MachineError>) {
    let outcome = outcome.map_err(Arc::new);
    for asker in askers {
        let _ = asker.send(outcome.clone().map_err(OperationError::Machine));
    }
}

impl Handler<Created> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Created(outcome): Created, ctx: &mut Context<Self>) {
        let Operation::Create(creator) = self.end() else { unreachable!("it was being made") };
        if let Err(error @ MachineError::Remains(_)) = &outcome {
            self.leave_to_janitor(error);
        }
        if let Ok(machine) = &outcome {
            self.instance.set(Some(Instance::Machine(machine.clone())));
        }
        match outcome {
            _ if self.status.state != SandboxState::Starting => {
                self.dismantle(ctx);
                self.refuse(creator, MachineError::Cancelled);
            }
            Ok(machine) => {
                self.activity.restart(Utc::now());
                let answer = Then::once_told(move || drop(creator.send(Ok(()))));
                self.transition(SandboxState::Running, None, answer);
                self.attend(&machine, ctx);
            }
            Err(error) => {
                self.finish(SandboxState::Error, Some(crate::chain(&error).to_string()), ctx);
                self.refuse(creator, error);
            }
        }
    }
}

impl Handler<PauseDone> for SandboxActor {
    type Result = ();

    fn handle(&mut self, PauseDone(outcome): PauseDone, ctx: &mut Context<Self>) {
        let Operation::Pause(askers) = self.end() else { unreachable!("it was being paused") };
        if let Ok(paused) = &outcome {
            self.instance.set(Some(Instance::Frozen(paused.frozen.clone())));
        }
        match (outcome, self.instance.get()) {
            _ if self.status.state != SandboxState::Pausing => {
                self.dismantle(ctx);
                answer(askers, Err(MachineError::Cancelled));
            }
            (Ok(Paused { frozen, taken_away }), _) => {
                let answer = Then::once_told(move || {
                    answer(askers, taken_away);
                    // It ends by itself as soon as something is done to the sandbox.
                    tokio::spawn(async move { frozen.tidy().await });
                });
                self.transition(SandboxState::Paused, None, answer);
            }
            (Err(CaptureError::RunsOn(error)), Some(Instance::Machine(machine))) => {
                let answer = Then::once_told(move || answer(askers, Err(error)));
                self.transition(SandboxState::Running, None, answer);
                self.attend(&machine, ctx);
            }
            (Err(CaptureError::Lost(error)), _) => {
                let reason = lost(&error);
                self.lose(reason, Then::once_told(move || answer(askers, Err(error))), ctx);
            }
            (Err(CaptureError::RunsOn(_)), _) => unreachable!("what runs on has a machine"),
        }
    }
}

impl Handler<Resumed> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Resumed(outcome): Resumed, ctx: &mut Context<Self>) {
        let Operation::Resume(askers) = self.end() else { unreachable!("it was being resumed") };
        if let Ok(machine) = &outcome {
            self.instance.set(Some(Instance::Machine(machine.clone())));
        }
        match outcome {
            _ if self.status.state != SandboxState::Resuming => {
                self.dismantle(ctx);
                answer(askers, Err(MachineError::Cancelled));
            }
            Ok(machine) => {
                self.activity.restart(Utc::now());
                let answer = Then::once_told(move || answer(askers, Ok(())));
                self.transition(SandboxState::Running, None, answer);
                self.attend(&machine, ctx);
            }
            Err(error) => {
                let answer = Then::once_told(move || answer(askers, Err(error)));
                self.transition(SandboxState::Paused, None, answer);
            }
        }
    }
}

impl Handler<Captured> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Captured { lost, answer }: Captured, ctx: &mut Context<Self>) {
        self.end();
        match (self.status.state, lost) {
            (SandboxState::Running, Some(reason)) => {
                self.lose(reason, Then::OnceTold(answer), ctx);
            }
            (SandboxState::Running, None) => {
                // Its time may have run out meanwhile.
                self.arm_reaper();
                answer();
            }
            (SandboxState::Paused, _) => answer(),
            _ => {
                self.dismantle(ctx);
                answer();
            }
        }
    }
}

impl Handler<Dismantled> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Dismantled(outcome): Dismantled, ctx: &mut Context<Self>) {
        self.end();
        self.instance.set(None);
        if let Err(error) = &outcome {
            self.leave_to_janitor(error);
        }
        let reason = self.status.reason.clone();
        match outcome {
            // It ended by itself, and that has been told already.
            _ if self.status.state.is_final() => ctx.notify(Ended),
            Ok(()) => self.finish(SandboxState::Stopped, reason, ctx),
            Err(error) => {
                self.finish(SandboxState::Error, Some(crate::chain(&error).to_string()), ctx);
            }
        }
    }
}
