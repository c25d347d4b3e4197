//! Nestbox: sandboxes for untrusted code, each in a microVM of its own.
//!
//! The crate is layered; an arrow never points back up (`tests/layers.rs` walks the `use` lines):
//!
//! ```text
//! main -> startup -> http, cli -> actors -> vmm, entity -> domain
//! ```

pub mod actors;
pub mod cli;
pub mod config;
pub mod domain;
pub mod entity;
mod error_chain;
pub mod http;
mod print;
#[cfg(test)]
#[path = "../tests/support/skip.rs"]
mod skip;
pub mod startup;
pub mod vmm;

pub use error_chain::chain;
