//! Who decides what, and when: actors with a mailbox each, behind handles.
//!
//! ```text
//! control/        what the API asks for, and the database: which sandboxes there are, and where
//!     |  HostClient: plain requests and answers, statuses with a generation
//! host/           what lives on a host: its sandboxes, their machines, work in them; no database
//! ```
//!
//! Architecture invariant: addresses and messages are private to their module, actix's types stay
//! below this folder, and no handler blocks or waits. Knows neither HTTP nor a kernel.

pub mod control;
pub mod host;
pub mod host_client;
mod mailbox;
pub mod metrics;
mod supervisor;

pub use mailbox::CallError;
