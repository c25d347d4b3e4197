//! The network layer against the real kernel. Needs root; each test has a machine of its own.

mod lab;
mod life;
mod measure;
#[path = "../support/own_machine.rs"]
mod own_machine;
mod reach;
