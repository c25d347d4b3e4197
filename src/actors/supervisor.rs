//! How actors end, and who notices.
//!
//! A panic kills an actor and actix revives nothing. Every actor holds an [`ExitSignal`]; when the
//! actor is gone its supervisor learns whether that was meant.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use actix::{Actor, ArbiterHandle, Context};
use tokio::sync::oneshot;
use tokio::time::sleep;

use super::mailbox::Shared;

/// Pause before an actor is built again; it grows with every restart.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How an actor ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Its work was done.
    Finished,
    /// It panicked.
    Crashed,
}

/// Tells a supervisor how its actor ended, when dropped with it.
#[derive(Debug)]
pub struct ExitSignal {
    exit: Exit,
    supervisor: Option<oneshot::Sender<Exit>>,
}

impl ExitSignal {
    /// Makes a signal and what a supervisor waits for.
    pub fn new() -> (Self, oneshot::Receiver<Exit>) {
        let (supervisor, receiver) = oneshot::channel();
        (Self { exit: Exit::Crashed, supervisor: Some(supervisor) }, receiver)
    }

    /// Decides what the supervisor will be told.
    pub fn set(&mut self, exit: Exit) {
        self.exit = exit;
    }
}

impl Drop for ExitSignal {
    fn drop(&mut self) {
        if let Some(supervisor) = self.supervisor.take() {
            // A supervisor that is gone needs no telling: the daemon ends.
            let _ = supervisor.send(self.exit);
        }
    }
}

/// An actor of which there is one, and which is built again whenever it panics. What it must not
/// forget lives outside of it.
pub struct Supervised<A: Actor>(Arc<RwLock<Shared<A>>>);

impl<A: Actor> Clone for Supervised<A> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Actor<Context = Context<A>>> Supervised<A> {
    /// Starts the actor that `make` builds and keeps it alive for as long as its arbiter.
    pub fn start(
        arbiter: &ArbiterHandle,
        name: &'static str,
        make: impl Fn(ExitSignal) -> A + Clone + Send + 'static,
    ) -> Self {
        let build = {
            let arbiter = arbiter.clone();
            move || {
                let (exit, exited) = ExitSignal::new();
                let make = make.clone();
                (Arc::new(A::start_in_arbiter(&arbiter, move |_| make(exit))), exited)
            }
        };
        let (first, mut exited) = build();
        let address = Arc::new(RwLock::new(first));
        let supervised = Self(address.clone());
        // On the arbiter itself: when that ends, so does the supervision.
        arbiter.spawn(async move {
            let mut pause = RESTART_PAUSE;
            while let Ok(Exit::Crashed) = exited.await {
                tracing::error!(actor = name, again_in = ?pause, "an actor panicked");
                sleep(pause).await;
                pause = (pause * 2).min(LONGEST_PAUSE);
                let (again, exit) = build();
                *address.write().unwrap_or_else(PoisonError::into_inner) = again;
                exited = exit;
            }
        });
        supervised
    }

    /// Where its mailbox is now.
    pub fn address(&self) -> Shared<A> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use actix::{Arbiter, Handler, Message};

    use super::*;
    use crate::actors::mailbox::{CallError, Reply, call, post};

    struct Counter {
        count: u32,
        _exit: ExitSignal,
    }

    impl Actor for Counter {
        type Context = Context<Self>;
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Count(Reply<u32>);

    impl Handler<Count> for Counter {
        type Result = ();

        fn handle(&mut self, Count(reply): Count, _: &mut Context<Self>) {
            self.count += 1;
            let _ = reply.send(self.count);
        }
    }

    #[derive(Message)]
    #[rtype(result = "()")]
    struct Panic;

    impl Handler<Panic> for Counter {
        type Result = ();

        fn handle(&mut self, Panic: Panic, _: &mut Context<Self>) {
            panic!("a bug")
        }
    }

    #[actix_web::test]
    async fn an_actor_that_panics_is_built_again() {
        let arbiter = Arbiter::new();
        let make = |exit| Counter { count: 0, _exit: exit };
        let counter = Supervised::start(&arbiter.handle(), "counter", make);
        assert_eq!(call(&counter.address(), Count).await, Ok(1));
        assert_eq!(call(&counter.address(), Count).await, Ok(2));
        post(&counter.address(), Panic).expect("it is queued");
        let again = async {
            loop {
                match call(&counter.address(), Count).await {
                    Ok(count) => return count,
                    Err(CallError::Gone | CallError::Overloaded) => {
                        sleep(Duration::from_millis(10)).await;
                    }
                }
            }
        };
        let again = tokio::time::timeout(Duration::from_secs(10), again).await;
        assert_eq!(again, Ok(1), "the new one has counted nothing yet");
        arbiter.stop();
    }
}
