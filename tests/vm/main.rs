//! Nestbox on real microVMs: the program itself, driven over HTTP and by its command line.
//!
//! Needs root, QEMU and an image (`NESTBOX_TEST_IMAGES`, else `.nestbox/images`); without them each
//! test says why it is skipped. Each test has a network and a `/run` of its own, and compares what is
//! on the machine before and after: nothing may be left.

#![allow(unsafe_code, reason = "it talks to the kernel as a VM or an attacker does")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod broken_vmm;
mod cli;
mod compat;
mod confinement;
mod crash;
mod disks;
mod edge;
mod egress;
mod events;
mod exec;
mod exec_stream;
mod faults;
mod files;
mod firecracker;
mod floods;
mod fork;
mod full_disk;
mod guest;
mod hostile;
mod identity;
mod image;
mod leaks;
mod lifecycle;
mod network;
mod pause;
mod ports;
mod processes;
mod rates;
mod restart;
mod snapshots;
mod support;
mod taken_over;
mod telemetry;
mod transfers;
mod trouble;
mod usage;
mod walls_network;
mod warm;
