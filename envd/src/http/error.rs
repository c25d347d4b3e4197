//! How the HTTP routes refuse: `{"code": <status>, "message": <text>}`.

use std::io;
use std::path::{Path, PathBuf};

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use thiserror::Error;

use crate::agent::paths::PathError;
use crate::agent::settings::RequestError;
use crate::agent::users::UserError;
use crate::filesystem::{TreeError, is_refusal};

/// Why a request was refused.
#[derive(Debug, Error)]
pub enum HttpError {
    /// The request carries no token, or not the right one.
    #[error("{message}")]
    Unauthorized {
        /// What is wrong with it.
        message: &'static str,
    },
    /// There is no such user.
    #[error(transparent)]
    User(#[from] UserError),
    /// The path is not usable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The request makes no sense.
    #[error("{message}")]
    Invalid {
        /// What is wrong with it.
        message: String,
    },
    /// There is no such file.
    #[error("path '{}' does not exist", .path.display())]
    NotFound {
        /// Resolved path.
        path: PathBuf,
    },
    /// It is a directory where a file is needed.
    #[error("path '{}' is a directory", .path.display())]
    Directory {
        /// Resolved path.
        path: PathBuf,
    },
    /// It is a device, a pipe or a socket where a file is needed.
    #[error("path '{}' is not a regular file", .path.display())]
    NotRegular {
        /// Resolved path.
        path: PathBuf,
    },
    /// The file has no byte of the range that was asked for.
    #[error("the file has {length} bytes, and none of the range")]
    OutOfRange {
        /// Its length.
        length: u64,
    },
    /// The kernel refuses, whoever asks: a read-only file system, something mounted, and the like.
    #[error("{verb} '{}': {source}", .path.display())]
    Refused {
        /// What was asked for.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No server of the guest takes the connection.
    #[error("nothing takes connections on port {port} of the guest's loopback")]
    PortRefused {
        /// Which port.
        port: u16,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The disk or the user's share of it is full.
    #[error("not enough disk space")]
    Full,
    /// The kernel does not give the agent the user's rights.
    #[error("cannot act for the user: {0}")]
    Rights(io::Error),
    /// The agent itself failed.
    #[error("internal error")]
    Internal(#[from] tokio::task::JoinError),
    /// Anything else the kernel says.
    #[error("{verb} '{}': {source}", .path.display())]
    Io {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl HttpError {
    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Invalid { message: message.into() }
    }

    /// Sorts an error of the kernel by what it means to a caller.
    pub fn from_io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { path },
            io::ErrorKind::IsADirectory => Self::Directory { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::InvalidFilename => {
                Self::invalid(format!("path '{}' is not a valid name", path.display()))
            }
            _ if is_refusal(&source) => Self::Refused { verb, path, source },
            _ => Self::Io { verb, path, source },
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized { .. } | Self::User(_) => StatusCode::UNAUTHORIZED,
            Self::Path(_)
            | Self::Invalid { .. }
            | Self::Directory { .. }
            | Self::NotRegular { .. } => StatusCode::BAD_REQUEST,
            Self::NotFound { .. } => StatusCode::NOT_FOUND,
            Self::OutOfRange { .. } => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Refused { .. } => StatusCode::FORBIDDEN,
            Self::PortRefused { .. } => StatusCode::BAD_GATEWAY,
            Self::Full => StatusCode::INSUFFICIENT_STORAGE,
            Self::Internal(_) | Self::Rights(_) | Self::Io { .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }
}

impl From<RequestError> for HttpError {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::Authorization => Self::invalid(error.to_string()),
            RequestError::User(error) => error.into(),
            RequestError::Path(error) => error.into(),
        }
    }
}

impl From<TreeError> for HttpError {
    fn from(error: TreeError) -> Self {
        let message = error.to_string();
        match error {
            TreeError::NotFound { path } => Self::NotFound { path },
            TreeError::Full => Self::Full,
            TreeError::Refused { verb, path, source } | TreeError::Other { verb, path, source } => {
                Self::from_io(verb, &path, source)
            }
            TreeError::TooMuch { .. }
            | TreeError::DirectoryExists { .. }
            | TreeError::InTheWay { .. }
            | TreeError::NotDirectory { .. }
            | TreeError::Root
            | TreeError::IntoItself { .. } => Self::invalid(message),
        }
    }
}

impl IntoResponse for HttpError {
    fn into_response(self) -> Response {
        let status = self.status();
        let body = serde_json::json!({ "code": status.as_u16(), "message": self.to_string() });
        let mut response = (status, Json(body)).into_response();
        if let Self::OutOfRange { length } = self
            && let Ok(value) = HeaderValue::from_str(&format!("bytes */{length}"))
        {
            response.headers_mut().insert(header::CONTENT_RANGE, value);
        }
        response
    }
}
