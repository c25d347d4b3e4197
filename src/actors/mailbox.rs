//! How messages are handed to actors: never beyond a mailbox's capacity, never un-sent.
//!
//! Dropping the future of actix's `send()` takes the message back, so a client that hangs up would
//! cancel what it asked for. Here a message is queued at once with a oneshot inside, and only the
//! answer is waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::dev::ToEnvelope;
use actix::prelude::SendError;
use actix::{Actor, Addr, Handler, Message};
use tokio::sync::oneshot;

/// An actor's address, shared by all who send to it: actix lets each copy of an address send one
/// message more than the mailbox holds, so a copy for each request would have no limit at all.
pub type Shared<A> = Arc<Addr<A>>;

/// Messages that one mailbox holds before senders are told to come back.
pub const CAPACITY: usize = 1024;

/// Messages that found a mailbox full. Not of an actor, for whoever is refused may have none: of this
/// process, which is one daemon.
static REFUSALS: AtomicU64 = AtomicU64::new(0);

/// How often a mailbox was full since the process began.
pub(super) fn refusals() -> u64 {
    REFUSALS.load(Ordering::Relaxed)
}

/// Why a message got no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The mailbox is full.
    #[error("too many requests are waiting: try again in a moment")]
    Overloaded,
    /// The actor ended.
    #[error("it has ended")]
    Gone,
}

/// Where an actor puts its answer. Nobody may be waiting for it any more.
pub type Reply<T> = oneshot::Sender<T>;

/// Queues `message`.
pub fn post<A, M>(address: &Addr<A>, message: M) -> Result<(), CallError>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    address.try_send(message).map_err(|error| match error {
        SendError::Full(_) => {
            REFUSALS.fetch_add(1, Ordering::Relaxed);
            CallError::Overloaded
        }
        SendError::Closed(_) => CallError::Gone,
    })
}

/// Queues the message that `make` builds around a reply, and waits for the answer.
pub async fn call<A, M, T>(
    address: &Addr<A>,
    make: impl FnOnce(Reply<T>) -> M,
) -> Result<T, CallError>
where
    A: Actor + Handler<M>,
    A::Context: ToEnvelope<A, M>,
    M: Message + Send + 'static,
    M::Result: Send,
{
    let (reply, answer) = oneshot::channel();
    post(address, make(reply))?;
    answer.await.map_err(|_| CallError::Gone)
}

#[cfg(test)]
mod tests {
    use actix::{Arbiter, AsyncContext, Context};

    use super::*;

    /// Never gets to its mailbox.
    struct Busy;

    impl Actor for Busy {
        type Context = Context<Self>;

        fn started(&mut self, ctx: &mut Context<Self>) {
            ctx.set_mailbox_capacity(1);
            ctx.wait(actix::fut::wrap_future(std::future::pending::<()>()));
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Nudge;

    impl Handler<Nudge> for Busy {
        type Result = ();

        fn handle(&mut self, Nudge: Nudge, _: &mut Context<Self>) {}
    }

    #[actix_web::test]
    async fn a_message_that_finds_the_mailbox_full_is_refused_and_counted() {
        let arbiter = Arbiter::new();
        let address = Busy::start_in_arbiter(&arbiter.handle(), |_| Busy);
        let before = refusals();
        let refused = (0..100).filter_map(|_| post(&address, Nudge).err()).next();
        assert_eq!(refused, Some(CallError::Overloaded));
        assert!(refusals() > before);
        arbiter.stop();
    }
}
