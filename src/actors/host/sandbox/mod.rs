//! One sandbox, one actor: the only one that decides about it.
//!
//! Handlers admit (a look at a table, microseconds) and start operations; an operation runs beside
//! the mailbox with a cancellation token, and its outcome comes back as a message. A kill therefore
//! never waits behind a slow boot or pause: it cancels it. [`SandboxHandle`] is what others hold.

mod actor;
#[cfg(test)]
mod bench;
mod error;
mod handle;
mod idleness;
mod instance;
mod lease;
mod publisher;
#[cfg(test)]
mod sandbox_tests;
mod usage_log;

pub use error::OperationError;
pub use handle::{SandboxFacts, SandboxHandle};
pub use lease::{Lease, Watch, WorkError};

pub(super) use actor::{SandboxDeps, StartMode};
pub(super) use handle::start;
pub(super) use usage_log::SAMPLE_PERIOD;
