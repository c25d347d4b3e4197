//! An archive as it goes out.

use std::io::{self, Write};

use super::header::{BLOCK, Header, Kind, OCTAL_LIMIT, SHORT};
use super::{TROUBLE, TROUBLE_LIMIT};

/// Writes the head of an entry, with what does not fit into it before.
///
/// # Errors
///
/// Those of `sink`.
pub fn head(sink: &mut impl Write, header: &Header, owner: (u32, u32)) -> io::Result<()> {
    let mut records = Vec::new();
    if header.name.len() > SHORT {
        record(&mut records, "path", &header.name);
    }
    if header.target.len() > SHORT {
        record(&mut records, "linkpath", &header.target);
    }
    if header.size > OCTAL_LIMIT {
        record(&mut records, "size", header.size.to_string().as_bytes());
    }
    if !u64::try_from(header.modified).is_ok_and(|time| time <= OCTAL_LIMIT) {
        record(&mut records, "mtime", header.modified.to_string().as_bytes());
    }
    if !records.is_empty() {
        more(sink, Kind::Extended, &records)?;
    }
    let kind = match header.kind {
        Kind::Directory => b'5',
        Kind::Symlink => b'2',
        Kind::HardLink => b'1',
        Kind::Extended => b'x',
        Kind::File | Kind::Device | Kind::Long(_) | Kind::Global | Kind::Unknown => b'0',
    };
    sink.write_all(&header.block(kind, owner))
}

/// Says why there is no more to come. Other readers than ours leave out a record that they do not know,
/// and find that the archive has no end.
///
/// # Errors
///
/// Those of `sink`.
pub fn trouble(sink: &mut impl Write, error: &dyn std::error::Error) -> io::Result<()> {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    let mut text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
    text.truncate(text.floor_char_boundary(TROUBLE_LIMIT));
    let mut records = Vec::new();
    record(&mut records, TROUBLE, text.as_bytes());
    more(sink, Kind::Global, &records)
}

/// Writes what a head has no room for.
fn more(sink: &mut impl Write, kind: Kind, records: &[u8]) -> io::Result<()> {
    let header = Header {
        kind,
        name: b"more".to_vec(),
        target: Vec::new(),
        mode: 0o644,
        size: records.len() as u64,
        modified: 0,
    };
    let letter = if kind == Kind::Global { b'g' } else { b'x' };
    sink.write_all(&header.block(letter, (0, 0)))?;
    sink.write_all(records)?;
    padding(sink, records.len() as u64)
}

/// Fills the last block of some content.
///
/// # Errors
///
/// Those of `sink`.
pub fn padding(sink: &mut impl Write, size: u64) -> io::Result<()> {
    let used = usize::try_from(size % BLOCK as u64).expect("less than a block");
    match used {
        0 => Ok(()),
        used => sink.write_all(&[0; BLOCK][used..]),
    }
}

/// Marks the end.
///
/// # Errors
///
/// Those of `sink`.
pub fn end(sink: &mut impl Write) -> io::Result<()> {
    sink.write_all(&[0; 2 * BLOCK])?;
    sink.flush()
}

/// Adds a record, which begins with its own length.
fn record(records: &mut Vec<u8>, key: &str, value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} {key}=").as_bytes());
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_the_digits_of_its_own_length() {
        for (value, length) in [(1, 9), (2, 11), (90, 99), (91, 101), (92, 102)] {
            let mut records = Vec::new();
            record(&mut records, "path", &vec![b'x'; value]);
            let written = String::from_utf8(records).unwrap();
            let told: usize = written.split(' ').next().unwrap().parse().unwrap();
            assert_eq!((told, written.len()), (length, length), "{written}");
        }
    }
}
