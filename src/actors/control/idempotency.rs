//! Requests for a sandbox that are made again by the same name, as after an answer that was lost.

use tokio::time::{Instant, sleep};

use super::{CallerId, ControlError, ControlPlane, SETTLE_LIMIT, SETTLE_PAUSE};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::entity::sandboxes::{Idempotency, Insert, Sandbox};

impl ControlPlane {
    /// The sandbox of an earlier request of that name; none if there was none.
    ///
    /// # Errors
    ///
    /// [`ControlError::IdempotencyConflict`] if that was another request.
    pub(super) async fn find_repeated(
        &self,
        caller: &CallerId,
        idempotency: &Idempotency,
    ) -> Result<Option<Sandbox>, ControlError> {
        match self.database.sandboxes().find_repeated(&caller.0, idempotency).await? {
            Some(Insert::AlreadyExists(earlier)) => self.settled(&earlier.id).await.map(Some),
            Some(Insert::Conflict(id)) => Err(ControlError::IdempotencyConflict(id)),
            Some(Insert::Created(_)) | None => Ok(None),
        }
    }

    /// The sandbox of an earlier request with the same idempotency key, once it has started.
    pub(super) async fn settled(&self, id: &SandboxId) -> Result<Sandbox, ControlError> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            if let Some(host) = self.hosts.holding(id) {
                host.settle(id).await;
            }
            let sandbox = self.get(id).await?;
            let coming = matches!(sandbox.state, SandboxState::Pending | SandboxState::Starting);
            if !coming || Instant::now() > deadline {
                return Ok(sandbox);
            }
            sleep(SETTLE_PAUSE).await;
        }
    }
}
