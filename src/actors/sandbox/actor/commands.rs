//! What others ask of a sandbox, and whether it is done.

use std::time::Instant;

use actix::{Context, Handler, Message};
use chrono::{TimeDelta, Utc};

use super::SandboxActor;
use super::operations::Doing;
use crate::actors::mailbox::Reply;
use crate::actors::sandbox::body::Body;
use crate::actors::sandbox::lease::{Lease, WorkError};
use crate::actors::sandbox::ledger::Idleness;
use crate::actors::sandbox::refused::{OperationError, Refused};
use crate::domain::egress::Policy;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::{Admission, Command, Refusal, SandboxState, admit};
use crate::vmm::machine::{Existing, ForkPoint, SnapshotInfo};
use crate::vmm::trace::Trace;

/// What an operation comes to.
pub(super) type Outcome<T> = Result<T, OperationError>;

/// Asks to do work.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct BeginWork(pub Reply<Result<Lease, WorkError>>);

/// Asks to freeze it.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct Pause(pub Trace, pub Reply<Outcome<()>>);

/// Asks to make it run again.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct Resume(pub Trace, pub Reply<Outcome<()>>);

/// Asks to keep what it is now under a name.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct Snapshot {
    pub name: TemplateName,
    pub existing: Existing,
    pub reply: Reply<Outcome<SnapshotInfo>>,
}

/// Asks to freeze what it is now for others.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct Fork(pub Trace, pub Reply<Outcome<ForkPoint>>);

/// Asks to change what it may reach.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct SetNetwork(pub Policy, pub Reply<Outcome<()>>);

/// Asks to end it unless this is said again within so many seconds; not any more, if that is none.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct SetLease(pub Option<u32>, pub Reply<Outcome<()>>);

/// Asks to end it all.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct Destroy(pub Reply<()>);

/// Reminds that the time may be over.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::sandbox) struct Expire;

impl SandboxActor {
    fn admit(&self, command: Command) -> Admission {
        let pending = self.operation.as_ref().and_then(|operation| match operation.doing {
            Doing::Capture(capture) => Some(capture),
            Doing::Boot(_) | Doing::Pause(_) | Doing::Resume(_) | Doing::Dismantle => None,
        });
        admit(self.life.state, pending, command)
    }

    fn refused(&self, refusal: Refusal) -> Refused {
        Refused { refusal, reason: self.life.reason.clone() }
    }

    /// Answers when what was asked for is so: with what is being done, or when everybody knows.
    fn join(&mut self, reply: Reply<Outcome<()>>) {
        match self.operation.as_mut().map(|operation| &mut operation.doing) {
            Some(Doing::Pause(askers) | Doing::Resume(askers)) => askers.push(reply),
            Some(Doing::Boot(_) | Doing::Capture(_) | Doing::Dismantle) | None => {
                self.publisher.afterwards(move || drop(reply.send(Ok(()))));
            }
        }
    }
}

impl Handler<BeginWork> for SandboxActor {
    type Result = ();

    fn handle(&mut self, BeginWork(reply): BeginWork, _: &mut Context<Self>) {
        let answer = match (self.admit(Command::Work), self.body.get()) {
            (Admission::Accept, Some(Body::Machine(machine))) => Ok(Lease::new(
                machine.agent().clone(),
                self.alive.clone(),
                self.published.subscribe(),
                self.ledger.clone(),
            )),
            (Admission::Refused(refusal), _) => Err(self.refused(refusal).into()),
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!("work is accepted only where a machine runs")
            }
        };
        let _ = reply.send(answer);
    }
}

impl Handler<Pause> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Pause(trace, reply): Pause, ctx: &mut Context<Self>) {
        match (self.admit(Command::Pause), self.body.get()) {
            (Admission::Accept, Some(Body::Machine(machine))) => {
                self.pause(machine, trace, reply, ctx);
            }
            (Admission::AlreadySo, _) => self.join(reply),
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept, _) => unreachable!("a running sandbox has a machine"),
        }
    }
}

impl Handler<Resume> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Resume(trace, reply): Resume, ctx: &mut Context<Self>) {
        match (self.admit(Command::Resume), self.body.get()) {
            (Admission::Accept, Some(Body::Frozen(frozen))) => {
                self.resume(frozen, trace, reply, ctx);
            }
            (Admission::AlreadySo, _) => self.join(reply),
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept, _) => unreachable!("a paused sandbox is frozen"),
        }
    }
}

impl Handler<Snapshot> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Snapshot { name, existing, reply }: Snapshot, ctx: &mut Context<Self>) {
        match (self.admit(Command::Snapshot), self.body.get()) {
            (Admission::Accept, Some(body)) => self.snapshot(body, name, existing, reply, ctx),
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!("what is running or paused has a body, and each snapshot is another")
            }
        }
    }
}

impl Handler<Fork> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Fork(trace, reply): Fork, ctx: &mut Context<Self>) {
        match (self.admit(Command::Fork), self.body.get()) {
            (Admission::Accept, Some(Body::Machine(machine))) => {
                self.fork(machine, trace, reply, ctx);
            }
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!("a running sandbox has a machine, and each fork is another")
            }
        }
    }
}

impl Handler<SetNetwork> for SandboxActor {
    type Result = ();

    fn handle(&mut self, SetNetwork(policy, reply): SetNetwork, ctx: &mut Context<Self>) {
        match (self.admit(Command::Network), self.body.get()) {
            (Admission::Accept, Some(body)) => self.set_network(body, policy, reply, ctx),
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!("what is running or paused has a body, and each change is another")
            }
        }
    }
}

impl Handler<Destroy> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Destroy(reply): Destroy, ctx: &mut Context<Self>) {
        match self.admit(Command::Destroy) {
            Admission::Accept if self.life.state == SandboxState::Error => {
                self.destroyers.push(reply);
                let reason = self.life.reason.clone();
                self.become_(SandboxState::Stopping, reason.clone(), || {});
                if self.operation.is_none() {
                    self.finish(SandboxState::Stopped, reason, ctx);
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
        // Whatever is done in it or to it: nobody wants it any more.
        if let Some((seconds, until)) = self.lease() {
            if until <= Instant::now() {
                let reason = format!("its client has not renewed its lease for {seconds} s");
                return self.stop(Some(reason), ctx);
            }
            // Its idle time may come before, which is seen to below.
            self.arm_for(None);
        }
        let Some(seconds) = self.life.timeout_sec else { return };
        // Whatever keeps it from ending now arms the reaper when it is done.
        if self.admit(Command::Expire) != Admission::Accept {
            return;
        }
        match self.ledger.idleness(TimeDelta::seconds(seconds.into()), Utc::now()) {
            Idleness::Expired => {
                self.stop(Some(format!("no work was done in it for {seconds} s")), ctx);
            }
            Idleness::NotBefore(deadline) => self.arm_for(Some(deadline)),
        }
    }
}

impl Handler<SetLease> for SandboxActor {
    type Result = ();

    fn handle(&mut self, SetLease(lease_sec, reply): SetLease, _: &mut Context<Self>) {
        let state = self.life.state;
        if state == SandboxState::Stopping || state.is_final() {
            let _ = reply.send(Err(self.refused(Refusal::Gone(state)).into()));
            return;
        }
        let changed = self.life.lease_sec != lease_sec;
        self.life.lease_sec = lease_sec;
        self.renew_lease();
        if changed {
            // A later daemon has to know.
            self.published.send_replace(self.life.clone());
            return self.publish(move || drop(reply.send(Ok(()))));
        }
        let _ = reply.send(Ok(()));
    }
}
