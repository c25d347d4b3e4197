//! The pager against the real userfaultfd(2). Needs root, and no hypervisor: a process of the test
//! plays the VM.

#![allow(unsafe_code, reason = "it talks to the kernel as a VM or an attacker does")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]
#![allow(clippy::single_range_in_vec_init, reason = "a run of pages is a range")]

mod capture;
mod costs;
mod lab;
mod serve;
mod trouble;
mod vm;
