//! The header of a snapshot's memory, on disk.
//!
//! Little-endian, in this order:
//!
//! | field | bytes |
//! | --- | --- |
//! | magic; the last byte is the version, 2 | 8 |
//! | vCPUs, memory in MiB | 4, 4 |
//! | engine, its version, host kernel, guest kernel, CPU model | each 2 for the length, then UTF-8 |
//! | number of generations, the base first | 1 |
//! | each generation: 0 for the plain `memfile` or 1, its build, its length in bytes | 1, 8, 8 |
//! | and when it was written: seconds since 1970, nanoseconds | 8, 4 |
//! | number of extents | 4 |
//! | each extent: first page, pages, generation, offset in pages | 4, 4, 4, 4 |
//! | SHA-256 of all before | 32 |
//!
//! Pages without an extent are the base's. As no extent needs to name the base, generation 0 in an
//! extent says that its pages are zero.
//!
//! Version 1 did not say when a generation was written.

use std::fmt;

use sha2::{Digest, Sha256};

use super::PAGE_SIZE;
use super::build_id::BuildId;
use super::map::{PageMap, Source};
use super::provenance::{Origin, Provenance};
use crate::domain::shape::Shape;

/// How many generations a header can name, the base included.
pub const MAX_GENERATIONS: usize = 255;

/// Longest text in bytes. All of them are short; the guest's kernel is what the guest says.
const MAX_TEXT: usize = 1024;

const CHECKSUM_SIZE: usize = 32;
const EXTENT_SIZE: usize = 16;
/// Nanoseconds in a second.
const NANOS: u32 = 1_000_000_000;

/// Why bytes are no header, or a header cannot be bytes.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HeaderError {
    /// It does not begin as a header does.
    #[error("it does not begin as a header does")]
    Magic,
    /// Another version of Nestbox wrote it.
    #[error("it has version {found}, and this program reads up to {}", Header::MAGIC[7])]
    Version {
        /// Its version.
        found: u8,
    },
    /// It is not what was written.
    #[error("its checksum is wrong")]
    Checksum,
    /// It ends too early.
    #[error("it is cut off")]
    Truncated,
    /// Something follows its end.
    #[error("{bytes} bytes follow its end")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A text is too long or no UTF-8.
    #[error("a text is no UTF-8 or longer than {MAX_TEXT} bytes")]
    Text,
    /// No VM has this shape.
    #[error("{vcpus} vCPUs with {memory_mib} MiB are no shape of a VM")]
    Shape {
        /// vCPUs.
        vcpus: u32,
        /// Memory in MiB.
        memory_mib: u32,
    },
    /// There is no base, or there are too many generations.
    #[error("{count} generations are not between 1 and {MAX_GENERATIONS}")]
    Count {
        /// How many.
        count: usize,
    },
    /// A generation is named twice, or has a name or length that it cannot have.
    #[error("generation {index} has a wrong name or length")]
    Generation {
        /// Its number.
        index: usize,
    },
    /// An extent is out of order or reaches beyond the memory or its generation.
    #[error("extent {index} is wrong")]
    Extent {
        /// Its number.
        index: usize,
    },
}

/// Which file a generation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationName {
    /// `memfile`: the base that a VM wrote itself.
    Plain,
    /// `memfile.{build}`: a diff, or a base that a collapse wrote.
    Build(BuildId),
}

/// One file of a lineage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Its name.
    pub name: GenerationName,
    /// Its length.
    pub bytes: u64,
    /// When it was written. It goes from header to header as it is, and the file must still say the
    /// same. Not known from a header of version 1.
    pub written: Option<Written>,
}

/// When a file was last written to, as it says itself (`st_mtim`). Hard links keep it. Whoever has the
/// file open for writing can make it later, but set it back only if the file is his, utimensat(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written {
    /// Seconds since 1970.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanos: u32,
}

impl Written {
    /// Whether a file that says `found` is one that says this. A copy that an archive has kept may
    /// know no fractions of seconds; a write at just the beginning of that very second is long ago.
    pub fn is(self, found: Self) -> bool {
        self.seconds == found.seconds && (self.nanos == found.nanos || found.nanos == 0)
    }
}

/// What a header says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What the memory was taken from.
    pub origin: Origin,
    /// The base, then the diffs.
    pub generations: Vec<Generation>,
    /// Where each page is.
    pub map: PageMap,
}

