//! A sandbox as a place to work in: commands, processes, terminals, files, ports.
//!
//! All work is done under a lease, by which a sandbox is not idle. Knows no database: it leads into a
//! sandbox of this host, and whoever has one need not know which.

mod exec;
mod files;
mod follow;
mod ports;
mod processes;
mod watch;

use std::future::Future;
use std::sync::Arc;

use super::sandbox::{Lease, SandboxHandle};
use crate::actors::metrics::Metrics;
use crate::domain::host::{ErrorKind, HostError};

pub use files::{Bytestream, FileContent};
pub use follow::{ExecEvents, FollowHandle};
pub use ports::{PortStream, PortWatch};
pub use watch::FileFeed;

/// Leads into one sandbox. Cheap to clone.
#[derive(Clone)]
pub struct Workplace {
    sandbox: SandboxHandle,
    metrics: Arc<Metrics>,
}

impl Workplace {
    pub(super) fn new(sandbox: SandboxHandle, metrics: Arc<Metrics>) -> Self {
        Self { sandbox, metrics }
    }

    async fn begin_work(&self) -> Result<Lease, HostError> {
        Ok(self.sandbox.begin_work().await?)
    }
}

/// Runs `work` to its end, even if the caller goes away.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, HostError>> + Send + 'static,
) -> Result<T, HostError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(HostError::new(ErrorKind::Unavailable, "the daemon is shutting down")),
    }
}
