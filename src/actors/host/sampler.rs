//! Keeps what running sandboxes take of the host, for those who look at it later.
//!
//! Each round does the same, whatever has happened: it looks at every sandbox that runs, from
//! outside. That is no work done in it, wakes no guest and waits for no operation.

use std::time::Instant;

use actix::{Actor, ArbiterHandle, AsyncContext, Context, Handler, Message};
use chrono::Utc;
use tokio::task::JoinHandle;

use super::registry::Registry;
use super::sandbox::SAMPLE_PERIOD;
use crate::actors::mailbox::{CAPACITY, CallError, Reply, call};
use crate::actors::supervisor::{ExitSignal, Supervised};

struct Sampler {
    registry: Registry,
    round: Option<JoinHandle<()>>,
    _exit: ExitSignal,
}

/// What others hold of the sampler.
#[derive(Clone)]
pub struct SamplerHandle(Supervised<Sampler>);

impl SamplerHandle {
    /// Starts the sampler.
    pub fn start(arbiter: &ArbiterHandle, registry: Registry) -> Self {
        let make = move |exit| Sampler { registry: registry.clone(), round: None, _exit: exit };
        Self(Supervised::start(arbiter, "sampler", make))
    }

    /// Has a round done out of turn, and waits for its end.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn sample(&self) -> Result<(), CallError> {
        call(&self.0.address(), Sample).await
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Sample(Reply<()>);

impl Sampler {
    /// Looks at every sandbox, beside the mailbox; `afterwards` is called then.
    fn round(&mut self, afterwards: impl FnOnce() + Send + 'static) {
        let sandboxes = self.registry.all();
        let look = move || {
            for sandbox in sandboxes {
                sandbox.sample(Instant::now(), Utc::now());
            }
            afterwards();
        };
        self.round = Some(tokio::task::spawn_blocking(look));
    }
}

impl Actor for Sampler {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(CAPACITY);
        ctx.run_interval(SAMPLE_PERIOD, |sampler, _| {
            // On a host whose disk does not answer, rounds must not pile up.
            if sampler.round.as_ref().is_none_or(JoinHandle::is_finished) {
                sampler.round(|| {});
            }
        });
    }
}

impl Handler<Sample> for Sampler {
    type Result = ();

    fn handle(&mut self, Sample(reply): Sample, _: &mut Context<Self>) {
        // Whoever asked may have hung up.
        self.round(move || {
            let _ = reply.send(());
        });
    }
}
