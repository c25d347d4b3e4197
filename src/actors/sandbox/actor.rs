//! The actor itself: messages, decisions, operations. Private to its handle.

use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, AsyncContext, Context, Handler, Message};
use chrono::{TimeDelta, Utc};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::lease::{Lease, WorkError};
use super::ledger::{Idleness, Ledger};
use super::publisher::{Publisher, StatusSink};
use crate::actors::janitor::JanitorHandle;
use crate::actors::mailbox::{CAPACITY, Reply};
use crate::actors::reaper::ReaperHandle;
use crate::actors::supervisor::{Exit, ExitSignal};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::{Admission, Command, SandboxState, admit};
use crate::vmm::machine::{Found, Machine, MachineError, MachineSpec, Machines, Run};
use crate::vmm::record::Life;

/// What every sandbox of a host works with.
#[derive(Clone)]
pub struct Outfit {
    /// Makes machines.
    pub machines: Arc<dyn Machines>,
    /// Where decisions become known.
    pub sink: Arc<dyn StatusSink>,
    /// Reminds of deadlines.
    pub reaper: ReaperHandle,
    /// Takes away what could not be taken away at once.
    pub janitor: JanitorHandle,
}

/// How an actor comes to its sandbox.
pub enum Beginning {
    /// A new machine is to be made.
    Boot(Box<MachineSpec>, Reply<Result<(), Arc<MachineError>>>),
    /// Its machine runs already.
    Adopted(Found),
    /// Its machine is gone, and why.
    Lost(String),
}

/// Identifies one run of an operation, so that a late outcome of a cancelled one is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct OperationId(u64);

struct Operation {
    id: OperationId,
    /// Cancels the operation when dropped: nothing goes on behind the back of its actor.
    _cancel: DropGuard,
}

pub(super) struct SandboxActor {
    id: SandboxId,
    outfit: Outfit,
    beginning: Option<Beginning>,
    life: Life,
    published: watch::Sender<Life>,
    publisher: Publisher,
    ledger: Arc<Ledger>,
    machine: Option<Arc<dyn Machine>>,
    operation: Option<Operation>,
    operations: u64,
    /// Cancelled when the VM is no longer there to work in.
    alive: CancellationToken,
    creator: Option<Reply<Result<(), Arc<MachineError>>>>,
    destroyers: Vec<Reply<()>>,
    exit: ExitSignal,
}

impl SandboxActor {
    pub(super) fn new(
        id: SandboxId,
        outfit: Outfit,
        beginning: Beginning,
        published: watch::Sender<Life>,
        ledger: Arc<Ledger>,
        exit: ExitSignal,
    ) -> Self {
        let life = published.borrow().clone();
        let publisher = Publisher::start(id.clone(), outfit.sink.clone(), ledger.clone());
        Self {
            id,
            outfit,
            beginning: Some(beginning),
            life,
            published,
            publisher,
            ledger,
            machine: None,
            operation: None,
            operations: 0,
            alive: CancellationToken::new(),
            creator: None,
            destroyers: Vec::new(),
            exit,
        }
    }

    /// Goes to another state and makes that known; `afterwards` runs when everybody can read it.
    fn become_(
        &mut self,
        state: SandboxState,
        reason: Option<String>,
        afterwards: impl FnOnce() + Send + 'static,
    ) {
        debug_assert!(self.life.state.may_become(state), "{} -> {state}", self.life.state);
        tracing::info!(sandbox_id = %self.id, from = %self.life.state, to = %state,
            reason = reason.as_deref(), "state");
        self.life.state = state;
        self.life.reason = reason;
        self.life.generation += 1;
        self.published.send_replace(self.life.clone());
        self.publisher.publish(&self.life, self.machine.clone(), afterwards);
    }

    fn begin_operation(&mut self) -> (OperationId, CancellationToken) {
        self.operations += 1;
        let id = OperationId(self.operations);
        let cancel = CancellationToken::new();
        self.operation = Some(Operation { id, _cancel: cancel.clone().drop_guard() });
        (id, cancel)
    }

    fn is_current(&self, id: OperationId) -> bool {
        self.operation.as_ref().is_some_and(|operation| operation.id == id)
    }

    fn boot(&mut self, spec: MachineSpec, ctx: &mut Context<Self>) {
        let (operation, cancel) = self.begin_operation();
        let machines = self.outfit.machines.clone();
        let address = ctx.address();
        tokio::spawn(async move {
            let outcome =
                machines.make(spec, &Run { cancel, ..Run::default() }).await.map_err(Arc::new);
            // An outcome is no request: it must arrive, so it may exceed the mailbox's capacity.
            address.do_send(Booted { operation, outcome });
        });
    }

