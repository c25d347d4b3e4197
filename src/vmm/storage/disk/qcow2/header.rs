//! The header of an overlay, from bytes that anybody may have written.

use super::super::layer::{DiskFormat, Layer};
use super::{
    CLUSTER, CLUSTER_BITS, ENTRIES, EXTENSION_BACKING_FORMAT, HEADER_BYTES, MAGIC, MAX_NAME,
    Problem, REFCOUNT_ORDER, VERSION, format_of, l1_entries,
};

/// Bytes at the beginning of a file that a header with its extensions and its name is within.
pub const HEADER_LIMIT: usize = 4096;

/// Bits of incompatible features. The first two say nothing about the format.
const DIRTY: u64 = 1;
const CORRUPT: u64 = 1 << 1;
const EXTERNAL_DATA: u64 = 1 << 2;

const EXTENSION_END: u32 = 0;
/// Names of features, for programs that do not know them.
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_EXTERNAL_DATA: u32 = 0x4441_5441;

/// Clusters of a refcount table at most: QEMU's own limit, 8 MiB.
const MAX_REFCOUNT_CLUSTERS: u32 = 128;

/// What the header of an overlay says that may be read here at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Bytes of the disk.
    pub size: u64,
    /// Name of the file below, as it is there.
    pub backing: Vec<u8>,
    /// Format of the file below.
    pub backing_format: DiskFormat,
    /// Refcounts may be behind what else is there.
    pub dirty: bool,
    /// QEMU has found a contradiction in its tables.
    pub corrupt: bool,
    pub(super) l1_at: u64,
    pub(super) l1_entries: u32,
    pub(super) refcounts_at: u64,
    pub(super) refcount_clusters: u32,
}

impl Header {
    /// Reads a header, of which `bytes` are the first [`HEADER_LIMIT`] of its file. Allocates no more
    /// than a name.
    ///
    /// # Errors
    ///
    /// [`Problem`] for anything but an overlay as QEMU keeps those that are made here.
    pub fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        let fields = Fields(bytes);
        if bytes.get(..4) != Some(&MAGIC) || fields.u32(4)? != VERSION {
            return Err(Problem::NotQcow2);
        }
        let features = fields.u64(72)?;
        if features & EXTERNAL_DATA != 0 {
            return Err(Problem::ExternalData);
        }
        let bits = features & !(DIRTY | CORRUPT);
        if bits != 0 {
            return Err(Problem::Features { bits });
        }
        // Compatible features may be ignored by who does not know them: that is what they are.
        for (wrong, what) in [
            (fields.u32(20)? != CLUSTER_BITS, "clusters of another size"),
            (fields.u32(32)? != 0, "encryption"),
            (fields.u32(60)? != 0 || fields.u64(64)? != 0, "snapshots inside"),
            (fields.u64(88)? != 0, "features that others clear"),
            (fields.u32(96)? != REFCOUNT_ORDER, "refcounts of another width"),
        ] {
            if wrong {
                return Err(Problem::Foreign { what });
            }
        }
        let (name_at, name_bytes) = (fields.u64(8)?, fields.u32(16)? as usize);
        if name_at == 0 {
            return Err(Problem::Backing);
        }
        let length = fields.u32(100)?;
        let name_at = usize::try_from(name_at).map_err(|_| Problem::Malformed)?;
        if length < HEADER_BYTES || !length.is_multiple_of(8) || name_bytes > MAX_NAME {
            return Err(Problem::Malformed);
        }
        let name_end = name_at.checked_add(name_bytes).ok_or(Problem::Malformed)?;
        let backing = bytes.get(name_at..name_end).ok_or(Problem::Malformed)?.to_vec();
        let between = bytes.get(length as usize..name_at).ok_or(Problem::Malformed)?;
        // What later versions have put there, the kind of compression first, is zero without it.
        if bytes[HEADER_BYTES as usize..length as usize].iter().any(|byte| *byte != 0) {
            return Err(Problem::Foreign { what: "more in its header" });
        }
        let header = Self {
            size: fields.u64(24)?,
            backing,
            backing_format: backing_format(between)?,
            dirty: features & DIRTY != 0,
            corrupt: features & CORRUPT != 0,
            l1_at: fields.u64(40)?,
            l1_entries: fields.u32(36)?,
            refcounts_at: fields.u64(48)?,
            refcount_clusters: fields.u32(56)?,
        };
        header.with_places_that_can_be()
    }

    /// Compares it with what was written when the overlay was made.
    ///
    /// # Errors
    ///
    /// [`Problem::Backing`], [`Problem::BackingFormat`], [`Problem::Size`].
    pub fn check(&self, below: &Layer, size: u64) -> Result<(), Problem> {
        if self.backing != below.file.as_bytes() {
            return Err(Problem::Backing);
        }
        if self.backing_format != below.format {
            return Err(Problem::BackingFormat);
        }
        match self.size == size {
            true => Ok(()),
            false => Err(Problem::Size { found: self.size, expected: size }),
        }
    }

    fn with_places_that_can_be(self) -> Result<Self, Problem> {
        if self.size == 0 || !self.size.is_multiple_of(512) {
            return Err(Problem::Malformed);
        }
        let needed = l1_entries(self.size);
        let entries = u64::from(self.l1_entries);
        if needed > ENTRIES || entries < needed || entries > ENTRIES {
            return Err(Problem::Foreign { what: "an L1 table of another size" });
        }
        if !(1..=MAX_REFCOUNT_CLUSTERS).contains(&self.refcount_clusters) {
            return Err(Problem::Foreign { what: "a refcount table of another size" });
        }
        for (what, offset) in
            [("its L1 table", self.l1_at), ("its refcount table", self.refcounts_at)]
        {
            if offset == 0 || !offset.is_multiple_of(CLUSTER) {
                return Err(Problem::Offset { what, offset });
            }
        }
        Ok(self)
    }
}

/// Goes through the extensions, which lie between the header and the name.
fn backing_format(extensions: &[u8]) -> Result<DiskFormat, Problem> {
    let (mut format, mut at) = (None, 0);
    let fields = Fields(extensions);
    // QEMU ends where there is no room for one more, as well as at the mark.
    while at + 8 <= extensions.len() {
        let (kind, bytes) = (fields.u32(at)?, fields.u32(at + 4)? as usize);
        if kind == EXTENSION_END {
            break;
        }
        let end = (at + 8).checked_add(bytes).ok_or(Problem::Malformed)?;
        let content = extensions.get(at + 8..end).ok_or(Problem::Malformed)?;
        match kind {
            EXTENSION_BACKING_FORMAT => {
                let named = format_of(content).ok_or(Problem::BackingFormat)?;
                if format.replace(named).is_some() {
                    return Err(Problem::Malformed);
                }
            }
            EXTENSION_FEATURE_NAMES => {}
            EXTENSION_EXTERNAL_DATA => return Err(Problem::ExternalData),
            kind => return Err(Problem::Extension { kind }),
        }
        at = end.checked_next_multiple_of(8).ok_or(Problem::Malformed)?;
    }
    // Without it QEMU would guess the format from what the guest has written.
    format.ok_or(Problem::BackingFormat)
}

struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u32(&self, at: usize) -> Result<u32, Problem> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        Ok(u32::from_be_bytes(*bytes.ok_or(Problem::Malformed)?))
    }

    fn u64(&self, at: usize) -> Result<u64, Problem> {
        let bytes = self.0.get(at..).and_then(|rest| rest.first_chunk());
        Ok(u64::from_be_bytes(*bytes.ok_or(Problem::Malformed)?))
    }
}
