//! Where the time of one operation went: for its caller, and for a collector of traces if there is one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::Instrument;

use crate::domain::id::SandboxId;

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
///
/// For a collector the steps are spans below the one that the trace was begun in. These are of the
/// level `debug`, which the log does not show: without a collector they are never made.
#[derive(Debug, Clone)]
pub struct Trace {
    began: Instant,
    spans: Arc<Mutex<Vec<Span>>>,
    /// What the steps belong to, for a collector.
    within: tracing::Span,
}

impl Default for Trace {
    fn default() -> Self {
        let within = tracing::Span::current();
        Self { began: Instant::now(), spans: Arc::default(), within }
    }
}

impl Trace {
    /// The same trace, whose steps from here on are those of an operation on a sandbox. For a
    /// collector that ends with the last copy of what is returned.
    pub fn of_operation(&self, name: &str, id: &SandboxId) -> Self {
        let within = tracing::debug_span!(parent: &self.within, "operation",
            otel.name = name, sandbox_id = %id);
        Self { within, ..self.clone() }
    }

    /// Does one step and notes how long it took, however it ends.
    pub async fn span<T>(&self, name: &'static str, work: impl Future<Output = T>) -> T {
        let start = self.began.elapsed();
        let outcome = work.instrument(self.step(name)).await;
        self.note(name, start);
        outcome
    }

    /// The same for a step that blocks.
    pub fn blocking<T>(&self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = self.began.elapsed();
        let outcome = self.step(name).in_scope(work);
        self.note(name, start);
        outcome
    }

    /// What was noted so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The step for a collector. One that belongs to nothing would tell it nothing.
    fn step(&self, name: &'static str) -> tracing::Span {
        match self.within.is_disabled() {
            true => tracing::Span::none(),
            false => tracing::debug_span!(parent: &self.within, "step", otel.name = name),
        }
    }

    fn note(&self, name: &'static str, start: Duration) {
        let took = self.began.elapsed().saturating_sub(start);
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.push(Span { name, start, took });
    }
}
