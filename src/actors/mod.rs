//! Who decides what, and when: actors with a mailbox each, behind handles.
//!
//! Architecture invariant: addresses and messages are private to their module, actix's types stay
//! below this folder, and no handler blocks or waits. Knows neither HTTP nor a kernel.

pub mod control_plane;
pub mod host;
pub mod janitor;
mod mailbox;
pub mod metrics;
pub mod reaper;
pub mod registry;
mod sampler;
pub mod sandbox;
pub mod sandbox_manager;
mod supervisor;

pub use mailbox::CallError;
