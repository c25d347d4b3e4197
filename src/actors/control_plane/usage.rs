//! What sandboxes take of the host, one by one and all together.

use chrono::Utc;

use super::{ControlError, ControlPlane};
use crate::actors::mailbox::{CallError, refusals};
use crate::actors::metrics::Readings;
use crate::actors::sandbox::{OperationError, Refused, Sample};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::Refusal;
use crate::vmm::usage::Descriptors;

/// What a sandbox takes, and what it took.
#[derive(Debug, Clone)]
pub struct UsageReport {
    /// Memory that its guest has at most.
    pub memory_total_bytes: u64,
    /// What it takes now; nothing but its disk unless its VM runs.
    pub now: Sample,
    /// What it took during the last hour that it ran, the oldest first. A daemon that starts begins
    /// anew.
    pub history: Vec<Sample>,
}

impl ControlPlane {
    /// Looks at what a sandbox takes, from outside: that is no work done in it.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`]; [`ControlError::Operation`] if its life is over.
    pub async fn usage(&self, id: &SandboxId) -> Result<UsageReport, ControlError> {
        let sandbox = self.get(id).await?;
        if sandbox.state.is_final() {
            let refusal = Refusal::Gone(sandbox.state);
            let refused = Refused { refusal, reason: sandbox.reason };
            return Err(OperationError::from(refused).into());
        }
        let nothing =
            |disk_bytes| Sample { at: Utc::now(), cpu_percent: 0.0, memory_bytes: 0, disk_bytes };
        let memory_total_bytes = u64::from(sandbox.shape.memory_mib) << 20;
        // Recorded, and about to be made.
        let Some(handle) = self.host.find(id) else {
            return Ok(UsageReport { memory_total_bytes, now: nothing(0), history: Vec::new() });
        };
        let looking = {
            let handle = handle.clone();
            tokio::task::spawn_blocking(move || handle.look()).await
        };
        let now = match looking.expect("reading small files does not panic") {
            Some(now) => now,
            None => nothing(self.storage(id).await.map_or(0, |storage| storage.disk_bytes)),
        };
        Ok(UsageReport { memory_total_bytes, now, history: handle.samples() })
    }

    /// Has what every sandbox takes now be kept, as is done every ten seconds.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub async fn sample_usage(&self) -> Result<(), CallError> {
        self.host.sample().await
    }

    /// All metrics of this daemon in Prometheus's text format.
    pub fn encode_metrics(&self) -> String {
        let seen = self.host.sandboxes().into_iter().filter_map(|sandbox| sandbox.last_seen());
        self.metrics.encode(&Readings {
            population: self.population(),
            memory_bytes: seen.map(|sample| sample.memory_bytes).sum(),
            readiness: self.machines.readiness(),
            mailbox_refusals: refusals(),
            busy_retries: self.database.busy_retries(),
            descriptors: Descriptors::now(),
        })
    }
}
