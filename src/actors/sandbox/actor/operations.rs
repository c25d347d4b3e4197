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
use crate::actors::mailbox::Reply;
use crate::actors::sandbox::body::Body;
use crate::actors::sandbox::refused::OperationError;
use crate::domain::egress::Policy;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::{Capture, SandboxState};
use crate::vmm::machine::{
    CaptureError, Existing, ForkPoint, Frozen, Machine, MachineError, MachineSpec, Paused, Run,
    SnapshotInfo,
};
use crate::vmm::trace::Trace;

/// An operation under way, and who waits for it.
pub(super) enum Doing {
    Boot(Reply<Result<(), Arc<MachineError>>>),
    Pause(Vec<Reply<Outcome<()>>>),
    Resume(Vec<Reply<Outcome<()>>>),
    Capture(Capture),
    Dismantle,
}

impl Doing {
    fn name(&self) -> &'static str {
        match self {
            Self::Boot(_) => "create",
            Self::Pause(_) => "pause",
            Self::Resume(_) => "resume",
            Self::Capture(Capture::Snapshot) => "snapshot",
            Self::Capture(Capture::Fork) => "fork",
            Self::Capture(Capture::Network) => "network",
            Self::Dismantle => "destroy",
        }
    }
}

pub(super) struct Operation {
    pub doing: Doing,
    cancel: CancellationToken,
    /// Cancels it when dropped: nothing goes on behind the back of its actor.
    _guard: DropGuard,
    /// Ends with it.
    _trace: Trace,
}

impl SandboxActor {
    fn begin(&mut self, doing: Doing, trace: &Trace) -> Run {
        let trace = trace.of_operation(doing.name(), &self.id);
        let cancel = CancellationToken::new();
        let guard = cancel.clone().drop_guard();
        let (kept, _trace) = (cancel.clone(), trace.clone());
        self.operation = Some(Operation { doing, cancel: kept, _guard: guard, _trace });
        Run { cancel, trace, ..Run::default() }
    }

    pub(super) fn cancel_operation(&self) {
        if let Some(operation) = &self.operation {
            operation.cancel.cancel();
        }
    }

    /// The operation whose outcome has come.
    fn end(&mut self) -> Doing {
        self.operation.take().expect("an outcome has its operation").doing
    }

