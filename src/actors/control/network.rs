//! What sandboxes may reach.
//!
//! Their hosts know best: what is enforced is in the record beside each sandbox, and the database
//! follows. So no answer tells of a policy that does not hold.

use super::{ControlError, ControlPlane, to_the_end};
use crate::domain::egress::Policy;
use crate::domain::host::Inventory;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::Command;

impl ControlPlane {
    /// What a sandbox may reach; of one that is gone, what it was last allowed to.
    ///
    /// # Errors
    ///
    /// [`ControlError::NoSandbox`].
    pub async fn network(&self, id: &SandboxId) -> Result<Policy, ControlError> {
        if let Some(host) = self.hosts.holding(id)
            && let Some(enforced) = host.network(id).await?
        {
            return Ok(enforced.policy);
        }
        Ok(self.get(id).await?.network)
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
            let host = control.host_of(&id, Command::Network).await?;
            let set = async { Ok(host.set_network(&id, policy).await?) };
            let enforced = control.measured("network", set).await?;
            Ok(control.database.sandboxes().set_network(&id, &enforced).await?)
        })
        .await
    }

    /// Brings the records of sandboxes that were found again in line with what holds for them.
    pub(super) async fn reconcile_networks(
        &self,
        inventory: &Inventory,
    ) -> Result<(), ControlError> {
        for entry in &inventory.sandboxes {
            let (id, sandboxes) = (&entry.report.id, self.database.sandboxes());
            if let (Some(enforced), Some(recorded)) = (&entry.network, sandboxes.find(id).await?)
                && enforced.policy != recorded.network
            {
                sandboxes.correct_network(id, enforced).await?;
            }
        }
        Ok(())
    }
}
