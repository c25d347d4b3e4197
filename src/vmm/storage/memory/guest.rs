//! The memory of a VM's process, from outside.
//!
//! With process_vm_readv(2) and process_vm_writev(2): for scattered pages they take half the time
//! of `/proc/PID/mem`, which needs a call for each, and for long runs they are as fast.

use std::fs::{self, File};
use std::io::{self, IoSlice, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::libc::dev_t;
use nix::sys::stat::makedev;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use super::{BATCH_PAGES, Lineage, MemoryError, PAGE_SIZE, Region, cannot};

/// Bytes of a page's entry in `/proc/PID/pagemap`.
const ENTRY_SIZE: usize = 8;

/// Entries that are read at once: 128 MiB of memory.
const ENTRIES: u64 = 1 << 15;

/// Bits of an entry, from the kernel's Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE_OR_SHARED: u64 = 1 << 61;

/// The memory of one VM.
#[derive(Debug)]
pub struct GuestMemory {
    pid: Pid,
    pagemap: File,
    origin: MemoryOrigin,
    mappings: Vec<Mapping>,
}

/// How a VM got its memory, and so what the pages are that its process does not have for itself.
#[derive(Debug)]
enum MemoryOrigin {
    /// The base's, which the process maps privately.
    Mapped(FileId),
    /// The lineage's that the pager serves, or zero if the VM gave it back.
    Served {
        /// The runs of pages that it gave back, in order.
        given_back: Vec<Range<u64>>,
    },
}

/// What a page is that the process does not have for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Absent {
    /// What the base has.
    Base,
    /// What the lineage has that the VM was restored from.
    Parent,
    /// Zero.
    Zero,
}

/// Names a file as long as it is open somewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileId {
    dev: dev_t,
    ino: u64,
}

/// A part of the base in the process's address space.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    pages: Range<u64>,
    address: u64,
}

impl GuestMemory {
    /// Finds where process `pid` has mapped `base` privately.
    ///
    /// # Errors
    ///
    /// [`MemoryError::NotMapped`] unless every page is mapped once. [`MemoryError::Io`], also if
    /// there is no such process.
    pub fn find(pid: i32, base: &File) -> Result<Self, MemoryError> {
        let proc = Path::new("/proc").join(pid.to_string());
        let path = proc.join("pagemap");
        let pagemap = File::open(&path).map_err(cannot("open", &path))?;
        let path = proc.join("maps");
        let maps = fs::read_to_string(&path).map_err(cannot("read", &path))?;
        let data = base.metadata().map_err(cannot("measure", &path))?;
        let id = FileId { dev: data.dev(), ino: data.ino() };
        let mut mappings: Vec<Mapping> = maps
            .lines()
            .filter_map(parse)
            .filter(|line| line.file == id || is_mapped(&proc.join("map_files"), line, id))
            .map(|line| line.mapping)
            .collect();
        mappings.sort_unstable_by_key(|mapping| mapping.pages.start);
        let mut end = 0;
        for mapping in &mappings {
            if mapping.pages.start != end {
                return Err(MemoryError::NotMapped { pid });
            }
            end = mapping.pages.end;
        }
        if end == 0 || end * PAGE_SIZE as u64 != data.len() {
            return Err(MemoryError::NotMapped { pid });
        }
        let origin = MemoryOrigin::Mapped(id);
        Ok(Self { pid: Pid::from_raw(pid), pagemap, origin, mappings })
    }

    /// Takes what the pager of process `pid` says: the memory is in `regions`, and the VM gave the
    /// pages `given_back` back, in order, which are zero unless it has touched them again.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Regions`] if they are no memory, [`MemoryError::NotServed`] if the process
    /// has something else there. [`MemoryError::Io`], also if there is no such process.
    pub fn served(
        pid: i32,
        regions: &[Region],
        given_back: Vec<Range<u64>>,
    ) -> Result<Self, MemoryError> {
        let proc = Path::new("/proc").join(pid.to_string());
        let path = proc.join("pagemap");
        let pagemap = File::open(&path).map_err(cannot("open", &path))?;
        let path = proc.join("maps");
        let maps = fs::read_to_string(&path).map_err(cannot("read", &path))?;
        let bytes = regions.iter().fold(0, |sum: u64, region| sum.saturating_add(region.bytes));
        let regions = Region::sorted(regions.to_vec(), bytes)
            .map_err(|source| MemoryError::Regions { pid, source })?;
        for region in &regions {
            // A change of only a part's properties splits a mapping.
            let end = region.address + region.bytes;
            let covered = maps.lines().filter_map(anonymous).fold(region.address, |at, mapping| {
                if mapping.contains(&at) { mapping.end } else { at }
            });
            if covered < end {
                return Err(MemoryError::NotServed { pid, address: region.address });
            }
        }
        let mapping = |region: &Region| Mapping { pages: region.pages(), address: region.address };
        let mappings = regions.iter().map(mapping).collect();
        let origin = MemoryOrigin::Served { given_back };
        Ok(Self { pid: Pid::from_raw(pid), pagemap, origin, mappings })
    }

