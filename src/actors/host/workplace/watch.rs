//! Directories of sandboxes that are watched.

use super::Workplace;
use crate::actors::host::sandbox::Lease;
use crate::domain::file::{Reach, WatchNews};
use crate::domain::host::HostError;
use crate::domain::path::GuestPath;
use crate::vmm::guest::Watching;

/// A directory that is watched. Its sandbox is not idle meanwhile.
pub struct FileFeed {
    watching: Watching,
    lease: Lease,
}

impl Workplace {
    /// Watches a directory from now on.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn watch_files(
        &self,
        path: &GuestPath,
        reach: Reach,
        user: Option<&str>,
    ) -> Result<FileFeed, HostError> {
        let mut lease = self.begin_work().await?;
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
    /// [`HostError`]: the sandbox went away.
    pub async fn next(&mut self) -> Result<WatchNews, HostError> {
        Ok(self.lease.look(self.watching.next()).await?)
    }
}
