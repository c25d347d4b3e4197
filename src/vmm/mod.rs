//! Everything that touches the kernel or a hypervisor. Knows no actor, no HTTP, no database.

#![allow(
    unsafe_code,
    reason = "some of the kernel is only reached so; nothing else of the daemon is"
)]

mod answered_calls;
pub mod cgroup;
pub mod choice;
pub mod console;
pub mod disk;
mod elf;
pub mod fault;
pub mod firecracker;
pub mod guest;
pub mod host;
pub mod host_memory;
pub mod hypervisor;
pub mod image;
pub mod json;
pub mod kvm;
pub mod lock_file;
pub mod machine;
pub mod memory;
pub mod network;
pub mod pager;
pub mod process;
pub mod qemu;
pub mod record;
mod seccomp;
pub mod simulated;
pub mod snapshot;
mod tsc;
pub mod usage;
mod vmm_log;

use std::path::PathBuf;

/// Looks a program up in `PATH`, as a shell does.
pub fn find_program(name: &str) -> Option<PathBuf> {
    use nix::unistd::{AccessFlags, access};
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}
