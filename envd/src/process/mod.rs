//! `process.Process` and `background.Background`: start programs for callers and keep them in touch.
//!
//! - `service`: the rpcs of the first
//! - `background`: those of the second, for what nobody need follow
//! - `start`: from a request to a running program
//! - `run`: a process from its start to its end
//! - `kept`, `record`, `ring`: what those in the background have written
//! - `stream`, `spawn`, `cgroup`: the kernel's side of it

mod background;
mod cgroup;
mod kept;
mod record;
mod ring;
mod run;
mod service;
mod spawn;
mod start;
mod stream;

pub use background::Background;
pub use service::Processes;
