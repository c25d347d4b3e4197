//! Where a sandbox is in its life, as its host says it.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::id::SandboxId;
use super::lifecycle::SandboxState;

/// What a host has last decided about a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxStatus {
    /// Current state.
    pub state: SandboxState,
    /// Why it is in that state, where that needs saying.
    pub reason: Option<String>,
    /// Grows with every change; the larger one is the newer one.
    pub generation: i64,
    /// Seconds without work after which the sandbox is destroyed.
    pub timeout_sec: Option<u32>,
    /// Seconds after which it is destroyed unless its client has said again that it wants it.
    #[serde(default)]
    pub lease_sec: Option<u32>,
    /// When work was last done in it.
    pub last_active_at: DateTime<Utc>,
}

impl SandboxStatus {
    /// Of a machine that is no sandbox's, or not yet: a later daemon takes it away.
    pub fn unassigned() -> Self {
        Self {
            state: SandboxState::Starting,
            reason: None,
            generation: 0,
            timeout_sec: None,
            lease_sec: None,
            last_active_at: Utc::now(),
        }
    }

    /// Whether the machine is no sandbox's.
    pub fn is_unassigned(&self) -> bool {
        self.generation == 0
    }
}

/// Which run of a host's daemon speaks. Each start has a greater number than the one before; from then
/// on nothing that an earlier run of the same host says is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostEpoch(pub i64);

/// What a host tells of one sandbox: with each answer, and unasked whenever it changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxReport {
    /// The sandbox.
    pub id: SandboxId,
    /// What its host has decided.
    pub status: SandboxStatus,
    /// The network slot that it holds.
    pub slot: Option<u32>,
    /// Which run of the host's daemon says so.
    pub epoch: HostEpoch,
}
