//! One block of an archive: the head of an entry, in the format `ustar` (POSIX.1-2024, `pax`).

use super::ArchiveError;

/// Everything in an archive is a multiple of this, in bytes.
pub const BLOCK: usize = 512;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file; its content follows.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// Another name of a file that came before.
    HardLink,
    /// A device or a pipe.
    Device,
    /// GNU's way to give the entry after this a long name: `L`, or a long target: `K`.
    Long(Long),
    /// POSIX's way to say more about the entry after this.
    Extended,
    /// The same about all entries from here on.
    Global,
    /// Something else.
    Unknown,
}

/// What is long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Long {
    /// Its name.
    Name,
    /// What it links to.
    Target,
}

/// The head of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: Vec<u8>,
    /// What it links to.
    pub target: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// Bytes that follow.
    pub size: u64,
    /// When it was changed, in seconds since 1970.
    pub modified: i64,
}

/// Where the fields are.
const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MODIFIED: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const TARGET: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const PREFIX: std::ops::Range<usize> = 345..500;

/// Bytes that a name or a target has room for.
pub const SHORT: usize = 100;
/// The largest size that is written as octal digits.
pub const OCTAL_LIMIT: u64 = 0o777_7777_7777;

const POSIX: &[u8] = b"ustar\x0000";

impl Header {
    /// Reads a block; `None` for one of zeros, which marks the end.
    ///
    /// # Errors
    ///
    /// [`ArchiveError::Malformed`].
    pub fn parse(block: &[u8; BLOCK]) -> Result<Option<Self>, ArchiveError> {
        if block.iter().all(|&byte| byte == 0) {
            return Ok(None);
        }
        let told = number(&block[CHECKSUM])?;
        if u64::try_from(told) != Ok(checksum(block)) {
            return Err(ArchiveError::Malformed("a checksum is wrong"));
        }
        let mut name = text(&block[NAME]).to_vec();
        // GNU's older format has other things where POSIX has the beginning of a long name.
        if &block[MAGIC] == POSIX && block[PREFIX][0] != 0 {
            name = [text(&block[PREFIX]), b"/", &name].concat();
        }
        let kind = match block[TYPE] {
            0 | b'0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' | b'6' => Kind::Device,
            b'5' => Kind::Directory,
            b'L' => Kind::Long(Long::Name),
            b'K' => Kind::Long(Long::Target),
            b'x' | b'X' => Kind::Extended,
            b'g' => Kind::Global,
            _ => Kind::Unknown,
        };
        let negative = |_| ArchiveError::Malformed("a size is negative");
        Ok(Some(Self {
            kind,
            name,
            target: text(&block[TARGET]).to_vec(),
            mode: u32::try_from(number(&block[MODE])? & 0o7777).unwrap_or(0),
            size: u64::try_from(number(&block[SIZE])?).map_err(negative)?,
            modified: number(&block[MODIFIED])?,
        }))
    }

    /// Writes a block; what does not fit is cut, and has to be said in an extended header.
    pub fn block(&self, kind: u8, owner: (u32, u32)) -> [u8; BLOCK] {
        let mut block = [0; BLOCK];
        let put = |block: &mut [u8; BLOCK], field: std::ops::Range<usize>, text: &[u8]| {
            let length = text.len().min(field.len());
            block[field][..length].copy_from_slice(&text[..length]);
        };
        put(&mut block, NAME, &self.name);
        put(&mut block, TARGET, &self.target);
        let size = self.size.min(OCTAL_LIMIT);
        let modified = u64::try_from(self.modified).unwrap_or(0).min(OCTAL_LIMIT);
        let id = |id: u32| if id <= 0o777_7777 { id } else { 0 };
        for (field, value, width) in [
            (MODE, u64::from(self.mode), 7),
            (UID, u64::from(id(owner.0)), 7),
            (GID, u64::from(id(owner.1)), 7),
            (SIZE, size, 11),
            (MODIFIED, modified, 11),
        ] {
            put(&mut block, field, format!("{value:0width$o}").as_bytes());
        }
        block[TYPE] = kind;
        put(&mut block, MAGIC, POSIX);
        let sum = checksum(&block);
        put(&mut block, CHECKSUM, format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// The sum of all bytes, with spaces in place of the sum itself.
fn checksum(block: &[u8; BLOCK]) -> u64 {
    let byte =
        |(at, &byte): (usize, &u8)| u64::from(if CHECKSUM.contains(&at) { b' ' } else { byte });
    block.iter().enumerate().map(byte).sum()
}

/// A field up to its first zero.
fn text(field: &[u8]) -> &[u8] {
    &field[..field.iter().position(|&byte| byte == 0).unwrap_or(field.len())]
}

/// Octal digits, or after a set first bit a big-endian number as GNU's has it.
fn number(field: &[u8]) -> Result<i64, ArchiveError> {
    let wrong = || ArchiveError::Malformed("a number cannot be read");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let first = if negative { i64::from(field[0]) - 0x100 } else { i64::from(field[0] & 0x3f) };
        return field[1..]
            .iter()
            .try_fold(first, |value, &byte| value.checked_mul(256)?.checked_add(i64::from(byte)))
            .ok_or_else(wrong);
    }
    let digits = std::str::from_utf8(text(field)).map_err(|_| wrong())?.trim();
    if digits.is_empty() {
        return Ok(0);
    }
    i64::from_str_radix(digits, 8).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_reads_as_it_was_written() {
        let header = Header {
            kind: Kind::Symlink,
            name: b"a/b".to_vec(),
            target: b"../c".to_vec(),
            mode: 0o644,
            size: OCTAL_LIMIT,
            modified: 1_700_000_000,
        };
        let block = header.block(b'2', (1000, u32::MAX));
        assert_eq!(Header::parse(&block).unwrap(), Some(header));
        let mut broken = block;
        broken[0] ^= 1;
        assert!(matches!(Header::parse(&broken), Err(ArchiveError::Malformed(_))));
        assert_eq!(Header::parse(&[0; BLOCK]).unwrap(), None);
    }

    #[test]
    fn numbers_are_octal_or_big_endian() {
        assert_eq!(number(b"0000644\0").unwrap(), 0o644);
        assert_eq!(number(b" 644 \0\0\0").unwrap(), 0o644);
        assert_eq!(number(b"\0\0\0\0\0\0\0\0").unwrap(), 0);
        assert_eq!(number(&[0x80, 0, 0, 2, 0, 0, 0, 0]).unwrap(), 2 << 32);
        assert_eq!(number(&[0xff; 12]).unwrap(), -1);
        assert!(number(&[0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]).is_err());
        assert!(number(b"9\0\0\0\0\0\0\0").is_err());
        assert!(number(b"-1\0\0\0\0\0\0").is_ok(), "a time before 1970; a size is checked");
    }
}
