//! Everything that touches the kernel or a hypervisor. Knows no actor, no HTTP, no database.
//!
//! ```text
//! host, simulated     put a machine together and take it apart; `machine` is their edge
//!      |
//! hypervisor          the trait, Firecracker, QEMU        guest   clients of the agent
//!      |                                                  image   kernel, root disk, modules
//! storage             memory, disk, snapshot, pager       network slots, filters, names
//!      |
//! process             of a VM or a pager: confined, found again, counted
//! ```
//!
//! Architecture invariant: an arrow never points back up; `tests/layers.rs` knows which there are.

#![allow(
    unsafe_code,
    reason = "some of the kernel is only reached so; nothing else of the daemon is"
)]

pub mod fault;
pub mod guest;
pub mod host;
pub mod host_memory;
pub mod hypervisor;
pub mod image;
pub mod lock_file;
pub mod machine;
pub mod network;
pub mod process;
pub mod record;
pub mod simulated;
pub mod storage;

use std::path::PathBuf;

/// Looks a program up in `PATH`, as a shell does.
pub fn find_program(name: &str) -> Option<PathBuf> {
    use nix::unistd::{AccessFlags, access};
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}
