//! What Nestbox is about, without any input or output: ids, names, shapes, the state machine of a
//! sandbox, what it may reach, addresses of a slot, what others say made fit to show. Everything here is
//! a value or a pure function.

pub mod egress;
pub mod engine;
pub mod exec;
pub mod file;
pub mod host;
pub mod id;
pub mod lifecycle;
#[cfg(test)]
mod lifecycle_tests;
pub mod name;
pub mod object;
pub mod path;
pub mod port;
pub mod printable;
pub mod process;
pub mod rates;
pub mod shape;
pub mod slot;
pub mod snapshot;
pub mod status;
pub mod token;
pub mod trace;
pub mod usage;
