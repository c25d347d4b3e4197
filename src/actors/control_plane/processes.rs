//! Processes in sandboxes that nobody need follow. The guest's agent knows them, and nobody else: so
//! they are there after a pause and after a restart of the daemon, and are copied by a fork.

use super::{ControlError, ControlPlane, to_the_end};
use crate::domain::exec::Exec;
use crate::domain::id::SandboxId;
use crate::domain::process::{ProcessInfo, ProcessRef, Tag};

impl ControlPlane {
    /// Starts a command that runs on whoever listens; gives its process id.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`], also if the tag is taken or there is no such program.
    pub async fn start_process(
        &self,
        id: &SandboxId,
        exec: Exec,
        tag: Option<Tag>,
    ) -> Result<u32, ControlError> {
        let mut lease = self.begin_work(id).await?;
        to_the_end(async move {
            let agent = lease.agent();
            Ok(lease.run(agent.start_background(exec, None, tag.as_ref())).await?)
        })
        .await
    }

    /// The processes that run in the background, and the last ones that did. It is no work: whoever
    /// only looks does not keep the sandbox from timing out.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`].
    pub async fn processes(&self, id: &SandboxId) -> Result<Vec<ProcessInfo>, ControlError> {
        let lease = self.begin_work(id).await?;
        Ok(lease.look(lease.agent().list_background()).await?)
    }

    /// Asks a process to end, kills it if it does not, and waits until it has ended; idempotent. A
    /// caller that goes away does not cancel it.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`], also for a process that is not there.
    pub async fn stop_process(
        &self,
        id: &SandboxId,
        process: ProcessRef,
    ) -> Result<(), ControlError> {
        let mut lease = self.begin_work(id).await?;
        to_the_end(async move {
            let agent = lease.agent();
            Ok(lease.run(agent.stop_background(&process)).await?)
        })
        .await
    }
}
