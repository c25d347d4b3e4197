//! The states of a sandbox.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Asked for; nothing of it exists yet.
    Pending,
    /// Its VM is being made.
    Starting,
    /// Its VM runs.
    Running,
    /// Its VM is being frozen to disk.
    Pausing,
    /// Frozen to disk; no VM.
    Paused,
    /// Its VM is being made again from what was frozen.
    Resuming,
    /// Its VM and everything that belongs to it are being removed.
    Stopping,
    /// Gone, for ever.
    Stopped,
    /// Its host is out of reach; the VM may still run.
    Missing,
    /// Failed, with a reason.
    Error,
}

/// The text names no state of a sandbox.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a state of a sandbox")]
pub struct InvalidState;

impl SandboxState {
    /// Every state, in the order of a life.
    pub const ALL: [SandboxState; 10] = [
        Self::Pending,
        Self::Starting,
        Self::Running,
        Self::Pausing,
        Self::Paused,
        Self::Resuming,
        Self::Stopping,
        Self::Stopped,
        Self::Missing,
        Self::Error,
    ];

    /// The state as it is written in JSON and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Pausing => "pausing",
            Self::Paused => "paused",
            Self::Resuming => "resuming",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Missing => "missing",
            Self::Error => "error",
        }
    }
}

impl FromStr for SandboxState {
    type Err = InvalidState;

    fn from_str(text: &str) -> Result<Self, InvalidState> {
        Self::ALL.into_iter().find(|state| state.as_str() == text).ok_or(InvalidState)
    }
}

impl fmt::Display for SandboxState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
