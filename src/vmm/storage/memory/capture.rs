//! Takes the memory of a frozen VM, and gives a memory to a new one.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::guest::{Absent, batches};
use super::header::{Generation, GenerationName, Header};
use super::map::{PageMap, Source};
use super::staging::{NewFile, Staging};
use super::{
    BATCH_PAGES, BuildId, Durability, GuestMemory, Lineage, MemoryError, Origin, PAGE_SIZE, cannot,
};

/// A memory that was taken.
#[derive(Debug)]
pub struct Captured {
    /// The memory, in its own directory.
    pub lineage: Lineage,
    /// Pages in which it differs from its parent.
    pub pages_changed: u64,
    /// Bytes of memory that were written: those pages without the zero ones, and what was taken in
    /// of the parent's diffs.
    pub bytes_written: u64,
}

/// Writes into `dir` what a frozen VM has changed since it was restored from `parent`, or, if it maps
/// its base, from any lineage with the same base; with it come links to those of the parent's files
/// that are still needed, so `dir` is on the same file system. There is no new generation if only
/// zero pages are new.
///
/// Costs a look at every page's entry in the page table, and a read of each page that the VM has
/// for itself.
///
/// # Errors
///
/// [`MemoryError::OtherBase`] if the VM has another base; [`MemoryError::Gone`] and
/// [`MemoryError::Access`] if the process is in the way; [`MemoryError::Touched`] if the parent is not
/// what it was; [`MemoryError::Io`]. `dir` is then as it was before.
pub fn capture(
    guest: &GuestMemory,
    parent: &Lineage,
    dir: &Path,
    build: BuildId,
    origin: Origin,
    durability: Durability,
) -> Result<Captured, MemoryError> {
    take(guest, parent, dir, build, origin, durability, Chain::Grow)
}

/// Does what [`capture`] does, and leaves one diff on the base: what is needed of the parent's diffs
/// is written again, beside what has changed. Costs a read of that too.
///
/// # Errors
///
/// Those of [`capture`].
pub fn capture_merged(
    guest: &GuestMemory,
    parent: &Lineage,
    dir: &Path,
    build: BuildId,
    origin: Origin,
    durability: Durability,
) -> Result<Captured, MemoryError> {
    take(guest, parent, dir, build, origin, durability, Chain::Merge)
}

/// What becomes of the parent's diffs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// The new diff is one more.
    Grow,
    /// The new diff takes in what is needed of them.
    Merge,
}

fn take(
    guest: &GuestMemory,
    parent: &Lineage,
    dir: &Path,
    build: BuildId,
    origin: Origin,
    durability: Durability,
    chain: Chain,
) -> Result<Captured, MemoryError> {
    if !guest.can_be_of(parent) {
        return Err(MemoryError::OtherBase { pid: guest.pid(), base: parent.base_path() });
    }
    let mut staging = Staging::begin(dir, durability)?;
    let name = GenerationName::Build(build);
    let known = parent.generations();
    let number = u8::try_from(known.len()).expect("a header has at most 255 generations");
    let mut diff = Diff::new(name, number, chain);
    diff.fill(guest, parent, &mut staging)?;
    let Diff { file, mut map, pages_changed, pages_stored, .. } = diff;
    let bytes_written = pages_stored * PAGE_SIZE as u64;

    let mut generations = Vec::new();
    for number in map.keep_needed(known.len() + 1) {
        match known.get(number) {
            Some(generation) => {
                staging.link(parent.file(number), generation.name)?;
                generations.push(generation.clone());
            }
            None => generations.push(Generation { name, bytes: bytes_written, written: None }),
        }
    }
    if let Some(file) = file {
        staging.finish(file)?;
    }
    let header = Header { origin, generations, map };
    // It was compared with, and what is not linked was read from.
    parent.check_untouched()?;
    let lineage = Lineage::assemble(dir, header)?;
    staging.commit(&lineage)?;
    Ok(Captured { lineage, pages_changed, bytes_written })
}

/// Writes into a VM that was just started the pages that are not the base's, and says how many
/// bytes that were. The VM must not have run, nor loaded the state of its devices: those read the
/// guest's memory while they load.
///
/// # Errors
///
/// [`MemoryError::OtherBase`] if the VM has another base; [`MemoryError::Gone`],
/// [`MemoryError::Access`] and [`MemoryError::Io`], after which the VM is of no use.
pub fn inject(lineage: &Lineage, guest: &GuestMemory) -> Result<u64, MemoryError> {
    if !guest.is_mapped(lineage.base()) {
        return Err(MemoryError::OtherBase { pid: guest.pid(), base: lineage.base_path() });
    }
    let mut written = 0;
    let mut buffer = batch_buffer();
    for batch in batches(lineage.patches().map(|(pages, _)| pages)) {
        let bytes = &mut buffer[..bytes_of(&batch)];
        lineage.read(&batch, bytes)?;
        guest.write(&batch, bytes)?;
        written += bytes.len() as u64;
    }
    Ok(written)
}

/// A generation in the making, and the page map with it.
struct Diff {
    name: GenerationName,
    number: u8,
    chain: Chain,
    /// There once a page is in it.
    file: Option<NewFile>,
    map: PageMap,
    pages_changed: u64,
    pages_stored: u64,
    /// The pages of this batch that go into the file.
    stored: Vec<u8>,
}

