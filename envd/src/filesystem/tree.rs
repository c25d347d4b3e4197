//! Making, moving, removing and listing. Blocking; knows nothing of the wire.

use std::ffi::OsString;
use std::fs::{self, DirEntry, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use thiserror::Error;

use super::remove::remove_all;

/// Why an operation on the tree failed.
#[derive(Debug, Error)]
pub enum TreeError {
    /// There is nothing at that path.
    #[error("path not found: {}", .path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// There is a directory already.
    #[error("directory already exists: {}", .path.display())]
    DirectoryExists {
        /// The path.
        path: PathBuf,
    },
    /// Something else than a directory is where one is needed.
    #[error("not a directory: {}", .path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// The root of the tree cannot be moved or removed.
    #[error("not possible for the root directory")]
    Root,
    /// A directory cannot become its own descendant.
    #[error("cannot move a directory into itself: {}", .path.display())]
    IntoItself {
        /// The destination.
        path: PathBuf,
    },
    /// Something is where something else is to be put.
    #[error("something is in the way: {}", .path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refuses, whoever asks: a read-only file system, something mounted, a name that is
    /// too long, and the like.
    #[error("{verb} {}: {source}", .path.display())]
    Refused {
        /// What was asked for.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is more than a list holds. The words are those by which the host tells it from a full disk.
    #[error("the list exceeds limit {LIST_LIMIT} bytes: {}", .path.display())]
    TooMuch {
        /// What was to be listed.
        path: PathBuf,
    },
    /// The disk or the user's share of it is full.
    #[error("no space left on device")]
    Full,
    /// Anything else the kernel says.
    #[error("{verb} {}: {source}", .path.display())]
    Other {
        /// What was done.
        verb: &'static str,
        /// To what.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

impl TreeError {
    /// Sorts an error of the kernel by what it means to a caller.
    pub fn from_io(verb: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::NotADirectory => Self::NotDirectory { path },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full,
            io::ErrorKind::IsADirectory
            | io::ErrorKind::DirectoryNotEmpty
            | io::ErrorKind::AlreadyExists => Self::InTheWay { path },
            _ if is_refusal(&source) => Self::Refused { verb, path, source },
            _ => Self::Other { verb, path, source },
        }
    }
}

/// Whether the kernel's answer is about what was asked for, rather than a fault of the agent's. What a
/// device, a driver or another process's file system answers is.
pub fn is_refusal(error: &io::Error) -> bool {
    let refused = [
        libc::EACCES,
        libc::EPERM,
        libc::EROFS,
        libc::EBUSY,
        libc::ELOOP,
        libc::ENAMETOOLONG,
        libc::EINVAL,
        libc::EOPNOTSUPP,
        libc::EMLINK,
        libc::ETXTBSY,
        libc::EAGAIN,
        libc::EFBIG,
        libc::EIO,
        libc::ENODATA,
        libc::ENODEV,
        libc::ENOTCONN,
        libc::ENOTTY,
        libc::ENXIO,
        libc::EOVERFLOW,
        libc::ESRCH,
        libc::ESTALE,
        libc::ETIMEDOUT,
    ];
    error.raw_os_error().is_some_and(|code| refused.contains(&code))
        || error.kind() == io::ErrorKind::Unsupported
}

/// Who owns what is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// Makes a directory and the parents it lacks, all owned by `owner`.
///
/// # Errors
///
/// [`TreeError::DirectoryExists`] when there is nothing to make.
pub fn make_dir(path: &Path, owner: Owner) -> Result<(), TreeError> {
    match fs::metadata(path) {
        Ok(meta) if meta.is_dir() => Err(TreeError::DirectoryExists { path: path.to_owned() }),
        Ok(_) => Err(TreeError::NotDirectory { path: path.to_owned() }),
        Err(_) => make_dirs(path, owner),
    }
}

/// Makes a directory and the parents it lacks; one that exists is left as it is. A loop, because a
/// path has room for two thousand names and a thread's stack has not.
///
/// # Errors
///
/// [`TreeError::NotDirectory`] when something else is in the way.
pub fn make_dirs(path: &Path, owner: Owner) -> Result<(), TreeError> {
    let mut missing = Vec::new();
    for dir in path.ancestors() {
        match fs::metadata(dir) {
            Ok(meta) if meta.is_dir() => break,
            Ok(_) => return Err(TreeError::NotDirectory { path: dir.to_owned() }),
            Err(_) => missing.push(dir),
        }
    }
    for dir in missing.into_iter().rev() {
        match fs::create_dir(dir) {
            Ok(()) => give(dir, owner)?,
            // Somebody else was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(TreeError::from_io("cannot make", dir, error)),
        }
    }
    Ok(())
}

fn give(path: &Path, owner: Owner) -> Result<(), TreeError> {
    lchown(path, Some(owner.uid), Some(owner.gid))
        .map_err(|error| TreeError::from_io("cannot change the owner of", path, error))
}

/// Removes a file, or a directory with all that is in it. What is not there counts as removed.
///
/// # Errors
///
/// [`TreeError::Root`], or what the kernel says.
pub fn remove(path: &Path) -> Result<(), TreeError> {
    if path == Path::new("/") {
        return Err(TreeError::Root);
    }
    let removed = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => remove_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed.map_err(|error| TreeError::from_io("cannot remove", path, error)) {
        Err(TreeError::NotFound { .. }) => Ok(()),
        other => other,
    }
}

/// Moves a file or a tree, replacing a file at the destination.
///
/// Across file systems it is copied beside the destination first, so that the destination is
/// whole or not there at all.
///
/// # Errors
///
/// [`TreeError::NotFound`] when there is no source.
pub fn rename(source: &Path, destination: &Path, owner: Owner) -> Result<(), TreeError> {
    if source == Path::new("/") || destination == Path::new("/") {
        return Err(TreeError::Root);
    }
    fs::symlink_metadata(source)
        .map_err(|error| TreeError::from_io("cannot look at", source, error))?;
    if destination != source && destination.starts_with(source) {
        return Err(TreeError::IntoItself { path: destination.to_owned() });
    }
    let parent = destination.parent().unwrap_or(Path::new("/"));
    make_dirs(parent, owner)?;
    match fs::rename(source, destination) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let mut name = OsString::from(super::UPLOAD_PREFIX);
            name.push(format!("move-{}-", std::process::id()));
            name.push(destination.file_name().unwrap_or_default());
            let beside = parent.join(name);
            let moved = copy(source, &beside, COPY_DEPTH).and_then(|()| {
                fs::rename(&beside, destination)
                    .map_err(|error| TreeError::from_io("cannot move to", destination, error))
            });
            if let Err(error) = moved {
                let _ = remove(&beside);
                return Err(error);
            }
            remove(source)
        }
        other => other.map_err(|error| TreeError::from_io("cannot move to", destination, error)),
    }
}

/// The most directories below each other that are copied: a thread's stack has an end.
const COPY_DEPTH: usize = 128;

/// Copies a tree with owners (where the user may), modes, times, links and attributes.
fn copy(source: &Path, destination: &Path, depth: usize) -> Result<(), TreeError> {
    let failed = |error| TreeError::from_io("cannot copy", source, error);
    let meta = fs::symlink_metadata(source).map_err(failed)?;
    if meta.is_symlink() {
        let target = fs::read_link(source).map_err(failed)?;
        symlink(target, destination).map_err(failed)?;
        let owned = lchown(destination, Some(meta.uid()), Some(meta.gid()));
        return allowed(owned).map(drop).map_err(failed);
    }
    if meta.is_dir() {
        fs::create_dir(destination).map_err(failed)?;
        for entry in fs::read_dir(source).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let depth = depth.checked_sub(1).ok_or_else(|| {
                failed(io::Error::new(io::ErrorKind::Unsupported, "directories are too deep"))
            })?;
            copy(&entry.path(), &destination.join(entry.file_name()), depth)?;
        }
    } else if meta.is_file() {
        fs::copy(source, destination).map_err(failed)?;
    } else {
        return Err(failed(io::Error::from(io::ErrorKind::Unsupported)));
    }
    keep_attributes(source, destination, &meta).map_err(failed)
}

