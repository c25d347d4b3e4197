//! An archive as it comes in, one entry after the other.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use super::header::{BLOCK, Header, Kind, Long};
use super::{ArchiveError, TROUBLE, TROUBLE_LIMIT};

/// The longest name that is kept, to be refused by what it begins with.
const LONG_LIMIT: u64 = 64 * 1024;
/// The most that one entry may have said about it.
const EXTENDED_LIMIT: u64 = 1024 * 1024;

/// Reads entries; as a [`Read`], the content of the last one.
pub struct Reader<R> {
    source: R,
    /// Bytes of the last entry's content that were not read.
    left: u64,
    /// Bytes after them up to the next block.
    padding: u64,
}

/// What an entry's own header has no room for.
#[derive(Default)]
struct Extra {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    modified: Option<i64>,
    sparse: bool,
}

impl<R: Read> Reader<R> {
    /// Reads an archive from its beginning.
    pub fn new(source: R) -> Self {
        Self { source, left: 0, padding: 0 }
    }

    /// The next entry; `None` at the end. What was not read of the content before is skipped.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Stream`], [`ArchiveError::Malformed`].
    pub fn next_entry(&mut self) -> Result<Option<Header>, ArchiveError> {
        let mut extra = Extra::default();
        loop {
            self.skip()?;
            let mut block = [0; BLOCK];
            self.source.read_exact(&mut block).map_err(broken)?;
            let Some(mut header) = Header::parse(&block)? else { return Ok(None) };
            let (kind, size) = (header.kind, header.size);
            self.expect(if kind == Kind::File { extra.size.unwrap_or(size) } else { size });
            match kind {
                Kind::Long(Long::Name) => extra.name = Some(self.long()?),
                Kind::Long(Long::Target) => extra.target = Some(self.long()?),
                Kind::Extended => extra.read(&self.whole(EXTENDED_LIMIT)?)?,
                Kind::Global if size <= EXTENDED_LIMIT => global(&self.whole(EXTENDED_LIMIT)?)?,
                Kind::Global => {}
                Kind::File
                | Kind::Directory
                | Kind::Symlink
                | Kind::HardLink
                | Kind::Device
                | Kind::Unknown => {
                    extra.complete(&mut header);
                    return Ok(Some(header));
                }
            }
        }
    }

    fn expect(&mut self, size: u64) {
        let block = BLOCK as u64;
        self.left = size;
        self.padding = (block - size % block) % block;
    }

    fn skip(&mut self) -> Result<(), ArchiveError> {
        let rest = std::mem::take(&mut self.left) + std::mem::take(&mut self.padding);
        let skipped = io::copy(&mut (&mut self.source).take(rest), &mut io::sink());
        match skipped {
            Ok(skipped) if skipped == rest => Ok(()),
            Ok(_) => Err(ArchiveError::Malformed("it ends in the middle")),
            Err(error) => Err(ArchiveError::Stream(error)),
        }
    }

    /// The whole content, if it is no longer than that.
    fn whole(&mut self, limit: u64) -> Result<Vec<u8>, ArchiveError> {
        if self.left > limit {
            return Err(ArchiveError::Malformed("more is said about an entry than can be kept"));
        }
        let mut content = Vec::new();
        self.read_to_end(&mut content).map_err(broken)?;
        Ok(content)
    }

    fn long(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut name = self.whole(LONG_LIMIT)?;
        let end = name.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
        name.truncate(end);
        Ok(name)
    }
}

impl<R: Read> Read for Reader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if wanted == 0 {
            return Ok(0);
        }
        match self.source.read(&mut buffer[..wanted])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}

/// Why bytes did not come.
fn broken(error: io::Error) -> ArchiveError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => ArchiveError::Malformed("it ends in the middle"),
        _ => ArchiveError::Stream(error),
    }
}

/// Reads what is said about all that follows: nothing of interest, unless nothing does.
fn global(mut records: &[u8]) -> Result<(), ArchiveError> {
    while let Ok(Some((key, value))) = next_record(&mut records) {
        if key == TROUBLE.as_bytes() {
            let value = &value[..value.len().min(TROUBLE_LIMIT)];
            return Err(ArchiveError::Incomplete(String::from_utf8_lossy(value).into_owned()));
        }
    }
    Ok(())
}

/// The key and the value of a record.
type Pair<'a> = (&'a [u8], &'a [u8]);

/// Takes the next record.
fn next_record<'a>(records: &mut &'a [u8]) -> Result<Option<Pair<'a>>, ArchiveError> {
    if records.is_empty() {
        return Ok(None);
    }
    let space = records.iter().position(|&byte| byte == b' ').ok_or_else(unreadable)?;
    let length: usize =
        text(&records[..space]).and_then(|n| n.parse().ok()).ok_or_else(unreadable)?;
    let record = records.get(space + 1..length).ok_or_else(unreadable)?;
    let record = record.strip_suffix(b"\n").ok_or_else(unreadable)?;
    let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(unreadable)?;
    *records = &records[length..];
    Ok(Some((&record[..equals], &record[equals + 1..])))
}

fn unreadable() -> ArchiveError {
    ArchiveError::Malformed("an extended header cannot be read")
}

impl Extra {
    /// Reads an extended header: records of `length key=value`, each with a line feed at its end.
    fn read(&mut self, mut records: &[u8]) -> Result<(), ArchiveError> {
        let wrong = unreadable;
        while let Some((key, value)) = next_record(&mut records)? {
            match key {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"size" => {
                    // No more than the next sum has room for.
                    let size = text(value).and_then(|size| size.parse::<i64>().ok());
                    let size = size.and_then(|size| u64::try_from(size).ok());
                    self.size = Some(size.ok_or_else(wrong)?);
                }
                b"mtime" => {
                    let whole = text(value).and_then(|time| time.split('.').next());
                    self.modified = Some(whole.and_then(|s| s.parse().ok()).ok_or_else(wrong)?);
                }
                _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
        }
        Ok(())
    }

    fn complete(self, header: &mut Header) {
        if let Some(name) = self.name {
            header.name = name;
        }
        if let Some(target) = self.target {
            header.target = target;
        }
        // A directory of before there was a type for it. By its whole name: what a header has room
        // for may end anywhere.
        if header.kind == Kind::File && header.name.ends_with(b"/") {
            header.kind = Kind::Directory;
        }
        if let Some(size) = self.size {
            header.size = size;
        }
        if let Some(modified) = self.modified {
            header.modified = modified;
        }
        if self.sparse {
            header.kind = Kind::Unknown;
        }
    }
}

fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// A name for people to read.
pub fn shown(name: &[u8]) -> PathBuf {
    const SHOWN: usize = 200;
    OsString::from_vec(name[..name.len().min(SHOWN)].to_vec()).into()
}
