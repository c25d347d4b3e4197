//! Checksums of the parts of an image.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use sha2::{Digest, Sha256};

/// Unit in which a sparse file is hashed, in bytes.
const BLOCK: usize = 64 * 1024;

/// SHA-256 of bytes, as 64 hexadecimal digits.
pub fn of_bytes(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// SHA-256 of a file, the same as `sha256sum` prints.
///
/// # Errors
/// Those of opening and reading the file.
pub fn of_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; BLOCK];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex::encode(hash.finalize())),
            n => hash.update(&buffer[..n]),
        }
    }
}

/// SHA-256 of the length and of the blocks of a disk that are not all zero, each after its number.
///
/// A disk of 4 GiB holds some 300 MB, and hashing the zeros would take longer than making it. Where
/// the holes are does not matter: a copy that filled them has the same sum.
///
/// # Errors
/// Those of opening, seeking and reading the file.
pub fn of_sparse_file(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    let mut hash = Sha256::new();
    hash.update(length.to_le_bytes());
    let zeros = vec![0; BLOCK];
    let mut buffer = vec![0; BLOCK];
    let mut at = 0;
    while let Some(data) = next_data(&file, at)? {
        let index = data / BLOCK as u64;
        file.seek(SeekFrom::Start(index * BLOCK as u64))?;
        let n = read_full(&mut file, &mut buffer)?;
        if buffer[..n] != zeros[..n] {
            hash.update(index.to_le_bytes());
            hash.update(&buffer[..n]);
        }
        at = (index + 1) * BLOCK as u64;
        if at >= length {
            break;
        }
    }
    Ok(hex::encode(hash.finalize()))
}

/// Finds the first offset at or after `from` that is not in a hole (lseek(2), SEEK_DATA).
fn next_data(file: &File, from: u64) -> io::Result<Option<u64>> {
    use nix::unistd::{Whence, lseek};
    match lseek(file, from as i64, Whence::SeekData) {
        Ok(offset) => Ok(Some(offset as u64)),
        Err(nix::Error::ENXIO) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn read_full(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..])? {
            0 => break,
            n => filled += n,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_and_zeros_have_one_sum() {
        let dir = tempfile::tempdir().unwrap();
        let (sparse, full) = (dir.path().join("sparse"), dir.path().join("full"));
        let length = 5 * BLOCK as u64 + 17;
        let file = File::create(&sparse).unwrap();
        file.set_len(length).unwrap();
        file.write_all_at(b"nest", 3 * BLOCK as u64 + 5).unwrap();
        std::fs::write(&full, std::fs::read(&sparse).unwrap()).unwrap();
        assert_eq!(of_sparse_file(&sparse).unwrap(), of_sparse_file(&full).unwrap());
    }

    #[test]
    fn moved_data_and_other_lengths_change_the_sum() {
        let dir = tempfile::tempdir().unwrap();
        let sum = |name: &str, length: u64, offset: u64| {
            let path = dir.path().join(name);
            let file = File::create(&path).unwrap();
            file.set_len(length).unwrap();
            file.write_all_at(b"nest", offset).unwrap();
            of_sparse_file(&path).unwrap()
        };
        let block = BLOCK as u64;
        let base = sum("a", 8 * block, 0);
        assert_ne!(base, sum("b", 8 * block, block));
        assert_ne!(base, sum("c", 9 * block, 0));
    }

    #[test]
    fn a_plain_sum_is_the_one_everybody_knows() {
        assert_eq!(
            of_bytes(b""),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }
}