    pub(super) fn boot(
        &mut self,
        spec: MachineSpec,
        trace: Trace,
        creator: Reply<Result<(), Arc<MachineError>>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Doing::Boot(creator), &trace);
        let (machines, address) = (self.outfit.machines.clone(), ctx.address());
        self.tasks.spawn(async move {
            // An outcome is no request: it must arrive, so it may exceed the mailbox's capacity.
            address.do_send(Booted(machines.make(spec, &run).await));
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
        let run = self.begin(Doing::Pause(vec![reply]), &trace);
        let (tasks, address) = (self.tasks.clone(), ctx.address());
        let last_count = self.last_count(machine.clone());
        let pause = async move {
            last_count.await;
            let outcome = match run.cancel.is_cancelled() {
                true => Err(CaptureError::RunsOn(MachineError::Cancelled)),
                false => machine.pause(&run).await,
            };
            address.do_send(Froze(outcome));
        };
        // The intention is on disk before the machine is frozen: a later daemon knows of it.
        self.become_(SandboxState::Pausing, None, move || drop(tasks.spawn(pause)));
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
        let run = self.begin(Doing::Resume(vec![reply]), &trace);
        let (tasks, address) = (self.tasks.clone(), ctx.address());
        let resume = async move {
            let outcome = match run.cancel.is_cancelled() {
                true => Err(MachineError::Cancelled),
                false => frozen.resume(&run).await,
            };
            address.do_send(Resumed(outcome));
        };
        self.become_(SandboxState::Resuming, None, move || drop(tasks.spawn(resume)));
    }

    pub(super) fn snapshot(
        &mut self,
        body: Body,
        name: TemplateName,
        existing: Existing,
        reply: Reply<Outcome<SnapshotInfo>>,
        ctx: &mut Context<Self>,
    ) {
        let run = self.begin(Doing::Capture(Capture::Snapshot), &Trace::default());
        let address = ctx.address();
        self.tasks.spawn(async move {
            let outcome = match body {
                Body::Machine(machine) => machine.snapshot(&name, existing, &run).await,
                Body::Frozen(frozen) => {
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
        let run = self.begin(Doing::Capture(Capture::Fork), &trace);
        let address = ctx.address();
        self.tasks.spawn(async move {
            address.do_send(Captured::new(machine.fork(&run).await, reply));
        });
    }

    pub(super) fn set_network(
        &mut self,
        body: Body,
        policy: Policy,
        reply: Reply<Outcome<()>>,
        ctx: &mut Context<Self>,
    ) {
        self.begin(Doing::Capture(Capture::Network), &Trace::default());
        let address = ctx.address();
        self.tasks.spawn(async move {
            let outcome = body.set_network(&policy).await.map_err(CaptureError::RunsOn);
            address.do_send(Captured::new(outcome, reply));
        });
    }

    /// Takes away whatever there is.
    pub(super) fn dismantle(&mut self, ctx: &mut Context<Self>) {
        let Some(body) = self.body.get() else {
            let reason = self.life.reason.clone();
            return self.finish(SandboxState::Stopped, reason, ctx);
        };
        self.begin(Doing::Dismantle, &Trace::default());
        let address = ctx.address();
        // Whoever adopts it need not wait for this: it may be begun again.
        let last_count = match &body {
            Body::Machine(machine) => Some(self.last_count(machine.clone())),
            Body::Frozen(_) => None,
        };
        tokio::spawn(async move {
            if let Some(last_count) = last_count {
                last_count.await;
            }
            address.do_send(Dismantled(body.destroy().await));
        });
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Booted(Result<Arc<dyn Machine>, MachineError>);

#[derive(Message)]
#[rtype(result = "()")]
struct Froze(Result<Paused, CaptureError>);

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

impl Handler<Booted> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Booted(outcome): Booted, ctx: &mut Context<Self>) {
        let Doing::Boot(creator) = self.end() else { unreachable!("it was being made") };
        if let Err(error @ MachineError::Remains(_)) = &outcome {
            self.leave_to_janitor(error);
        }
        if let Ok(machine) = &outcome {
            self.body.set(Some(Body::Machine(machine.clone())));
        }
        match outcome {
            _ if self.life.state != SandboxState::Starting => {
                self.dismantle(ctx);
                self.refuse(creator, MachineError::Cancelled);
            }
            Ok(machine) => {
                self.ledger.restart(Utc::now());
                self.become_(SandboxState::Running, None, move || drop(creator.send(Ok(()))));
                self.attend(&machine, ctx);
            }
            Err(error) => {
                self.finish(SandboxState::Error, Some(crate::chain(&error).to_string()), ctx);
                self.refuse(creator, error);
            }
        }
    }
}

impl Handler<Froze> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Froze(outcome): Froze, ctx: &mut Context<Self>) {
        let Doing::Pause(askers) = self.end() else { unreachable!("it was being paused") };
        if let Ok(paused) = &outcome {
            self.body.set(Some(Body::Frozen(paused.frozen.clone())));
        }
        match (outcome, self.body.get()) {
            _ if self.life.state != SandboxState::Pausing => {
                self.dismantle(ctx);
                answer(askers, Err(MachineError::Cancelled));
            }
            (Ok(Paused { frozen, taken_away }), _) => {
                self.become_(SandboxState::Paused, None, move || {
                    answer(askers, taken_away);
                    // It ends by itself as soon as something is done to the sandbox.
                    tokio::spawn(async move { frozen.tidy().await });
                })
            }
            (Err(CaptureError::RunsOn(error)), Some(Body::Machine(machine))) => {
                self.become_(SandboxState::Running, None, move || answer(askers, Err(error)));
                self.attend(&machine, ctx);
            }
            (Err(CaptureError::Lost(error)), _) => {
                self.lose(lost(&error), move || answer(askers, Err(error)), ctx);
            }
            (Err(CaptureError::RunsOn(_)), _) => unreachable!("what runs on has a machine"),
        }
    }
}

impl Handler<Resumed> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Resumed(outcome): Resumed, ctx: &mut Context<Self>) {
        let Doing::Resume(askers) = self.end() else { unreachable!("it was being resumed") };
        if let Ok(machine) = &outcome {
            self.body.set(Some(Body::Machine(machine.clone())));
        }
        match outcome {
            _ if self.life.state != SandboxState::Resuming => {
                self.dismantle(ctx);
                answer(askers, Err(MachineError::Cancelled));
            }
            Ok(machine) => {
                self.ledger.restart(Utc::now());
                self.become_(SandboxState::Running, None, move || answer(askers, Ok(())));
                self.attend(&machine, ctx);
            }
            Err(error) => {
                self.become_(SandboxState::Paused, None, move || answer(askers, Err(error)));
            }
        }
    }
}

impl Handler<Captured> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Captured { lost, answer }: Captured, ctx: &mut Context<Self>) {
        self.end();
        match (self.life.state, lost) {
            (SandboxState::Running, Some(reason)) => self.lose(reason, answer, ctx),
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
        self.body.set(None);
        if let Err(error) = &outcome {
            self.leave_to_janitor(error);
        }
        let reason = self.life.reason.clone();
        match outcome {
            // It ended by itself, and that has been told already.
            _ if self.life.state.is_final() => ctx.notify(Ended),
            Ok(()) => self.finish(SandboxState::Stopped, reason, ctx),
            Err(error) => {
                self.finish(SandboxState::Error, Some(crate::chain(&error).to_string()), ctx);
            }
        }
    }
}
