//! An archive becomes a directory.
//!
//! Every step goes from the open descriptor of one directory to the next, and through no link: so
//! nothing an archive says, nor anybody who moves things meanwhile, can lead it elsewhere.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, fchownat, linkat, symlinkat, unlinkat};

use super::header::{Header, Kind};
use super::names::{Refusal, inside, leads_inside};
use super::read::{Reader, shown};
use super::{ArchiveError, CHUNK, Summary};

/// Who owns what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owner {
    /// Whoever unpacks.
    Unpacker,
    /// This user and group, which takes root.
    Ids(u32, u32),
}

/// How to unpack.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Who owns what is made, whoever owned what was packed.
    pub owner: Owner,
    /// Permission bits that are taken over, of 0o777.
    pub mode: u32,
    /// How names of files begin that are not whole yet.
    pub hidden: &'static str,
    /// What becomes of symbolic links that lead out of the directory.
    pub links_out: LinksOut,
}

/// What becomes of symbolic links that lead out of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LinksOut {
    /// They are made: whoever reads the directory lives beside whoever sent it.
    Keep,
    /// They are left out, and counted: whoever follows them later must not be led astray.
    LeaveOut,
}

/// Unpacks an archive into the directory `root`, which is there. Files and links replace what is in
/// their place, one by one and each as a whole; directories are joined. What came before an entry
/// that fails stays. The source is read up to the archive's end, not further.
///
/// Blocks. `seen` is told how many bytes of content have been read, again and again.
///
/// # Errors
///
/// [`ArchiveError`].
pub fn unpack(
    source: impl Read,
    root: &Path,
    options: &Options,
    seen: impl FnMut(u64),
) -> Result<Summary, ArchiveError> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let opened = openat(AT_FDCWD, root, flags, Mode::empty());
    let root = opened.map_err(|error| cannot("cannot open", root, error))?;
    let buffer = vec![0; CHUNK];
    let way = Way { root, levels: Vec::new(), options: *options };
    let mut unpacker = Unpacker { way, seen, buffer, made: 0, summary: Summary::default() };
    let mut reader = Reader::new(source);
    while let Some(header) = reader.next_entry()? {
        unpacker.take(&header, &mut reader)?;
    }
    Ok(unpacker.summary)
}

/// The directories that lead to the last entry, all open.
struct Way {
    root: OwnedFd,
    levels: Vec<(OsString, OwnedFd)>,
    options: Options,
}

struct Unpacker<S> {
    way: Way,
    seen: S,
    buffer: Vec<u8>,
    /// Hidden files made so far.
    made: u64,
    summary: Summary,
}

impl Way {
    /// Opens the directory at `path`, made with what it lacks.
    fn open(&mut self, path: &Path) -> Result<BorrowedFd<'_>, ArchiveError> {
        let names: Vec<&OsStr> = path.iter().collect();
        let same = self.levels.iter().zip(&names).take_while(|((known, _), name)| known == *name);
        let same = same.count();
        self.levels.truncate(same);
        for name in &names[same..] {
            let here = self.here();
            let below = match open_dir(here, name) {
                Err(Errno::ENOENT) => {
                    self.make(here, name, 0o755, path)?;
                    open_dir(here, name)
                }
                other => other,
            };
            let below = below.map_err(|error| in_the_way(path, error))?;
            self.levels.push(((*name).to_owned(), below));
        }
        Ok(self.here())
    }

    fn here(&self) -> BorrowedFd<'_> {
        self.levels.last().map_or(self.root.as_fd(), |(_, level)| level.as_fd())
    }

    /// Makes a directory; one that is there stays as it is.
    fn make(
        &self,
        here: BorrowedFd<'_>,
        name: &OsStr,
        mode: u32,
        path: &Path,
    ) -> Result<(), ArchiveError> {
        // What comes after it has to get in, also if its owner is not root.
        let mode = Mode::from_bits_truncate((mode | 0o700) & self.options.mode);
        match mkdirat(here, name, mode) {
            Ok(()) => self.give(here, name, path),
            Err(Errno::EEXIST) => Ok(()),
            Err(error) => Err(cannot("cannot make", path, error)),
        }
    }

    /// Gives what was just made to its owner.
    fn give(&self, here: BorrowedFd<'_>, name: &OsStr, path: &Path) -> Result<(), ArchiveError> {
        match self.options.owner {
            Owner::Unpacker => Ok(()),
            Owner::Ids(uid, gid) => {
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                fchownat(here, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)
                    .map_err(|error| cannot("cannot change the owner of", path, error))
            }
        }
    }
}

