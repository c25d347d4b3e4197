//! The network layer against the real kernel. Needs root; each test has a machine of its own.

#![allow(unsafe_code, reason = "it talks to the kernel as a VM or an attacker does")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

#[path = "../support/dns.rs"]
mod dns;
mod egress;
#[path = "../support/hello.rs"]
mod hello;
mod lab;
mod life;
mod measure;
mod names;
mod names_hold;
#[path = "../vm/support/neighbour.rs"]
#[expect(dead_code, reason = "part of it is for tests with VMs")]
mod neighbour;
#[path = "../support/own_machine.rs"]
mod own_machine;
mod rates;
mod reach;
#[path = "../support/skip.rs"]
mod skip;
mod walls;