impl Header {
    /// How every header begins.
    pub const MAGIC: [u8; 8] = *b"NESTMEM\x02";

    /// The version before, which is still read.
    const UNTIMED: u8 = 1;

    /// Reads a header. Allocates no more than a few times the length of `bytes`.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] for anything that [`Header::encode`] could not have written.
    pub fn parse(bytes: &[u8]) -> Result<Self, HeaderError> {
        let (magic, _) = bytes.split_first_chunk::<8>().ok_or(HeaderError::Magic)?;
        match (magic[..7] == Self::MAGIC[..7], magic[7]) {
            (false, _) => return Err(HeaderError::Magic),
            (true, found) if found == Self::MAGIC[7] || found == Self::UNTIMED => {}
            (true, found) => return Err(HeaderError::Version { found }),
        }
        let timed = magic[7] != Self::UNTIMED;
        let (content, checksum) =
            bytes.split_last_chunk::<CHECKSUM_SIZE>().ok_or(HeaderError::Truncated)?;
        if Sha256::digest(content)[..] != checksum[..] {
            return Err(HeaderError::Checksum);
        }
        let mut rest = Reader(content.get(magic.len()..).ok_or(HeaderError::Truncated)?);
        let shape = rest.shape()?;
        let provenance = Provenance {
            engine: rest.text()?,
            vmm_version: rest.text()?,
            host_kernel: rest.text()?,
            guest_kernel: rest.text()?,
            cpu_model: rest.text()?,
        };
        let generations = rest.generations(shape, timed)?;
        let map = rest.map(shape, &generations)?;
        match rest.0.len() {
            0 => Ok(Self { origin: Origin { shape, provenance }, generations, map }),
            bytes => Err(HeaderError::Trailing { bytes }),
        }
    }

    /// Writes the header, in the old version if a generation's time is not known.
    ///
    /// # Errors
    ///
    /// [`HeaderError`] for anything that [`Header::parse`] would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, HeaderError> {
        let Origin { shape, provenance } = &self.origin;
        let timed = self.generations.iter().all(|generation| generation.written.is_some());
        let mut bytes = Self::MAGIC.to_vec();
        if !timed {
            bytes[7] = Self::UNTIMED;
        }
        bytes.extend(shape.vcpus.to_le_bytes());
        bytes.extend(shape.memory_mib.to_le_bytes());
        let Provenance { engine, vmm_version, host_kernel, guest_kernel, cpu_model } = provenance;
        for text in [engine, vmm_version, host_kernel, guest_kernel, cpu_model] {
            let length = u16::try_from(text.len()).map_err(|_| HeaderError::Text)?;
            bytes.extend(length.to_le_bytes());
            bytes.extend(text.as_bytes());
        }
        let count = self.generations.len();
        bytes.push(u8::try_from(count).map_err(|_| HeaderError::Count { count })?);
        for generation in &self.generations {
            let (kind, build) = match generation.name {
                GenerationName::Plain => (0, 0),
                GenerationName::Build(build) => (1, build.as_u64()),
            };
            bytes.push(kind);
            bytes.extend(build.to_le_bytes());
            bytes.extend(generation.bytes.to_le_bytes());
            if let Some(Written { seconds, nanos }) = generation.written.filter(|_| timed) {
                bytes.extend(seconds.to_le_bytes());
                bytes.extend(nanos.to_le_bytes());
            }
        }
        let extents = self.map.extents();
        let count = u32::try_from(extents.len());
        bytes.extend(count.map_err(|_| HeaderError::Extent { index: 0 })?.to_le_bytes());
        for (index, extent) in extents.iter().enumerate() {
            let (generation, offset) = match extent.source {
                Source::Base | Source::Zero => (0, 0),
                Source::Stored { generation, offset } => (u64::from(generation), offset),
            };
            let pages = extent.pages.end - extent.pages.start;
            for number in [extent.pages.start, pages, generation, offset] {
                let number = u32::try_from(number).map_err(|_| HeaderError::Extent { index })?;
                bytes.extend(number.to_le_bytes());
            }
        }
        bytes.extend(Sha256::digest(&bytes));
        // What is written is what will be read, or it is not written.
        Self::parse(&bytes)?;
        Ok(bytes)
    }
}