    /// Whether `base` is what the process has mapped.
    pub(super) fn is_mapped(&self, base: &File) -> bool {
        let id = base.metadata().map(|data| FileId { dev: data.dev(), ino: data.ino() });
        match (&self.origin, id) {
            (MemoryOrigin::Mapped(mapped), Ok(id)) => *mapped == id,
            (MemoryOrigin::Mapped(_), Err(_)) | (MemoryOrigin::Served { .. }, _) => false,
        }
    }

    /// Whether the memory can be one that was restored from `lineage`: nothing in a memory that a
    /// pager served says what it was served from but its size.
    pub(super) fn can_be_of(&self, lineage: &Lineage) -> bool {
        match self.origin {
            MemoryOrigin::Mapped(_) => self.is_mapped(lineage.base()),
            MemoryOrigin::Served { .. } => {
                self.pages() * PAGE_SIZE as u64 == lineage.memory_bytes()
            }
        }
    }

    /// Says what pages are that are not among the [`GuestMemory::changed`] ones.
    pub(super) fn absent(&self, pages: Range<u64>) -> Vec<(Range<u64>, Absent)> {
        let given_back = match &self.origin {
            MemoryOrigin::Mapped(_) => return vec![(pages, Absent::Base)],
            MemoryOrigin::Served { given_back } => given_back,
        };
        let mut parts = Vec::new();
        let mut at = pages.start;
        let first = given_back.partition_point(|run| run.end <= at);
        for run in given_back[first..].iter().take_while(|run| run.start < pages.end) {
            let (start, end) = (run.start.max(at), run.end.min(pages.end));
            parts.push((at..start, Absent::Parent));
            parts.push((start..end, Absent::Zero));
            at = end;
        }
        parts.push((at..pages.end, Absent::Parent));
        parts.retain(|(pages, _)| !pages.is_empty());
        parts
    }

    /// The number of pages.
    pub(super) fn pages(&self) -> u64 {
        self.mappings.last().map_or(0, |mapping| mapping.pages.end)
    }

    /// The process.
    pub(super) fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// The runs of pages that the process has for itself: all that it wrote are among them. Of a
    /// memory that a pager served, these are all pages that are there, read or written, and only
    /// they may be read: reading another one would wait for the pager. The process must not run,
    /// or the answer is old at once.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Gone`] and [`MemoryError::Access`].
    pub fn changed(&self) -> Result<Vec<Range<u64>>, MemoryError> {
        let foreign = match self.origin {
            MemoryOrigin::Mapped(_) => FILE_OR_SHARED,
            MemoryOrigin::Served { .. } => 0,
        };
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut buffer = vec![0; ENTRIES as usize * ENTRY_SIZE];
        for mapping in &self.mappings {
            let mut page = mapping.pages.start;
            while page < mapping.pages.end {
                let count = ENTRIES.min(mapping.pages.end - page);
                let entries = &mut buffer[..count as usize * ENTRY_SIZE];
                let address = mapping.address + (page - mapping.pages.start) * PAGE_SIZE as u64;
                self.read_pagemap(address, entries)?;
                for entry in entries.chunks_exact(ENTRY_SIZE) {
                    let entry = u64::from_ne_bytes(entry.try_into().expect("the size of an entry"));
                    let own = entry & (PRESENT | SWAPPED) != 0 && entry & foreign == 0;
                    match runs.last_mut() {
                        Some(last) if own && last.end == page => last.end += 1,
                        _ if own => runs.push(page..page + 1),
                        _ => {}
                    }
                    page += 1;
                }
            }
        }
        Ok(runs)
    }

    /// Reads runs of pages, one after the other into `buffer`, which is as long as they are.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Gone`] and [`MemoryError::Access`].
    pub fn read(&self, runs: &[Range<u64>], buffer: &mut [u8]) -> Result<(), MemoryError> {
        self.transfer("read", runs, buffer.len(), |part, remote| {
            process_vm_readv(self.pid, &mut [IoSliceMut::new(&mut buffer[part])], remote)
        })
    }

    /// Writes runs of pages, one after the other from `buffer`, which is as long as they are.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Gone`] and [`MemoryError::Access`].
    pub fn write(&self, runs: &[Range<u64>], buffer: &[u8]) -> Result<(), MemoryError> {
        self.transfer("write", runs, buffer.len(), |part, remote| {
            process_vm_writev(self.pid, &[IoSlice::new(&buffer[part])], remote)
        })
    }

