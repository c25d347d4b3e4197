//! What tests are made of: a lab, its daemon, the daemon's sandboxes, and a census of what is left.

mod api;
#[allow(dead_code, reason = "not every suite of attacks uses all of it")]
mod broken_vmm;
mod census;
mod daemon;
mod disk;
#[path = "../../support/dns.rs"]
mod dns;
mod engine;
mod hostile_guest;
mod in_place_of;
mod lab;
mod neighbour;
#[path = "../../support/own_machine.rs"]
mod own_machine;
mod programs;
#[path = "../../support/skip.rs"]
pub mod skip;
#[path = "../../support/small_disk.rs"]
mod small_disk;
mod snapshots;
#[path = "../../support/socket.rs"]
mod socket;
mod witness;
mod world;
mod writers;

use std::future::Future;
use std::time::Duration;

pub use api::{Answer, Api, Sandbox};
pub use broken_vmm::BrokenVmm;
pub use census::Census;
pub use daemon::{Daemon, Options};
pub use disk::raw_copy;
pub use dns::serve_dns;
pub use engine::Engine;
pub use hostile_guest::{Growth, HostileGuest};
pub use in_place_of::in_place_of;
pub use lab::{Lab, in_a_lab, run};
pub use neighbour::{NOBODY, Prowler, as_user, reaches_agent};
pub use programs::{hypervisor_script, path_with};
pub use small_disk::SmallDisk;
pub use socket::{Rest, Said, Socket, data};
pub use witness::Witness;
pub use world::World;
pub use writers::{FileId, id_at, id_of, written_by};

/// The longest that anything may take that a test waits for, also in a machine in software.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// Two CPUs for a guest, or one where the host has no more.
pub fn two_vcpus() -> usize {
    std::thread::available_parallelism().map_or(1, |cpus| cpus.get().min(2))
}

/// Whether a process has not ended. One whose parent is gone may wait for init to reap it.
pub fn lives(pid: i32) -> bool {
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty())
}

/// Waits until a condition holds, looking often.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    eventually_within(PATIENCE, what, &mut condition).await;
}

/// Waits until a condition holds, but no longer than `limit`.
pub async fn eventually_within<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    condition: &mut impl FnMut() -> F,
) {
    let looking = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(
        tokio::time::timeout(limit, looking).await.is_ok(),
        "{limit:?} later still not: {what}"
    );
}
