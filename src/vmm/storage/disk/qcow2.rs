//! The format that QEMU keeps overlays in: written, checked, read, and several made one.
//!
//! ```text
//! header        version 3, its extensions, the name of the file below
//! L1 table      where the L2 tables are, one for each 512 MiB of the disk
//! L2 tables     where each 64 KiB of the disk are: here, nowhere (zero), or in the file below
//! refcounts     how often each cluster of the file is used
//! ```
//!
//! All numbers are big-endian. Format: QEMU `docs/interop/qcow2.txt`.
//!
//! A VM's process writes these files, and whoever has broken out of a guest is that process. So
//! nothing here believes what a file says, and nothing follows a name in it: a [`Header`] is compared
//! with what was written when the overlay was made, and [`flatten`] reads from open files.

mod flatten;
mod header;
mod tables;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

pub use flatten::flatten;
pub use header::{HEADER_LIMIT, Header};

use super::layer::{DiskFormat, Layer, LayerError};

/// Bytes in a cluster, the unit of allocation. Half a cluster's second-level table maps half as
/// much, so with 64 KiB a 4 GiB disk needs 8 of them.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Entries of 8 bytes in a cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Clusters that one refcount block counts the uses of: it has 2 bytes for each.
const COUNTED: u64 = CLUSTER / 2;
/// Bytes of a disk that one entry of the L1 table stands for.
const TABLE_SPAN: u64 = CLUSTER * ENTRIES;
/// Bytes in the header of version 3, without extensions.
const HEADER_BYTES: u32 = 104;
/// A backing file's name may have this many bytes.
const MAX_NAME: usize = 1023;
const MAGIC: [u8; 4] = *b"QFI\xfb";
const VERSION: u32 = 3;
/// Refcounts have 2^4 bits.
const REFCOUNT_ORDER: u32 = 4;
/// Extension that names the format of the backing file, so that QEMU does not guess: a guest could
/// write a header of another format into a raw disk, and have the host open any file.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