    fn transfer(
        &self,
        verb: &'static str,
        runs: &[Range<u64>],
        length: usize,
        mut call: impl FnMut(Range<usize>, &[RemoteIoVec]) -> nix::Result<usize>,
    ) -> Result<(), MemoryError> {
        let failed = |source| MemoryError::Access { verb, pid: self.pid(), source };
        let mut done = 0;
        for batch in batches(runs.iter().cloned()) {
            let remote: Vec<RemoteIoVec> = batch.iter().flat_map(|run| self.locate(run)).collect();
            let bytes: usize = remote.iter().map(|part| part.len).sum();
            // A pid can name another process by now; the open pagemap cannot.
            self.read_pagemap(self.mappings[0].address, &mut [0; ENTRY_SIZE])?;
            match call(done..done + bytes, &remote) {
                Ok(count) if count == bytes => done += bytes,
                Ok(_) => return Err(failed(Errno::EFAULT.into())),
                Err(Errno::ESRCH) => return Err(MemoryError::Gone { pid: self.pid() }),
                Err(errno) => return Err(failed(errno.into())),
            }
        }
        debug_assert_eq!(done, length);
        Ok(())
    }

    /// Where a run of pages is in the process.
    fn locate(&self, run: &Range<u64>) -> impl Iterator<Item = RemoteIoVec> {
        let run = run.clone();
        self.mappings.iter().filter_map(move |mapping| {
            let start = run.start.max(mapping.pages.start);
            let end = run.end.min(mapping.pages.end);
            (start < end).then(|| RemoteIoVec {
                base: (mapping.address + (start - mapping.pages.start) * PAGE_SIZE as u64) as usize,
                len: (end - start) as usize * PAGE_SIZE,
            })
        })
    }

    fn read_pagemap(&self, address: u64, entries: &mut [u8]) -> Result<(), MemoryError> {
        let offset = address / PAGE_SIZE as u64 * ENTRY_SIZE as u64;
        let pid = self.pid();
        self.pagemap.read_exact_at(entries, offset).map_err(|source| match source.kind() {
            // The file is empty once the process has no memory any more.
            io::ErrorKind::UnexpectedEof => MemoryError::Gone { pid },
            _ => MemoryError::Access { verb: "read the map of", pid, source },
        })
    }
}

/// Groups runs of pages, splitting long ones, so that each group is of at most [`BATCH_PAGES`].
pub(super) fn batches(
    runs: impl IntoIterator<Item = Range<u64>>,
) -> impl Iterator<Item = Vec<Range<u64>>> {
    let mut runs = runs.into_iter();
    let mut left = 0..0;
    std::iter::from_fn(move || {
        let mut batch = Vec::new();
        let mut room = BATCH_PAGES;
        while room > 0 {
            if left.is_empty() {
                match runs.next() {
                    Some(run) => left = run,
                    None => break,
                }
            }
            let end = left.end.min(left.start + room);
            room -= end - left.start;
            batch.push(left.start..end);
            left.start = end;
        }
        (!batch.is_empty()).then_some(batch)
    })
}

struct Line<'a> {
    range: &'a str,
    file: FileId,
    mapping: Mapping,
}

/// Reads a private mapping of a file from a line of `/proc/PID/maps`, proc(5).
fn parse(line: &str) -> Option<Line<'_>> {
    let mut fields = line.split_ascii_whitespace();
    let range = fields.next()?;
    let (start, end) = range.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let private = fields.next()?.ends_with('p');
    let first = hex(fields.next()?)? / PAGE_SIZE as u64;
    let (major, minor) = fields.next()?.split_once(':')?;
    let file = FileId { dev: makedev(hex(major)?, hex(minor)?), ino: fields.next()?.parse().ok()? };
    let pages = first..first + (end - start) / PAGE_SIZE as u64;
    (private && file.ino != 0).then_some(Line {
        range,
        file,
        mapping: Mapping { pages, address: start },
    })
}

/// Reads a private mapping of no file from a line of `/proc/PID/maps`.
fn anonymous(line: &str) -> Option<Range<u64>> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let private = fields.next()?.ends_with('p');
    let file = fields.nth(2)?;
    (private && file == "0").then_some(hex(start)?..hex(end)?)
}

/// Whether a mapping is one of the file, where the device in `maps` is not what stat(2) says: btrfs
/// and overlayfs have devices of their own for that.
fn is_mapped(map_files: &Path, line: &Line, id: FileId) -> bool {
    let same = |data: fs::Metadata| FileId { dev: data.dev(), ino: data.ino() } == id;
    line.file.ino == id.ino && fs::metadata(map_files.join(line.range)).is_ok_and(same)
}

#[cfg(test)]
#[path = "guest_tests.rs"]
mod tests;
