//! Firecracker's API: JSON over HTTP on a Unix socket.
//!
//! A connection for each request: connecting takes tens of microseconds, and there is no state to
//! keep when a daemon starts again. Interface: Firecracker `src/firecracker/swagger/firecracker.yaml`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::domain::printable;
use crate::vmm::hypervisor::console::{self, ConsoleError};
use crate::vmm::hypervisor::json;

/// Name of the socket in a VM's jail.
pub const SOCKET: &str = "api.sock";

/// Firecracker answers in milliseconds, but it writes a whole memory before it says so.
const PATIENCE: Duration = Duration::from_secs(120);

/// How long a Firecracker that was just started may take to listen.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Shortest pause before one that does not listen yet is tried again.
const START_PAUSE: Duration = Duration::from_millis(1);

/// What a pause is of the time that it has taken so far: to try often would keep a slow host from what
/// is waited for.
const START_SHARE: u32 = 32;

/// Longest answer that is read, in bytes: a few kilobytes are normal.
const MAX_ANSWER: usize = 1 << 20;

/// Longest fault that is passed on, in bytes.
const MAX_FAULT: usize = 1 << 10;

/// What went wrong between the daemon and a Firecracker.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Its socket cannot be reached.
    #[error("cannot reach Firecracker")]
    Connect(#[from] ConsoleError),
    /// Somebody else listens on its socket.
    #[error("process {found:?} answers in the place of Firecracker {expected}")]
    Impostor {
        /// Firecracker's process.
        expected: i32,
        /// Who listens.
        found: Option<i32>,
    },
    /// The connection broke: most likely Firecracker has ended.
    #[error("the connection to Firecracker broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not answer in time.
    #[error("Firecracker did not answer {path} within {PATIENCE:?}")]
    Silent {
        /// What was asked.
        path: &'static str,
    },
    /// It does not listen, long after it was started.
    #[error("Firecracker does not listen {START_LIMIT:?} after its start")]
    NotUp(#[source] ConsoleError),
    /// It refused a request.
    #[error("Firecracker refused {path}: {fault}")]
    Refused {
        /// What was asked.
        path: &'static str,
        /// HTTP status.
        status: u16,
        /// Its own words.
        fault: String,
    },
}

/// The API of one Firecracker.
#[derive(Debug, Clone)]
pub struct Api {
    dir: PathBuf,
    pid: i32,
}

impl Api {
    /// The API of the process `pid`, whose socket is in `dir`.
    pub fn of(pid: i32, dir: &Path) -> Self {
        Self { dir: dir.to_owned(), pid }
    }

    /// Waits until Firecracker listens, after its start.
    ///
    /// # Errors
    ///
    /// [`ApiError::NotUp`].
    pub async fn wait(&self) -> Result<(), ApiError> {
        let start = tokio::time::Instant::now();
        loop {
            match self.connect().await {
                Ok(_) => return Ok(()),
                Err(ApiError::Connect(error)) if start.elapsed() > START_LIMIT => {
                    return Err(ApiError::NotUp(error));
                }
                Err(ApiError::Connect(_)) => {
                    let pause = START_PAUSE.max(start.elapsed() / START_SHARE);
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Sets something.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn put(&self, path: &'static str, body: &Value) -> Result<(), ApiError> {
        self.request(Method::PUT, path, Some(body)).await.map(drop)
    }

    /// Changes something.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn patch(&self, path: &'static str, body: &Value) -> Result<(), ApiError> {
        self.request(Method::PATCH, path, Some(body)).await.map(drop)
    }

    /// Asks for something.
    ///
    /// # Errors
    ///
    /// [`ApiError`].
    pub async fn get(&self, path: &'static str) -> Result<Value, ApiError> {
        self.request(Method::GET, path, None).await
    }

    async fn connect(&self) -> Result<UnixStream, ApiError> {
        let stream = console::connect(&self.dir, SOCKET).await?;
        // The directory is the VM's user's: one that a guest has taken over could put a link to any
        // socket of the host in the place of its own.
        let found = stream.peer_cred().ok().and_then(|peer| peer.pid());
        if found != Some(self.pid) {
            return Err(ApiError::Impostor { expected: self.pid, found });
        }
        Ok(stream)
    }

    async fn request(
        &self,
        method: Method,
        path: &'static str,
        body: Option<&Value>,
    ) -> Result<Value, ApiError> {
        let exchange = async {
            let stream = self.connect().await?;
            exchange(stream, method, path, body).await
        };
        timeout(PATIENCE, exchange).await.unwrap_or(Err(ApiError::Silent { path }))
    }
}

async fn exchange(
    stream: UnixStream,
    method: Method,
    path: &'static str,
    body: Option<&Value>,
) -> Result<Value, ApiError> {
    let broken = |error: hyper::Error| ApiError::Broken(error.into());
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    let text = body.map(Value::to_string).unwrap_or_default();
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "localhost")
        .header("accept", "application/json")
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(text)))
        .expect("the parts of a request are ours");
    let talk = async {
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let bytes = Limited::new(answer.into_body(), MAX_ANSWER).collect().await;
        let bytes = bytes.map_err(ApiError::Broken)?.to_bytes();
        understand(path, status, &bytes)
    };
    tokio::pin!(connection);
    tokio::pin!(talk);
    tokio::select! {
        biased;
        answer = &mut talk => answer,
        ended = &mut connection => match ended {
            // What it said before it closed the connection has been read by now.
            Ok(()) => talk.await,
            Err(error) => Err(broken(error)),
        },
    }
}

/// Makes sense of an answer: `{"fault_message": "..."}` in any that is no success.
fn understand(path: &'static str, status: StatusCode, bytes: &[u8]) -> Result<Value, ApiError> {
    let value: Value = match bytes.is_empty() {
        true => Value::Null,
        false => json::parse(bytes).unwrap_or(Value::Null),
    };
    if status.is_success() {
        return Ok(value);
    }
    let fault = match value["fault_message"].as_str() {
        Some(fault) => printable::line(fault.trim(), MAX_FAULT),
        None => printable::line(String::from_utf8_lossy(bytes).trim(), MAX_FAULT),
    };
    Err(ApiError::Refused { path, status: status.as_u16(), fault })
}

impl From<io::Error> for ApiError {
    fn from(error: io::Error) -> Self {
        Self::Broken(error.into())
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
