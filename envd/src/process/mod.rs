//! `process.Process`: starts programs for callers and keeps them in touch.
//!
//! - `service`: the rpcs
//! - `start`: from a request to a running program
//! - `run`: a process from its start to its end
//! - `stream`, `spawn`, `cgroup`: the kernel's side of it

mod cgroup;
mod run;
mod service;
mod spawn;
mod start;
mod stream;

pub use service::Processes;
