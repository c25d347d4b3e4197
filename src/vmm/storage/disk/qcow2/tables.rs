//! The tables of an overlay, read without believing them.
//!
//! Each cluster of the file is used for one thing: a table that points to the header, to another
//! table, to itself or twice to the same data is refused. So what is read is never more than the
//! file has.

use std::fs::File;
use std::io;

use super::{CLUSTER, COUNTED, ENTRIES, Header, Problem, l1_entries, longest, read_padded};

/// Bits of an entry that are an offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// The cluster is used once. An entry without it is as good for a reader.
const COPIED: u64 = 1 << 63;
const COMPRESSED: u64 = 1 << 62;
/// The cluster reads as zeros, whatever is at its offset.
pub(super) const ZERO: u64 = 1;

/// Why an overlay cannot be read.
#[derive(Debug)]
pub(super) enum Unreadable {
    Io(io::Error),
    Problem(Problem),
}

impl From<io::Error> for Unreadable {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Problem> for Unreadable {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

/// What an overlay has of one cluster of its disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cluster {
    /// Nothing: it is as the layer below has it.
    Below,
    /// Zeros.
    Zero,
    /// What is at this offset of the file.
    Data(u64),
}

/// An overlay that is being read.
pub(super) struct Tables<'a> {
    file: &'a File,
    header: Header,
    l1: Vec<u64>,
    refcount_blocks: Vec<u64>,
    used: Used,
}

impl<'a> Tables<'a> {
    /// Begins with the tables that the header points to.
    pub fn open(file: &'a File, header: Header) -> Result<Self, Unreadable> {
        if header.corrupt {
            return Err(Problem::Corrupt.into());
        }
        let bytes = file.metadata()?.len();
        if bytes > longest(header.size) {
            return Err(Problem::TooLong { bytes }.into());
        }
        let (l1, refcount_blocks) = (Vec::new(), Vec::new());
        let mut tables = Self { file, header, l1, refcount_blocks, used: Used::new(bytes) };
        tables.used.claim("its header", 0)?;

        let (at, clusters) = (tables.header.refcounts_at, tables.header.refcount_clusters);
        let entries = tables.metadata("its refcount table", at, u64::from(clusters) * ENTRIES)?;
        // Those of clusters that the file does not have are of no interest.
        let needed = tables.used.clusters.div_ceil(COUNTED) as usize;
        tables.refcount_blocks = entries.into_iter().take(needed).collect();
        for offset in tables.refcount_blocks.clone() {
            if offset != 0 {
                tables.used.claim("a refcount block", offset)?;
            }
        }
        let (at, entries) = (tables.header.l1_at, u64::from(tables.header.l1_entries));
        tables.l1 = tables.metadata("its L1 table", at, entries)?;
        // A file that was cut off lacks blocks that its first clusters are counted in.
        let metadata = tables.used.claimed();
        metadata.into_iter().try_for_each(|offset| tables.is_used_once(offset))?;
        Ok(tables)
    }

    /// Claims the clusters of a table, and reads it.
    fn metadata(
        &mut self,
        what: &'static str,
        at: u64,
        entries: u64,
    ) -> Result<Vec<u64>, Unreadable> {
        for number in 0..entries.div_ceil(ENTRIES) {
            let offset = number.checked_mul(CLUSTER).and_then(|offset| at.checked_add(offset));
            self.used.claim(what, offset.ok_or(Problem::Offset { what, offset: at })?)?;
        }
        let mut bytes = vec![0; entries as usize * 8];
        read_padded(self.file, &mut bytes, at)?;
        Ok(bytes.as_chunks().0.iter().map(|entry| u64::from_be_bytes(*entry)).collect())
    }

    /// Reads the table number `index` of the L1 table. Each is read once. None if there is none:
    /// all of it is as the layer below has it.
    pub fn read(&mut self, index: u64) -> Result<Option<Vec<Cluster>>, Unreadable> {
        let Some(&entry) = self.l1.get(index as usize).filter(|entry| **entry != 0) else {
            return Ok(None);
        };
        let offset = entry & OFFSET;
        if entry & !(OFFSET | COPIED) != 0 || offset == 0 {
            return Err(Problem::Entry { entry }.into());
        }
        // The last table goes on behind the end of the disk.
        let clusters = self.header.size.div_ceil(CLUSTER) - index * ENTRIES;
        let entries = self.metadata("an L2 table", offset, ENTRIES)?;
        self.is_used_once(offset)?;
        let entries = entries.into_iter().take(clusters.min(ENTRIES) as usize);
        entries.map(|entry| self.cluster(entry)).collect::<Result<_, _>>().map(Some)
    }

    fn cluster(&mut self, entry: u64) -> Result<Cluster, Unreadable> {
        if entry == 0 {
            return Ok(Cluster::Below);
        }
        if entry & COMPRESSED != 0 {
            return Err(Problem::Foreign { what: "compressed data" }.into());
        }
        let offset = entry & OFFSET;
        if entry & !(OFFSET | COPIED | ZERO) != 0 || (offset == 0 && entry != ZERO) {
            return Err(Problem::Entry { entry }.into());
        }
        if offset != 0 {
            self.used.claim("data", offset)?;
            self.is_used_once(offset)?;
        }
        Ok(if entry & ZERO != 0 { Cluster::Zero } else { Cluster::Data(offset) })
    }

    fn is_used_once(&self, offset: u64) -> Result<(), Unreadable> {
        if self.header.dirty {
            return Ok(());
        }
        let number = offset / CLUSTER;
        let block = self.refcount_blocks.get((number / COUNTED) as usize).copied();
        let mut count = [0; 2];
        match block.unwrap_or_default() {
            0 => {}
            block => read_padded(self.file, &mut count, block + number % COUNTED * 2)?,
        }
        match u16::from_be_bytes(count) {
            1 => Ok(()),
            found => Err(Problem::Refcount { offset, found }.into()),
        }
    }

    /// How many tables a disk of this size has.
    pub fn count(size: u64) -> u64 {
        l1_entries(size)
    }
}

/// The clusters of a file that something was found to be in.
struct Used {
    clusters: u64,
    bits: Vec<u64>,
}

impl Used {
    fn new(bytes: u64) -> Self {
        let clusters = bytes.div_ceil(CLUSTER);
        Self { clusters, bits: vec![0; clusters.div_ceil(64) as usize] }
    }

    fn claim(&mut self, what: &'static str, offset: u64) -> Result<(), Problem> {
        let number = offset / CLUSTER;
        if !offset.is_multiple_of(CLUSTER) || number >= self.clusters {
            return Err(Problem::Offset { what, offset });
        }
        let (word, bit) = (&mut self.bits[(number / 64) as usize], 1 << (number % 64));
        match *word & bit {
            0 => *word |= bit,
            _ => return Err(Problem::Twice { offset }),
        }
        Ok(())
    }

    fn claimed(&self) -> Vec<u64> {
        let is_set = |number: &u64| self.bits[(number / 64) as usize] & (1 << (number % 64)) != 0;
        (0..self.clusters).filter(is_set).map(|number| number * CLUSTER).collect()
    }
}
