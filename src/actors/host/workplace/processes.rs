//! Processes in sandboxes that nobody need follow. The guest's agent knows them, and nobody else: so
//! they are there after a pause and after a restart of the daemon, and are copied by a fork.

use super::{Workplace, to_the_end};
use crate::domain::exec::Exec;
use crate::domain::host::HostError;
use crate::domain::process::{ProcessInfo, ProcessRef, Tag};

impl Workplace {
    /// Starts a command that runs on whoever listens; gives its process id.
    ///
    /// # Errors
    ///
    /// [`HostError`], also if the tag is taken or there is no such program.
    pub async fn start_process(&self, exec: Exec, tag: Option<Tag>) -> Result<u32, HostError> {
        let mut lease = self.begin_work().await?;
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
    /// [`HostError`].
    pub async fn processes(&self) -> Result<Vec<ProcessInfo>, HostError> {
        let lease = self.begin_work().await?;
        Ok(lease.look(lease.agent().list_background()).await?)
    }

    /// Asks a process to end, kills it if it does not, and waits until it has ended; idempotent. A
    /// caller that goes away does not cancel it.
    ///
    /// # Errors
    ///
    /// [`HostError`], also for a process that is not there.
    pub async fn stop_process(&self, process: ProcessRef) -> Result<(), HostError> {
        let mut lease = self.begin_work().await?;
        to_the_end(async move {
            let agent = lease.agent();
            Ok(lease.run(agent.stop_background(&process)).await?)
        })
        .await
    }
}
