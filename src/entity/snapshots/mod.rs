//! The table `snapshots`: the named snapshots, which sandboxes are created from.
//!
//! The files are on a host, and its disk is the truth: a row only says what is there, so that it
//! can be listed without asking the host. A host that starts makes its rows fit its disk with
//! [`Snapshots::replace_all`]; from then on each file that comes or goes is one
//! [`Snapshots::put`] or [`Snapshots::remove`].

mod queries;
mod row;

use chrono::{DateTime, Utc};

use super::cursor::Cursor;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;

pub use queries::Snapshots;
pub(super) use row::{Column, Entity};

/// The state of a sandbox at one instant, kept under a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its name; one in the whole database has it.
    pub name: TemplateName,
    /// The host its files are on, which is in `hosts`.
    pub host_id: String,
    /// Id of its files: another one each time that a snapshot of this name is made.
    pub build: String,
    /// The sandbox it was taken from, which may be gone.
    pub sandbox_id: SandboxId,
    /// The image that sandbox began with, however many snapshots ago.
    pub image: TemplateName,
    /// vCPUs and memory of every sandbox that is created from it.
    pub shape: Shape,
    /// The hypervisor it was taken under.
    pub hypervisor: String,
    /// Memory it keeps on disk, in bytes; like all sizes here, below 8 EiB as a file's is.
    pub memory_bytes: u64,
    /// Disk it keeps, in bytes.
    pub disk_bytes: u64,
    /// What it shares with others, in bytes.
    pub shared_bytes: u64,
    /// Number of files that its memory is spread over.
    pub memory_generations: u32,
    /// When it was taken.
    pub created_at: DateTime<Utc>,
}

/// One part of a list.
#[derive(Debug)]
pub struct Page {
    /// The snapshots, newest first.
    pub snapshots: Vec<Snapshot>,
    /// Where the next page begins, if there is one.
    pub next: Option<Cursor<TemplateName>>,
}
