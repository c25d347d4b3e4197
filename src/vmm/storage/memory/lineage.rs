//! The memory in one directory: its files, and what is where in them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::header::{Generation, GenerationName, Header, Written, memory_bytes};
use super::map::{PageMap, Source};
use super::provenance::{Origin, Provenance};
use super::sparse::next_data;
use super::staging::{HEADER, Staging};
use super::{Durability, MemoryError, PAGE_SIZE, cannot};
use crate::domain::shape::Shape;

/// Longest header that is read: 16 million extents, enough for 128 GiB of which every other page
/// changed. Only protects against a file that is no header.
const MAX_HEADER_BYTES: u64 = 256 << 20;

/// A snapshot's memory, open. Stays readable when its directory is moved or removed.
#[derive(Debug)]
pub struct Lineage {
    dir: PathBuf,
    origin: Option<Origin>,
    generations: Vec<Generation>,
    files: Vec<File>,
    map: PageMap,
}

/// Disk space of a lineage's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Bytes on disk, the shared ones included.
    pub bytes: u64,
    /// Bytes that other directories hold as well, so that removing this one does not free them.
    pub shared_bytes: u64,
}

impl Lineage {
    /// Opens the memory in `dir`, or a single full `memfile` of which nothing else is known.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Io`] with `NotFound` if there is none; [`MemoryError::Incomplete`],
    /// [`MemoryError::Header`] and [`MemoryError::Length`] if it is not whole;
    /// [`MemoryError::Touched`] if a file of it was written to since it was finished.
    pub fn open(dir: &Path) -> Result<Self, MemoryError> {
        let path = dir.join(HEADER);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Self::open_bare(dir),
            Err(error) => return Err(cannot("open", &path)(error)),
        };
        let written = modified(&file).map_err(cannot("measure", &path))?;
        let mut bytes = Vec::new();
        file.take(MAX_HEADER_BYTES).read_to_end(&mut bytes).map_err(cannot("read", &path))?;
        let header =
            Header::parse(&bytes).map_err(|source| MemoryError::Header { path, source })?;
        let known = header.generations.iter().all(|generation| generation.written.is_some());
        let lineage = Self::assemble(dir, header)?;
        if !known {
            lineage.check_older_than(written)?;
        }
        Ok(lineage)
    }

    /// A header is written after the files that it names, which are never changed again. One that does
    /// not say when they were written is as good as its own time: what it was taken from may have
    /// been changed before.
    fn check_older_than(&self, header: Written) -> Result<(), MemoryError> {
        for (number, generation) in self.generations.iter().enumerate() {
            let written = generation.written.map(|it| (it.seconds, it.nanos));
            if written > Some((header.seconds, header.nanos)) {
                return Err(MemoryError::Touched { path: self.path(number) });
            }
        }
        Ok(())
    }

    /// Checks that no file was written to since it was finished. QEMU 7.2 opens a base for writing
    /// although it maps it privately, so one that a guest has taken over could write to it; it could
    /// not set the time of that back, nor make a header say that it was so from the beginning: what
    /// each file is goes on unchanged into the headers of all that build on it.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Touched`]; [`MemoryError::Io`].
    pub fn check_untouched(&self) -> Result<(), MemoryError> {
        for (number, (file, generation)) in self.files.iter().zip(&self.generations).enumerate() {
            let path = self.path(number);
            let found = modified(file).map_err(cannot("measure", &path))?;
            if generation.written.is_some_and(|written| !written.is(found)) {
                return Err(MemoryError::Touched { path });
            }
        }
        Ok(())
    }

    /// Opens a memory from files that are open already, in the order of [`Lineage::files`]. Without
    /// a header it is a single full file of which nothing else is known. Errors name the files by
    /// their names alone.
    ///
    /// # Errors
    ///
    /// Those of [`Lineage::open`].
    pub fn from_files(header: Option<&[u8]>, files: Vec<File>) -> Result<Self, MemoryError> {
        let dir = PathBuf::new();
        let Some(bytes) = header else {
            let [file] = <[File; 1]>::try_from(files)
                .map_err(|_| MemoryError::Incomplete { dir: dir.clone() })?;
            let found = measure(&file, Path::new("memfile"))?;
            return Self::bare(dir, file, found);
        };
        let wrong = |source| MemoryError::Header { path: PathBuf::from(HEADER), source };
        let Header { origin, generations, map } = Header::parse(bytes).map_err(wrong)?;
        if files.len() != generations.len() {
            return Err(MemoryError::Incomplete { dir });
        }
        let lineage = Self { dir, origin: Some(origin), generations, files, map };
        lineage.check_lengths()?;
        lineage.check_untouched()?;
        Ok(lineage)
    }

    /// Says what [`Lineage::from_files`] needs beside the files; `None` if there is no header.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Header`].
    pub fn header(&self) -> Result<Option<Vec<u8>>, MemoryError> {
        let encode = |header: Header| {
            header
                .encode()
                .map_err(|source| MemoryError::Header { path: self.dir.join(HEADER), source })
        };
        self.to_header().map(encode).transpose()
    }

    /// Its header. Not read: the one in the own directory may be one of a collapse by now.
    pub(super) fn to_header(&self) -> Option<Header> {
        let origin = self.origin.clone()?;
        Some(Header { origin, generations: self.generations.clone(), map: self.map.clone() })
    }

    /// The files of the memory, the base first. They are read at offsets of the reader's choice.
    pub fn files(&self) -> &[File] {
        &self.files
    }

    fn check_lengths(&self) -> Result<(), MemoryError> {
        for (number, generation) in self.generations.iter().enumerate() {
            let path = self.path(number);
            let found = measure(self.file(number), &path)?;
            if found != generation.bytes {
                return Err(MemoryError::Length { path, found, expected: generation.bytes });
            }
        }
        Ok(())
    }

    /// Opens the generations that `header` names in `dir`. Of those whose time it does not know, the
    /// file says it now.
    pub(super) fn assemble(dir: &Path, header: Header) -> Result<Self, MemoryError> {
        let Header { origin, mut generations, map } = header;
        let mut files = Vec::with_capacity(generations.len());
        for generation in &mut generations {
            let path = dir.join(generation.name.to_string());
            let (file, found) = open_file(&path)?;
            if found != generation.bytes {
                return Err(MemoryError::Length { path, found, expected: generation.bytes });
            }
            let written = modified(&file).map_err(cannot("measure", &path))?;
            generation.written.get_or_insert(written);
            files.push(file);
        }
        let lineage = Self { dir: dir.to_owned(), origin: Some(origin), generations, files, map };
        lineage.check_untouched()?;
        Ok(lineage)
    }

    fn open_bare(dir: &Path) -> Result<Self, MemoryError> {
        let name = GenerationName::Plain;
        let path = dir.join(name.to_string());
        let (file, bytes) = open_file(&path)?;
        if memory_files(dir)?.len() > 1 {
            return Err(MemoryError::Incomplete { dir: dir.to_owned() });
        }
        Self::bare(dir.to_owned(), file, bytes)
    }

    fn bare(dir: PathBuf, file: File, bytes: u64) -> Result<Self, MemoryError> {
        let name = GenerationName::Plain;
        if bytes == 0 || !bytes.is_multiple_of(1 << 20) {
            return Err(MemoryError::NoMemory { path: dir.join(name.to_string()), found: bytes });
        }
        let written = modified(&file).map_err(cannot("measure", &dir.join(name.to_string())))?;
        let generations = vec![Generation { name, bytes, written: Some(written) }];
        Ok(Self { dir, origin: None, generations, files: vec![file], map: PageMap::default() })
    }

    /// Makes the first lineage out of the `memfile` in `dir`, which a VM has written itself and
    /// nobody writes any more. Leaves the file's owner and mode as they are.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Length`] if the file is not the memory of that shape.
    pub fn seal(
        dir: &Path,
        shape: Shape,
        provenance: Provenance,
        durability: Durability,
    ) -> Result<Self, MemoryError> {
        let name = GenerationName::Plain;
        let path = dir.join(name.to_string());
        let staging = Staging::begin(dir, durability)?;
        let generations = vec![Generation { name, bytes: memory_bytes(shape), written: None }];
        let origin = Origin { shape, provenance };
        let header = Header { origin, generations, map: PageMap::default() };
        let lineage = Self::assemble(dir, header)?;
        staging.sync(lineage.base(), &path)?;
        staging.commit(&lineage)?;
        Ok(lineage)
    }

    /// The base: page `n` of the VM is at offset `n` * 4 KiB, unless a patch says otherwise.
    pub fn base(&self) -> &File {
        &self.files[0]
    }

    /// Where the base was when the lineage was opened.
    pub fn base_path(&self) -> PathBuf {
        self.dir.join(self.generations[0].name.to_string())
    }

    /// What the memory was taken from, if there is a header that says so.
    pub fn origin(&self) -> Option<&Origin> {
        self.origin.as_ref()
    }

    /// Bytes of guest memory.
    pub fn memory_bytes(&self) -> u64 {
        self.generations[0].bytes
    }

    /// How many diffs there are beside the base.
    pub fn diffs(&self) -> usize {
        self.generations.len() - 1
    }

    /// The runs of pages that are not the base's, in order.
    pub fn patches(&self) -> impl Iterator<Item = (Range<u64>, Source)> {
        self.map.extents().iter().map(|extent| (extent.pages.clone(), extent.source))
    }

    /// Reads runs of pages, one after the other into `buffer`, which is as long as they are.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Io`].
    pub fn read(&self, runs: &[Range<u64>], buffer: &mut [u8]) -> Result<(), MemoryError> {
        // Pages that are far apart in the memory are often neighbours in a diff: read as one.
        let mut reads: Vec<(Option<usize>, u64, u64)> = Vec::new();
        for (pages, source) in runs.iter().flat_map(|run| self.map.pieces(run.clone())) {
            let (file, offset) = match source {
                Source::Base => (Some(0), pages.start),
                Source::Zero => (None, 0),
                Source::Stored { generation, offset } => (Some(usize::from(generation)), offset),
            };
            let count = pages.end - pages.start;
            match reads.last_mut() {
                Some(last) if last.0 == file && (file.is_none() || last.1 + last.2 == offset) => {
                    last.2 += count;
                }
                _ => reads.push((file, offset, count)),
            }
        }
        let mut rest = buffer;
        for (file, offset, count) in reads {
            let (part, behind) = rest.split_at_mut(count as usize * PAGE_SIZE);
            rest = behind;
            match file {
                None => part.fill(0),
                Some(number) => self.files[number]
                    .read_exact_at(part, offset * PAGE_SIZE as u64)
                    .map_err(cannot("read", &self.path(number)))?,
            }
        }
        debug_assert!(rest.is_empty());
        Ok(())
    }

    /// The runs of pages within `pages` that are not known to be zero. The others need no reading:
    /// the header says that they are zero, or the base has a hole there.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Length`] if the base was cut off, of which holes are no proof otherwise;
    /// [`MemoryError::Io`].
    pub fn data(&self, pages: Range<u64>) -> Result<Vec<Range<u64>>, MemoryError> {
        let mut runs: Vec<Range<u64>> = Vec::new();
        let mut holes = false;
        for (pages, source) in self.map.pieces(pages) {
            match source {
                Source::Zero => {}
                Source::Stored { .. } => join(&mut runs, pages),
                Source::Base => {
                    let mut at = pages.start;
                    let next = |at| next_data(self.base(), at..pages.end);
                    while let Some(data) =
                        next(at).map_err(cannot("look for data in", &self.base_path()))?
                    {
                        holes |= data.start > at;
                        at = data.end;
                        join(&mut runs, data);
                    }
                    holes |= at < pages.end;
                }
            }
        }
        if holes {
            let (path, expected) = (self.base_path(), self.memory_bytes());
            let found = measure(self.base(), &path)?;
            if found < expected {
                return Err(MemoryError::Length { path, found, expected });
            }
        }
        Ok(runs)
    }

    /// Puts the same memory into another directory of the same file system, by hard links.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Io`], [`MemoryError::Touched`]; nothing is left there then.
    pub fn link_into(&self, dir: &Path, durability: Durability) -> Result<(), MemoryError> {
        self.check_untouched()?;
        let mut staging = Staging::begin(dir, durability)?;
        for (file, generation) in self.files.iter().zip(&self.generations) {
            staging.link(file, generation.name)?;
        }
        match &self.origin {
            Some(_) => staging.commit(self).map(drop),
            None => staging.commit_bare(),
        }
    }

    /// Measures the generations.
    ///
    /// # Errors
    ///
    /// [`MemoryError::Io`].
    pub fn usage(&self) -> Result<Usage, MemoryError> {
        let mut usage = Usage::default();
        for (number, file) in self.files.iter().enumerate() {
            let data = file.metadata().map_err(cannot("measure", &self.path(number)))?;
            // stat(2): a block of st_blocks is 512 bytes, whatever the file system's are.
            let bytes = data.blocks() * 512;
            usage.bytes += bytes;
            usage.shared_bytes += if data.nlink() > 1 { bytes } else { 0 };
        }
        Ok(usage)
    }

    /// Removes files of memory that the header in `dir` does not name: what a crash has left.
    ///
    /// # Errors
    ///
    /// Those of [`Lineage::open`]: nothing is removed then. [`MemoryError::Io`].
    pub fn remove_strays(dir: &Path) -> Result<(), MemoryError> {
        let lineage = Self::open(dir)?;
        let mut named: Vec<String> =
            lineage.generations.iter().map(|generation| generation.name.to_string()).collect();
        named.push(HEADER.to_owned());
        for path in memory_files(dir)? {
            if !named.iter().any(|name| path.ends_with(name)) {
                fs::remove_file(&path).map_err(cannot("remove", &path))?;
            }
        }
        Ok(())
    }

    pub(super) fn generations(&self) -> &[Generation] {
        &self.generations
    }

    pub(super) fn file(&self, number: usize) -> &File {
        &self.files[number]
    }

    pub(in crate::vmm) fn map(&self) -> &PageMap {
        &self.map
    }

    fn path(&self, number: usize) -> PathBuf {
        self.dir.join(self.generations[number].name.to_string())
    }
}

