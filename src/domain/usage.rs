//! What sandboxes take of their host, and what a host has ready.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::lifecycle::SandboxState;

/// What a sandbox took at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// When.
    pub at: DateTime<Utc>,
    /// Processor time since the sample before, in percent of one CPU.
    pub cpu_percent: f32,
    /// Memory that its VM has for itself.
    pub memory_bytes: u64,
    /// Its disk, blocks in use.
    pub disk_bytes: u64,
}

// A sandbox keeps an hour of them.
const _: () = assert!(size_of::<Sample>() == 32);

/// What a sandbox takes, and what it took.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct UsageReport {
    /// Memory that its guest has at most.
    pub memory_total_bytes: u64,
    /// What it takes now; nothing but its disk unless its VM runs.
    pub now: Sample,
    /// What it took during the last hour that it ran, the oldest first. A daemon that starts begins
    /// anew.
    pub history: Vec<Sample>,
}

/// What a host has ready for the next creates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Readiness {
    /// Network slots.
    pub slots: usize,
    /// VMs' processes that wait for a snapshot.
    pub vmms: usize,
    /// Machines that were made already.
    pub standbys: usize,
}

/// What a host carries now.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct HostLoad {
    /// Its sandboxes by state.
    pub population: BTreeMap<SandboxState, usize>,
    /// Memory that their VMs have for themselves, in bytes, as of the last samples.
    pub memory_bytes: u64,
    /// What it has ready.
    pub readiness: Readiness,
}
