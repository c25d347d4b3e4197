//! Writes an empty qcow2 overlay.
//!
//! An empty overlay is 4 clusters of fixed bytes; having qemu-img write them costs a process
//! start, which is more than the rest of preparing a sandbox's disk. Format: QEMU
//! `docs/interop/qcow2.txt`, version 3. All numbers are big-endian.

use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::layer::DiskFormat;

/// Bytes in a cluster, the unit of allocation. Half a cluster's second-level table maps half as
/// much, so with 64 KiB a 4 GiB disk needs 8 of them.
const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes in the header of version 3, without extensions.
const HEADER_BYTES: u32 = 104;
/// A backing file's name may have this many bytes.
const MAX_NAME: usize = 1023;
/// Extension that names the format of the backing file, so that QEMU does not guess: a guest could
/// write a header of another format into a raw disk, and have the host open any file.
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;

const REFCOUNT_TABLE_AT: u64 = CLUSTER;
const REFCOUNT_BLOCK_AT: u64 = 2 * CLUSTER;
const L1_TABLE_AT: u64 = 3 * CLUSTER;

/// Writes an overlay of `size` bytes on the disk `backing` into the empty file `file`.
///
/// # Errors
/// `InvalidInput` for a size that is no multiple of 512 or too large, or for a name that is too
/// long; those of writing.
pub fn write_overlay(file: &File, backing: &Path, format: DiskFormat, size: u64) -> io::Result<()> {
    let name = backing.as_os_str().as_bytes();
    let format = format.as_str().as_bytes();
    // A second-level table is one cluster of 8-byte entries.
    let l1_entries = size.div_ceil(CLUSTER * (CLUSTER / 8));
    if !size.is_multiple_of(512) || l1_entries > CLUSTER / 8 || name.len() > MAX_NAME {
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
    header.extend_from_slice(b"QFI\xfb");
    let mut put = |bytes: &[u8]| header.extend_from_slice(bytes);
    put(&3_u32.to_be_bytes()); // version
    put(&name_at.to_be_bytes());
    put(&(name.len() as u32).to_be_bytes());
    put(&CLUSTER_BITS.to_be_bytes());
    put(&size.to_be_bytes());
    put(&0_u32.to_be_bytes()); // no encryption
    put(&(l1_entries as u32).to_be_bytes());
    put(&L1_TABLE_AT.to_be_bytes());
    put(&REFCOUNT_TABLE_AT.to_be_bytes());
    put(&1_u32.to_be_bytes()); // clusters of the refcount table
    put(&0_u32.to_be_bytes()); // no internal snapshots
    put(&0_u64.to_be_bytes());
    put(&0_u64.to_be_bytes()); // incompatible features
    put(&0_u64.to_be_bytes()); // compatible features
    put(&0_u64.to_be_bytes()); // autoclear features
    put(&4_u32.to_be_bytes()); // refcounts of 2^4 bits
    put(&HEADER_BYTES.to_be_bytes());
    put(&extensions);
    put(name);

    // What is not written reads as zero: no cluster is mapped, the backing file shows through.
    file.set_len(L1_TABLE_AT + CLUSTER)?;
    file.write_all_at(&REFCOUNT_BLOCK_AT.to_be_bytes(), REFCOUNT_TABLE_AT)?;
    file.write_all_at(&[0, 1].repeat(4), REFCOUNT_BLOCK_AT)?;
    // The header last: a file without it is no overlay.
    file.write_all_at(&header, 0)
}
