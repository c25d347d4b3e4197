//! Ends sandboxes whose time is over.
//!
//! One timer for the earliest deadline, no scanning. The reaper only reminds: whether the time is
//! really over is the sandbox's own decision, so that a renewal and an expiry cannot both happen.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use actix::{Actor, ArbiterHandle, AsyncContext, Context, Handler, Message, SpawnHandle};
use chrono::{DateTime, Utc};

use super::registry::Registry;
use crate::actors::mailbox::{CAPACITY, post};
use crate::actors::supervisor::{ExitSignal, Supervised};
use crate::domain::id::SandboxId;

/// A reminder that could not be delivered is tried again after this long.
const RETRY: Duration = Duration::from_secs(1);

struct Reaper {
    registry: Registry,
    by_deadline: BTreeSet<(DateTime<Utc>, SandboxId)>,
    by_id: HashMap<SandboxId, DateTime<Utc>>,
    timer: Option<SpawnHandle>,
    _exit: ExitSignal,
}

/// What others hold of the reaper.
#[derive(Clone)]
pub struct ReaperHandle(Supervised<Reaper>);

impl ReaperHandle {
    /// Starts the reaper.
    pub fn start(arbiter: &ArbiterHandle, registry: Registry) -> Self {
        let make = move |exit| Reaper {
            registry: registry.clone(),
            by_deadline: BTreeSet::new(),
            by_id: HashMap::new(),
            timer: None,
            _exit: exit,
        };
        Self(Supervised::start(arbiter, "reaper", make))
    }

    /// Has the sandbox reminded at `deadline`, instead of at any earlier one.
    pub fn arm(&self, id: SandboxId, deadline: DateTime<Utc>) {
        if let Err(error) = post(&self.0.address(), Arm { id: id.clone(), deadline }) {
            tracing::error!(sandbox_id = %id, %error, "a deadline was not taken");
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Arm {
    id: SandboxId,
    deadline: DateTime<Utc>,
}

impl Reaper {
    fn set(&mut self, id: SandboxId, deadline: DateTime<Utc>) {
        if let Some(former) = self.by_id.insert(id.clone(), deadline) {
            self.by_deadline.remove(&(former, id.clone()));
        }
        self.by_deadline.insert((deadline, id));
    }

    fn schedule(&mut self, ctx: &mut Context<Self>) {
        if let Some(timer) = self.timer.take() {
            ctx.cancel_future(timer);
        }
        if let Some((deadline, _)) = self.by_deadline.first() {
            // A deadline that has passed is due now.
            let wait = (*deadline - Utc::now()).to_std().unwrap_or(Duration::ZERO);
            self.timer = Some(ctx.run_later(wait, |reaper, ctx| {
                reaper.remind();
                reaper.schedule(ctx);
            }));
        }
    }

    fn remind(&mut self) {
        let now = Utc::now();
        while let Some((deadline, id)) = self.by_deadline.first().cloned()
            && deadline <= now
        {
            self.by_deadline.remove(&(deadline, id.clone()));
            self.by_id.remove(&id);
            // One that does not live here any more needs no reminder.
            let Some(handle) = self.registry.find(&id) else { continue };
            if let Err(error) = handle.expire() {
                tracing::warn!(sandbox_id = %id, %error, "a sandbox was not reminded, trying again");
                self.set(id, now + RETRY);
            }
        }
    }
}

impl Actor for Reaper {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
        // A predecessor may have forgotten deadlines: each sandbox, once reminded, sets its own anew.
        for handle in self.registry.all() {
            self.set(handle.id().clone(), Utc::now());
        }
        self.schedule(ctx);
    }
}

impl Handler<Arm> for Reaper {
    type Result = ();

    fn handle(&mut self, Arm { id, deadline }: Arm, ctx: &mut Context<Self>) {
        self.set(id, deadline);
        self.schedule(ctx);
    }
}