impl<S: FnMut(u64)> Unpacker<S> {
    fn take(&mut self, header: &Header, content: &mut impl Read) -> Result<(), ArchiveError> {
        let refused = |why| ArchiveError::Refused { path: shown(&header.name), why };
        let path = inside(&header.name).map_err(refused)?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // The directory itself, which is there.
            return match header.kind {
                Kind::Directory => Ok(()),
                _ => Err(refused(Refusal::Directory)),
            };
        };
        self.summary.entries += 1;
        match header.kind {
            Kind::Directory => {
                self.way.open(parent)?;
                let here = self.way.here();
                self.way.make(here, name, header.mode, &path)?;
                // Something else may have been there.
                open_dir(here, name).map(drop).map_err(|error| in_the_way(&path, error))
            }
            Kind::File => self.file(&path, parent, name, header, content),
            Kind::Symlink => {
                match leads_inside(&path, &header.target) {
                    Err(Refusal::LinkOut) if self.way.options.links_out == LinksOut::Keep => {}
                    Err(Refusal::LinkOut) => {
                        self.summary.entries -= 1;
                        self.summary.left_out.add(path);
                        return Ok(());
                    }
                    other => other.map_err(refused)?,
                }
                self.beside(&path, parent, name, |way, here, hidden| {
                    symlinkat(OsStr::from_bytes(&header.target), here, hidden)
                        .map_err(|error| cannot("cannot make", &path, error))?;
                    way.give(here, hidden, &path)
                })
            }
            Kind::HardLink => {
                let target = inside(&header.target).map_err(refused)?;
                self.hard_link(&path, parent, name, &target)
            }
            Kind::Device => Err(refused(Refusal::Device)),
            Kind::Unknown | Kind::Long(_) | Kind::Extended | Kind::Global => {
                Err(refused(Refusal::Unknown))
            }
        }
    }

    fn file(
        &mut self,
        path: &Path,
        parent: &Path,
        name: &OsStr,
        header: &Header,
        content: &mut impl Read,
    ) -> Result<(), ArchiveError> {
        let hidden = self.hidden();
        let options = self.way.options;
        let here = self.way.open(parent)?;
        let failed = |error| cannot("cannot write", path, error);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(here, hidden.as_os_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = File::from(file.map_err(failed)?);
        let pending = Pending { here, hidden: &hidden };
        let mut left = header.size;
        while left > 0 {
            let wanted = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let read = match content.read(&mut self.buffer[..wanted]) {
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    return Err(ArchiveError::Malformed("it ends in the middle"));
                }
                Err(error) => return Err(ArchiveError::Stream(error)),
            };
            file.write_all(&self.buffer[..read])
                .map_err(|error| io_error("cannot write", path, error))?;
            left -= read as u64;
            self.summary.bytes += read as u64;
            (self.seen)(self.summary.bytes);
        }
        if let Owner::Ids(uid, gid) = options.owner {
            let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            fchown(&file, uid, gid).map_err(failed)?;
        }
        fchmod(&file, Mode::from_bits_truncate(header.mode & options.mode)).map_err(failed)?;
        let modified = TimeSpec::new(header.modified, 0);
        // A time that the file system does not have is no reason to refuse the file.
        let _ = futimens(&file, &TimeSpec::UTIME_OMIT, &modified);
        pending.put_in_place(name, path)
    }

    /// Makes something under a hidden name, and puts it in its place.
    fn beside(
        &mut self,
        path: &Path,
        parent: &Path,
        name: &OsStr,
        make: impl FnOnce(&Way, BorrowedFd<'_>, &OsStr) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let hidden = self.hidden();
        self.way.open(parent)?;
        let here = self.way.here();
        let pending = Pending { here, hidden: &hidden };
        make(&self.way, here, &hidden)?;
        pending.put_in_place(name, path)
    }

    fn hard_link(
        &mut self,
        path: &Path,
        parent: &Path,
        name: &OsStr,
        target: &Path,
    ) -> Result<(), ArchiveError> {
        let no_file = || ArchiveError::Refused { path: path.to_owned(), why: Refusal::NoFile };
        let (Some(above), Some(other)) = (target.parent(), target.file_name()) else {
            return Err(no_file());
        };
        let there = self.way.open(above)?.try_clone_to_owned();
        let there = there.map_err(|error| io_error("cannot open", target, error))?;
        // Another name for a link would be a link in a place that it was not checked for.
        match fstatat(&there, other, AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(meta) if is_file(&meta) => {}
            Ok(_) | Err(Errno::ENOENT) => return Err(no_file()),
            Err(error) => return Err(cannot("cannot look at", target, error)),
        }
        self.beside(path, parent, name, |_, here, hidden| {
            linkat(&there, other, here, hidden, AtFlags::empty())
                .map_err(|error| cannot("cannot make", path, error))
        })
    }

    fn hidden(&mut self) -> OsString {
        self.made += 1;
        let name = format!("{}{}-{}", self.way.options.hidden, std::process::id(), self.made);
        OsString::from_vec(name.into_bytes())
    }
}

/// Something that is not in its place yet. Dropping it removes it.
struct Pending<'a> {
    here: BorrowedFd<'a>,
    hidden: &'a OsStr,
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        // Gone already if it was renamed; still there if it was another name of the same file.
        let _ = unlinkat(self.here, self.hidden, UnlinkatFlags::NoRemoveDir);
    }
}

impl Pending<'_> {
    fn put_in_place(self, name: &OsStr, path: &Path) -> Result<(), ArchiveError> {
        match renameat(self.here, self.hidden, self.here, name) {
            Ok(()) => Ok(()),
            Err(Errno::EISDIR | Errno::EEXIST | Errno::ENOTEMPTY) => {
                Err(ArchiveError::Refused { path: path.to_owned(), why: Refusal::Directory })
            }
            Err(error) => Err(cannot("cannot write", path, error)),
        }
    }
}

/// Opens a directory that is no link.
fn open_dir(here: BorrowedFd<'_>, name: &OsStr) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(here, name, flags, Mode::empty())
}

fn is_file(meta: &FileStat) -> bool {
    SFlag::from_bits_truncate(meta.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG
}

fn in_the_way(path: &Path, error: Errno) -> ArchiveError {
    match error {
        Errno::ENOTDIR | Errno::ELOOP => {
            ArchiveError::Refused { path: path.to_owned(), why: Refusal::InTheWay }
        }
        error => cannot("cannot open", path, error),
    }
}

fn cannot(verb: &'static str, path: &Path, error: Errno) -> ArchiveError {
    io_error(verb, path, error.into())
}

fn io_error(verb: &'static str, path: &Path, source: io::Error) -> ArchiveError {
    ArchiveError::Disk { verb, path: PathBuf::from(path), source }
}

#[cfg(test)]
#[path = "unpack_tests.rs"]
mod tests;
