//! A directory becomes an archive.

use std::ffi::OsStr;
use std::fs::{File, Metadata, ReadDir};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;

use super::header::{Header, Kind};
use super::names::Refusal;
use super::{ArchiveError, CHUNK, MAX_DEPTH, Summary, write};

/// Writes all that is in the directory `root`: files, directories and links as links. Devices, pipes
/// and sockets are left out, and so is what is mounted below, and what is gone since it was listed;
/// and names that begin with `hidden`, which are uploads that are not whole yet.
///
/// Blocks. `seen` is told how many bytes of content have been written, again and again.
///
/// # Errors
///
/// [`ArchiveError::Disk`] if something cannot be read, [`ArchiveError::Stream`] if `sink` takes no
/// more, [`ArchiveError::Shrunk`], [`ArchiveError::Refused`] for what lies too deep.
pub fn pack(
    root: &Path,
    sink: &mut impl Write,
    hidden: &str,
    seen: impl FnMut(u64),
) -> Result<Summary, ArchiveError> {
    packed(root, sink, hidden, seen).map_err(|(error, _)| error)
}

/// As [`pack`]; an archive that ends too early says why, wherever it can, for [`super::unpack()`] to tell.
/// So who unpacks it is told a path from here.
///
/// # Errors
///
/// Those of [`pack`].
pub fn pack_and_explain(
    root: &Path,
    sink: &mut impl Write,
    hidden: &str,
    seen: impl FnMut(u64),
) -> Result<Summary, ArchiveError> {
    packed(root, sink, hidden, seen).map_err(|(error, place)| {
        if place == Place::Between {
            // Fails if nobody takes it any more, which may be the error.
            let _ = write::trouble(sink, &error);
        }
        error
    })
}

/// Tells with an error where in the archive it came.
fn packed(
    root: &Path,
    sink: &mut impl Write,
    hidden: &str,
    seen: impl FnMut(u64),
) -> Result<Summary, (ArchiveError, Place)> {
    let meta = std::fs::metadata(root);
    let meta = meta.map_err(|error| (cannot("cannot read", root, error), Place::Between))?;
    let buffer = vec![0; CHUNK];
    let (device, summary) = (meta.dev(), Summary::default());
    let mut packer = Packer { sink, seen, buffer, device, summary, place: Place::Between };
    let packed = packer.all(root, hidden).and_then(|()| {
        packer.place = Place::Within;
        write::end(packer.sink).map_err(ArchiveError::Stream)
    });
    match packed {
        Ok(()) => Ok(packer.summary),
        Err(error) => Err((error, packer.place)),
    }
}

/// Whether there is more below.
enum Entered {
    Below,
    Not,
}

/// Where in the archive it is.
#[derive(PartialEq, Eq)]
enum Place {
    Between,
    Within,
}

struct Packer<'a, W, S> {
    sink: &'a mut W,
    seen: S,
    buffer: Vec<u8>,
    /// The file system that is packed.
    device: u64,
    summary: Summary,
    place: Place,
}

impl<W: Write, S: FnMut(u64)> Packer<'_, W, S> {
    fn all(&mut self, root: &Path, hidden: &str) -> Result<(), ArchiveError> {
        let open =
            |path: &Path| path.read_dir().map_err(|error| cannot("cannot read", path, error));
        // A loop with a list of its own: a tree may be deeper than a stack.
        let mut levels: Vec<(ReadDir, PathBuf)> = vec![(open(root)?, PathBuf::new())];
        while let Some((level, name)) = levels.last_mut() {
            let Some(entry) = level.next() else {
                levels.pop();
                continue;
            };
            let entry = entry.map_err(|error| cannot("cannot read", root, error))?;
            if entry.file_name().as_bytes().starts_with(hidden.as_bytes()) {
                continue;
            }
            let (path, name) = (entry.path(), name.join(entry.file_name()));
            match self.add(&path, &name, levels.len()) {
                Ok(Entered::Below) => match open(&path) {
                    Ok(below) => levels.push((below, name)),
                    Err(error) if is_gone(&error) => {}
                    Err(error) => return Err(error),
                },
                Ok(Entered::Not) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn add(&mut self, path: &Path, name: &Path, depth: usize) -> Result<Entered, ArchiveError> {
        let failed = |error| cannot("cannot read", path, error);
        let meta = std::fs::symlink_metadata(path).map_err(failed)?;
        if meta.is_file() {
            // It may have become something else, which is not followed and not waited for.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let mut options = File::options();
            let file = options.read(true).custom_flags(flags.bits()).open(path).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            if meta.is_file() {
                self.file(file, path, name, &meta)?;
            }
            return Ok(Entered::Not);
        }
        if meta.is_symlink() {
            let target = std::fs::read_link(path).map_err(failed)?;
            self.head(name, Kind::Symlink, target.as_os_str().as_bytes(), &meta)?;
            return Ok(Entered::Not);
        }
        if meta.is_dir() {
            if depth > MAX_DEPTH {
                let path = path.to_owned();
                return Err(ArchiveError::Refused { path, why: Refusal::TooDeep });
            }
            // So that every reader knows it for one.
            self.head(&name.join(""), Kind::Directory, b"", &meta)?;
            return Ok(if meta.dev() == self.device { Entered::Below } else { Entered::Not });
        }
        Ok(Entered::Not)
    }

    fn head(
        &mut self,
        name: &Path,
        kind: Kind,
        target: &[u8],
        meta: &Metadata,
    ) -> Result<(), ArchiveError> {
        let size = if kind == Kind::File { meta.len() } else { 0 };
        let header = Header {
            kind,
            name: OsStr::as_bytes(name.as_os_str()).to_vec(),
            target: target.to_vec(),
            mode: meta.mode() & 0o7777,
            size,
            modified: meta.mtime(),
        };
        self.summary.entries += 1;
        write::head(self.sink, &header, (meta.uid(), meta.gid())).map_err(ArchiveError::Stream)
    }

    /// Writes as much as the head has promised, should the file be growing. The first of it is read
    /// before the head is written: a file that cannot be read at all leaves the archive whole so far.
    fn file(
        &mut self,
        mut file: File,
        path: &Path,
        name: &Path,
        meta: &Metadata,
    ) -> Result<(), ArchiveError> {
        let size = meta.len();
        let mut left = size;
        let mut piece = self.read(&mut file, path, left)?;
        self.place = Place::Within;
        self.head(name, Kind::File, b"", meta)?;
        while left > 0 {
            if piece == 0 {
                return Err(ArchiveError::Shrunk { path: path.to_owned() });
            }
            self.sink.write_all(&self.buffer[..piece]).map_err(ArchiveError::Stream)?;
            left -= piece as u64;
            self.summary.bytes += piece as u64;
            (self.seen)(self.summary.bytes);
            piece = self.read(&mut file, path, left)?;
        }
        write::padding(self.sink, size).map_err(ArchiveError::Stream)?;
        self.place = Place::Between;
        Ok(())
    }

    fn read(&mut self, file: &mut File, path: &Path, left: u64) -> Result<usize, ArchiveError> {
        let wanted = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let read = file.read(&mut self.buffer[..wanted]);
        read.map_err(|error| cannot("cannot read", path, error))
    }
}

fn cannot(verb: &'static str, path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Disk { verb, path: path.to_owned(), source }
}

fn is_gone(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Disk { source, .. } if source.kind() == io::ErrorKind::NotFound)
}
