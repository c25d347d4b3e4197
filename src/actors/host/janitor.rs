//! Takes away what could not be taken away at once.
//!
//! Clean-up that fails is handed over here and tried again, with growing pauses, until nothing is
//! left. What a crash left behind comes the same way when the daemon starts.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix::{Actor, ArbiterHandle, AsyncContext, Context, Handler, Message};

use crate::actors::mailbox::{CAPACITY, post};
use crate::actors::supervisor::{ExitSignal, Supervised};
use crate::domain::id::SandboxId;
use crate::vmm::machine::Machines;

const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

struct Janitor {
    machines: Arc<dyn Machines>,
    /// What is being taken away, and how long to wait before the next attempt.
    jobs: HashMap<SandboxId, Duration>,
    _exit: ExitSignal,
}

/// What others hold of the janitor.
#[derive(Clone)]
pub struct JanitorHandle(Supervised<Janitor>);

impl JanitorHandle {
    /// Starts the janitor.
    pub fn start(arbiter: &ArbiterHandle, machines: Arc<dyn Machines>) -> Self {
        let make =
            move |exit| Janitor { machines: machines.clone(), jobs: HashMap::new(), _exit: exit };
        Self(Supervised::start(arbiter, "janitor", make))
    }

    /// Has everything taken away that is left of a sandbox.
    pub fn sweep(&self, id: SandboxId) {
        if let Err(error) = post(&self.0.address(), Sweep(id.clone())) {
            // It is found again when the daemon starts the next time.
            tracing::error!(sandbox_id = %id, %error, "the janitor did not take a job");
        }
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Sweep(SandboxId);

#[derive(Message)]
#[rtype(result = "()")]
struct Attempt(SandboxId);

#[derive(Message)]
#[rtype(result = "()")]
struct Swept(SandboxId, Result<(), String>);

impl Actor for Janitor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
    }
}

impl Handler<Sweep> for Janitor {
    type Result = ();

    fn handle(&mut self, Sweep(id): Sweep, ctx: &mut Context<Self>) {
        if self.jobs.insert(id.clone(), FIRST_PAUSE).is_none() {
            ctx.notify(Attempt(id));
        }
    }
}

impl Handler<Attempt> for Janitor {
    type Result = ();

    fn handle(&mut self, Attempt(id): Attempt, ctx: &mut Context<Self>) {
        let machines = self.machines.clone();
        let address = ctx.address();
        tokio::spawn(async move {
            let outcome = machines.sweep(&id).await;
            let outcome = outcome.map_err(|error| crate::chain(&error).to_string());
            address.do_send(Swept(id, outcome));
        });
    }
}

impl Handler<Swept> for Janitor {
    type Result = ();

    fn handle(&mut self, Swept(id, outcome): Swept, ctx: &mut Context<Self>) {
        match outcome {
            Ok(()) => {
                tracing::info!(sandbox_id = %id, "nothing is left of the sandbox");
                self.jobs.remove(&id);
            }
            Err(error) => {
                let pause = self.jobs.entry(id.clone()).or_insert(FIRST_PAUSE);
                tracing::warn!(sandbox_id = %id, %error, again_in = ?*pause,
                    "something is left of the sandbox");
                ctx.notify_later(Attempt(id), *pause);
                *pause = (*pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
}
