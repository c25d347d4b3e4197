//! Files with holes: pages that need no blocks because they are zero.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};

use super::PAGE_SIZE;
use super::capture::{batch_buffer, is_zero};

/// Gives back the blocks of all pages of `file` that are zero, and says how many bytes of pages
/// that were. What is read from the file stays the same.
///
/// A hypervisor that writes a memory as one dense file leaves blocks for everything. Costs a read
/// of what has blocks.
///
/// # Errors
///
/// What the kernel says; the file reads the same then too.
pub fn punch_zeros(file: &File) -> io::Result<u64> {
    let pages = file.metadata()?.len() / PAGE_SIZE as u64;
    let mut buffer = batch_buffer();
    let batch = (buffer.len() / PAGE_SIZE) as u64;
    let (mut at, mut punched) = (0, 0);
    while let Some(data) = next_data(file, at..pages)? {
        let mut first = data.start;
        while first < data.end {
            let count = batch.min(data.end - first);
            let bytes = &mut buffer[..count as usize * PAGE_SIZE];
            file.read_exact_at(bytes, first * PAGE_SIZE as u64)?;
            punched += punch(file, first, bytes)?;
            first += count;
        }
        at = data.end;
    }
    Ok(punched)
}

/// Punches the zero pages out of some that were read from page `first` on.
fn punch(file: &File, first: u64, bytes: &[u8]) -> io::Result<u64> {
    let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE_SIZE).collect();
    let mut at = first as usize * PAGE_SIZE;
    let mut punched = 0;
    for run in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
        let length = run.len() * PAGE_SIZE;
        if is_zero(run[0]) {
            let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            fallocate(file, flags, at as i64, length as i64)?;
            punched += length as u64;
        }
        at += length;
    }
    Ok(punched)
}

/// The first pages within `pages` that the file has blocks for.
pub(super) fn next_data(file: &File, pages: Range<u64>) -> io::Result<Option<Range<u64>>> {
    if pages.is_empty() {
        return Ok(None);
    }
    let page_size = PAGE_SIZE as u64;
    let seek = |offset: u64, whence| lseek(file, offset as i64, whence).map(|found| found as u64);
    match seek(pages.start * page_size, Whence::SeekData) {
        Ok(data) if data < pages.end * page_size => {
            let hole = seek(data, Whence::SeekHole)?;
            let end = hole.div_ceil(page_size).min(pages.end);
            Ok(Some(data / page_size..end))
        }
        // lseek(2): there is no data after the offset.
        Ok(_) | Err(Errno::ENXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn zero_pages_lose_their_blocks_and_nothing_else_changes() {
        let mut file = tempfile::tempfile().unwrap();
        let mut content = vec![0; 8 << 20];
        for page in [0, 1, 300, 700, 2047] {
            content[page * PAGE_SIZE + 17] = 9;
        }
        file.write_all(&content).unwrap();
        file.sync_all().unwrap();
        assert_eq!(file.metadata().unwrap().blocks() * 512, 8 << 20, "it is dense");
        assert_eq!(punch_zeros(&file).unwrap(), (2048 - 5) * PAGE_SIZE as u64);
        file.sync_all().unwrap();
        let data = file.metadata().unwrap();
        assert_eq!(data.len(), 8 << 20);
        // A block or two say which blocks are left.
        assert!(data.blocks() * 512 <= 7 * PAGE_SIZE as u64, "{} blocks", data.blocks());
        let mut after = vec![1; content.len()];
        file.read_exact_at(&mut after, 0).unwrap();
        assert!(after == content);
        assert_eq!(punch_zeros(&file).unwrap(), 0, "there is nothing left to punch");
    }
}
