//! Networks of microVMs: one namespace for each slot, a pool of ready ones, and the packet filters
//! that let a guest out to the world but neither to another guest nor to the host.
//!
//! ```text
//! claimed -> built -> ready -> acquired -> released        (a number's way; then it is free again)
//!                        \         \-> dropped -> janitor -> released
//!                         \-> left by a dead daemon -> adopted, or reaped at the next start
//! ```
//!
//! What belongs to slot `n` is known from its number alone ([`crate::domain::slot`]), and a claim
//! file under `/run/nestbox` says which daemon's data directory owns the number, so whatever a crash
//! leaves behind can be found and removed. A namespace is never used twice. Scrubbing an old one would
//! be cheaper than making a new one, but it would have to know of everything that a guest can leave
//! in a kernel: tracked connections, learned path sizes, settings of the tap. The pool hides the
//! difference. Numbers are handed out round robin, so that an address comes back as late as possible.
//!
//! All work with the kernel runs on threads of its own that end with the work; a thread that entered
//! a namespace is never used for anything else. This module knows no VM and no sandbox.

mod claim;
mod error;
mod filter;
mod host;
mod link;
mod names;
mod namespace;
mod pool;
mod resolver;
mod setup;
mod slot;
mod tap;

pub use error::NetworkError;
pub use pool::{DNS_RATE, NetworkConfig, PoolStatus, SlotPool};
pub use resolver::resolvers;
pub use slot::{Generation, Slot};
