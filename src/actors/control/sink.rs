//! What the built-in host decides becomes known: in the database.

use async_trait::async_trait;
use chrono::Utc;

use super::create::expiry;
use crate::actors::host_client::{Published, SinkError, StatusSink};
use crate::domain::id::SandboxId;
use crate::domain::status::{SandboxReport, SandboxStatus};
use crate::entity::Database;
use crate::entity::sandboxes::{Change, Publish};

/// Writes what the built-in host decides straight into the database.
#[derive(Clone)]
pub struct DatabaseSink(pub Database);

/// The change that a report tells of.
pub(super) fn change(report: &SandboxReport) -> Change {
    let SandboxReport { status, slot, .. } = report;
    Change { state: status.state, reason: status.reason.clone(), slot: *slot, at: Utc::now() }
}

#[async_trait]
impl StatusSink for DatabaseSink {
    async fn publish(&self, report: &SandboxReport) -> Result<Published, SinkError> {
        let (generation, epoch) = (report.status.generation, Some(report.epoch));
        let sandboxes = self.0.sandboxes();
        match sandboxes.publish(&report.id, generation, epoch, &change(report)).await {
            Ok(Publish::Written) => Ok(Published::Known),
            Ok(Publish::Stale(known)) => Ok(Published::Stale(known)),
            Ok(Publish::NotFound) => Ok(Published::Unknown),
            Ok(Publish::Fenced) => {
                Err(SinkError("another daemon has taken this host over since".into()))
            }
            Err(error) => Err(SinkError(Box::new(error))),
        }
    }

    async fn touch(&self, id: &SandboxId, status: &SandboxStatus) -> Result<(), SinkError> {
        let timeout_sec = status.timeout_sec.filter(|_| status.state.expires());
        let expires_at = expiry(timeout_sec, status.last_active_at);
        let touched = self.0.sandboxes().touch(id, status.last_active_at, expires_at).await;
        touched.map_err(|error| SinkError(Box::new(error)))
    }
}
