//! How actors end, and who notices.
//!
//! A panic kills an actor and actix revives nothing. Every actor holds an [`ExitSignal`]; when the
//! actor is gone its supervisor learns whether that was meant.

use tokio::sync::oneshot;

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
