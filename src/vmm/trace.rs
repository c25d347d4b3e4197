//! Where the time of one operation went.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// What was done.
    pub name: &'static str,
    /// When it began, from the beginning of the operation.
    pub start: Duration,
    /// How long it took.
    pub took: Duration,
}

/// The steps of one operation, in the order of their ends. Copies are the same trace.
#[derive(Debug, Clone)]
pub struct Trace {
    began: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Default for Trace {
    fn default() -> Self {
        Self { began: Instant::now(), spans: Arc::default() }
    }
}

impl Trace {
    /// Does one step and notes how long it took, however it ends.
    pub async fn span<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let start = self.began.elapsed();
        let outcome = work.await;
        self.note(name, start);
        outcome
    }

    /// The same for a step that blocks.
    pub fn blocking<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = self.began.elapsed();
        let outcome = work();
        self.note(name, start);
        outcome
    }

    /// What was noted so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, name: &'static str, start: Duration) {
        let took = self.began.elapsed() - start;
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(Span { name, start, took });
    }
}
