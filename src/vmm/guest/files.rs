//! Files of a guest, streamed both ways.

use bytes::Bytes;
use futures::{Stream, TryStreamExt};

use super::{Agent, AgentError, expect_success};

/// A file on its way out of a guest.
pub struct FileStream {
    /// Size in bytes, if the agent said.
    pub size: Option<u64>,
    response: reqwest::Response,
}

impl FileStream {
    /// The file's bytes, in pieces.
    pub fn into_stream(self) -> impl Stream<Item = std::io::Result<Bytes>> + 'static {
        self.response.bytes_stream().map_err(std::io::Error::other)
    }
}

impl Agent {
    /// Opens the file at `path` for reading; a relative path starts at the user's home.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`] where nothing is, [`AgentError::Invalid`] for a directory.
    pub async fn read_file(
        &self,
        path: &str,
        user: Option<&str>,
    ) -> Result<FileStream, AgentError> {
        let request = self.http.get(self.url("/files")).query(&file_query(path, user));
        let response = expect_success(self.send(request).await?).await?;
        Ok(FileStream { size: response.content_length(), response })
    }

    /// Writes `content` to the file at `path`, making its parents, replacing what was there.
    ///
    /// # Errors
    ///
    /// [`AgentError::NoSpace`] when the guest's disk is full; nothing is left under `path` then.
    pub async fn write_file<S>(
        &self,
        path: &str,
        user: Option<&str>,
        content: S,
    ) -> Result<(), AgentError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let request = self
            .http
            .post(self.url("/files"))
            .query(&file_query(path, user))
            .header("content-type", "application/octet-stream")
            .body(reqwest::Body::wrap_stream(content));
        expect_success(self.send(request).await?).await.map(drop)
    }
}

fn file_query<'a>(path: &'a str, user: Option<&'a str>) -> Vec<(&'a str, &'a str)> {
    std::iter::once(("path", path)).chain(user.map(|user| ("username", user))).collect()
}
