//! Sandboxes are ended. A row is closed only on the word of the host that it names.

use chrono::Utc;
use tokio::time::{Instant, sleep};

use super::{ControlError, ControlPlane, SETTLE_LIMIT, SETTLE_PAUSE, to_the_end};
use crate::domain::host::Destroyed;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::entity::sandboxes::{Change, Sandbox};

impl ControlPlane {
    /// Ends a sandbox and gives back all it holds; idempotent, from every state. A caller that goes
    /// away does not cancel it.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`]; [`ControlError::UnknownHost`] if its host cannot be asked.
    pub async fn destroy(&self, id: &SandboxId) -> Result<(), ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move { control.destroy_now(&id).await }).await
    }

    async fn destroy_now(&self, id: &SandboxId) -> Result<(), ControlError> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let host = match self.hosts.holding(id) {
                Some(host) => host,
                None => {
                    let sandbox = self.get(id).await?;
                    if sandbox.state == SandboxState::Stopped {
                        return Ok(());
                    }
                    self.hosts.get(&sandbox.host_id)?
                }
            };
            let sandbox = match host.destroy(id).await? {
                Destroyed::Gone(report) => self.record(&report).await?,
                Destroyed::Unknown => self.get(id).await?,
            };
            match sandbox.state {
                SandboxState::Stopped => return Ok(()),
                // Recorded a moment ago, or just over: its host is about to make it or to tell.
                _ if !sandbox.state.is_final() && Instant::now() < deadline => {
                    sleep(SETTLE_PAUSE).await;
                }
                // Only the record is left of it.
                _ => return self.close(sandbox).await,
            }
        }
    }

    /// Closes the row of a sandbox of which its host has nothing.
    async fn close(&self, sandbox: Sandbox) -> Result<(), ControlError> {
        let change = Change {
            state: SandboxState::Stopped,
            reason: sandbox.reason,
            slot: None,
            at: Utc::now(),
        };
        let generation = sandbox.generation + 1;
        self.database.sandboxes().publish(&sandbox.id, generation, None, &change).await?;
        Ok(())
    }
}
