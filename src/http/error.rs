//! Every error of the API: one table from what went wrong to status and code.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderValue};
use actix_web::{HttpResponse, Resource, ResponseError, web};
use serde::{Serialize, Serializer};
use utoipa::ToSchema;

use crate::actors::control::ControlError;
use crate::domain::host::{ErrorKind, HostError};

/// What a program can tell errors apart by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
    /// 409: the guest can have no other process.
    GuestExhausted,
    /// 413: the body is over the limit, or the answer would be.
    TooLarge,
    /// 416: the file has no byte of the range that is asked for.
    RangeNotSatisfiable,
    /// 421: the daemon has no such name.
    Misdirected,
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
    /// All codes.
    pub const ALL: [Self; 15] = [
        Self::InvalidRequest,
        Self::Unauthorized,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::InvalidState,
        Self::Conflict,
        Self::GuestExhausted,
        Self::TooLarge,
        Self::RangeNotSatisfiable,
        Self::Misdirected,
        Self::Internal,
        Self::AgentError,
        Self::HostUnavailable,
        Self::Timeout,
        Self::NoSpace,
    ];

    /// Its name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not_found",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::InvalidState => "invalid_state",
            Self::Conflict => "conflict",
            Self::GuestExhausted => "guest_exhausted",
            Self::TooLarge => "too_large",
            Self::RangeNotSatisfiable => "range_not_satisfiable",
            Self::Misdirected => "misdirected",
            Self::Internal => "internal",
            Self::AgentError => "agent_error",
            Self::HostUnavailable => "host_unavailable",
            Self::Timeout => "timeout",
            Self::NoSpace => "no_space",
        }
    }

    /// What it means for whoever gets it.
    pub fn explanation(self) -> &'static str {
        match self {
            Self::InvalidRequest => "the request makes no sense; the message says what to change.",
            Self::Unauthorized => "no API key or token, or a wrong one.",
            Self::NotFound => "no such sandbox, template, snapshot, process, file or key.",
            Self::MethodNotAllowed => "the path does not take this method.",
            Self::InvalidState => {
                "the sandbox is in no state for it, or something else is being done to it, or \
                 another version has made what is to be restored."
            }
            Self::Conflict => {
                "something else has the name, is at the place, or used the key; or it is the last \
                 API key."
            }
            Self::GuestExhausted => {
                "the guest has no process, memory or descriptor left for another process."
            }
            Self::TooLarge => "the body is over the limit, or the answer would be.",
            Self::RangeNotSatisfiable => "the file has no byte of the range.",
            Self::Misdirected => "the daemon has no such `Host` name; a setting gives it more.",
            Self::Internal => "a fault of the daemon's, told in its log.",
            Self::AgentError => {
                "the guest failed: it did not start, does not answer, its VM ended, or no server \
                 listens on the port."
            }
            Self::HostUnavailable => "the host has no memory for it now, or too much to do.",
            Self::Timeout => "a server in the sandbox took no connection, or did not answer.",
            Self::NoSpace => "the guest's disk is full, or the host's.",
        }
    }

    /// A message that may come with it.
    pub fn example(self) -> &'static str {
        match self {
            Self::InvalidRequest => "count is from 1 to 16",
            Self::Unauthorized => "the API key is not valid",
            Self::NotFound => "there is no sandbox k3v9x1p0qzt7m2c8rw5b",
            Self::MethodNotAllowed => "this path does not take this method",
            Self::InvalidState => "the sandbox is paused: resume it first",
            Self::Conflict => {
                "there is a snapshot ready already: give it another name, or overwrite it"
            }
            Self::GuestExhausted => {
                "the sandbox can start no other process now: end some of those in it"
            }
            Self::TooLarge => "a JSON body is at most 2097152 bytes",
            Self::RangeNotSatisfiable => "the file has 10 bytes, and none of this range",
            Self::Misdirected => "this daemon is not called \"nest.example\"",
            Self::Internal => "the host failed to do it",
            Self::AgentError => "the guest's agent does not answer",
            Self::HostUnavailable => "the host has too little memory for it now",
            Self::Timeout => "the server on port 8000 of the sandbox has not answered in 120 s",
            Self::NoSpace => "the guest's disk is full",
        }
    }

    /// The status of answers with it.
    pub fn status(self) -> StatusCode {
        match self {
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidState | Self::Conflict | Self::GuestExhausted => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RangeNotSatisfiable => StatusCode::RANGE_NOT_SATISFIABLE,
            Self::Misdirected => StatusCode::MISDIRECTED_REQUEST,
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
            StatusCode::MISDIRECTED_REQUEST => Self::Misdirected,
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

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What every answer that is an error holds.
#[derive(Serialize, ToSchema)]
#[schema(as = Error)]
pub struct Body<'a> {
    /// The error.
    error: Inner<'a>,
}

/// What went wrong.
#[derive(Serialize, ToSchema)]
#[schema(as = ErrorDetails, examples(json!({
    "code": "invalid_state",
    "message": "the sandbox is paused: resume it first",
})))]
struct Inner<'a> {
    /// Tells programs what went wrong.
    code: Code,
    /// Tells people what went wrong, and what to do.
    message: &'a str,
    /// The id of the request in the daemon's log, with 5xx only.
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
pub fn only(path: &str, allowed: &str) -> Resource {
    let allowed = HeaderValue::from_str(allowed).expect("names of methods make a header");
    web::resource(path).to(move || {
        let response = not_allowed(allowed.clone());
        async { response }
    })
}

/// Answers a request whose method is none of `allowed`.
pub fn not_allowed(allowed: HeaderValue) -> HttpResponse {
    let mut response = ApiError::foreign(StatusCode::METHOD_NOT_ALLOWED).response(None);
    response.headers_mut().insert(header::ALLOW, allowed);
    response
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
        error.into_host_error().into()
    }
}

impl From<HostError> for ApiError {
    fn from(error: HostError) -> Self {
        let code = match error.kind {
            ErrorKind::Invalid => Code::InvalidRequest,
            ErrorKind::NotFound => Code::NotFound,
            ErrorKind::Conflict => Code::Conflict,
            ErrorKind::InvalidState => Code::InvalidState,
            ErrorKind::Unavailable => Code::HostUnavailable,
            ErrorKind::Guest => Code::AgentError,
            ErrorKind::Silent => Code::Timeout,
            ErrorKind::TooMuch => Code::TooLarge,
            ErrorKind::OutOfRange { .. } => Code::RangeNotSatisfiable,
            ErrorKind::NoSpace => Code::NoSpace,
            ErrorKind::Exhausted => Code::GuestExhausted,
            ErrorKind::Damaged | ErrorKind::Internal => Code::Internal,
        };
        let length = match error.kind {
            ErrorKind::OutOfRange { length } => Some(length),
            _ => None,
        };
        Self { code, message: error.message, internal: Some(error.cause), length }
    }
}
