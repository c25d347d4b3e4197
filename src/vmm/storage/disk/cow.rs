//! The file of a copy-on-write layer: the kernel's persistent snapshot store.
//!
//! ```text
//! chunk 0      header: magic "SnAp", valid, version, sectors in a chunk
//! chunk 1      table: 256 pairs (chunk of the disk, chunk of this file)
//! chunk 2..    256 chunks of data
//! chunk 258    the next table, and so on; the first pair with a zero in its second half is the end
//! ```
//!
//! All numbers are little-endian. Facts: Linux, `drivers/md/dm-snap-persistent.c`. The kernel writes
//! these files; here they are read, and several are made one. Knows files; knows no device.

mod flatten;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

pub use flatten::flatten;

/// Bytes in a chunk, the unit of copying: a page, so that a guest's write of one page copies nothing.
pub const CHUNK: u64 = 4096;
/// The same in sectors, as tables of device-mapper have it.
pub const CHUNK_SECTORS: u32 = (CHUNK / 512) as u32;

const MAGIC: u32 = 0x7041_6e53;
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 16;
/// Pairs in a table.
const PAIRS: u64 = CHUNK / PAIR_BYTES as u64;
const PAIR_BYTES: usize = 16;
/// Chunks from one table to the next.
const STRIDE: u64 = PAIRS + 1;
const FIRST_TABLE: u64 = 1;

/// Why a copy-on-write file cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum CowError {
    /// The file could not be read or written.
    #[error("cannot {verb} {}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    /// The kernel gave the file up: a write to it failed, usually because the host's disk was full.
    #[error("{} was invalidated by the kernel: not all that was written is in it", path.display())]
    Invalidated { path: PathBuf },
    /// The file is not what the kernel writes.
    #[error("{} is no copy-on-write layer: {reason}", path.display())]
    Malformed { path: PathBuf, reason: String },
    /// Nobody wants the result any more.
    #[error("merging was cancelled")]
    Cancelled,
}

/// Bytes that a copy-on-write file needs for every chunk of a disk of `size` bytes. It is sparse:
/// they are only taken when they are written.
pub fn capacity(size: u64) -> u64 {
    let data = size.div_ceil(CHUNK);
    // Behind a table that is full there is always the next one; and one to spare, for the kernel
    // refuses to allocate the very last chunk.
    let tables = data / PAIRS + 2;
    (FIRST_TABLE + data + tables) * CHUNK
}

/// The largest size of at most `bytes` that the kernel can fill to its end. A size that ends behind the
/// data of a full table lacks the next table, which the kernel writes at once when the former is full.
pub fn whole(bytes: u64) -> u64 {
    let chunks = bytes / CHUNK;
    match chunks > FIRST_TABLE && is_table(chunks) {
        true => (chunks - 1) * CHUNK,
        false => chunks * CHUNK,
    }
}

/// Where a chunk of the disk is in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pair {
    /// Number of the chunk on the disk.
    disk: u64,
    /// Number of the chunk in the file.
    file: u64,
}

/// A copy-on-write file that was opened for reading.
#[derive(Debug)]
pub struct Cow {
    path: PathBuf,
    file: File,
    chunks: u64,
}

impl Cow {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    ///
    /// [`CowError::Io`], [`CowError::Invalidated`], [`CowError::Malformed`].
    pub fn open(path: &Path) -> Result<Self, CowError> {
        let file = File::open(path).map_err(cannot("open", path))?;
        Self::check(file, path)
    }

    /// Checks the header of a file that is open.
    ///
    /// # Errors
    ///
    /// As [`Cow::open`].
    pub fn check(file: File, path: &Path) -> Result<Self, CowError> {
        let bytes = file.metadata().map_err(cannot("measure", path))?.len();
        let malformed = |reason: String| CowError::Malformed { path: path.to_owned(), reason };
        let mut header = [0; HEADER_BYTES];
        match file.read_exact_at(&mut header, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(malformed(format!("it has only {bytes} bytes")));
            }
            read => read.map_err(cannot("read", path))?,
        }
        let field = |at: usize| {
            u32::from_le_bytes(header[at..at + 4].try_into().expect("a field has 4 bytes"))
        };
        let (magic, valid, version, sectors) = (field(0), field(4), field(8), field(12));
        if magic != MAGIC {
            return Err(malformed(format!("it begins with {magic:#010x}")));
        }
        if version != VERSION {
            return Err(malformed(format!("its version is {version}")));
        }
        if sectors != CHUNK_SECTORS {
            return Err(malformed(format!("its chunks have {sectors} sectors")));
        }
        if valid == 0 {
            return Err(CowError::Invalidated { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file, chunks: bytes / CHUNK })
    }

    /// Reads the tables: which chunks the file has, in the disk's order.
    fn pairs(&self) -> Result<Vec<Pair>, CowError> {
        let mut pairs = Vec::new();
        let mut table = vec![0; CHUNK as usize];
        let mut at = FIRST_TABLE;
        'tables: loop {
            if at >= self.chunks {
                return Err(self.malformed(format!("its table {at} is missing")));
            }
            let read = self.file.read_exact_at(&mut table, at * CHUNK);
            read.map_err(cannot("read", &self.path))?;
            for pair in table.chunks_exact(PAIR_BYTES) {
                let half = |from: usize| {
                    u64::from_le_bytes(pair[from..from + 8].try_into().expect("half a pair"))
                };
                let pair = Pair { disk: half(0), file: half(8) };
                if pair.file == 0 {
                    break 'tables;
                }
                self.check_pair(pair)?;
                pairs.push(pair);
            }
            at += STRIDE;
        }
        pairs.sort_unstable_by_key(|pair| pair.disk);
        match pairs.windows(2).find(|two| two[0].disk == two[1].disk) {
            Some(two) => Err(self.malformed(format!("it has chunk {} twice", two[0].disk))),
            None => Ok(pairs),
        }
    }

    fn check_pair(&self, pair: Pair) -> Result<(), CowError> {
        if pair.file >= self.chunks || is_table(pair.file) {
            return Err(self.malformed(format!("it has no data in chunk {}", pair.file)));
        }
        if pair.disk > i64::MAX as u64 / CHUNK {
            return Err(self.malformed(format!("no disk has a chunk {}", pair.disk)));
        }
        Ok(())
    }

    fn malformed(&self, reason: String) -> CowError {
        CowError::Malformed { path: self.path.clone(), reason }
    }
}

fn is_table(chunk: u64) -> bool {
    chunk % STRIDE == FIRST_TABLE
}

/// Makes an error of `path` that says what was tried.
fn cannot(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> CowError {
    let path = path.to_owned();
    move |source| CowError::Io { verb, path, source }
}

#[cfg(test)]
#[path = "cow_tests.rs"]
pub(crate) mod tests;
