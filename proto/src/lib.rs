//! The wire between a host and its guests, generated from the `.proto` files of this crate:
//! messages, a trait per service for the server's side, a client per service for the other.
//!
//! It holds no behaviour and knows neither the daemon nor the agent.

#![allow(
    clippy::allow_attributes_without_reason,
    clippy::missing_errors_doc,
    reason = "what is generated does not keep to it"
)]

connectrpc::include_generated!();

/// The version of E2B's agent whose features this one has. SDKs choose what to ask for by it.
pub const ENVD_VERSION: &str = "0.6.2";