    fn watch_machine(&self, machine: &Arc<dyn Machine>, ctx: &mut Context<Self>) {
        let machine = machine.clone();
        let address = ctx.address();
        let alive = self.alive.clone();
        tokio::spawn(async move {
            tokio::select! {
                how = machine.ended() => address.do_send(VmEnded { how }),
                () = alive.cancelled() => {}
            }
        });
    }

    fn arm_reaper(&self) {
        if let Some(seconds) = self.life.timeout_sec {
            let deadline = self.ledger.last_active_at() + TimeDelta::seconds(seconds.into());
            self.outfit.reaper.arm(self.id.clone(), deadline);
        }
    }

    /// Starts to take everything away, whatever runs now.
    fn stop(&mut self, reason: Option<String>, ctx: &mut Context<Self>) {
        // Dropping a boot cancels it; it takes away what it made, and its outcome ends the life.
        self.operation = None;
        self.alive.cancel();
        let address = ctx.address();
        // The intention is on disk before anything is taken away: a later daemon carries it out.
        self.become_(SandboxState::Stopping, reason, move || address.do_send(Dismantle));
    }

    fn dismantle(&mut self, machine: Arc<dyn Machine>, ctx: &mut Context<Self>) {
        let (operation, _) = self.begin_operation();
        let address = ctx.address();
        tokio::spawn(async move {
            let outcome = machine.destroy().await;
            address.do_send(Dismantled { operation, outcome });
        });
    }

    /// The life is over: says so, answers everybody, ends the actor.
    fn finish(&mut self, state: SandboxState, reason: Option<String>, ctx: &mut Context<Self>) {
        self.machine = None;
        self.alive.cancel();
        let destroyers = std::mem::take(&mut self.destroyers);
        let address = ctx.address();
        self.become_(state, reason, move || {
            for reply in destroyers {
                // Whoever asked may have hung up.
                let _ = reply.send(());
            }
            address.do_send(Ended);
        });
    }

    /// Something of the sandbox is left on the host; the janitor goes on trying.
    fn leave_to_janitor(&mut self, error: &MachineError) {
        tracing::error!(sandbox_id = %self.id, error = %crate::chain(error),
            "a sandbox was not taken away completely");
        self.outfit.janitor.sweep(self.id.clone());
    }
}

impl Actor for SandboxActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
        match self.beginning.take() {
            Some(Beginning::Boot(spec, creator)) => {
                self.creator = Some(creator);
                self.publisher.publish(&self.life, None, || {});
                self.boot(*spec, ctx);
            }
            Some(Beginning::Adopted(Found::Frozen(_))) => todo!(),
            Some(Beginning::Adopted(Found::Running(machine))) => {
                self.machine = Some(machine.clone());
                match self.life.state {
                    // It was to be destroyed when the former daemon ended: that goes on.
                    SandboxState::Stopping => {
                        // The former daemon may not have told it. Its record goes with the machine.
                        self.publisher.publish(&self.life, None, || {});
                        self.dismantle(machine, ctx);
                    }
                    _ => {
                        self.publisher.publish(&self.life, self.machine.clone(), || {});
                        self.watch_machine(&machine, ctx);
                        self.arm_reaper();
                    }
                }
            }
            Some(Beginning::Lost(reason)) => match self.life.state {
                SandboxState::Stopping => self.finish(SandboxState::Stopped, None, ctx),
                _ => self.finish(SandboxState::Error, Some(reason), ctx),
            },
            None => unreachable!("an actor starts once"),
        }
    }
}

/// Asks to do work.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct BeginWork(pub Reply<Result<Lease, WorkError>>);

/// Asks to end it all.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Destroy(pub Reply<()>);

/// Reminds that the time may be over.
#[derive(Message)]
#[rtype(result = "()")]
pub(super) struct Expire;

#[derive(Message)]
#[rtype(result = "()")]
struct Booted {
    operation: OperationId,
    outcome: Result<Arc<dyn Machine>, Arc<MachineError>>,
}

/// Everybody knows that it is to be taken away.
#[derive(Message)]
#[rtype(result = "()")]
struct Dismantle;

#[derive(Message)]
#[rtype(result = "()")]
struct Dismantled {
    operation: OperationId,
    outcome: Result<(), MachineError>,
}

#[derive(Message)]
#[rtype(result = "()")]
struct VmEnded {
    how: String,
}

/// The last state is known to everybody.
#[derive(Message)]
#[rtype(result = "()")]
struct Ended;

impl Handler<BeginWork> for SandboxActor {
    type Result = ();

    fn handle(&mut self, BeginWork(reply): BeginWork, _: &mut Context<Self>) {
        let answer = match (admit(self.life.state, Command::Work), &self.machine) {
            (Admission::Accept, Some(machine)) => Ok(Lease::new(
                machine.agent().clone(),
                self.alive.clone(),
                self.published.subscribe(),
                self.ledger.clone(),
            )),
            (Admission::Refused(refusal), _) => {
                Err(WorkError::Refused { refusal, reason: self.life.reason.clone() })
            }
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!("work is accepted only where a machine runs")
            }
        };
        let _ = reply.send(answer);
    }
}