/// Bytes of memory of a shape.
pub(super) fn memory_bytes(shape: Shape) -> u64 {
    u64::from(shape.memory_mib) << 20
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], HeaderError> {
        let (bytes, rest) = self.0.split_first_chunk::<N>().ok_or(HeaderError::Truncated)?;
        self.0 = rest;
        Ok(*bytes)
    }

    fn u32(&mut self) -> Result<u32, HeaderError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, HeaderError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    fn text(&mut self) -> Result<String, HeaderError> {
        let length = usize::from(u16::from_le_bytes(self.bytes()?));
        if length > MAX_TEXT {
            return Err(HeaderError::Text);
        }
        let (text, rest) = self.0.split_at_checked(length).ok_or(HeaderError::Truncated)?;
        self.0 = rest;
        String::from_utf8(text.to_vec()).map_err(|_| HeaderError::Text)
    }

    fn shape(&mut self) -> Result<Shape, HeaderError> {
        let (vcpus, memory_mib) = (self.u32()?, self.u32()?);
        let shape = Shape { vcpus, memory_mib };
        // The number of a page has 32 bits.
        let pages = memory_bytes(shape) / PAGE_SIZE as u64;
        let valid = vcpus > 0 && memory_mib > 0 && u32::try_from(pages).is_ok();
        if valid { Ok(shape) } else { Err(HeaderError::Shape { vcpus, memory_mib }) }
    }

    fn generations(&mut self, shape: Shape, timed: bool) -> Result<Vec<Generation>, HeaderError> {
        let [count] = self.bytes()?;
        let mut generations: Vec<Generation> = Vec::new();
        for index in 0..usize::from(count) {
            let wrong = HeaderError::Generation { index };
            let [kind] = self.bytes()?;
            let name = match (kind, self.u64()?) {
                (0, 0) => GenerationName::Plain,
                (1, build) => GenerationName::Build(BuildId::from_u64(build)),
                _ => return Err(wrong),
            };
            let bytes = self.u64()?;
            let fits = match index {
                0 => bytes == memory_bytes(shape),
                _ => bytes > 0 && bytes.is_multiple_of(PAGE_SIZE as u64),
            };
            let written = match timed {
                true => Some(self.written()?),
                false => None,
            };
            let later = written.is_some_and(|it| it.nanos >= NANOS);
            let twice = generations.iter().any(|other| other.name == name);
            let plain_diff = index > 0 && name == GenerationName::Plain;
            if !fits || twice || plain_diff || later {
                return Err(wrong);
            }
            generations.push(Generation { name, bytes, written });
        }
        match count {
            0 => Err(HeaderError::Count { count: 0 }),
            _ => Ok(generations),
        }
    }

    fn written(&mut self) -> Result<Written, HeaderError> {
        Ok(Written { seconds: i64::from_le_bytes(self.bytes()?), nanos: self.u32()? })
    }

    fn map(&mut self, shape: Shape, generations: &[Generation]) -> Result<PageMap, HeaderError> {
        let count = self.u32()? as usize;
        // Each extent is there before room is made for it.
        if self.0.len() / EXTENT_SIZE < count {
            return Err(HeaderError::Truncated);
        }
        let total = memory_bytes(shape) / PAGE_SIZE as u64;
        let mut map = PageMap::default();
        let mut free = 0;
        for index in 0..count {
            let wrong = HeaderError::Extent { index };
            let [first, pages, number, offset] =
                [self.u32()?, self.u32()?, self.u32()?, self.u32()?];
            let (first, pages, offset) = (u64::from(first), u64::from(pages), u64::from(offset));
            let source = match u8::try_from(number) {
                Ok(0) if offset == 0 => Source::Zero,
                Ok(generation) if generation > 0 => Source::Stored { generation, offset },
                _ => return Err(wrong),
            };
            let stored = match source {
                Source::Base | Source::Zero => true,
                Source::Stored { generation, .. } => generations
                    .get(usize::from(generation))
                    .is_some_and(|stored| offset + pages <= stored.bytes / PAGE_SIZE as u64),
            };
            let end = first + pages;
            if pages == 0 || first < free || end > total || !stored {
                return Err(wrong);
            }
            map.push(first..end, source);
            free = end;
        }
        Ok(map)
    }
}

impl fmt::Display for GenerationName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Plain => f.write_str("memfile"),
            Self::Build(build) => write!(f, "memfile.{build}"),
        }
    }
}

#[cfg(test)]
#[path = "header_tests.rs"]
mod tests;
