//! What sandboxes may reach.
//!
//! Their hosts know best: what is enforced is in the record beside each sandbox, and the database
//! follows. So no answer tells of a policy that does not hold.

use super::{ControlError, ControlPlane, to_the_end};
use crate::domain::egress::Policy;
use crate::domain::id::SandboxId;
use crate::domain::sandbox::Command;

impl ControlPlane {
    /// What a sandbox may reach; of one that is gone, what it was last allowed to.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`].
    pub async fn network(&self, id: &SandboxId) -> Result<Policy, ControlError> {
        match self.host.find(id).and_then(|handle| handle.network()) {
            Some(policy) => Ok(policy),
            None => Ok(self.get(id).await?.network),
        }
    }

    /// Changes what a sandbox may reach: at once if it runs, else for when it is resumed. A caller
    /// that goes away does not cancel it.
    ///
    /// # Errors
    ///
    /// It reaches what it did before, [`ControlError::Store`] apart: then the change holds, and the
    /// database learns of it when the daemon starts the next time.
    pub async fn set_network(&self, id: &SandboxId, policy: Policy) -> Result<(), ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move {
            let handle = control.find_live(&id, Command::Network).await?;
            let _record = control.network_records.lock().await;
            let set = async { Ok(handle.set_network(policy.clone()).await?) };
            control.measured("network", set).await?;
            Ok(control.database.sandboxes().set_network(&id, &policy).await?)
        })
        .await
    }

    /// Brings the records of sandboxes that were found again in line with what holds for them.
    pub(super) async fn reconcile_networks(&self, ids: &[SandboxId]) -> Result<(), ControlError> {
        for id in ids {
            let enforced = self.host.find(id).and_then(|handle| handle.network());
            let recorded = self.database.sandboxes().find(id).await?;
            if let (Some(enforced), Some(recorded)) = (enforced, recorded)
                && enforced != recorded.network
            {
                self.database.sandboxes().set_network(id, &enforced).await?;
            }
        }
        Ok(())
    }
}