/// Whether something could be given to its owner of before, which only root does.
enum Allowed {
    Yes,
    No,
}

fn allowed(owned: io::Result<()>) -> io::Result<Allowed> {
    match owned {
        Ok(()) => Ok(Allowed::Yes),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(Allowed::No),
        Err(error) => Err(error),
    }
}

fn keep_attributes(source: &Path, destination: &Path, meta: &Metadata) -> io::Result<()> {
    let owned = chown(destination, Some(meta.uid()), Some(meta.gid()));
    let bits = match allowed(owned)? {
        Allowed::Yes => 0o7777,
        // It is the user's own now, and nobody is to run it as him for that.
        Allowed::No => 0o777,
    };
    // After the owner: changing it clears the set-user-id bit.
    fs::set_permissions(destination, Permissions::from_mode(meta.mode() & bits))?;
    for name in xattr::list(source).into_iter().flatten() {
        if let Ok(Some(value)) = xattr::get(source, &name) {
            // The other file system may not keep this kind.
            let _ = xattr::set(destination, &name, &value);
        }
    }
    let accessed = TimeSpec::new(meta.atime(), meta.atime_nsec());
    let modified = TimeSpec::new(meta.mtime(), meta.mtime_nsec());
    let here = nix::fcntl::AT_FDCWD;
    utimensat(here, destination, &accessed, &modified, UtimensatFlags::NoFollowSymlink)?;
    Ok(())
}

