//! Where a copy goes.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::Copying;
use super::place::Spot;
use crate::cli::client::{Entry, There};

/// Links that are followed one after the other, as in the kernel.
const MAX_LINKS: usize = 40;

/// Where a copy into a sandbox goes.
pub(super) struct Target {
    pub path: PathBuf,
    /// What is there, which is no directory.
    pub entry: Option<Entry>,
}

impl Copying<'_> {
    /// Whether there is a directory, or one is meant.
    pub(super) async fn is_directory(&self, spot: &Spot) -> Result<bool> {
        match spot {
            Spot::Stream => Ok(false),
            Spot::Here(path) => Ok(path.is_dir()),
            Spot::There { id, path } => {
                let entry = self.client.stat(self.there(id, path)).await?;
                Ok(entry.map_or(ends_like_a_directory(path), |entry| is_directory(&entry)))
            }
        }
    }

    /// Where in a sandbox something of this name goes: into the directory at `path`, or by that name.
    /// A link at its end is followed.
    pub(super) async fn target_there(
        &self,
        id: &str,
        path: &Path,
        name: Option<&OsStr>,
    ) -> Result<Target> {
        let entry = self.client.stat(self.there(id, path)).await?;
        let below = entry.as_ref().map_or(ends_like_a_directory(path), is_directory);
        if !below && entry.is_some() && ends_like_a_directory(path) {
            bail!("{} is no directory", path.display());
        }
        let (mut path, mut entry) = (path.to_owned(), entry);
        if below {
            let name = name.with_context(|| format!("{}/: name the file", path.display()))?;
            path.push(name);
            entry = self.client.stat(self.there(id, &path)).await?;
        }
        for _ in 0..MAX_LINKS {
            let Some(target) = entry.as_ref().and_then(|entry| entry.symlink_target.clone()) else {
                return Ok(Target { path, entry });
            };
            path = path.parent().unwrap_or(Path::new("")).join(target);
            entry = self.client.stat(self.there(id, &path)).await?;
        }
        bail!("{}: too many links", path.display())
    }

    pub(super) fn there<'b>(&'b self, id: &'b str, path: &'b Path) -> There<'b> {
        There { id, path, user: self.user }
    }
}

pub(super) fn is_directory(entry: &Entry) -> bool {
    entry.r#type == "directory"
}

fn ends_like_a_directory(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/") || bytes.ends_with(b"/.")
}

/// Where here something goes: into the directory, if that is one.
pub(super) fn target_here(path: &Path, to: &Path) -> Result<PathBuf> {
    if to.is_dir() {
        let name = path.file_name().with_context(|| format!("{} has no name", path.display()))?;
        return Ok(to.join(name));
    }
    if ends_like_a_directory(to) {
        bail!("{} is no directory", to.display());
    }
    Ok(to.to_owned())
}

/// Whether what is in a directory is meant, and not the directory: `dir/.`, as for cp(1).
pub(super) fn is_all_of(path: &Path) -> bool {
    let bytes = path.as_os_str().as_bytes();
    bytes == b"." || bytes.ends_with(b"/.") || path.components().all(|it| it == Component::RootDir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_takes_the_files_name() {
        let dir = tempfile::tempdir().unwrap();
        let to = |to: &Path| target_here(Path::new("/tmp/b.txt"), to);
        assert_eq!(to(dir.path()).unwrap(), dir.path().join("b.txt"));
        assert_eq!(to(&dir.path().join("c")).unwrap(), dir.path().join("c"));
        assert!(to(&dir.path().join("c/")).is_err());
        assert!(target_here(Path::new("/"), dir.path()).is_err());
    }

    #[test]
    fn a_dot_at_the_end_means_what_is_in_the_directory() {
        for path in [".", "dir/.", "/dir/.", "/"] {
            assert!(is_all_of(Path::new(path)), "{path}");
        }
        for path in ["dir", "dir/", "dir/.git", "..", "a."] {
            assert!(!is_all_of(Path::new(path)), "{path}");
        }
    }
}
