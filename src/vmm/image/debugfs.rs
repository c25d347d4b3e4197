//! Looks into an ext4 filesystem and writes to it without mounting it: it may be anybody's, and no
//! link in it is followed here. By debugfs(8), which takes any path and any inode for what it is told
//! they are, so paths are resolved here.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::command::{CommandError, Tool};

/// Links that lead to a directory; the kernel follows 40.
const MOST_LINKS: usize = 8;

/// What a path leads to.
#[derive(Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory.
    There(String),
    /// Nothing yet: these directories are missing, each in the one before, the last one meant.
    Missing(Vec<String>),
    /// Something that is no directory, or that cannot be named to debugfs.
    Blocked,
}

/// What stands at a path without links in it.
enum Kind {
    Directory,
    Link(String),
    Other,
    Nothing,
}

/// Finds the directory `path` in `disk`, through the filesystem's own links.
///
/// # Errors
/// [`CommandError`] if debugfs cannot be run.
pub fn resolve(disk: &Path, path: &str) -> Result<Place, CommandError> {
    let names = |path: &str| path.split('/').map(str::to_owned).collect::<Vec<_>>();
    let mut ahead: VecDeque<String> = names(path).into();
    let (mut real, mut missing, mut links) = (String::new(), Vec::new(), 0);
    while let Some(name) = ahead.pop_front() {
        match name.as_str() {
            "" | "." => continue,
            ".." => {
                real.truncate(real.rfind('/').unwrap_or(0));
                continue;
            }
            name if !is_plain(name) => return Ok(Place::Blocked),
            _ => {}
        }
        let next = format!("{real}/{name}");
        match kind(disk, &next)? {
            Kind::Directory => real = next,
            Kind::Nothing => {
                missing.push(next.clone());
                real = next;
            }
            Kind::Link(target) if links < MOST_LINKS => {
                links += 1;
                if target.starts_with('/') {
                    real.clear();
                }
                names(&target).into_iter().rev().for_each(|name| ahead.push_front(name));
            }
            Kind::Link(_) | Kind::Other => return Ok(Place::Blocked),
        }
    }
    Ok(if missing.is_empty() { Place::There(real) } else { Place::Missing(missing) })
}

fn kind(disk: &Path, path: &str) -> Result<Kind, CommandError> {
    let told = Tool::new("debugfs", "e2fsprogs")
        .args(["-R", &format!("stat {path}")])
        .arg(disk)
        .output()?;
    let told = String::from_utf8_lossy(&told);
    let after = |mark: &str| told.split_once(mark).map(|(_, rest)| rest);
    Ok(match after("Type: ").and_then(|rest| rest.split_whitespace().next()) {
        None => Kind::Nothing,
        Some("directory") => Kind::Directory,
        Some("symlink") => {
            let target = after("Fast link dest: \"").and_then(|rest| rest.split('"').next());
            // A long one is kept elsewhere. No directory of libraries is that far away.
            target.map_or(Kind::Other, |target| Kind::Link(target.to_owned()))
        }
        Some(_) => Kind::Other,
    })
}

/// Has debugfs write to `disk` what `script` says, from within `dir`, and returns its complaints:
/// its status does not tell. `work` is scratch space.
///
/// # Errors
/// Those of writing the script and of running debugfs.
pub fn write(
    disk: &Path,
    dir: &Path,
    work: &Path,
    script: &str,
) -> Result<Vec<String>, WriteError> {
    let file = work.join("script.debugfs");
    let save = || {
        fs::write(&file, script)?;
        Ok((file.canonicalize()?, disk.canonicalize()?))
    };
    let (file, disk) =
        save().map_err(|source| WriteError::Script { path: file.clone(), source })?;
    let mut said = Vec::new();
    Tool::new("debugfs", "e2fsprogs")
        .args(["-w".as_ref(), "-f".as_ref(), file.as_os_str(), disk.as_os_str()])
        .current_dir(dir)
        .run_watched(|line| {
            // The first line is its version.
            if !line.starts_with("debugfs ") && !line.is_empty() {
                said.push(line.to_owned());
            }
        })
        .map_err(WriteError::Run)?;
    Ok(said)
}

/// Why debugfs was not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// Its script could not be written.
    #[error("cannot write {}", path.display())]
    Script {
        /// The script.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("cannot write into the filesystem")]
    Run(#[source] CommandError),
}

/// Whether a name is one word to debugfs, and leads nowhere else.
pub fn is_plain(name: &str) -> bool {
    let safe = |c: char| c.is_ascii_alphanumeric() || "._-+~".contains(c);
    !name.is_empty() && !name.starts_with('.') && name.chars().all(safe)
}
