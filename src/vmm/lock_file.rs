//! Files that are there to be locked.
//!
//! Whoever can open a file, if only to read, can lock it (flock(2)), and then others wait. So these are
//! root's alone, also those that an older version has made for everybody.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

const MODE: u32 = 0o600;

/// Opens one, and makes it if there is none.
///
/// # Errors
///
/// Those of the file system.
pub fn open(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).append(true).mode(MODE).open(path)?;
    file.set_permissions(Permissions::from_mode(MODE))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_roots_alone_whatever_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let mode = || path.metadata().unwrap().permissions().mode() & 0o777;
        open(&path).unwrap();
        assert_eq!(mode(), MODE);
        std::fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        open(&path).unwrap();
        assert_eq!(mode(), MODE);
    }
}
