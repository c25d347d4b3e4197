//! What can go wrong with a request, and of which kind it is.

use crate::domain::host::{ErrorKind, HostError};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::Refused;
use crate::domain::name::TemplateName;
use crate::entity::StoreError;
use crate::entity::events::EventId;

/// What to do when the daemon's own disk is full.
const HOST_FULL: &str = "the host's disk is full: destroy sandboxes or delete snapshots that are not \
                         needed, or make room on it";

/// What the API may be told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such sandbox.
    #[error("there is no sandbox {0}")]
    NoSandbox(SandboxId),
    /// There is no such API key.
    #[error("there is no API key {0}")]
    NoKey(String),
    /// The last API key would be gone, and with it the way in.
    #[error("this is the last API key: make another one first")]
    LastKey,
    /// The idempotency key was used for something else.
    #[error("the Idempotency-Key was used for another request, which made sandbox {0}")]
    IdempotencyConflict(SandboxId),
    /// There is no such event yet.
    #[error("there is no event {id} yet, the newest is {newest}: is it of another database?")]
    NoEvent { id: EventId, newest: EventId },
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NoSnapshot(TemplateName),
    /// No host has joined that could make a sandbox.
    #[error("there is no host: start one first")]
    NoHost,
    /// The sandbox is on a host that this daemon cannot ask.
    #[error("it is on the host {0}, which this daemon does not know: ask the daemon of that host")]
    UnknownHost(String),
    /// The sandbox is in no state for it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It is recorded as living, and has just ended.
    #[error("it has ended")]
    Gone,
    /// A host refused or failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// The operating system's runtime ended an operation: the daemon is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

impl ControlError {
    /// Of which kind it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSandbox(_) | Self::NoSnapshot(_) | Self::NoKey(_) => ErrorKind::NotFound,
            Self::NoEvent { .. } => ErrorKind::Invalid,
            Self::LastKey | Self::IdempotencyConflict(_) => ErrorKind::Conflict,
            Self::NoHost | Self::UnknownHost(_) | Self::ShuttingDown => ErrorKind::Unavailable,
            Self::Refused(_) | Self::Gone => ErrorKind::InvalidState,
            Self::Host(error) => error.kind,
            Self::Store(StoreError::Full { .. }) => ErrorKind::NoSpace,
            Self::Store(_) => ErrorKind::Internal,
        }
    }

    /// What a caller may read. The rest is for the log.
    pub fn public_message(&self) -> String {
        match self {
            Self::Store(StoreError::Full { .. }) => HOST_FULL.to_owned(),
            _ => self.to_string(),
        }
    }

    /// The error as a host would tell it, with its cause for the log.
    pub fn into_host_error(self) -> HostError {
        match self {
            Self::Host(error) => error,
            error => HostError {
                cause: crate::chain(&error).to_string(),
                ..HostError::new(error.kind(), error.public_message())
            },
        }
    }
}
