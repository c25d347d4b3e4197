//! The table `sandboxes`: every sandbox that was asked for, until retention deletes it.
//!
//! What a sandbox was asked to be is written once, by [`Sandboxes::insert`]. What it is now has a
//! generation number and changes only through [`Sandboxes::publish`], which never lets an older
//! generation overwrite a newer one. Its activity is apart from both: [`Sandboxes::touch`].

mod queries;
mod row;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU32;

use chrono::{DateTime, Utc};

use super::cursor::Cursor;
use crate::domain::egress::Policy;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::domain::port::GuestPort;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;

pub use queries::Sandboxes;
pub(super) use row::{Column, Entity};

/// What a new sandbox shall be.
#[derive(Clone)]
pub struct NewSandbox {
    /// Its id, new.
    pub id: SandboxId,
    /// The host it is placed on, which is in `hosts`.
    pub host_id: String,
    /// What it is created from.
    pub template: TemplateName,
    /// Its vCPUs and memory.
    pub shape: Shape,
    /// Life in seconds without activity, or none for ever.
    pub timeout_sec: Option<u32>,
    /// Environment variables of every process in it.
    pub envs: BTreeMap<String, String>,
    /// The caller's own labels.
    pub metadata: BTreeMap<String, String>,
    /// Ports that anybody may reach.
    pub public_ports: BTreeSet<GuestPort>,
    /// What it may reach.
    pub network: Policy,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
    /// The hypervisor that runs it.
    pub hypervisor: String,
    /// The API key that asked for it.
    pub api_key_id: String,
    /// How a repeated request is known, if the caller wants that.
    pub idempotency: Option<Idempotency>,
    /// Now.
    pub created_at: DateTime<Utc>,
    /// When it ends unless something happens in it.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A caller's name for one request, and what the request was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The caller's name for the request; unique for an API key.
    pub key: String,
    /// A digest of the request's body: the same name for another request is a mistake.
    pub request_digest: String,
}

/// A sandbox as it is in the database.
#[derive(Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// The host it is placed on.
    pub host_id: String,
    /// What it was created from.
    pub template: TemplateName,
    /// Its vCPUs and memory.
    pub shape: Shape,
    /// Life in seconds without activity, or none for ever.
    pub timeout_sec: Option<u32>,
    /// Environment variables of every process in it.
    pub envs: BTreeMap<String, String>,
    /// The caller's own labels.
    pub metadata: BTreeMap<String, String>,
    /// Ports that anybody may reach.
    pub public_ports: BTreeSet<GuestPort>,
    /// What it may reach.
    pub network: Policy,
    /// Number of the last change of that.
    pub network_revision: i64,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
    /// Digest of a token that has opened its other ports before tokens were made of a secret.
    pub ports_token_digest: Option<String>,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Why it is in `error` or `stopped`, for a person.
    pub reason: Option<String>,
    /// Number of the last published change; 0 for none yet.
    pub generation: i64,
    /// Its network slot on its host, while it has one.
    pub slot: Option<u32>,
    /// The hypervisor that runs it.
    pub hypervisor: String,
    /// The API key that asked for it.
    pub api_key_id: String,
    /// How a repeated request is known.
    pub idempotency: Option<Idempotency>,
    /// When it was asked for.
    pub created_at: DateTime<Utc>,
    /// When its state was last published.
    pub updated_at: DateTime<Utc>,
    /// When something last happened in it.
    pub last_active_at: DateTime<Utc>,
    /// When it ends unless something happens in it.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it came to a final state.
    pub stopped_at: Option<DateTime<Utc>>,
}

// Neither tokens nor the environment belong in a log.
impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("id", &self.id)
            .field("state", &self.state)
            .field("reason", &self.reason)
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

/// What came of an insert.
#[derive(Debug)]
pub enum Insert {
    /// The sandbox is new, in state `pending`.
    Created(Box<Sandbox>),
    /// The same request was made before; this is its sandbox as it is now.
    AlreadyExists(Box<Sandbox>),
    /// The idempotency key was used for another request, which made this sandbox.
    Conflict(SandboxId),
}

/// The part of a sandbox that changes, as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Where it is in its life now. A final state also sets `stopped_at`.
    pub state: SandboxState,
    /// Why, for a person.
    pub reason: Option<String>,
    /// The network slot it holds now.
    pub slot: Option<u32>,
    /// When the change happened.
    pub at: DateTime<Utc>,
}

/// What came of publishing a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// The change is in the database.
    Written,
    /// The database holds something else by this generation, which is not older; nothing was written.
    Stale(i64),
    /// There is no such sandbox.
    NotFound,
    /// Its host has been started again since: an earlier run of it says no more.
    Fenced,
}

/// Which sandboxes a list shows.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Any of these states; empty for all.
    pub states: Vec<SandboxState>,
    /// All of these labels with these values.
    pub metadata: BTreeMap<String, String>,
}

/// Which part of a list to give.
#[derive(Debug, Clone)]
pub struct Window {
    /// At most so many sandboxes.
    pub limit: NonZeroU32,
    /// Where the last page ended; none for the first page.
    pub after: Option<Cursor>,
}

/// One part of a list.
#[derive(Debug)]
pub struct Page {
    /// The sandboxes, newest first.
    pub sandboxes: Vec<Sandbox>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor>,
}
