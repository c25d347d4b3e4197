//! Commands that run to their end.

use tokio_util::sync::CancellationToken;

use super::{Workplace, to_the_end};
use crate::domain::exec::{Exec, ExecOutput};
use crate::domain::host::HostError;

impl Workplace {
    /// Runs a command to its end. If the caller goes away the command is killed.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn exec(&self, exec: Exec) -> Result<ExecOutput, HostError> {
        let mut lease = self.begin_work().await?;
        let abandoned = CancellationToken::new();
        // Dropped with this future, that is when nobody waits for the outcome any more.
        let _guard = abandoned.clone().drop_guard();
        let outcome = to_the_end(async move {
            let agent = lease.agent();
            Ok(lease.run(agent.exec(exec, &abandoned)).await?)
        })
        .await?;
        self.metrics.command_run(outcome.duration);
        Ok(outcome)
    }
}
