//! What others ask of a sandbox, and whether it is done.

use std::time::Instant;

use actix::{Context, Handler, Message};
use chrono::{TimeDelta, Utc};

use super::SandboxActor;
use super::operations::Operation;
use crate::actors::host::sandbox::error::OperationError;
use crate::actors::host::sandbox::idleness::Idleness;
use crate::actors::host::sandbox::instance::Instance;
use crate::actors::host::sandbox::lease::{Lease, WorkError};
use crate::actors::host::sandbox::publisher::Then;
use crate::actors::mailbox::Reply;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::lifecycle::{Admission, Command, Refusal, Refused, SandboxState, admit};
use crate::domain::name::TemplateName;
use crate::domain::snapshot::{Existing, ForkPoint, SnapshotInfo};
use crate::domain::trace::Trace;

/// What an operation comes to.
pub(super) type Outcome<T> = Result<T, OperationError>;

/// Asks to do work.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct BeginWork(pub Reply<Result<Lease, WorkError>>);

/// Asks to freeze it.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct Pause(pub Trace, pub Reply<Outcome<()>>);

/// Asks to make it run again.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct Resume(pub Trace, pub Reply<Outcome<()>>);

/// Asks to keep what it is now under a name.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct Snapshot {
    pub name: TemplateName,
    pub existing: Existing,
    pub reply: Reply<Outcome<SnapshotInfo>>,
}

/// Asks to freeze what it is now for others.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct Fork(pub Trace, pub Reply<Outcome<ForkPoint>>);

/// Asks to change what it may reach.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct SetNetwork(
    pub Policy,
    pub Reply<Outcome<PolicyRevision>>,
);

/// Asks to end it unless this is said again within so many seconds; not any more, if that is none.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct SetLease(pub Option<u32>, pub Reply<Outcome<()>>);

/// Asks to end it all.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct Destroy(pub Reply<()>);

/// Reminds that the time may be over.
#[derive(Message)]
#[rtype(result = "()")]
pub(in crate::actors::host::sandbox) struct Expire;

impl SandboxActor {
    fn admit(&self, command: Command) -> Admission {
        let pending = self.underway.as_ref().and_then(|underway| match underway.operation {
            Operation::Capture(capture) => Some(capture),
            Operation::Create(_)
            | Operation::Pause(_)
            | Operation::Resume(_)
            | Operation::Dismantle => None,
        });
        admit(self.status.state, pending, command)
    }

    fn refused(&self, refusal: Refusal) -> Refused {
        Refused { refusal, reason: self.status.reason.clone() }
    }

    /// Answers when what was asked for is so: with what is being done, or when everybody knows.
    fn join(&mut self, reply: Reply<Outcome<()>>) {
        match self.underway.as_mut().map(|underway| &mut underway.operation) {
            Some(Operation::Pause(askers) | Operation::Resume(askers)) => askers.push(reply),
            Some(Operation::Create(_) | Operation::Capture(_) | Operation::Dismantle) | None => {
                self.publisher.afterwards(move || drop(reply.send(Ok(()))));
            }
        }
    }
}

impl Handler<BeginWork> for SandboxActor {
    type Result = ();

    fn handle(&mut self, BeginWork(reply): BeginWork, _: &mut Context<Self>) {
        let answer = match (self.admit(Command::Work), self.instance.get()) {
            (Admission::Accept, Some(Instance::Machine(machine))) => Ok(Lease::new(
                machine.agent().clone(),
                self.alive.clone(),
                self.published.subscribe(),
                self.activity.clone(),
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
        match (self.admit(Command::Pause), self.instance.get()) {
            (Admission::Accept, Some(Instance::Machine(machine))) => {
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
        match (self.admit(Command::Resume), self.instance.get()) {
            (Admission::Accept, Some(Instance::Frozen(frozen))) => {
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
        match (self.admit(Command::Snapshot), self.instance.get()) {
            (Admission::Accept, Some(instance)) => {
                self.snapshot(instance, name, existing, reply, ctx)
            }
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!(
                    "what is running or paused has a instance, and each snapshot is another"
                )
            }
        }
    }
}

impl Handler<Fork> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Fork(trace, reply): Fork, ctx: &mut Context<Self>) {
        match (self.admit(Command::Fork), self.instance.get()) {
            (Admission::Accept, Some(Instance::Machine(machine))) => {
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
        match (self.admit(Command::Network), self.instance.get()) {
            (Admission::Accept, Some(instance)) => self.set_network(instance, policy, reply, ctx),
            (Admission::Refused(refusal), _) => {
                let _ = reply.send(Err(self.refused(refusal).into()));
            }
            (Admission::Accept | Admission::AlreadySo, _) => {
                unreachable!("what is running or paused has a instance, and each change is another")
            }
        }
    }
}

impl Handler<Destroy> for SandboxActor {
    type Result = ();

    fn handle(&mut self, Destroy(reply): Destroy, ctx: &mut Context<Self>) {
        match self.admit(Command::Destroy) {
            Admission::Accept if self.status.state == SandboxState::Error => {
                self.destroyers.push(reply);
                let reason = self.status.reason.clone();
                self.transition(SandboxState::Stopping, reason.clone(), Then::Nothing);
                if self.underway.is_none() {
                    self.finish(SandboxState::Stopped, reason, ctx);
                }
            }
            Admission::Accept => {
                self.destroyers.push(reply);
                self.stop(None, ctx);
            }
            Admission::AlreadySo if self.status.state == SandboxState::Stopping => {
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
        let Some(seconds) = self.status.timeout_sec else { return };
        // Whatever keeps it from ending now arms the reaper when it is done.
        if self.admit(Command::Expire) != Admission::Accept {
            return;
        }
        match self.activity.idleness(TimeDelta::seconds(seconds.into()), Utc::now()) {
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
        let state = self.status.state;
        if state == SandboxState::Stopping || state.is_final() {
            let _ = reply.send(Err(self.refused(Refusal::Gone(state)).into()));
            return;
        }
        let changed = self.status.lease_sec != lease_sec;
        self.status.lease_sec = lease_sec;
        self.renew_lease();
        if changed {
            // A later daemon has to know.
            self.published.send_replace(self.status.clone());
            return self.publish(Then::once_kept(move || drop(reply.send(Ok(())))));
        }
        let _ = reply.send(Ok(()));
    }
}
