//! What an ELF program needs to start: elf(5).

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Longest name of a dynamic loader that is read, in bytes.
const MAX_NAME: u64 = 4096;

/// The kind of a segment that names the dynamic loader.
const PT_INTERP: u32 = 3;

/// How a program is linked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Linking {
    /// It needs nothing else.
    Static,
    /// This loader brings the libraries that it needs.
    Dynamic(PathBuf),
    /// It is no ELF program of 64 bits; a script perhaps.
    Unknown,
}

/// Looks how a program is linked.
///
/// # Errors
///
/// Those of reading it; `UnexpectedEof` if it is cut off.
pub fn linking(program: &Path) -> io::Result<Linking> {
    let file = File::open(program)?;
    let mut header = [0; 64];
    match file.read_exact_at(&mut header, 0) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(Linking::Unknown),
        read => read?,
    }
    // 64 bits, little-endian.
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Linking::Unknown);
    }
    let short = |at: usize| u64::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (table, entry, count) = (long(&header, 32), short(54), short(56));
    for number in 0..count {
        let mut segment = [0; 56];
        file.read_exact_at(&mut segment, table.saturating_add(number * entry))?;
        if u32::from_le_bytes(segment[..4].try_into().expect("four bytes")) == PT_INTERP {
            let mut name = vec![0; long(&segment, 32).min(MAX_NAME) as usize];
            file.read_exact_at(&mut name, long(&segment, 8))?;
            name.truncate(name.iter().position(|byte| *byte == 0).unwrap_or(name.len()));
            return Ok(Linking::Dynamic(PathBuf::from(OsString::from_vec(name))));
        }
    }
    Ok(Linking::Static)
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_names_its_loader() {
        let Linking::Dynamic(loader) = linking(Path::new("/bin/sh")).unwrap() else {
            panic!("the shell is linked dynamically on every host that tests run on")
        };
        assert!(loader.is_file(), "{}", loader.display());
        assert_eq!(linking(&loader).unwrap(), Linking::Static);
    }

    #[test]
    fn what_is_no_program_is_told_apart_from_one_that_is_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        for text in ["", "#!/bin/sh\nexec true\n"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(linking(&path).unwrap(), Linking::Unknown);
        }
        let mut whole = std::fs::read("/bin/sh").unwrap();
        // A table of segments beyond its end.
        whole[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        std::fs::write(&path, whole).unwrap();
        linking(&path).unwrap_err();
    }
}
