//! Leases: sandboxes that live as long as their clients say so.

use super::{ControlError, ControlPlane};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::Command;

impl ControlPlane {
    /// Has a sandbox destroyed unless this is said again within so many seconds; or no more, if that is
    /// none.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`], [`ControlError::Work`] if it is gone.
    pub async fn set_lease(
        &self,
        id: &SandboxId,
        lease_sec: Option<u32>,
    ) -> Result<(), ControlError> {
        Ok(self.find_live(id, Command::Work).await?.set_lease(lease_sec).await?)
    }
}
