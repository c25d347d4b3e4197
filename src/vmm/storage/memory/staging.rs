//! Puts files into a directory such that it never looks complete before it is.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use super::header::GenerationName;
use super::{Durability, Lineage, MemoryError, cannot};

/// Name of the header.
pub(super) const HEADER: &str = "memfile.header";

/// Name of a header that is being made. While it is there, a `memfile` alone is no whole memory.
const NEW_HEADER: &str = "memfile.header.new";

/// Work on one directory. Dropping it before [`Staging::commit`] removes what it has put there.
pub(super) struct Staging<'a> {
    dir: &'a Path,
    durability: Durability,
    made: Vec<PathBuf>,
}

/// A generation that is being written, under a temporary name.
pub(super) struct NewFile {
    pub file: File,
    pub path: PathBuf,
    name: GenerationName,
}

impl<'a> Staging<'a> {
    pub fn begin(dir: &'a Path, durability: Durability) -> Result<Self, MemoryError> {
        let path = dir.join(NEW_HEADER);
        create(&path).map_err(cannot("create", &path))?;
        Ok(Self { dir, durability, made: vec![path] })
    }

    /// Links an open generation into the directory, unless it is there already.
    pub fn link(&mut self, file: &File, name: GenerationName) -> Result<(), MemoryError> {
        let path = self.dir.join(name.to_string());
        // Through the descriptor, for the directory that it was opened in may have moved since.
        let open = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        match linkat(AT_FDCWD, &open, AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW) {
            Ok(()) => {
                self.made.push(path);
                Ok(())
            }
            Err(errno) if is_same(file, &path) => {
                debug_assert_eq!(errno, nix::errno::Errno::EEXIST);
                Ok(())
            }
            Err(errno) => Err(cannot("link", &path)(errno.into())),
        }
    }

    /// Begins a new generation.
    pub fn create(&mut self, name: GenerationName) -> Result<NewFile, MemoryError> {
        let last = self.dir.join(name.to_string());
        if last.exists() {
            return Err(cannot("create", &last)(io::ErrorKind::AlreadyExists.into()));
        }
        let path = self.dir.join(format!("{name}.new"));
        let file = create(&path).map_err(cannot("create", &path))?;
        self.made.push(path.clone());
        Ok(NewFile { file, path, name })
    }

    /// Gives a finished generation its name.
    pub fn finish(&mut self, new: NewFile) -> Result<(), MemoryError> {
        let path = self.dir.join(new.name.to_string());
        self.sync(&new.file, &new.path)?;
        fs::rename(&new.path, &path).map_err(cannot("rename", &new.path))?;
        self.made.push(path);
        Ok(())
    }

    /// Puts the header of a lineage in place, and with it everything that it names. Returns its
    /// length in bytes.
    pub fn commit(mut self, lineage: &Lineage) -> Result<u64, MemoryError> {
        let path = self.dir.join(HEADER);
        let bytes = lineage.header()?.expect("what has no header is committed bare");
        let new = self.dir.join(NEW_HEADER);
        let mut file = create(&new).map_err(cannot("create", &new))?;
        file.write_all(&bytes).map_err(cannot("write", &new))?;
        self.sync(&file, &new)?;
        fs::rename(&new, &path).map_err(cannot("rename", &new))?;
        self.keep()?;
        Ok(bytes.len() as u64)
    }

    /// Ends work on a directory that needs no header.
    pub fn commit_bare(mut self) -> Result<(), MemoryError> {
        let new = self.dir.join(NEW_HEADER);
        fs::remove_file(&new).map_err(cannot("remove", &new))?;
        self.keep()
    }

    fn keep(&mut self) -> Result<(), MemoryError> {
        // From here on the directory needs what was made, also if it cannot be synced.
        self.made.clear();
        let dir = File::open(self.dir).map_err(cannot("open", self.dir))?;
        self.sync(&dir, self.dir)
    }

    pub fn sync(&self, file: &File, path: &Path) -> Result<(), MemoryError> {
        match self.durability {
            Durability::Synced => file.sync_all().map_err(cannot("sync", path)),
            Durability::Cached => Ok(()),
        }
    }
}

impl Drop for Staging<'_> {
    fn drop(&mut self) {
        // Latest first: as long as the first one, the new header, is there, nothing looks complete.
        for path in self.made.iter().rev() {
            // The error that led here is the one to tell. What stays is not named by a header.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes an empty file that only the daemon reads. One of that name is from work that was broken
/// off.
fn create(path: &Path) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(true).mode(0o600).open(path)
}

fn is_same(file: &File, path: &Path) -> bool {
    let identity = |data: io::Result<fs::Metadata>| data.map(|data| (data.dev(), data.ino())).ok();
    let open = identity(file.metadata());
    open.is_some() && open == identity(fs::symlink_metadata(path))
}
