//! When a client was last seen alive.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

/// Shared by the two directions of a connection: either shows that the client is there.
#[derive(Debug, Clone)]
pub struct Life(Rc<Cell<Instant>>);

impl Life {
    /// Of a client that has just come.
    pub fn new() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }

    /// It was seen now.
    pub fn renew(&self) {
        self.0.set(Instant::now());
    }

    /// How long it has not been seen.
    pub fn silence(&self) -> Duration {
        self.0.get().elapsed()
    }
}
