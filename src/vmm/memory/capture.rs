//! Takes the memory of a frozen VM, and gives a memory to a new one.

use std::io::Write;
use std::ops::Range;
use std::path::Path;

use super::guest::batches;
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
    /// Bytes of memory that were written: those pages without the zero ones.
    pub bytes_written: u64,
}

/// Writes into `dir` what a frozen VM has changed since it was restored from `parent`, or from any
/// lineage with the same base; with it come links to those of the parent's files that are still
/// needed, so `dir` is on the same file system. There is no new generation if only zero pages are
/// new.
///
/// Costs a look at every page's entry in the page table, and a read of each page that the VM has
/// for itself.
///
/// # Errors
///
/// [`MemoryError::OtherBase`] if the VM has another base; [`MemoryError::Gone`] and
/// [`MemoryError::Access`] if the process is in the way; [`MemoryError::Io`]. `dir` is then as it
/// was before.
pub fn capture(
    guest: &GuestMemory,
    parent: &Lineage,
    dir: &Path,
    build: BuildId,
    origin: Origin,
    durability: Durability,
) -> Result<Captured, MemoryError> {
    if !guest.is_mapped(parent.base()) {
        return Err(MemoryError::OtherBase { pid: guest.pid(), base: parent.base_path() });
    }
    let mut staging = Staging::begin(dir, durability)?;
    let name = GenerationName::Build(build);
    let known = parent.generations();
    let mut diff = Diff {
        name,
        number: u8::try_from(known.len()).expect("a header has at most 255 generations"),
        file: None,
        map: PageMap::default(),
        pages_changed: 0,
        pages_stored: 0,
    };
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
            None => generations.push(Generation { name, bytes: bytes_written }),
        }
    }
    if let Some(file) = file {
        staging.finish(file)?;
    }
    let header = Header { origin, generations, map };
    let lineage = Lineage::assemble(dir, header.clone())?;
    staging.commit(&header)?;
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
    /// There once a page is in it.
    file: Option<NewFile>,
    map: PageMap,
    pages_changed: u64,
    pages_stored: u64,
}

impl Diff {
    /// Compares everything in which the VM can differ from its base with what the parent has.
    ///
    /// A page that is not the VM's own is the base's, whatever the parent says: one that was
    /// written into it can have been given back since, as a balloon does. So the map begins empty.
    fn fill(
        &mut self,
        guest: &GuestMemory,
        parent: &Lineage,
        staging: &mut Staging,
    ) -> Result<(), MemoryError> {
        let (mut now, mut before) = (batch_buffer(), batch_buffer());
        let mut stored = Vec::with_capacity(now.len());
        for batch in batches(guest.changed()?) {
            let bytes = bytes_of(&batch);
            guest.read(&batch, &mut now[..bytes])?;
            parent.read(&batch, &mut before[..bytes])?;
            stored.clear();
            let places = batch.iter().flat_map(|run| parent.map().pieces(run.clone()));
            let places = places.flat_map(|(pages, source)| {
                (0..).zip(pages).map(move |(nth, page)| (page, source.skip(nth)))
            });
            let contents = now.chunks_exact(PAGE_SIZE).zip(before.chunks_exact(PAGE_SIZE));
            for ((page, source), (now, before)) in places.zip(contents) {
                let source = if now == before { source } else { self.change(now, &mut stored) };
                self.map.push(page..page + 1, source);
            }
            self.store(&stored, staging)?;
        }
        Ok(())
    }

    /// Says where a changed page will be.
    fn change(&mut self, page: &[u8], stored: &mut Vec<u8>) -> Source {
        self.pages_changed += 1;
        if is_zero(page) {
            return Source::Zero;
        }
        stored.extend_from_slice(page);
        self.pages_stored += 1;
        Source::Stored { generation: self.number, offset: self.pages_stored - 1 }
    }

    fn store(&mut self, pages: &[u8], staging: &mut Staging) -> Result<(), MemoryError> {
        if pages.is_empty() {
            return Ok(());
        }
        let new = match &mut self.file {
            Some(new) => new,
            none => none.insert(staging.create(self.name)?),
        };
        new.file.write_all(pages).map_err(cannot("write", &new.path))
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
