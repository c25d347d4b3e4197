//! A file that is written under a hidden name beside its target, and put in place when it is whole.
//!
//! All of it with the rights of the user it is for. Who may write to a file but not to its directory
//! has it written elsewhere first, and then over what was there.

use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{AccessFlags, faccessat};

use crate::agent::rights;
use crate::agent::users::User;
use crate::filesystem::{METADATA_PREFIX, Owner, UPLOAD_PREFIX, make_dirs};

use super::error::HttpError;

/// Where a file is written first whose directory takes no other one.
const ELSEWHERE: &str = "/tmp";

/// A file that is not in place yet. Dropping it removes what was written.
pub struct Pending {
    file: File,
    hidden: PathBuf,
    target: PathBuf,
    user: Arc<User>,
    /// Permission bits of the file that is there already.
    mode: Option<u32>,
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Gone already if it was renamed; and never with more rights than those it was made with.
        let _ = rights::with(&self.user, || fs::remove_file(&self.hidden));
    }
}

impl Pending {
    /// Makes the file and the directories that it lacks.
    ///
    /// # Errors
    ///
    /// What stands against it.
    pub fn new(user: Arc<User>, path: &Path) -> Result<Self, HttpError> {
        let failed = |error| HttpError::from_io("cannot write", path, error);
        // A link stays a link: what it leads to is written.
        let target = match fs::canonicalize(path) {
            // Not even the kernel is asked to follow it for this user.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(failed(error));
            }
            Err(_) => path.to_owned(),
            Ok(target) => target,
        };
        let mode = match fs::metadata(&target) {
            Ok(meta) if meta.is_file() => {
                let bits = if meta.uid() == user.uid { 0o7777 } else { 0o777 };
                Some(meta.mode() & bits)
            }
            Ok(meta) if meta.is_dir() => return Err(HttpError::Directory { path: target }),
            Ok(_) => return Err(HttpError::NotRegular { path: target }),
            Err(_) => None,
        };
        let parent = target.parent().unwrap_or(Path::new("/"));
        let file = match mode {
            Some(_) => {
                // The directory's permission to replace it is not the file's to change it.
                faccessat(AT_FDCWD, &target, AccessFlags::W_OK, AtFlags::AT_EACCESS)
                    .map_err(|error| failed(error.into()))?;
                hidden(parent).or_else(|_| hidden(Path::new(ELSEWHERE)))
            }
            None => {
                make_dirs(parent, Owner { uid: user.uid, gid: user.gid })?;
                hidden(parent)
            }
        };
        let (file, hidden) = file.map_err(failed)?;
        Ok(Self { file, hidden, target, user, mode })
    }

    /// Writes what has arrived, from the memory in which it did: a guest's processor feels each copy.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn append(mut self, pieces: &[Bytes]) -> Result<Self, HttpError> {
        for piece in pieces {
            let written = self.file.write_all(piece);
            written.map_err(|error| HttpError::from_io("cannot write", &self.target, error))?;
        }
        Ok(self)
    }

    /// Gives the file its owner, mode, metadata and name.
    ///
    /// A watcher of the directory sees what it would see of a file written in place: a new one is
    /// created, changes its owner and is written; one that was there is written.
    ///
    /// # Errors
    ///
    /// The kernel's.
    pub fn put_in_place(self, metadata: &BTreeMap<String, String>) -> Result<(), HttpError> {
        let failed = |error| HttpError::from_io("cannot write", &self.target, error);
        let mode = Permissions::from_mode(self.mode.unwrap_or(0o644));
        for (key, value) in metadata {
            let name = format!("{METADATA_PREFIX}{key}");
            xattr::set(&self.hidden, name, value.as_bytes()).map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::EOPNOTSUPP) => HttpError::invalid(format!(
                        "no metadata can be kept where '{}' is",
                        self.target.display()
                    )),
                    _ => failed(error),
                }
            })?;
        }
        let own = |path| lchown(path, Some(self.user.uid), Some(self.user.gid));
        if self.mode.is_none() && fs::hard_link(&self.hidden, &self.target).is_ok() {
            fs::set_permissions(&self.hidden, mode).map_err(failed)?;
            own(&self.target).map_err(failed)?;
            return touch(&self.target).map_err(failed);
        }
        own(&self.hidden).map_err(failed)?;
        // After the owner: changing it clears the set-user-id bit.
        fs::set_permissions(&self.hidden, mode).map_err(failed)?;
        match fs::rename(&self.hidden, &self.target) {
            // Mounted, as a few files of `/etc` are; in a directory that is not the user's to change, or
            // where only owners replace files: it can be written but not replaced.
            Err(error) if self.mode.is_some() && keeps_its_place(&error) => self.overwrite(),
            renamed => renamed,
        }
        .map_err(failed)
    }

    /// Writes over what is there, which stays the file that it is.
    fn overwrite(&self) -> io::Result<()> {
        let mut whole = File::open(&self.hidden)?;
        let mut target = File::options().write(true).truncate(true).open(&self.target)?;
        io::copy(&mut whole, &mut target).map(drop)
    }
}

fn keeps_its_place(error: &io::Error) -> bool {
    use io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy};
    [CrossesDevices, PermissionDenied, ReadOnlyFilesystem, ResourceBusy].contains(&error.kind())
}

/// Makes a file in a directory whose name says that it is not whole.
fn hidden(dir: &Path) -> io::Result<(File, PathBuf)> {
    static MADE: AtomicU64 = AtomicU64::new(0);
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let hidden = dir.join(format!("{UPLOAD_PREFIX}{}-{number}", std::process::id()));
    // Nobody else reads it before it is what it is to be: where it is to be others might not either.
    let file = File::options().write(true).create_new(true).mode(0o600).open(&hidden)?;
    Ok((file, hidden))
}

/// Sets the time of modification alone, which watchers see as a write.
fn touch(path: &Path) -> io::Result<()> {
    let (keep, now) = (TimeSpec::UTIME_OMIT, TimeSpec::UTIME_NOW);
    Ok(utimensat(AT_FDCWD, path, &keep, &now, UtimensatFlags::NoFollowSymlink)?)
}
