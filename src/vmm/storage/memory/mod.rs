//! Guest memory of snapshots, as generations.
//!
//! A snapshot's memory is a full base file plus diffs, and a header that says for each page which
//! of them holds it. Everything is in the snapshot's own directory:
//!
//! | file | what |
//! | --- | --- |
//! | `memfile`, or `memfile.{build}` after a collapse | the base: page `n` is at offset `n` * 4 KiB |
//! | `memfile.{build}` | a diff: the pages that one capture found changed, in order |
//! | `memfile.header` | where each page is, and what the memory was taken from |
//!
//! A VM maps the base privately. The kernel then loads pages when they are touched, shares them
//! with every other clone, and gives the VM a page of its own, an anonymous one, for each that it
//! writes. So the pages in which a VM can differ from its base are found without its help:
//!
//! ```text
//!            inject: patches                    capture: anonymous pages
//! Lineage ------------------> a VM's process --------------------------> Lineage with one more
//!    |                        (base mapped privately)                     generation
//!    '-- collapse: base + diffs -> one new base
//! ```
//!
//! Under a hypervisor whose memory comes through a pager, that memory is anonymous, and the pages
//! that were never touched are not there at all. A VM then differs from its parent only in pages
//! that are there and in those that it gave back; see [`GuestMemory::served`].
//!
//! Files are immutable once they have their name, and a directory that builds on another one holds
//! hard links to its files. Thus link counts are the reference counts, any directory can be removed
//! at any time, and a directory can be read without the others. The header is the last file to get
//! its name: a directory in which work was broken off is refused, or is as it was before.
//!
//! Every function blocks, for as long as it takes to copy what it has to copy. Work on one
//! directory must not be done twice at the same time; reading it is always safe.
//!
//! Knows files and processes; knows no hypervisor, no snapshot store and no sandbox.

mod build_id;
mod capture;
mod collapse;
mod guest;
mod header;
mod lineage;
mod map;
mod provenance;
mod region;
mod sparse;
mod staging;

use std::io;
use std::path::{Path, PathBuf};

pub use build_id::{BuildId, InvalidBuildId};
pub use capture::{Captured, capture, capture_merged, inject};
pub use collapse::collapse;
pub use guest::GuestMemory;
pub use header::{Generation, GenerationName, Header, HeaderError, MAX_GENERATIONS, Written};
pub use lineage::{Lineage, Usage};
pub use map::{PageMap, Source};
pub use provenance::{Mismatch, Origin, Part, Provenance};
pub use region::{Region, RegionError};
pub use sparse::punch_zeros;

/// Bytes of a page.
pub const PAGE_SIZE: usize = 4096;

/// How many diffs a lineage normally has at most; one with more is to be collapsed. More are read
/// all the same: reading is no slower, but each diff keeps pages that later ones replace.
pub const MAX_DIFFS: usize = 10;

/// Pages that are read or written at once: 1 MiB.
const BATCH_PAGES: u64 = 256;

/// What has to survive once an operation returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// The result survives a crash of the host.
    Synced,
    /// The result survives a crash of the daemon; the host writes it to disk when it likes.
    Cached,
}

/// What went wrong with guest memory.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A file or directory could not be used. Out of space is [`io::ErrorKind::StorageFull`] here.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The header is damaged, or cannot be made.
    #[error("{} is no valid memory header", path.display())]
    Header {
        /// The header.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: HeaderError,
    },
    /// There is no header, and not just one full file either: whoever wrote it did not finish.
    #[error("the memory in {} is incomplete", dir.display())]
    Incomplete {
        /// The directory.
        dir: PathBuf,
    },
    /// A generation has another length than it should.
    #[error("{} has {found} bytes instead of {expected}", path.display())]
    Length {
        /// The generation's file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
        /// The right length in bytes.
        expected: u64,
    },
    /// A generation was written to after it was finished.
    #[error("{} was changed after it was written: nothing is restored from it", path.display())]
    Touched {
        /// The generation's file.
        path: PathBuf,
    },
    /// A file is too short or uneven to be the memory of a VM.
    #[error("{} has {found} bytes, which is no whole number of MiB", path.display())]
    NoMemory {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        found: u64,
    },
    /// The process does not map the base privately, each page once.
    #[error("process {pid} does not have the base as its memory")]
    NotMapped {
        /// The process.
        pid: i32,
    },
    /// The memory was not restored from the lineage that it is now compared with.
    #[error("process {pid} was restored from another base than {}", base.display())]
    OtherBase {
        /// The process.
        pid: i32,
        /// The base of the lineage.
        base: PathBuf,
    },
    /// The process does not have anonymous memory where its pager says.
    #[error("process {pid} does not have its memory at {address:#x}, where its pager says")]
    NotServed {
        /// The process.
        pid: i32,
        /// Where the memory should be.
        address: u64,
    },
    /// What is known of the memory of a process does not fit together.
    #[error("the memory of process {pid} is not whole")]
    Regions {
        /// The process.
        pid: i32,
        /// What does not fit.
        #[source]
        source: RegionError,
    },
    /// The process ended.
    #[error("process {pid} is gone")]
    Gone {
        /// The process.
        pid: i32,
    },
    /// The memory of the process could not be accessed.
    #[error("cannot {verb} the memory of process {pid}")]
    Access {
        /// What was tried.
        verb: &'static str,
        /// The process.
        pid: i32,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The caller lost interest.
    #[error("collapsing the memory was cancelled")]
    Cancelled,
}

/// Makes an error of `path` that says what was tried.
fn cannot(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MemoryError {
    let path = path.to_owned();
    move |source| MemoryError::Io { verb, path, source }
}

#[cfg(test)]
#[path = "memory_tests.rs"]
mod tests;
