//! A directory becomes an archive.

use std::ffi::OsStr;
use std::fs::{File, Metadata, ReadDir};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
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

/// Writes an archive of one file alone, as `name`. Of `content` as much is read as `about` says.
///
/// Blocks. `seen` is as for [`pack`].
///
/// # Errors
///
/// [`ArchiveError::Disk`], [`ArchiveError::Stream`], [`ArchiveError::Shrunk`].
pub fn pack_file(
    mut content: impl Read,
    about: &About,
    name: &Path,
    sink: &mut impl Write,
    seen: impl FnMut(u64),
) -> Result<Summary, ArchiveError> {
    let mut packer = Packer::new(sink, seen, 0);
    packer.file(&mut content, name, name, about)?;
    write::end(packer.sink).map_err(ArchiveError::Stream)?;
    Ok(packer.summary)
}

/// What an archive says about an entry beside its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct About {
    /// In bytes; of what is no file, 0.
    pub size: u64,
    /// Permission bits.
    pub mode: u32,
    /// When it was last written, in seconds since 1970.
    pub modified: i64,
    /// User and group.
    pub owner: (u32, u32),
}

impl From<&Metadata> for About {
    fn from(meta: &Metadata) -> Self {
        Self {
            size: if meta.is_file() { meta.len() } else { 0 },
            mode: meta.mode() & 0o7777,
            modified: meta.mtime(),
            owner: (meta.uid(), meta.gid()),
        }
    }
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
    let mut packer = Packer::new(sink, seen, meta.dev());
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

/// A directory whose entries are packed. It is held open, and they are reached by that: the way to them
/// may be longer than the longest path, and somebody may put a link into it meanwhile.
struct Level {
    /// Held for the paths of the entries.
    _open: File,
    entries: ReadDir,
}

impl Level {
    fn open(at: &Path, flags: OFlag) -> io::Result<Self> {
        let flags = OFlag::O_DIRECTORY | flags;
        let open = File::options().read(true).custom_flags(flags.bits()).open(at)?;
        let entries = std::fs::read_dir(format!("/proc/self/fd/{}", open.as_raw_fd()))?;
        Ok(Self { _open: open, entries })
    }
}

/// Something in the tree.
struct Member {
    /// Where it is reached while its directory is open.
    at: PathBuf,
    /// Where it is, for messages.
    path: PathBuf,
    /// Where it is below the root.
    name: PathBuf,
}

impl Member {
    fn cannot_be_read(&self, error: io::Error) -> ArchiveError {
        cannot("cannot read", &self.path, error)
    }
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

impl<'a, W: Write, S: FnMut(u64)> Packer<'a, W, S> {
    fn new(sink: &'a mut W, seen: S, device: u64) -> Self {
        let (buffer, summary) = (vec![0; CHUNK], Summary::default());
        Self { sink, seen, buffer, device, summary, place: Place::Between }
    }

    fn all(&mut self, root: &Path, hidden: &str) -> Result<(), ArchiveError> {
        // A loop with a list of its own: a tree may be deeper than a stack.
        let top = Level::open(root, OFlag::empty());
        let top = top.map_err(|error| cannot("cannot read", root, error))?;
        let mut levels = vec![(top, PathBuf::new())];
        while let Some((level, name)) = levels.last_mut() {
            let Some(entry) = level.entries.next() else {
                levels.pop();
                continue;
            };
            let cannot_list = |error| cannot("cannot read", &root.join(&*name), error);
            let entry = entry.map_err(cannot_list)?;
            if entry.file_name().as_bytes().starts_with(hidden.as_bytes()) {
                continue;
            }
            let name = name.join(entry.file_name());
            let member = Member { at: entry.path(), path: root.join(&name), name };
            match self.add(&member, levels.len()) {
                Ok(Entered::Below) => match Level::open(&member.at, OFlag::O_NOFOLLOW) {
                    Ok(below) => levels.push((below, member.name)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(member.cannot_be_read(error)),
                },
                Ok(Entered::Not) => {}
                Err(error) if is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn add(&mut self, member: &Member, depth: usize) -> Result<Entered, ArchiveError> {
        let failed = |error| member.cannot_be_read(error);
        let meta = std::fs::symlink_metadata(&member.at).map_err(failed)?;
        if meta.is_file() {
            // It may have become something else, which is not followed and not waited for.
            let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
            let mut options = File::options();
            options.read(true).custom_flags(flags.bits());
            let mut file = options.open(&member.at).map_err(failed)?;
            let meta = file.metadata().map_err(failed)?;
            if meta.is_file() {
                self.file(&mut file, &member.path, &member.name, &About::from(&meta))?;
            }
            return Ok(Entered::Not);
        }
        if meta.is_symlink() {
            let target = std::fs::read_link(&member.at).map_err(failed)?;
            self.head(
                &member.name,
                Kind::Symlink,
                target.as_os_str().as_bytes(),
                &About::from(&meta),
            )?;
            return Ok(Entered::Not);
        }
        if meta.is_dir() {
            if depth > MAX_DEPTH {
                let path = member.path.clone();
                return Err(ArchiveError::Refused { path, why: Refusal::TooDeep });
            }
            // So that every reader knows it for one.
            self.head(&member.name.join(""), Kind::Directory, b"", &About::from(&meta))?;
            return Ok(if meta.dev() == self.device { Entered::Below } else { Entered::Not });
        }
        Ok(Entered::Not)
    }

    fn head(
        &mut self,
        name: &Path,
        kind: Kind,
        target: &[u8],
        about: &About,
    ) -> Result<(), ArchiveError> {
        let header = Header {
            kind,
            name: OsStr::as_bytes(name.as_os_str()).to_vec(),
            target: target.to_vec(),
            mode: about.mode,
            size: about.size,
            modified: about.modified,
        };
        self.summary.entries += 1;
        write::head(self.sink, &header, about.owner).map_err(ArchiveError::Stream)
    }

    /// Writes as much as the head has promised, should the file be growing. The first of it is read
    /// before the head is written: a file that cannot be read at all leaves the archive whole so far.
    fn file(
        &mut self,
        file: &mut impl Read,
        path: &Path,
        name: &Path,
        about: &About,
    ) -> Result<(), ArchiveError> {
        let mut left = about.size;
        let mut piece = self.read(file, path, left)?;
        self.place = Place::Within;
        self.head(name, Kind::File, b"", about)?;
        while left > 0 {
            if piece == 0 {
                return Err(ArchiveError::Shrunk { path: path.to_owned() });
            }
            self.sink.write_all(&self.buffer[..piece]).map_err(ArchiveError::Stream)?;
            left -= piece as u64;
            self.summary.bytes += piece as u64;
            (self.seen)(self.summary.bytes);
            piece = self.read(file, path, left)?;
        }
        write::padding(self.sink, about.size).map_err(ArchiveError::Stream)?;
        self.place = Place::Between;
        Ok(())
    }

    fn read(
        &mut self,
        file: &mut impl Read,
        path: &Path,
        left: u64,
    ) -> Result<usize, ArchiveError> {
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