/// What is wrong with an overlay. Follows its name in a sentence.
#[derive(Debug, thiserror::Error, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Another format or version.
    #[error("is no qcow2 file of version 3")]
    NotQcow2,
    /// A property that overlays of ours do not have.
    #[error("has {what}, which none that is made here has")]
    Foreign { what: &'static str },
    /// A part of its header reaches into another one, or ends too early.
    #[error("has a header that does not fit together")]
    Malformed,
    /// Its data is in a file of another name.
    #[error("keeps its data in another file")]
    ExternalData,
    /// It cannot be read without something that is not known here.
    #[error("needs unknown features ({bits:#x})")]
    Features { bits: u64 },
    /// Something about it is not known here.
    #[error("has an unknown extension ({kind:#010x})")]
    Extension { kind: u32 },
    /// It would have another file opened below it.
    #[error("names another backing file")]
    Backing,
    /// It would have the file below it read as something else.
    #[error("names another format of its backing file")]
    BackingFormat,
    /// Its disk is larger or smaller.
    #[error("is a disk of {found} bytes instead of {expected}")]
    Size { found: u64, expected: u64 },
    /// QEMU has found that its tables contradict each other.
    #[error("was marked as corrupt by its VM")]
    Corrupt,
    /// A file is longer than any that a disk of its size has.
    #[error("has {bytes} bytes, more than any of its disk")]
    TooLong { bytes: u64 },
    /// An offset leads out of the file, or between clusters.
    #[error("has {what} at {offset:#x}, where none can be")]
    Offset { what: &'static str, offset: u64 },
    /// An entry of a table means nothing.
    #[error("has an entry in its tables that means nothing ({entry:#x})")]
    Entry { entry: u64 },
    /// Two things are at one place.
    #[error("uses its cluster at {offset:#x} twice")]
    Twice { offset: u64 },
    /// What it says about a cluster in one place, it contradicts in another.
    #[error("counts {found} uses of its cluster at {offset:#x} instead of one")]
    Refcount { offset: u64, found: u16 },
}

/// Checks that an overlay is still what was made: a disk of `size` bytes, on `below` and nothing
/// else. Reads its header.
///
/// # Errors
///
/// [`LayerError::Refused`] with what is wrong; [`LayerError::Io`].
pub fn check(layer: &Layer, file: &File, below: &Layer, size: u64) -> Result<Header, LayerError> {
    let mut bytes = [0; HEADER_LIMIT];
    let read = read_padded(file, &mut bytes, 0);
    read.map_err(|source| LayerError::io("read", &layer.file)(source))?;
    let refused = |problem| LayerError::Refused { file: layer.file.clone(), problem };
    let header = Header::parse(&bytes).map_err(refused)?;
    header.check(below, size).map_err(refused)?;
    Ok(header)
}

/// The most bytes that the file of a disk of `size` bytes is expected to have. Clusters that are not
/// used any more are used again, but not if too few of them lie side by side.
pub fn longest(size: u64) -> u64 {
    size.saturating_mul(8).saturating_add(1 << 30)
}

/// Writes an overlay of `size` bytes on the disk `backing` into the empty file `file`.
///
/// # Errors
/// `InvalidInput` for a size that is no multiple of 512 or too large, or for a name that is too
/// long; those of writing.
pub fn write_overlay(file: &File, backing: &Layer, size: u64) -> io::Result<()> {
    let (l1_at, refcounts_at, refcount_block_at) = (3 * CLUSTER, CLUSTER, 2 * CLUSTER);
    let places = Places { l1_at, refcounts_at, refcount_clusters: 1 };
    let header = encode_header(backing, size, places)?;
    // What is not written reads as zero: no cluster is mapped, the backing file shows through.
    file.set_len(l1_at + CLUSTER)?;
    file.write_all_at(&refcount_block_at.to_be_bytes(), refcounts_at)?;
    file.write_all_at(&[0, 1].repeat(4), refcount_block_at)?;
    // The header last: a file without it is no overlay.
    file.write_all_at(&header, 0)
}

/// Where the tables are that a header points to.
#[derive(Debug, Clone, Copy)]
struct Places {
    l1_at: u64,
    refcounts_at: u64,
    refcount_clusters: u32,
}

/// Entries of the L1 table of a disk.
fn l1_entries(size: u64) -> u64 {
    size.div_ceil(TABLE_SPAN)
}

fn encode_header(backing: &Layer, size: u64, places: Places) -> io::Result<Vec<u8>> {
    let (name, format) = (backing.file.as_bytes(), backing.format.as_str().as_bytes());
    let l1_entries = l1_entries(size);
    if !size.is_multiple_of(512) || l1_entries > ENTRIES || name.len() > MAX_NAME {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut extensions = Vec::new();
    extensions.extend_from_slice(&EXTENSION_BACKING_FORMAT.to_be_bytes());
    extensions.extend_from_slice(&(format.len() as u32).to_be_bytes());
    extensions.extend_from_slice(format);
    // Each extension is padded to a multiple of 8 bytes.
    extensions.resize(extensions.len().next_multiple_of(8), 0);
    extensions.extend_from_slice(&[0; 8]); // end of extensions
    let name_at = u64::from(HEADER_BYTES) + extensions.len() as u64;

    let mut header = Vec::with_capacity(512);
    let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
    put(&MAGIC);
    put(&VERSION.to_be_bytes());
    put(&name_at.to_be_bytes());
    put(&(name.len() as u32).to_be_bytes());
    put(&CLUSTER_BITS.to_be_bytes());
    put(&size.to_be_bytes());
    put(&0_u32.to_be_bytes()); // no encryption
    put(&(l1_entries as u32).to_be_bytes());
    put(&places.l1_at.to_be_bytes());
    put(&places.refcounts_at.to_be_bytes());
    put(&places.refcount_clusters.to_be_bytes());
    put(&0_u32.to_be_bytes()); // no internal snapshots
    put(&0_u64.to_be_bytes());
    put(&0_u64.to_be_bytes()); // incompatible features
    put(&0_u64.to_be_bytes()); // compatible features
    put(&0_u64.to_be_bytes()); // autoclear features
    put(&REFCOUNT_ORDER.to_be_bytes());
    put(&HEADER_BYTES.to_be_bytes());
    put(&extensions);
    put(name);
    Ok(header)
}

/// Fills `buffer` from the file; what is behind its end is zero.
fn read_padded(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    buffer[filled..].fill(0);
    Ok(())
}

/// The formats that a header can name.
fn format_of(name: &[u8]) -> Option<DiskFormat> {
    [DiskFormat::Raw, DiskFormat::Qcow2].into_iter().find(|it| it.as_str().as_bytes() == name)
}

#[cfg(test)]
#[path = "qcow2_tests.rs"]
mod tests;
