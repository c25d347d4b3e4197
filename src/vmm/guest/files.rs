//! Contents of a guest's files, streamed both ways.

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use http::header;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use reqwest::Response;

use super::answer::{self, expect_success};
use super::{Agent, AgentError, QUICK};
use crate::domain::file::{FileHead, FileRange, Unpacked};
use crate::domain::path::GuestPath;

/// A file on its way out of a guest.
pub struct FileStream {
    /// What the agent says about it.
    pub head: FileHead,
    response: Response,
}

impl FileStream {
    fn new(response: Response) -> Self {
        let header = |name| answer::header(&response, name);
        let head = FileHead {
            length: response.content_length(),
            part: header(header::CONTENT_RANGE),
            tag: header(header::ETAG),
            modified: header(header::LAST_MODIFIED),
        };
        Self { head, response }
    }

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
    /// [`AgentError::NotFound`] where nothing is, [`AgentError::Invalid`] for a directory,
    /// [`AgentError::OutOfRange`].
    pub async fn read_file(
        &self,
        path: &GuestPath,
        user: Option<&str>,
        part: &FileRange,
    ) -> Result<FileStream, AgentError> {
        let mut request = self.http.get(self.about("/files", path, user));
        for (name, value) in [(header::RANGE, &part.range), (header::IF_RANGE, &part.condition)] {
            if let Some(value) = value {
                request = request.header(name, value);
            }
        }
        Ok(FileStream::new(self.ask(QUICK, request).await?))
    }

    /// Writes `content` to the file at `path`, making its parents, replacing what was there. The
    /// file is there under its name only when all of it is; `length` bytes, if that is known.
    ///
    /// # Errors
    ///
    /// [`AgentError::NoSpace`] when the guest's disk is full; nothing is left under `path` then.
    pub async fn write_file<S>(
        &self,
        path: &GuestPath,
        user: Option<&str>,
        length: Option<u64>,
        content: S,
    ) -> Result<(), AgentError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let mut request = self
            .http
            .post(self.about("/files", path, user))
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(content));
        if let Some(length) = length {
            request = request.header(header::CONTENT_LENGTH, length);
        }
        expect_success(self.send(request).await?).await.map(drop)
    }
}

/// What the agent says it has unpacked.
#[derive(serde::Deserialize)]
struct UnpackedBody {
    entries: u64,
    bytes: u64,
}

impl Agent {
    /// Opens a directory for reading as a tar archive.
    ///
    /// # Errors
    ///
    /// [`AgentError::NotFound`], [`AgentError::Invalid`] for what is no directory.
    pub async fn read_archive(
        &self,
        path: &GuestPath,
        user: Option<&str>,
    ) -> Result<FileStream, AgentError> {
        let request = self.http.get(self.about("/files/archive", path, user));
        // Without a limit: an agent packs a few at a time, and others wait for their turn.
        Ok(FileStream::new(expect_success(self.send(request).await?).await?))
    }

    /// Unpacks a tar archive into a directory, which is made if it is not there.
    ///
    /// # Errors
    ///
    /// [`AgentError::Invalid`] for what is no archive and for entries that are not taken,
    /// [`AgentError::NoSpace`]; what came before stays.
    pub async fn write_archive<S>(
        &self,
        path: &GuestPath,
        user: Option<&str>,
        content: S,
    ) -> Result<Unpacked, AgentError>
    where
        S: Stream<Item = std::io::Result<Bytes>> + Send + 'static,
    {
        let request = self
            .http
            .put(self.about("/files/archive", path, user))
            .body(reqwest::Body::wrap_stream(content));
        let answer = expect_success(self.send(request).await?).await?;
        let body = answer::json::<UnpackedBody>(answer).await;
        let body = body.map_err(|error| self.unreachable(error))?;
        Ok(Unpacked { entries: body.entries, size: body.bytes })
    }

    /// Where the agent answers about a file.
    fn about(&self, route: &str, path: &GuestPath, user: Option<&str>) -> String {
        let mut url = self.url(route);
        for (name, value) in
            [("?path=", Some(path.as_bytes())), ("&username=", user.map(str::as_bytes))]
        {
            if let Some(value) = value {
                url.push_str(name);
                url.extend(percent_encode(value, NON_ALPHANUMERIC));
            }
        }
        url
    }
}
