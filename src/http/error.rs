//! Every error of the API: one table from what went wrong to status and code.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, Resource, ResponseError, web};
use serde::Serialize;

use crate::actors::control_plane::{ControlError, ErrorKind};

/// What a program can tell errors apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Code {
    /// 400: the request makes no sense; sending it again makes none either.
    InvalidRequest,
    /// 401: no API key, or a wrong one.
    Unauthorized,
    /// 404: there is no such thing.
    NotFound,
    /// 405: there is such a thing, but not for this method.
    MethodNotAllowed,
    /// 409: the sandbox is in no state for it.
    InvalidState,
    /// 409: something else has taken what is asked for.
    Conflict,
    /// 413: the body is over the limit, or the answer would be.
    TooLarge,
    /// 416: the file has no byte of the range that is asked for.
    RangeNotSatisfiable,
    /// 500: a fault of Nestbox's.
    Internal,
    /// 502: the sandbox's guest failed.
    AgentError,
    /// 503: no host can take it now; later one may.
    HostUnavailable,
    /// 504: a server in the sandbox did not answer in time.
    Timeout,
    /// 507: a disk is full, the guest's or the host's.
    NoSpace,
}

impl Code {
    fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidState | Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::AgentError => StatusCode::BAD_GATEWAY,
            Self::HostUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        }
    }

    /// The code for a status that no handler of ours has chosen.
    fn of(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized,
            StatusCode::NOT_FOUND => Self::NotFound,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            _ if status.is_server_error() => Self::Internal,
            _ => Self::InvalidRequest,
        }
    }
}

/// An error as clients see it.
#[derive(Debug)]
pub struct ApiError {
    code: Code,
    message: String,
    /// The cause and its causes, for the log only.
    internal: Option<String>,
    /// How long the file is of which a range was asked for that it does not have.
    length: Option<u64>,
}

/// `{"error":{"code":"...","message":"..."}}`
#[derive(Serialize)]
struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Serialize)]
struct Inner<'a> {
    code: Code,
    message: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
}

impl ApiError {
    /// An error whose message may be shown.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), internal: None, length: None }
    }

    /// A request that makes no sense.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidRequest, message)
    }

    /// What to make of an error that no handler of ours has made, such as an unknown path.
    pub fn foreign(status: StatusCode) -> Self {
        let message = match status {
            StatusCode::NOT_FOUND => "there is nothing at this path",
            StatusCode::METHOD_NOT_ALLOWED => "this path does not take this method",
            _ => status.canonical_reason().unwrap_or("the request failed"),
        };
        Self::new(Code::of(status), message)
    }

    /// What the log should know beyond the answer.
    pub fn internals(&self) -> Option<&str> {
        self.internal.as_deref()
    }

    /// The answer; the request's id helps to find the log's lines about it.
    pub fn response(&self, request_id: Option<&str>) -> HttpResponse {
        let request_id = request_id.filter(|_| self.code.status().is_server_error());
        let error = Inner { code: self.code, message: &self.message, request_id };
        let mut response = HttpResponse::build(self.code.status()).json(Body { error });
        if self.code == Code::HostUnavailable {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(length) = self.length {
            let range = HeaderValue::from_str(&format!("bytes */{length}"));
            let range = range.expect("digits make a header");
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
        response
    }
}

/// Answers requests for `path` whose method none of the handlers takes that were registered before.
pub fn only(path: &str, allowed: &'static str) -> Resource {
    web::resource(path).to(move || async move {
        let mut response = ApiError::foreign(StatusCode::METHOD_NOT_ALLOWED).response(None);
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(allowed));
        response
    })
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        self.response(None)
    }
}

impl From<ControlError> for ApiError {
    fn from(error: ControlError) -> Self {
        let code = match error.kind() {
            ErrorKind::Invalid => Code::InvalidRequest,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Conflict => Code::Conflict,
            ErrorKind::InvalidState => Code::InvalidState,
            ErrorKind::Unavailable => Code::HostUnavailable,
            ErrorKind::Guest => Code::AgentError,
            ErrorKind::Silent => Code::Timeout,
            ErrorKind::TooMuch => Code::TooLarge,
            ErrorKind::OutOfRange => Code::RangeNotSatisfiable,
            ErrorKind::NoSpace => Code::NoSpace,
            ErrorKind::Damaged | ErrorKind::Internal => Code::Internal,
        };
        let internal = Some(crate::chain(&error).to_string());
        Self { code, message: error.public_message(), internal, length: error.length_of_file() }
    }
}
