//! What sandboxes take of their hosts, one by one and all together.

use std::collections::BTreeMap;

use chrono::Utc;

use super::{ControlError, ControlPlane};
use crate::actors::mailbox::refusals;
use crate::actors::metrics::Readings;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::{Refusal, Refused, SandboxState};
use crate::domain::usage::{Sample, UsageReport};

impl ControlPlane {
    /// Looks at what a sandbox takes, from outside: that is no work done in it.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`]; [`ControlError::Refused`] if its life is over.
    pub async fn usage(&self, id: &SandboxId) -> Result<UsageReport, ControlError> {
        let sandbox = self.get(id).await?;
        if sandbox.state.is_final() {
            let refusal = Refusal::Gone(sandbox.state);
            return Err(Refused { refusal, reason: sandbox.reason }.into());
        }
        if let Some(host) = self.hosts.holding(id)
            && let Some(usage) = host.usage(id).await?
        {
            return Ok(usage);
        }
        // Recorded, and about to be made.
        let now = Sample { at: Utc::now(), cpu_percent: 0.0, memory_bytes: 0, disk_bytes: 0 };
        let memory_total_bytes = u64::from(sandbox.shape.memory_mib) << 20;
        Ok(UsageReport { memory_total_bytes, now, history: Vec::new() })
    }

    /// Has what every sandbox takes now be kept, as is done every ten seconds.
    ///
    /// # Errors
    ///
    /// [`ControlError::Host`].
    pub async fn sample_usage(&self) -> Result<(), ControlError> {
        for host in self.hosts.all() {
            host.sample().await?;
        }
        Ok(())
    }

    /// How many sandboxes live on the hosts, by state.
    pub fn population(&self) -> BTreeMap<SandboxState, usize> {
        self.hosts.load().population
    }

    /// All metrics of this daemon in Prometheus's text format.
    pub fn encode_metrics(&self) -> String {
        self.metrics.encode(&Readings {
            load: self.hosts.load(),
            mailbox_refusals: refusals(),
            busy_retries: self.database.busy_retries(),
        })
    }
}
