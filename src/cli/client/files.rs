//! Files of a sandbox.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use reqwest::{Body, Method, RequestBuilder, Response, StatusCode};

use super::body::{Entry, Unpacked, Written};
use super::{Client, ClientError};

/// A path in a sandbox, and for whom: the sandbox's usual user if none is named.
#[derive(Debug, Clone, Copy)]
pub struct There<'a> {
    pub id: &'a str,
    pub path: &'a Path,
    pub user: Option<&'a str>,
}

impl<'a> There<'a> {
    pub fn new(id: &'a str, path: &'a str) -> Self {
        Self { id, path: Path::new(path), user: None }
    }
}

impl Client {
    /// Opens a file of a sandbox; the response's body is its content.
    pub async fn read_file(&self, file: There<'_>) -> Result<Response, ClientError> {
        self.send(self.file_request(Method::GET, &[], file)).await
    }

    /// Writes a file of a sandbox.
    pub async fn write_file(&self, file: There<'_>, content: Body) -> Result<Written, ClientError> {
        self.json(self.file_request(Method::PUT, &[], file).body(content)).await
    }

    /// Opens a directory of a sandbox; the response's body is a tar archive.
    pub async fn read_archive(&self, dir: There<'_>) -> Result<Response, ClientError> {
        self.send(self.file_request(Method::GET, &["archive"], dir)).await
    }

    /// Unpacks a tar archive into a directory of a sandbox.
    pub async fn write_archive(
        &self,
        dir: There<'_>,
        content: Body,
    ) -> Result<Unpacked, ClientError> {
        self.json(self.file_request(Method::PUT, &["archive"], dir).body(content)).await
    }

    /// Says what is at a path of a sandbox; nothing if nothing is there.
    pub async fn stat(&self, file: There<'_>) -> Result<Option<Entry>, ClientError> {
        match self.json(self.file_request(Method::GET, &["stat"], file)).await {
            Err(ClientError::Refused { status: StatusCode::NOT_FOUND, .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    fn file_request(&self, method: Method, rest: &[&str], file: There<'_>) -> RequestBuilder {
        let mut url = self.url_of(&[&["sandboxes", file.id, "files"], rest].concat());
        // A name need not be text.
        let path = percent_encode(file.path.as_os_str().as_bytes(), NON_ALPHANUMERIC);
        url.set_query(Some(&format!("path={path}")));
        let user = file.user.map(|user| ("user", user));
        self.request_at(method, url).query(user.as_slice())
    }
}