/// Appends a run, and joins it to the last one if it continues that one.
fn join(runs: &mut Vec<Range<u64>>, run: Range<u64>) {
    match runs.last_mut() {
        Some(last) if last.end == run.start => last.end = run.end,
        _ => runs.push(run),
    }
}

fn modified(file: &File) -> io::Result<Written> {
    let data = file.metadata()?;
    // Less than a second.
    let nanos = u32::try_from(data.mtime_nsec()).map_err(io::Error::other)?;
    Ok(Written { seconds: data.mtime(), nanos })
}

fn open_file(path: &Path) -> Result<(File, u64), MemoryError> {
    let file = File::open(path).map_err(cannot("open", path))?;
    let bytes = measure(&file, path)?;
    Ok((file, bytes))
}

fn measure(file: &File, path: &Path) -> Result<u64, MemoryError> {
    Ok(file.metadata().map_err(cannot("measure", path))?.len())
}

/// Everything in `dir` that is called as files of memory are.
fn memory_files(dir: &Path) -> Result<Vec<PathBuf>, MemoryError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).map_err(cannot("list", dir))? {
        let entry = entry.map_err(cannot("list", dir))?;
        if entry.file_name().to_string_lossy().starts_with("memfile") {
            files.push(entry.path());
        }
    }
    Ok(files)
}
