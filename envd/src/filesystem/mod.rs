//! `filesystem.Filesystem`: metadata and changes of files. Their contents are `http`'s.
//!
//! - `service`: the rpcs
//! - `entry`: what is said about one file
//! - `tree`: making, moving, removing, listing
//! - `remove`: directories with all in them
//! - `watch`: changes, through inotify

mod entry;
mod remove;
mod service;
mod tree;
mod watch;

pub use entry::METADATA_PREFIX;
pub use service::Files;
pub use tree::{Owner, TreeError, is_refusal, make_dirs};
pub use watch::UPLOAD_PREFIX;
