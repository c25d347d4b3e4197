//! Sandboxes are paused to disk, and made to run again.

use super::{ControlError, ControlPlane, to_the_end};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::Command;
use crate::domain::trace::Trace;
use crate::entity::sandboxes::Sandbox;

impl ControlPlane {
    /// Pauses a sandbox to disk and returns it paused; idempotent. A caller that goes away does not
    /// cancel it.
    ///
    /// # Errors
    ///
    /// It runs on, or its state says what became of it.
    pub async fn pause(&self, id: &SandboxId, trace: Trace) -> Result<Sandbox, ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move {
            let host = control.host_of(&id, Command::Pause).await?;
            let paused = async { Ok(host.pause(&id, trace).await?) };
            let report = control.measured("pause", paused).await?;
            control.record(&report).await
        })
        .await
    }

    /// Makes a paused sandbox run again and returns it running; idempotent. A caller that goes away
    /// does not cancel it.
    ///
    /// # Errors
    ///
    /// It is still paused, also if there is no memory for it now.
    pub async fn resume(&self, id: &SandboxId, trace: Trace) -> Result<Sandbox, ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move {
            let host = control.host_of(&id, Command::Resume).await?;
            let resumed = async { Ok(host.resume(&id, trace).await?) };
            let report = control.measured("resume", resumed).await?;
            control.record(&report).await
        })
        .await
    }
}
