//! Makes one overlay of several that lie on each other.
//!
//! ```text
//! header | L1 table | L2 table, its data | L2 table, its data | ... | refcount table | its blocks
//! ```
//!
//! Written front to back: where a table is says how far the data before it went, and the refcounts,
//! which count themselves, are the last.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::super::layer::{Layer, LayerError};
use super::tables::{Cluster, Tables, Unreadable, ZERO};
use super::{CLUSTER, COUNTED, ENTRIES, Places, check, encode_header, read_padded};

/// The cluster is used once.
const COPIED: u64 = 1 << 63;
/// Clusters that are copied at once at most: 1 MiB.
const MAX_RUN: usize = 16;
const PAGE: usize = 4096;

static ZEROS: [u8; CLUSTER as usize] = [0; CLUSTER as usize];

/// Writes what the overlays `lower_to_upper` have together into the empty file `to`, as one overlay
/// of `size` bytes on `base`, and brings it to disk. `cancelled` is asked about once per MiB.
///
/// # Errors
///
/// [`LayerError::Refused`] if an overlay is not as QEMU would have left it; [`LayerError::Cancelled`];
/// [`LayerError::Io`]. What is in `to` is of no use then.
pub fn flatten(
    lower_to_upper: &[(&Layer, &File)],
    base: &Layer,
    size: u64,
    to: (&Layer, &File),
    cancelled: &dyn Fn() -> bool,
) -> Result<(), LayerError> {
    let mut sources = Vec::with_capacity(lower_to_upper.len());
    let mut below = base;
    for (layer, file) in lower_to_upper {
        let header = check(layer, file, below, size)?;
        let tables = Tables::open(file, header).map_err(unreadable(layer))?;
        sources.push(Source { layer, file, tables });
        below = layer;
    }
    let mut target = Target::begin(to, size);
    for index in 0..Tables::count(size) {
        let mut found = Vec::with_capacity(sources.len());
        for source in &mut sources {
            found.push(source.tables.read(index).map_err(unreadable(source.layer))?);
        }
        if found.iter().any(Option::is_some) {
            target.put_table(index, &sources, &found, cancelled)?;
        }
    }
    target.finish(base, size)
}

fn unreadable(layer: &Layer) -> impl Fn(Unreadable) -> LayerError {
    let file = layer.file.clone();
    move |error| match error {
        Unreadable::Io(source) => LayerError::io("read", &file)(source),
        Unreadable::Problem(problem) => LayerError::Refused { file: file.clone(), problem },
    }
}

struct Source<'a> {
    layer: &'a Layer,
    file: &'a File,
    tables: Tables<'a>,
}

/// Clusters that lie side by side on the disk and in the file of one overlay.
#[derive(Debug, Clone, Copy)]
struct Run {
    source: usize,
    at: u64,
    /// Number of the first one in its table.
    first: usize,
    count: usize,
}

/// The new overlay.
struct Target<'a> {
    layer: &'a Layer,
    file: &'a File,
    l1: Vec<u64>,
    /// Number of the next cluster of the file that nothing is in.
    free: u64,
}

impl<'a> Target<'a> {
    fn begin((layer, file): (&'a Layer, &'a File), size: u64) -> Self {
        let l1 = vec![0; Tables::count(size) as usize];
        let free = 1 + (l1.len() as u64).div_ceil(ENTRIES);
        Self { layer, file, l1, free }
    }

    fn take(&mut self) -> u64 {
        self.free += 1;
        (self.free - 1) * CLUSTER
    }

    /// Writes one L2 table, and what it points to.
    fn put_table(
        &mut self,
        index: u64,
        sources: &[Source],
        found: &[Option<Vec<Cluster>>],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), LayerError> {
        let mut entries = vec![0; ENTRIES as usize];
        let at = self.take();
        self.l1[index as usize] = at | COPIED;
        let mut buffer = vec![0; MAX_RUN * CLUSTER as usize];
        let mut pending: Option<Run> = None;
        for number in 0..entries.len() {
            let newest = found.iter().enumerate().rev().find_map(|(source, table)| {
                let cluster = *table.as_ref()?.get(number)?;
                (cluster != Cluster::Below).then_some((source, cluster))
            });
            let (source, at) = match newest {
                Some((source, Cluster::Data(at))) => (source, at),
                Some((_, Cluster::Zero)) => {
                    entries[number] = ZERO;
                    continue;
                }
                Some((_, Cluster::Below)) | None => continue,
            };
            match &mut pending {
                Some(run) if run.is_continued_by(source, at, number) => run.count += 1,
                pending => {
                    let new = Run { source, at, first: number, count: 1 };
                    if let Some(run) = pending.replace(new) {
                        self.copy(run, sources, &mut entries, &mut buffer, cancelled)?;
                    }
                }
            }
        }
        if let Some(run) = pending {
            self.copy(run, sources, &mut entries, &mut buffer, cancelled)?;
        }
        self.write(&to_bytes(&entries), at)
    }

