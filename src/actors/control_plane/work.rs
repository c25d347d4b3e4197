//! Work in sandboxes: commands and files, each under a lease.

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio_util::sync::CancellationToken;

use super::{ControlError, ControlPlane, to_the_end};
use crate::actors::sandbox::Lease;
use crate::domain::exec::{Exec, ExecOutput};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::Command;

/// A file on its way out of a sandbox.
pub struct FileContent {
    /// Size in bytes, if known.
    pub size: Option<u64>,
    /// The bytes. Ends with an error if the sandbox goes away before the file is read.
    pub stream: std::pin::Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>,
}

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

    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`].
    pub async fn read_file(
        &self,
        id: &SandboxId,
        path: &str,
        user: Option<&str>,
    ) -> Result<FileContent, ControlError> {
        let mut lease = self.begin_work(id).await?;
        let agent = lease.agent();
        let file = lease.run(agent.read_file(path, user)).await?;
        let size = file.size;
        let bytes = Box::pin(file.into_stream());
        // The lease goes with the stream: the sandbox is not idle while one of its files is read.
        let stream = stream::unfold(Some((bytes, lease)), |state| async move {
            let (mut bytes, lease) = state?;
            tokio::select! {
                biased;
                () = lease.gone() => {
                    Some((Err(std::io::Error::other("the sandbox went away")), None))
                }
                piece = bytes.next() => piece.map(|piece| (piece, Some((bytes, lease)))),
            }
        });
        Ok(FileContent { size, stream: Box::pin(stream) })
    }

    /// Writes a file; it is there under its name only when all of it is.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`].
    pub async fn write_file<S>(
        &self,
        id: &SandboxId,
        path: &str,
        user: Option<&str>,
        content: S,
    ) -> Result<(), ControlError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let mut lease = self.begin_work(id).await?;
        let agent = lease.agent();
        Ok(lease.run(agent.write_file(path, user, content)).await?)
    }
}
