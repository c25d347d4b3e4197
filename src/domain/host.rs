//! What is asked of a host, and what it answers: plain values, the same whether the host is this
//! process or another machine.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::egress::{Policy, PolicyRevision};
use super::engine::Engine;
use super::id::SandboxId;
use super::lifecycle::SandboxState;
use super::name::TemplateName;
use super::rates::RateLimits;
use super::shape::Shape;
use super::status::{HostEpoch, SandboxReport};

/// What a sandbox is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Origin {
    /// An image or a named snapshot.
    Template(TemplateName),
    /// A running sandbox of the same host, as it is at that moment.
    Fork(SandboxId),
}

/// Asks whether a host takes sandboxes, before anything is recorded of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepare {
    /// What they are made from.
    pub origin: Origin,
    /// Number of vCPUs; that of the snapshot or the parent, or the default, if absent.
    pub vcpus: Option<u32>,
    /// Memory in MiB; likewise.
    pub memory_mib: Option<u32>,
    /// How fast each may be; what is absent is as the host's settings say.
    pub rates: RateLimits,
    /// How many.
    pub count: usize,
}

/// A host takes them: it keeps their memory for them for a while.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prepared {
    /// Ids of the sandboxes to be. A host may have one of them ready already.
    pub ids: Vec<SandboxId>,
    /// vCPUs and memory of each.
    pub shape: Shape,
    /// How fast each is at most.
    pub rates: RateLimits,
    /// What runs them.
    pub engine: Engine,
}

/// What to make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// Its id, of [`Prepared::ids`].
    pub id: SandboxId,
    /// What it says that it was created from; a forked one says the same as its parent.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Environment of its processes, beside what a snapshot's processes had already.
    pub envs: BTreeMap<String, String>,
    /// What it may reach, from its first packet on.
    pub network: Policy,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
    /// Seconds without work after which it is destroyed.
    pub timeout_sec: Option<u32>,
    /// Seconds after which it is destroyed unless its lease is renewed.
    pub lease_sec: Option<u32>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
}

/// What a host says that was asked to destroy a sandbox. Only on its word a row is closed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Destroyed {
    /// Nothing is left of it.
    Gone(SandboxReport),
    /// The host has nothing of that id, and nothing of it is being made.
    Unknown,
}

/// What a host knows of a sandbox that lives there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxEntry {
    /// Where it is in its life.
    pub report: SandboxReport,
    /// What it was created from.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Environment of its processes.
    pub envs: BTreeMap<String, String>,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
    /// What it may reach; none while it is made.
    pub network: Option<PolicyRevision>,
}

/// All that lives on a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// Which run of the host's daemon says so.
    pub epoch: HostEpoch,
    /// What runs its sandboxes.
    pub engine: Engine,
    /// The sandboxes that live there.
    pub sandboxes: Vec<SandboxEntry>,
    /// Those that it could not find again when it started, whose end it reports itself.
    pub lost: Vec<SandboxId>,
}

/// Kinds of errors: what a caller can do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Change the request.
    Invalid,
    /// Ask for something else: this is not there.
    NotFound,
    /// Give it another name: this one is taken.
    Conflict,
    /// Bring the sandbox into another state first.
    InvalidState,
    /// Come back later.
    Unavailable,
    /// Look into the sandbox: its guest failed.
    Guest,
    /// Look into the sandbox: its guest did not answer in time.
    Silent,
    /// Ask for less: there is more than an answer holds.
    TooMuch,
    /// Ask for another part: there is none like this.
    OutOfRange {
        /// Bytes of the file.
        length: u64,
    },
    /// Make room on a disk.
    NoSpace,
    /// End processes in the sandbox: it can have no other.
    Exhausted,
    /// Give it up, or find out what has changed its files: it is not what was written.
    Damaged,
    /// Look into the daemon's log; the message says nothing about its insides.
    Internal,
}

impl ErrorKind {
    /// Whether it is the host that failed, rather than the caller who asked for too much.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Guest | Self::Silent | Self::NoSpace | Self::Damaged | Self::Internal => true,
            Self::Invalid | Self::NotFound | Self::Conflict => false,
            Self::TooMuch | Self::OutOfRange { .. } | Self::Exhausted => false,
            Self::InvalidState | Self::Unavailable => false,
        }
    }
}

/// A host refused, or failed. Crosses from host to host with its kind and its words as they are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct HostError {
    /// Of which kind it is.
    pub kind: ErrorKind,
    /// What a caller may read.
    pub message: String,
    /// The cause and its causes, for the log alone.
    pub cause: String,
    /// Whether nothing was done, and the same may be asked of another host.
    pub retryable: bool,
    /// What the sandbox became, if it went away while work was done in it.
    pub state: Option<SandboxState>,
}

impl HostError {
    /// An error whose message says all there is to say.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let message = message.into();
        Self { kind, cause: message.clone(), message, retryable: false, state: None }
    }
}