impl Diff {
    fn new(name: GenerationName, number: u8, chain: Chain) -> Self {
        let map = PageMap::default();
        let stored = Vec::with_capacity(BATCH_PAGES as usize * PAGE_SIZE);
        Self { name, number, chain, file: None, map, pages_changed: 0, pages_stored: 0, stored }
    }

    /// Compares everything in which the VM can differ with what the parent has, and says of the
    /// rest where it is.
    fn fill(
        &mut self,
        guest: &GuestMemory,
        parent: &Lineage,
        staging: &mut Staging,
    ) -> Result<(), MemoryError> {
        let (mut now, mut before) = (batch_buffer(), batch_buffer());
        let mut end = 0;
        for batch in batches(guest.changed()?) {
            let bytes = bytes_of(&batch);
            guest.read(&batch, &mut now[..bytes])?;
            parent.read(&batch, &mut before[..bytes])?;
            let mut contents = now.chunks_exact(PAGE_SIZE).zip(before.chunks_exact(PAGE_SIZE));
            for run in batch {
                self.pass(guest, parent, end..run.start, staging)?;
                end = run.end;
                for (pages, source) in parent.map().pieces(run) {
                    for ((nth, page), (now, before)) in (0..).zip(pages).zip(&mut contents) {
                        let source = match now == before {
                            true => self.keep(source.skip(nth), now),
                            false => self.change(now),
                        };
                        self.map.push(page..page + 1, source);
                    }
                }
            }
            self.store(staging)?;
        }
        self.pass(guest, parent, end..guest.pages(), staging)
    }

    /// Says where pages are that the VM does not have for itself.
    ///
    /// Of a VM that maps its base they are the base's, whatever the parent says: one that was
    /// written into it can have been given back since, as a balloon does.
    fn pass(
        &mut self,
        guest: &GuestMemory,
        parent: &Lineage,
        pages: Range<u64>,
        staging: &mut Staging,
    ) -> Result<(), MemoryError> {
        for (pages, absent) in guest.absent(pages) {
            match absent {
                Absent::Base => {}
                Absent::Parent => self.inherit(parent, pages, staging)?,
                Absent::Zero => {
                    let pieces = parent.map().pieces(pages.clone());
                    let changed = pieces.filter(|(_, source)| *source != Source::Zero);
                    self.pages_changed += changed.map(|(run, _)| run.end - run.start).sum::<u64>();
                    self.map.push(pages, Source::Zero);
                }
            }
        }
        Ok(())
    }

    /// Leaves pages where the parent has them, or takes them in.
    fn inherit(
        &mut self,
        parent: &Lineage,
        pages: Range<u64>,
        staging: &mut Staging,
    ) -> Result<(), MemoryError> {
        for (pages, source) in parent.map().pieces(pages) {
            match (source, self.chain) {
                (Source::Base | Source::Zero, _) | (Source::Stored { .. }, Chain::Grow) => {
                    self.map.push(pages, source);
                }
                (Source::Stored { .. }, Chain::Merge) => {
                    for batch in batches([pages]) {
                        let mut bytes = vec![0; bytes_of(&batch)];
                        parent.read(&batch, &mut bytes)?;
                        // The map is in order, so what was compared before comes first.
                        for (page, bytes) in
                            batch.into_iter().flatten().zip(bytes.chunks_exact(PAGE_SIZE))
                        {
                            let source = self.keep(source, bytes);
                            self.map.push(page..page + 1, source);
                        }
                        self.store(staging)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Says where a page will be that is as the parent has it.
    fn keep(&mut self, source: Source, page: &[u8]) -> Source {
        match (source, self.chain) {
            (Source::Base | Source::Zero, _) | (Source::Stored { .. }, Chain::Grow) => source,
            (Source::Stored { .. }, Chain::Merge) => self.put(page),
        }
    }

    /// Says where a changed page will be.
    fn change(&mut self, page: &[u8]) -> Source {
        self.pages_changed += 1;
        self.put(page)
    }

    fn put(&mut self, page: &[u8]) -> Source {
        if is_zero(page) {
            return Source::Zero;
        }
        self.stored.extend_from_slice(page);
        self.pages_stored += 1;
        Source::Stored { generation: self.number, offset: self.pages_stored - 1 }
    }

    /// Writes the pages that were put since the last time.
    fn store(&mut self, staging: &mut Staging) -> Result<(), MemoryError> {
        if self.stored.is_empty() {
            return Ok(());
        }
        let new = match &mut self.file {
            Some(new) => new,
            none => none.insert(staging.create(self.name)?),
        };
        new.file.write_all(&self.stored).map_err(cannot("write", &new.path))?;
        self.stored.clear();
        Ok(())
    }
}

pub(super) fn is_zero(page: &[u8]) -> bool {
    page == [0; PAGE_SIZE]
}

/// Room for one batch.
pub(super) fn batch_buffer() -> Vec<u8> {
    vec![0; BATCH_PAGES as usize * PAGE_SIZE]
}

pub(super) fn bytes_of(runs: &[Range<u64>]) -> usize {
    runs.iter().map(|run| (run.end - run.start) as usize * PAGE_SIZE).sum()
}
