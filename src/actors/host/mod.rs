//! What lives on a host. [`LocalHost`] is all of it; the control plane sees it as a
//! [`HostClient`](super::host_client::HostClient).
//!
//! Architecture invariant: nothing here knows a database or the control plane. What is decided is
//! published to a [`StatusSink`](super::host_client::StatusSink).

mod admission;
mod error;
pub mod janitor;
mod local;
pub mod manager;
pub mod reaper;
pub mod registry;
mod sampler;
pub mod sandbox;
pub mod workplace;

pub use admission::Limits;
pub use local::{Identity, LocalHost};
