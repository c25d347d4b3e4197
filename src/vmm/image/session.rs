//! One build at a time in a directory, on scratch space of its own.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::Progress;
use super::error::{ImageError, io_at};
use crate::vmm::lock_file;

const WORK: &str = ".work";
const LOCK: &str = ".lock";

/// A build in progress: its scratch directory, and the lock that makes it the only one.
pub struct Session {
    work: PathBuf,
    _lock: Flock<File>,
}

impl Session {
    /// Waits until no other build runs in `dir`, then gives it an empty scratch directory.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn begin(dir: &Path, progress: &dyn Progress) -> Result<Self, ImageError> {
        make_dir(dir).map_err(io_at(dir))?;
        let lock = lock(&dir.join(LOCK), progress)?;
        let work = dir.join(WORK);
        remove_tree(&work)
            // apt's own user reads in the tree that mmdebstrap makes here.
            .and_then(|()| make_dir(&work))
            .map_err(io_at(&work))?;
        Ok(Self { work, _lock: lock })
    }

    /// The scratch directory, on the same filesystem as the images.
    pub fn work(&self) -> &Path {
        &self.work
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next build.
        let _ = remove_tree(&self.work);
    }
}

fn lock(path: &Path, progress: &dyn Progress) -> Result<Flock<File>, ImageError> {
    let file = lock_file::open(path).map_err(io_at(path))?;
    let failed = |errno: Errno| io_at(path)(errno.into());
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((file, Errno::EWOULDBLOCK)) => {
            progress.step("waiting for another build in this directory");
            Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| failed(errno))
        }
        Err((_, errno)) => Err(failed(errno)),
    }
}

/// Makes a directory that hypervisors, which run as other users, can pass through.
///
/// # Errors
/// Those of making it and of changing its mode.
pub fn make_dir(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

/// Removes a tree if it is there. Refuses while something is mounted in it, because then it would
/// remove what is not its own.
///
/// # Errors
/// Those of removing; `ResourceBusy` names the mount.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    if fs::symlink_metadata(path).is_err() {
        return Ok(());
    }
    let path = path.canonicalize()?;
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mut mounted = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    if let Some(mount) = mounted.find(|m| Path::new(m).starts_with(&path)) {
        let text = format!("{mount} is mounted; unmount it first");
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, text));
    }
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
