//! How a session ends, and how its client is told.

use actix_web_actors::ws::{CloseCode, CloseReason as CloseFrame};

use crate::actors::control::ControlError;
use crate::domain::host::{ErrorKind, HostError};
use crate::domain::lifecycle::SandboxState;

/// Private close codes: 4000 to 4999 are free for applications (RFC 6455, 7.4.2).
const PAUSED: u16 = 4001;
const DESTROYED: u16 = 4002;
const SILENT: u16 = 4003;

/// A close frame has room for so many bytes of reason beside its code (RFC 6455, 5.5).
const REASON_LIMIT: usize = 123;

/// Why a session ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CloseReason {
    /// Tells programs why.
    pub code: CloseCode,
    /// Tells people what went wrong; nothing did if absent.
    pub error: Option<String>,
}

impl CloseReason {
    /// All has been said.
    pub fn done() -> Self {
        Self { code: CloseCode::Normal, error: None }
    }

    /// The client has sent what this session does not take.
    pub fn policy(error: impl Into<String>) -> Self {
        Self::new(CloseCode::Policy, error)
    }

    /// Something is wrong, as `code` says.
    pub fn new(code: CloseCode, error: impl Into<String>) -> Self {
        Self { code, error: Some(error.into()) }
    }

    /// The client has given no sign of life for too long.
    pub fn silent() -> Self {
        Self::new(SILENT.into(), "no sign of life: answer pings, and take what is sent")
    }

    /// The server is about to end.
    pub fn away() -> Self {
        Self::new(CloseCode::Away, "the daemon is ending: connect again when it is back")
    }

    /// What the close frame says.
    pub fn reason(&self) -> CloseFrame {
        let text = self.error.as_deref().map(|error| {
            let end =
                (0..=REASON_LIMIT.min(error.len())).rev().find(|&at| error.is_char_boundary(at));
            error[..end.unwrap_or(0)].to_owned()
        });
        CloseFrame { code: self.code, description: text }
    }
}

impl From<ControlError> for CloseReason {
    fn from(error: ControlError) -> Self {
        error.into_host_error().into()
    }
}

impl From<HostError> for CloseReason {
    fn from(error: HostError) -> Self {
        let code = match (error.state, error.kind) {
            (Some(SandboxState::Pausing | SandboxState::Paused), _) => PAUSED.into(),
            (Some(SandboxState::Stopping | SandboxState::Stopped), _) => DESTROYED.into(),
            (_, ErrorKind::Invalid | ErrorKind::NotFound | ErrorKind::Conflict) => {
                CloseCode::Policy
            }
            (_, ErrorKind::InvalidState | ErrorKind::TooMuch | ErrorKind::OutOfRange { .. }) => {
                CloseCode::Policy
            }
            (_, ErrorKind::Unavailable | ErrorKind::Exhausted) => CloseCode::Again,
            (_, ErrorKind::Guest | ErrorKind::Silent | ErrorKind::NoSpace) => CloseCode::Error,
            (_, ErrorKind::Damaged | ErrorKind::Internal) => CloseCode::Error,
        };
        if code == CloseCode::Error {
            tracing::warn!(error = error.cause, "a session failed");
        }
        Self::new(code, error.message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_that_is_too_long_is_cut_between_characters() {
        let reason = CloseReason::policy("\u{20ac}".repeat(100)).reason().description.unwrap();
        assert_eq!(reason, "\u{20ac}".repeat(41));
        let short = CloseReason::policy("no").reason();
        assert_eq!((short.code, short.description.as_deref()), (CloseCode::Policy, Some("no")));
    }
}
