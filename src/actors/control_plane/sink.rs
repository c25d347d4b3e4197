//! What the built-in host decides becomes known: in the database.

use async_trait::async_trait;
use chrono::{DateTime, TimeDelta, Utc};

use crate::actors::sandbox::{SinkError, StatusSink};
use crate::domain::id::SandboxId;
use crate::entity::Database;
use crate::entity::sandboxes::Change;
use crate::vmm::record::Life;

/// Writes what the built-in host decides straight into the database.
#[derive(Clone)]
pub struct DatabaseSink(pub Database);

#[async_trait]
impl StatusSink for DatabaseSink {
    async fn publish(
        &self,
        id: &SandboxId,
        life: &Life,
        slot: Option<u32>,
    ) -> Result<(), SinkError> {
        let change =
            Change { state: life.state, reason: life.reason.clone(), slot, at: Utc::now() };
        match self.0.sandboxes().publish(id, life.generation, &change).await {
            Ok(_) => Ok(()),
            Err(error) => Err(SinkError(Box::new(error))),
        }
    }

    async fn touch(&self, id: &SandboxId, life: &Life) -> Result<(), SinkError> {
        let timeout_sec = life.timeout_sec.filter(|_| life.state.expires());
        let expires_at = expiry(timeout_sec, life.last_active_at);
        let touched = self.0.sandboxes().touch(id, life.last_active_at, expires_at).await;
        touched.map_err(|error| SinkError(Box::new(error)))
    }
}

/// When a sandbox's time is over in which work was last done at `from`.
pub(super) fn expiry(timeout_sec: Option<u32>, from: DateTime<Utc>) -> Option<DateTime<Utc>> {
    timeout_sec.map(|seconds| from + TimeDelta::seconds(seconds.into()))
}
