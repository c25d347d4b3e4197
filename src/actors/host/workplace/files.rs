//! Files of sandboxes: their contents, streamed, and the tree they are in.

use std::pin::Pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};

use super::{Workplace, to_the_end};
use crate::actors::host::sandbox::Lease;
use crate::domain::file::{FileEntry, FileHead, FileRange, Unpacked};
use crate::domain::host::HostError;
use crate::domain::path::GuestPath;
use crate::vmm::guest::{Agent, AgentError};

/// The bytes of a file, in pieces.
pub type Bytestream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// A file on its way out of a sandbox.
pub struct FileContent {
    /// What is known of it.
    pub head: FileHead,
    /// The bytes. Ends with an error if the sandbox goes away before the file is read.
    pub stream: Bytestream,
}

impl Workplace {
    /// Opens a file for reading, or a part of it.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn read_file(
        &self,
        path: &GuestPath,
        user: Option<&str>,
        part: &FileRange,
    ) -> Result<FileContent, HostError> {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        let file = lease.run(agent.read_file(path, user, part)).await?;
        let head = file.head.clone();
        Ok(FileContent { head, stream: leased(lease, Box::pin(file.into_stream())) })
    }

    /// Writes a file; it is there under its name only when all of it is. `length` is how many bytes
    /// there are, if that is known.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn write_file<S>(
        &self,
        path: &GuestPath,
        user: Option<&str>,
        length: Option<u64>,
        content: S,
    ) -> Result<(), HostError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        Ok(lease.run(agent.write_file(path, user, length, content)).await?)
    }

    /// Opens a directory for reading as a tar archive.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn read_archive(
        &self,
        path: &GuestPath,
        user: Option<&str>,
    ) -> Result<Bytestream, HostError> {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        let archive = lease.run(agent.read_archive(path, user)).await?;
        Ok(leased(lease, Box::pin(archive.into_stream())))
    }

    /// Unpacks a tar archive into a directory.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn write_archive<S>(
        &self,
        path: &GuestPath,
        user: Option<&str>,
        content: S,
    ) -> Result<Unpacked, HostError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        Ok(lease.run(agent.write_archive(path, user, content)).await?)
    }

    /// Describes what is at a path.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn stat(&self, path: &GuestPath, user: Option<&str>) -> Result<FileEntry, HostError> {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        Ok(lease.run(agent.stat(path, user)).await?)
    }

    /// Lists what is below a directory, down to `depth` levels.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn list_files(
        &self,
        path: &GuestPath,
        depth: u32,
        user: Option<&str>,
    ) -> Result<Vec<FileEntry>, HostError> {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        Ok(lease.run(agent.list(path, depth, user)).await?)
    }

    /// Makes a directory and the parents it lacks.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn make_dir(
        &self,
        path: GuestPath,
        user: Option<String>,
    ) -> Result<FileEntry, HostError> {
        let make = move |agent: Agent| async move { agent.make_dir(&path, user.as_deref()).await };
        self.change(make).await
    }

    /// Moves a file or a directory.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn move_file(
        &self,
        source: GuestPath,
        destination: GuestPath,
        user: Option<String>,
    ) -> Result<FileEntry, HostError> {
        let rename = move |agent: Agent| async move {
            agent.move_file(&source, &destination, user.as_deref()).await
        };
        self.change(rename).await
    }

    /// Removes a file, or a directory with all that is in it; idempotent.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn remove_file(
        &self,
        path: GuestPath,
        user: Option<String>,
    ) -> Result<(), HostError> {
        let remove = move |agent: Agent| async move { agent.remove(&path, user.as_deref()).await };
        self.change(remove).await
    }

    /// Changes something, to the end, even if the caller goes away.
    async fn change<T, F>(
        &self,
        work: impl FnOnce(Agent) -> F + Send + 'static,
    ) -> Result<T, HostError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, AgentError>> + Send + 'static,
    {
        let mut lease = self.begin_work().await?;
        to_the_end(async move {
            let agent = lease.agent();
            Ok(lease.run(work(agent)).await?)
        })
        .await
    }
}

/// Bytes from a sandbox. The lease goes with them: it is not idle while they are read.
fn leased(lease: Lease, bytes: Bytestream) -> Bytestream {
    Box::pin(stream::unfold(Some((bytes, lease)), |state| async move {
        let (mut bytes, lease) = state?;
        tokio::select! {
            biased;
            () = lease.gone() => {
                Some((Err(std::io::Error::other("the sandbox went away")), None))
            }
            piece = bytes.next() => piece.map(|piece| (piece, Some((bytes, lease)))),
        }
    }))
}