impl Handler<Destroy> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Destroy(reply): Destroy, ctx: &mut Context<Self>) {
        match admit(self.life.state, Command::Destroy) {
            Admission::Accept if self.life.state == SandboxState::Error => {
                self.destroyers.push(reply);
                let dismantling = self.operation.is_some();
                self.become_(SandboxState::Stopping, self.life.reason.clone(), || {});
                if !dismantling {
                    self.finish(SandboxState::Stopped, self.life.reason.clone(), ctx);
                }
            }
            Admission::Accept => {
                self.destroyers.push(reply);
                self.stop(None, ctx);
            }
            Admission::AlreadySo if self.life.state == SandboxState::Stopping => {
                self.destroyers.push(reply);
            }
            Admission::AlreadySo => {
                let _ = reply.send(());
            }
            Admission::Refused(_) => unreachable!("destroying is never refused"),
        }
    }
}

impl Handler<Expire> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Expire: Expire, ctx: &mut Context<Self>) {
        let Some(seconds) = self.life.timeout_sec else { return };
        if admit(self.life.state, Command::Expire) != Admission::Accept {
            return;
        }
        match self.ledger.idleness(TimeDelta::seconds(seconds.into()), Utc::now()) {
            Idleness::Expired => {
                self.stop(Some(format!("no work was done in it for {seconds} s")), ctx);
            }
            Idleness::NotBefore(deadline) => self.outfit.reaper.arm(self.id.clone(), deadline),
        }
    }
}

impl Handler<Booted> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Booted { operation, outcome }: Booted, ctx: &mut Context<Self>) {
        let creator = self.creator.take();
        if !self.is_current(operation) {
            // It was cancelled by a destroy, which waits for this: see `Dismantle`.
            match outcome {
                Ok(machine) => self.machine = Some(machine),
                Err(error) if matches!(&*error, MachineError::Remains(_)) => {
                    self.leave_to_janitor(&error);
                }
                Err(_) => {}
            }
            ctx.notify(Dismantle);
            if let Some(creator) = creator {
                let _ = creator.send(Err(Arc::new(MachineError::Cancelled)));
            }
            return;
        }
        self.operation = None;
        match outcome {
            Ok(machine) => {
                self.watch_machine(&machine, ctx);
                self.machine = Some(machine);
                self.ledger.restart(Utc::now());
                self.become_(SandboxState::Running, None, move || {
                    if let Some(creator) = creator {
                        let _ = creator.send(Ok(()));
                    }
                });
                self.arm_reaper();
            }
            Err(error) => {
                if matches!(&*error, MachineError::Remains(_)) {
                    self.leave_to_janitor(&error);
                }
                let reason = crate::chain(&*error).to_string();
                self.finish(SandboxState::Error, Some(reason), ctx);
                if let Some(creator) = creator {
                    let _ = creator.send(Err(error));
                }
            }
        }
    }
}

impl Handler<VmEnded> for SandboxActor {
    type Result = ();

    fn handle(&mut self, VmEnded { how }: VmEnded, ctx: &mut Context<Self>) {
        if self.life.state != SandboxState::Running {
            return;
        }
        // Say it first: whoever works in it learns the reason at once, not after the clean-up.
        let machine = self.machine.take();
        self.become_(SandboxState::Error, Some(format!("its VM {how}")), || {});
        self.alive.cancel();
        match machine {
            Some(machine) => self.dismantle(machine, ctx),
            None => unreachable!("a running sandbox has a machine"),
        }
    }
}

impl Handler<Dismantle> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Dismantle: Dismantle, ctx: &mut Context<Self>) {
        // It comes twice when a cancelled boot ends before everybody knows of the stop.
        if self.life.state != SandboxState::Stopping || self.operation.is_some() {
            return;
        }
        match self.machine.clone() {
            Some(machine) => self.dismantle(machine, ctx),
            None if self.creator.is_some() => {}
            None => self.finish(SandboxState::Stopped, self.life.reason.clone(), ctx),
        }
    }
}

impl Handler<Dismantled> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Dismantled { operation, outcome }: Dismantled, ctx: &mut Context<Self>) {
        if !self.is_current(operation) {
            return;
        }
        self.operation = None;
        if let Err(error) = &outcome {
            self.leave_to_janitor(error);
        }
        match (self.life.state, outcome) {
            // The end of a VM that ended by itself: its state has been told already.
            (SandboxState::Error, _) => ctx.notify(Ended),
            (_, Ok(())) => {
                let reason = self.life.reason.clone();
                self.finish(SandboxState::Stopped, reason, ctx);
            }
            (_, Err(error)) => {
                self.finish(SandboxState::Error, Some(crate::chain(&error).to_string()), ctx);
            }
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
