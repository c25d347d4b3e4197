//! Makes one copy-on-write file of several that lie on each other.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use super::{
    CHUNK, CHUNK_SECTORS, Cow, CowError, FIRST_TABLE, MAGIC, PAIRS, STRIDE, VERSION, cannot,
};

/// Chunks that are copied at once at most: those of one table.
const MAX_RUN: u64 = PAIRS;

static ZEROS: [u8; CHUNK as usize] = [0; CHUNK as usize];

/// Where the newest content of a chunk is.
#[derive(Debug, Clone, Copy)]
struct Source {
    layer: usize,
    chunk: u64,
}

/// Chunks that lie side by side both where they are and where they go.
#[derive(Debug, Clone, Copy)]
struct Run {
    from: Source,
    to: u64,
    chunks: u64,
}

/// Writes what the layers `lower_to_upper` have together into a new sparse file at `to`. It is there
/// as a whole and on disk, or not at all. `cancelled` is asked about once per MiB.
///
/// # Errors
///
/// [`CowError`]; [`CowError::Cancelled`] if `cancelled` says so. A file that was at `to` before is
/// then as it was.
pub fn flatten(
    lower_to_upper: &[&Path],
    to: &Path,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), CowError> {
    let layers = lower_to_upper.iter().map(|path| Cow::open(path));
    let layers = layers.collect::<Result<Vec<_>, _>>()?;
    let mut newest = BTreeMap::new();
    for (index, layer) in layers.iter().enumerate() {
        for pair in layer.pairs()? {
            newest.insert(pair.disk, Source { layer: index, chunk: pair.file });
        }
    }
    let new = to.with_extension("new");
    let written = write(&new, &layers, &newest, cancelled).and_then(|()| {
        fs::rename(&new, to).map_err(cannot("rename", &new))?;
        let dir = to.parent().unwrap_or(Path::new("/"));
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(cannot("sync", dir))
    });
    if written.is_err() {
        // The first error is the one to tell.
        let _ = fs::remove_file(&new);
    }
    written
}

fn write(
    path: &Path,
    layers: &[Cow],
    newest: &BTreeMap<u64, Source>,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), CowError> {
    // One that is there was left by a crash.
    let mut options = File::options();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path);
    let file = file.map_err(cannot("create", path))?;
    let count = newest.len() as u64;
    // Up to the end of the last table's data: behind a full table the next one is read as zeros.
    let chunks = FIRST_TABLE + (count / PAIRS + 1) * STRIDE;
    file.set_len(chunks * CHUNK).map_err(cannot("enlarge", path))?;
    let mut buffer = vec![0; (MAX_RUN * CHUNK) as usize];
    for run in runs(newest.values().copied()) {
        if cancelled() {
            return Err(CowError::Cancelled);
        }
        let bytes = &mut buffer[..(run.chunks * CHUNK) as usize];
        let source = &layers[run.from.layer];
        let read = source.file.read_exact_at(bytes, run.from.chunk * CHUNK);
        read.map_err(cannot("read", &source.path))?;
        write_data(&file, bytes, run.to * CHUNK).map_err(cannot("write", path))?;
    }
    let tables = || {
        let mut disk_chunks = newest.keys();
        for table in 0..count.div_ceil(PAIRS) {
            let mut bytes = Vec::with_capacity(CHUNK as usize);
            for (at, disk) in (table * PAIRS..).zip(disk_chunks.by_ref().take(PAIRS as usize)) {
                bytes.extend_from_slice(&disk.to_le_bytes());
                bytes.extend_from_slice(&place(at).to_le_bytes());
            }
            file.write_all_at(&bytes, (FIRST_TABLE + table * STRIDE) * CHUNK)?;
        }
        let header = [MAGIC, 1, VERSION, CHUNK_SECTORS].map(u32::to_le_bytes).concat();
        file.write_all_at(&header, 0)?;
        file.sync_all()
    };
    tables().map_err(cannot("write", path))
}

/// The chunk of a file that has its data item number `index`.
fn place(index: u64) -> u64 {
    FIRST_TABLE + 1 + index + index / PAIRS
}

/// Joins what can be copied at once. Given in the disk's order, chunks are stored in that order, which
/// is also how the kernel remembers them with the least memory.
fn runs(sources: impl Iterator<Item = Source>) -> impl Iterator<Item = Run> {
    let mut sources = (0..).map(place).zip(sources).peekable();
    std::iter::from_fn(move || {
        let (to, from) = sources.next()?;
        let mut run = Run { from, to, chunks: 1 };
        while run.chunks < MAX_RUN
            && sources
                .next_if(|(to, from)| {
                    *to == run.to + run.chunks
                        && from.layer == run.from.layer
                        && from.chunk == run.from.chunk + run.chunks
                })
                .is_some()
        {
            run.chunks += 1;
        }
        Some(run)
    })
}

/// Writes chunks, and leaves holes for those that are zero.
fn write_data(file: &File, bytes: &[u8], at: u64) -> std::io::Result<()> {
    let size = CHUNK as usize;
    let mut begin = 0;
    for (index, chunk) in bytes.chunks_exact(size).enumerate() {
        if *chunk == ZEROS {
            file.write_all_at(&bytes[begin..index * size], at + begin as u64)?;
            begin = (index + 1) * size;
        }
    }
    file.write_all_at(&bytes[begin..], at + begin as u64)
}
