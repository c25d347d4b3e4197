//! Packet filters: how they are written, what they say, how they get into the kernel.

pub(super) mod egress;
mod expressions;
pub(super) mod rules;
pub(super) mod ruleset;
