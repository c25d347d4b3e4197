//! Removing a directory with all in it, however deep it is: without recursion, and with few
//! descriptors. What lies deeper than that is first moved to the top.

use std::ffi::{OsStr, OsString};
use std::fs::{self, ReadDir};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

/// Directories below each other that are open at a time.
const LEVELS: usize = 64;

/// A directory that is being emptied.
struct Level {
    dir: OwnedFd,
    entries: ReadDir,
    /// Its name in the one above.
    name: OsString,
}

impl Level {
    fn open(above: impl AsFd, name: &OsStr) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let dir = openat(above, name, flags, Mode::empty())?;
        let entries = list(&dir)?;
        Ok(Self { dir, entries, name: name.to_owned() })
    }
}

fn list(dir: &OwnedFd) -> io::Result<ReadDir> {
    fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// Removes the directory at `path` and everything in it, through no link.
///
/// # Errors
///
/// The kernel's; some of it may be gone then.
pub fn remove_all(path: &Path) -> io::Result<()> {
    let mut levels = vec![Level::open(AT_FDCWD, path.as_os_str())?];
    let mut moved = 0_u64;
    while let Some(level) = levels.last_mut() {
        match level.entries.next() {
            Some(entry) => {
                let entry = entry?;
                let name = entry.file_name();
                // Not its own answer: the name may be another thing by now.
                match unlinkat(&level.dir, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
                    Ok(()) | Err(Errno::ENOENT) => continue,
                    Err(Errno::EISDIR | Errno::EPERM) if entry.file_type()?.is_dir() => {}
                    Err(error) => return Err(error.into()),
                }
                if levels.len() < LEVELS {
                    let below = &levels[levels.len() - 1].dir;
                    match Level::open(below, &name) {
                        Ok(below) => levels.push(below),
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                } else {
                    moved += 1;
                    let hidden =
                        format!("{}remove-{}-{moved}", super::UPLOAD_PREFIX, std::process::id());
                    renameat(
                        &levels[LEVELS - 1].dir,
                        name.as_os_str(),
                        &levels[0].dir,
                        hidden.as_str(),
                    )?;
                }
            }
            None => close(&mut levels, path)?,
        }
    }
    Ok(())
}

/// Removes the last directory, which has come to its end; looks through it again if there is more.
fn close(levels: &mut Vec<Level>, path: &Path) -> io::Result<()> {
    let last = levels.len() - 1;
    let removed = match last {
        0 => unlinkat(AT_FDCWD, path, UnlinkatFlags::RemoveDir),
        last => {
            unlinkat(&levels[last - 1].dir, levels[last].name.as_os_str(), UnlinkatFlags::RemoveDir)
        }
    };
    match removed {
        Ok(()) | Err(Errno::ENOENT) => {
            levels.pop();
        }
        Err(Errno::ENOTEMPTY | Errno::EEXIST) => levels[last].entries = list(&levels[last].dir)?,
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_tree_is_gone_however_deep_and_links_lead_nowhere() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, kept) = (dir.path().join("tree"), dir.path().join("kept"));
        fs::create_dir(&kept).unwrap();
        fs::write(kept.join("f"), "x").unwrap();
        let mut deep = tree.clone();
        for level in 0..500 {
            fs::create_dir(&deep).unwrap();
            fs::write(deep.join("f"), "x").unwrap();
            symlink(&kept, deep.join("link")).unwrap();
            fs::create_dir(deep.join(format!("empty-{level}"))).unwrap();
            deep.push("d");
        }
        remove_all(&tree).unwrap();
        assert!(!tree.exists() && kept.join("f").exists());
        assert!(remove_all(&tree).is_err(), "it is gone already");
        assert!(remove_all(&kept.join("f")).is_err(), "no directory");
    }
}
