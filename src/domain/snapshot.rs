//! Named snapshots, and what is kept on a host's disk.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::engine::Engine;
use super::id::SandboxId;
use super::name::TemplateName;
use super::shape::Shape;

/// Whether a snapshot may take the name of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Existing {
    /// It is an error that there is one already.
    Keep,
    /// The new one takes its place; sandboxes that were made from the old one keep its files.
    Replace,
}

/// Bytes that a sandbox or snapshot has in use on the host's disk: blocks, not apparent sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Storage {
    /// Its memory, all generations.
    pub memory_bytes: u64,
    /// How many files its memory is made of; 0 if none of it is on disk.
    pub memory_generations: u32,
    /// Its disk: all overlays and the image's root disk.
    pub disk_bytes: u64,
    /// How much of both is shared with other sandboxes, snapshots or the image.
    pub shared_bytes: u64,
}

/// A named snapshot of a host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// Its name, by which sandboxes are created from it.
    pub name: TemplateName,
    /// Tells it from an older one of the same name.
    pub build: String,
    /// What it was taken from.
    pub sandbox_id: SandboxId,
    /// The image that it all began with.
    pub image: TemplateName,
    /// vCPUs and memory of whatever is made from it.
    pub shape: Shape,
    /// The only hypervisor that can restore it.
    pub engine: Engine,
    /// What it takes on disk.
    pub storage: Storage,
    /// When it was taken.
    pub created_at: DateTime<Utc>,
}

/// Names what a fork has frozen of its parent, until its host discards it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ForkPoint(pub String);
