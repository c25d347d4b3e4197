//! What goes wrong between the host and the agent. What the agent says of it is a stranger's: it is
//! escaped and cut before it gets into an error.

use std::net::SocketAddr;
use std::time::Duration;

use connectrpc::{ConnectError, ErrorCode};

use super::Agent;
use crate::domain::port::GuestPort;
use crate::domain::printable;

/// The longest message of an agent that is passed on, in bytes.
pub(super) const MESSAGE_LIMIT: usize = 1 << 10;

/// What went wrong between the host and the agent, or inside the guest.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The agent could not be reached, or the connection broke.
    #[error("the guest agent at {address} does not answer")]
    Unreachable { address: SocketAddr, source: Box<dyn std::error::Error + Send + Sync> },
    /// The agent was still silent when the time was over.
    #[error("the guest agent at {address} was silent for {waited:?}")]
    Silent { address: SocketAddr, waited: Duration },
    /// The agent refused the request: the caller asked for something impossible.
    #[error("{message}")]
    Invalid { message: String },
    /// The file or directory is not there.
    #[error("{message}")]
    NotFound { message: String },
    /// What was asked for is taken, or something is already where it is to be made.
    #[error("{message}")]
    Conflict { message: String },
    /// The file has so many bytes, and none of those that were asked for.
    #[error("the file has {length} bytes, and none of the range that was asked for")]
    OutOfRange { length: u64 },
    /// There is more to say than an answer holds.
    #[error("{message}")]
    TooMuch { message: String },
    /// The guest's disk is full.
    #[error("{message}")]
    NoSpace { message: String },
    /// The guest has no process, memory or descriptor left for another process.
    #[error("the sandbox can start no other process now ({message}): end some of those in it")]
    Exhausted { message: String },
    /// No server of the guest listens where one is asked for.
    #[error("nothing listens on port {port} of the sandbox: start a server there")]
    PortRefused { port: GuestPort },
    /// No server of the guest took the connection in time.
    #[error("port {port} of the sandbox took no connection within {} s", .waited.as_secs())]
    PortSilent { port: GuestPort, waited: Duration },
    /// The agent failed in a way that is not the caller's fault.
    #[error("the guest agent answered {status}: {message}")]
    Failed { status: String, message: String },
}

/// What an agent said, fit to be passed on.
pub(super) fn said(message: &str) -> String {
    printable::line(message, MESSAGE_LIMIT)
}

/// What an agent said in an error of an rpc, fit to be passed on.
pub(super) fn message_of(error: &ConnectError) -> String {
    said(error.message.as_deref().unwrap_or_default())
}

/// Whether it was the library that refused an answer, for its length. It has the same code for that as
/// agents have for a full disk.
pub(super) fn is_over_a_limit(error: &ConnectError) -> bool {
    let message = error.message.as_deref().unwrap_or_default();
    error.code == ErrorCode::ResourceExhausted
        && [" exceeds limit ", "element_memory_limit"].iter().any(|word| message.contains(word))
}

impl Agent {
    /// What the agent's refusal of an rpc means.
    pub(super) fn refused(&self, error: ConnectError) -> AgentError {
        let message = message_of(&error);
        let status = || error.code.as_str().to_owned();
        match error.code {
            ErrorCode::NotFound => AgentError::NotFound { message },
            ErrorCode::AlreadyExists => AgentError::Conflict { message },
            ErrorCode::InvalidArgument | ErrorCode::FailedPrecondition => {
                AgentError::Invalid { message }
            }
            ErrorCode::ResourceExhausted if is_over_a_limit(&error) => self.broken(&error),
            ErrorCode::ResourceExhausted => AgentError::NoSpace { message },
            ErrorCode::Internal => AgentError::Failed { status: status(), message },
            // It came with the image's snapshot, and lives as long as the sandbox.
            ErrorCode::Unimplemented => AgentError::Failed {
                status: status(),
                message: "it is older than the daemon and cannot do this: make a new sandbox"
                    .into(),
            },
            _ => self.broken(&error),
        }
    }

    /// An rpc whose answer does not come, or makes no sense.
    pub(super) fn broken(&self, error: &ConnectError) -> AgentError {
        self.unreachable(format!("{}: {}", error.code.as_str(), message_of(error)))
    }

    pub(super) fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> AgentError {
        AgentError::Unreachable { address: self.address, source: source.into() }
    }

    /// Waits for an answer of the agent, but no longer than that.
    ///
    /// # Errors
    ///
    /// [`AgentError::Silent`].
    pub(super) async fn within<T>(
        &self,
        limit: Duration,
        answer: impl Future<Output = T>,
    ) -> Result<T, AgentError> {
        let silent = |_| AgentError::Silent { address: self.address, waited: limit };
        tokio::time::timeout(limit, answer).await.map_err(silent)
    }
}
