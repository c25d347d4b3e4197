//! Work in sandboxes under a lease; and that of commands.

use tokio_util::sync::CancellationToken;

use super::{ControlError, ControlPlane, to_the_end};
use crate::actors::sandbox::Lease;
use crate::domain::exec::{Exec, ExecOutput};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::Command;

impl ControlPlane {
    pub(super) async fn begin_work(&self, id: &SandboxId) -> Result<Lease, ControlError> {
        Ok(self.find_live(id, Command::Work).await?.begin_work().await?)
    }

    /// Runs a command to its end. If the caller goes away the command is killed.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`].
    pub async fn exec(&self, id: &SandboxId, exec: Exec) -> Result<ExecOutput, ControlError> {
        let mut lease = self.begin_work(id).await?;
        let abandoned = CancellationToken::new();
        // Dropped with this future, that is when nobody waits for the outcome any more.
        let _guard = abandoned.clone().drop_guard();
        let outcome = to_the_end(async move {
            let agent = lease.agent();
            Ok(lease.run(agent.exec(exec, &abandoned)).await?)
        })
        .await?;
        self.metrics().command_run(outcome.duration);
        Ok(outcome)
    }
}
