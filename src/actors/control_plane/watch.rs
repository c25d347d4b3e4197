//! Directories of sandboxes that are watched.

use super::{ControlError, ControlPlane};
use crate::actors::sandbox::Lease;
use crate::domain::file::{Reach, WatchNews};
use crate::domain::id::SandboxId;
use crate::domain::path::GuestPath;
use crate::vmm::guest::Watching;

/// A directory that is watched. Its sandbox is not idle meanwhile.
pub struct FileFeed {
    watching: Watching,
    lease: Lease,
}

impl ControlPlane {
    /// Watches a directory from now on.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`], [`ControlError::NoSandbox`].
    pub async fn watch_files(
        &self,
        id: &SandboxId,
        path: &GuestPath,
        reach: Reach,
        user: Option<&str>,
    ) -> Result<FileFeed, ControlError> {
        let mut lease = self.begin_work(id).await?;
        let agent = lease.agent();
        let watching = lease.run(agent.watch(path, reach, user)).await?;
        Ok(FileFeed { watching, lease })
    }
}

impl FileFeed {
    /// Waits for what happens next. Nothing comes after [`WatchNews::Lost`] or an error. Nothing is
    /// lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`]: the sandbox went away.
    pub async fn next(&mut self) -> Result<WatchNews, ControlError> {
        Ok(self.lease.look(self.watching.next()).await?)
    }
}
