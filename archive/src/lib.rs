//! Directories as tar archives, both ways: the agent's end in a guest and the command line's on the
//! host, neither of which trusts the other.
//!
//! - `header`: one block
//! - `read`, `write`: archives as streams
//! - `names`: which names and links stay inside a directory
//! - `pack`: a directory becomes an archive
//! - `unpack`: an archive becomes a directory
//! - `pipe`: between a thread that does either and a connection
//!
//! Architecture invariant: memory is bounded by constants, whatever an archive says; nothing is made
//! outside of the directory that is unpacked into, and nothing is followed that could lead out of it.
//! It knows neither the daemon nor the agent.

mod header;
mod names;
mod pack;
pub mod pipe;
mod read;
mod unpack;
mod write;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

pub use names::Refusal;
pub use pack::{About, pack, pack_and_explain, pack_file};
pub use unpack::{LinksOut, Options, Owner, unpack};

/// The most directories that may lie above a file: each costs a descriptor meanwhile.
pub const MAX_DEPTH: usize = 256;

/// Read and written at once.
const CHUNK: usize = 128 * 1024;

/// The record of an archive that says why it ends too early, and the most bytes that it says.
const TROUBLE: &str = "NESTBOX.trouble";
const TROUBLE_LIMIT: usize = 1024;

/// What was packed or unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Files, directories and links.
    pub entries: u64,
    /// Bytes of all files together.
    pub bytes: u64,
    /// Links that were not made.
    pub left_out: LeftOut,
}

/// Links that were not made because they lead out of the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// How many.
    pub count: u64,
    /// The first of them, from the directory on.
    pub first: Option<PathBuf>,
}

impl LeftOut {
    fn add(&mut self, path: PathBuf) {
        self.count += 1;
        self.first.get_or_insert(path);
    }
}

/// Why an archive could not be made or taken apart.
#[derive(Debug, Error)]
pub enum ArchiveError {
    /// Its bytes do not come, or do not get away.
    #[error("the archive broke off")]
    Stream(#[source] io::Error),
    /// It ends too early, and says why.
    #[error("the archive is not complete: {0}")]
    Incomplete(String),
    /// It is not what it should be.
    #[error("this is no tar archive: {0}")]
    Malformed(&'static str),
    /// One of its entries is not taken.
    #[error("{} is refused: {why}", .path.display())]
    Refused {
        /// Its name.
        path: PathBuf,
        /// Why.
        why: Refusal,
    },
    /// A file has shrunk while it was packed.
    #[error("{} became shorter while it was read", .path.display())]
    Shrunk {
        /// Its name.
        path: PathBuf,
    },
    /// The kernel refuses something.
    #[error("{verb} {}", .path.display())]
    Disk {
        /// What was tried.
        verb: &'static str,
        /// With what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}