/// Bytes of the longest list: it is put together in memory, and by the thread that serves everybody.
const LIST_LIMIT: usize = 8 << 20;
/// Bytes of what is said about an entry besides its name and path.
const ENTRY: usize = 128;

/// Paths below a directory, down to `depth` levels, each directory followed by what is in it,
/// in the order of names. Links to directories are listed but not entered.
///
/// # Errors
///
/// [`TreeError::NotFound`], [`TreeError::NotDirectory`], [`TreeError::TooMuch`].
pub fn list(path: &Path, depth: u32) -> Result<Vec<PathBuf>, TreeError> {
    let failed = |error| TreeError::from_io("cannot list", path, error);
    if !fs::metadata(path).map_err(failed)?.is_dir() {
        return Err(TreeError::NotDirectory { path: path.to_owned() });
    }
    let mut room = LIST_LIMIT;
    let too_much = || TreeError::TooMuch { path: path.to_owned() };
    let depth = usize::try_from(depth.max(1)).unwrap_or(usize::MAX);
    let mut found = Vec::new();
    // A loop for the same reason as in [`make_dirs`].
    let mut levels = vec![sorted(path, &mut room).map_err(failed)?.ok_or_else(too_much)?];
    while let Some(level) = levels.last_mut() {
        let Some(entry) = level.next() else {
            levels.pop();
            continue;
        };
        let below = entry.path();
        let deeper = levels.len() < depth;
        if deeper
            && entry.file_type().is_ok_and(|kind| kind.is_dir())
            // Removed meanwhile, or not readable: it is listed, what is in it is not.
            && let Ok(below) = sorted(&below, &mut room)
        {
            levels.push(below.ok_or_else(too_much)?);
        }
        found.push(below);
    }
    Ok(found)
}

/// What is in a directory, in the order of names; `None` if there is no room for it.
fn sorted(path: &Path, room: &mut usize) -> io::Result<Option<std::vec::IntoIter<DirEntry>>> {
    let mut entries = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name().len();
        match room.checked_sub(path.as_os_str().len() + 2 * name + ENTRY) {
            Some(left) => *room = left,
            None => return Ok(None),
        }
        entries.push(entry);
    }
    entries.sort_by_key(DirEntry::file_name);
    Ok(Some(entries.into_iter()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Owner {
        Owner { uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() }
    }

    #[test]
    fn a_copy_keeps_modes_times_links_and_what_is_below() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("sub")).unwrap();
        fs::write(from.join("sub/file"), "text").unwrap();
        fs::set_permissions(from.join("sub/file"), Permissions::from_mode(0o4750)).unwrap();
        symlink("sub/file", from.join("link")).unwrap();
        copy(&from, &to, 2).unwrap();
        let (old, new) = (
            fs::metadata(from.join("sub/file")).unwrap(),
            fs::metadata(to.join("sub/file")).unwrap(),
        );
        assert_eq!(old.mode(), new.mode());
        assert_eq!((old.mtime(), old.mtime_nsec()), (new.mtime(), new.mtime_nsec()));
        assert_eq!(fs::read_link(to.join("link")).unwrap(), Path::new("sub/file"));
    }

    #[test]
    fn a_directory_moves_neither_into_itself_nor_over_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("a");
        fs::create_dir(&source).unwrap();
        let inside = rename(&source, &source.join("b"), me());
        assert!(matches!(inside, Err(TreeError::IntoItself { .. })));
        assert!(matches!(rename(&source, Path::new("/"), me()), Err(TreeError::Root)));
        assert!(matches!(remove(Path::new("/")), Err(TreeError::Root)));
    }

    #[test]
    fn a_file_in_the_way_is_not_taken_for_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        assert!(matches!(make_dir(&file, me()), Err(TreeError::NotDirectory { .. })));
        assert!(matches!(make_dir(&file.join("d"), me()), Err(TreeError::NotDirectory { .. })));
        assert!(matches!(list(&file, 1), Err(TreeError::NotDirectory { .. })));
    }
}