    /// Copies clusters. Those that are zero take no place, and zeros in others no space.
    fn copy(
        &mut self,
        run: Run,
        sources: &[Source],
        entries: &mut [u64],
        buffer: &mut [u8],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), LayerError> {
        if cancelled() {
            return Err(LayerError::Cancelled);
        }
        let source = &sources[run.source];
        let bytes = &mut buffer[..run.count * CLUSTER as usize];
        let read = read_padded(source.file, bytes, run.at);
        read.map_err(LayerError::io("read", &source.layer.file))?;
        for (number, bytes) in (run.first..).zip(bytes.chunks_exact(CLUSTER as usize)) {
            if is_zero(bytes) {
                entries[number] = ZERO;
                continue;
            }
            let at = self.take();
            entries[number] = at | COPIED;
            let mut begin = 0;
            let pages: Vec<&[u8]> = bytes.chunks_exact(PAGE).collect();
            for pages in pages.chunk_by(|one, next| is_zero(one) == is_zero(next)) {
                let end = begin + pages.len() * PAGE;
                if !is_zero(pages[0]) {
                    self.write(&bytes[begin..end], at + begin as u64)?;
                }
                begin = end;
            }
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], at: u64) -> Result<(), LayerError> {
        self.file.write_all_at(bytes, at).map_err(LayerError::io("write", &self.layer.file))
    }

    /// Writes the refcounts, the L1 table and the header.
    fn finish(mut self, base: &Layer, size: u64) -> Result<(), LayerError> {
        // Blocks count their own uses and their table's, so one more may be needed for them.
        let (mut blocks, mut tables) = (0, 0);
        let total = loop {
            let total = self.free + blocks + tables;
            let needed = total.div_ceil(COUNTED);
            if (needed, needed.div_ceil(ENTRIES)) == (blocks, tables) {
                break total;
            }
            (blocks, tables) = (needed, needed.div_ceil(ENTRIES));
        };
        let refcounts_at = self.free * CLUSTER;
        self.free += tables;
        let mut table = Vec::with_capacity(blocks as usize);
        for block in 0..blocks {
            let counted = (total - block * COUNTED).min(COUNTED) as usize;
            let at = self.take();
            self.write(&[0, 1].repeat(counted), at)?;
            table.push(at);
        }
        self.write(&to_bytes(&table), refcounts_at)?;
        self.write(&to_bytes(&self.l1), CLUSTER)?;
        let refcount_clusters = u32::try_from(tables);
        let places = refcount_clusters.map_err(io::Error::other).and_then(|refcount_clusters| {
            encode_header(base, size, Places { l1_at: CLUSTER, refcounts_at, refcount_clusters })
        });
        let header = places.map_err(LayerError::io("write", &self.layer.file))?;
        // What was written last may end before its cluster does.
        let ended = self.file.set_len(total * CLUSTER);
        ended.map_err(LayerError::io("enlarge", &self.layer.file))?;
        self.write(&header, 0)?;
        self.file.sync_all().map_err(LayerError::io("sync", &self.layer.file))
    }
}

impl Run {
    fn is_continued_by(&self, source: usize, at: u64, number: usize) -> bool {
        source == self.source
            && number == self.first + self.count
            && at == self.at + self.count as u64 * CLUSTER
            && self.count < MAX_RUN
    }
}

fn to_bytes(entries: &[u64]) -> Vec<u8> {
    entries.iter().flat_map(|entry| entry.to_be_bytes()).collect()
}

/// Of a cluster or less.
fn is_zero(bytes: &[u8]) -> bool {
    *bytes == ZEROS[..bytes.len()]
}
