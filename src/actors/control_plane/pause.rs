//! Sandboxes are frozen to disk, and made to run again.

use super::{ControlError, ControlPlane, to_the_end};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::{Command, SandboxState};
use crate::entity::sandboxes::Sandbox;
use crate::vmm::trace::Trace;

impl ControlPlane {
    /// Freezes a sandbox to disk and returns it paused; idempotent. A caller that goes away does
    /// not cancel it.
    ///
    /// # Errors
    ///
    /// It runs on, or its state says what became of it.
    pub async fn pause(&self, id: &SandboxId, trace: Trace) -> Result<Sandbox, ControlError> {
        let (control, id) = (self.clone(), id.clone());
        to_the_end(async move {
            let handle = control.find_live(&id, Command::Pause).await?;
            let paused = async { Ok(handle.pause(trace).await?) };
            control.measured("pause", paused).await?;
            control.get_as(&id, SandboxState::Paused).await
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
            let handle = control.find_live(&id, Command::Resume).await?;
            let shape = control.get(&id).await?.shape;
            let resumed = async { Ok(control.host.resume(&handle, shape, trace).await?) };
            control.measured("resume", resumed).await?;
            control.get_as(&id, SandboxState::Running).await
        })
        .await
    }
}
