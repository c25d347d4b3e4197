//! Which names and links stay inside a directory. Knows no file system.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use super::MAX_DEPTH;

/// The longest path that Linux takes.
pub const MAX_PATH: usize = 4096;

/// Why an entry is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Its name or target begins at the root.
    Absolute,
    /// Its name leads up.
    Up,
    /// It links to something outside.
    LinkOut,
    /// There is nothing in its name or target.
    Empty,
    /// Its name or target holds a zero byte.
    Nul,
    /// Its name or target is longer than any path.
    TooLong,
    /// It lies below too many directories.
    TooDeep,
    /// It is a device or a pipe.
    Device,
    /// It is of a kind that is not known, or a sparse file.
    Unknown,
    /// Something that is no directory is where it needs one.
    InTheWay,
    /// A directory is where it is to be.
    Directory,
    /// It is another name of something that is no file, or not there.
    NoFile,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Absolute => "a name in an archive does not begin at the root",
            Self::Up => "a name in an archive does not lead up",
            Self::LinkOut => "it is a link that leads out of the directory",
            Self::Empty => "a name or a link is empty",
            Self::Nul => "a name or a link contains a zero byte",
            Self::TooLong => "a name or a link is longer than 4096 bytes",
            Self::TooDeep => "it lies below more than 256 directories",
            Self::Device => "devices and pipes are not unpacked",
            Self::Unknown => "it is of a kind that is not unpacked",
            Self::InTheWay => "something that is no directory, or a link, is in its way",
            Self::Directory => "a directory is in its place",
            Self::NoFile => "it is another name of what is no file",
        })
    }
}

/// The way to an entry from the directory that is unpacked into; empty for that itself.
///
/// # Errors
///
/// Why it is refused.
pub fn inside(name: &[u8]) -> Result<PathBuf, Refusal> {
    check(name)?;
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => {
                path.push(part);
                depth += 1;
            }
            Component::CurDir => {}
            Component::ParentDir => return Err(Refusal::Up),
            Component::RootDir | Component::Prefix(_) => return Err(Refusal::Absolute),
        }
    }
    if depth > MAX_DEPTH { Err(Refusal::TooDeep) } else { Ok(path) }
}

/// Checks that a symbolic link at `path` leads nowhere outside.
///
/// `..` is taken at its beginning only, and no further up than there are directories above the link,
/// which must be real ones. After a name it could mean anything: that name may be a link itself, now
/// or later.
///
/// # Errors
///
/// Why it is refused.
pub fn leads_inside(path: &Path, target: &[u8]) -> Result<(), Refusal> {
    check(target)?;
    let above = path.components().count().saturating_sub(1);
    let (mut up, mut down) = (0, false);
    for component in Path::new(OsStr::from_bytes(target)).components() {
        match component {
            Component::Normal(_) => down = true,
            Component::CurDir => {}
            Component::ParentDir if down => return Err(Refusal::LinkOut),
            Component::ParentDir => up += 1,
            Component::RootDir | Component::Prefix(_) => return Err(Refusal::LinkOut),
        }
    }
    if up > above { Err(Refusal::LinkOut) } else { Ok(()) }
}

fn check(name: &[u8]) -> Result<(), Refusal> {
    match name {
        [] => Err(Refusal::Empty),
        _ if name.contains(&0) => Err(Refusal::Nul),
        _ if name.len() > MAX_PATH => Err(Refusal::TooLong),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below() {
        for (name, path) in
            [("a", "a"), ("./a//b/./c/", "a/b/c"), (".", ""), ("./", ""), ("..a/b..", "..a/b..")]
        {
            assert_eq!(inside(name.as_bytes()), Ok(PathBuf::from(path)), "{name}");
        }
        let deep = "d/".repeat(MAX_DEPTH + 1);
        for (name, why) in [
            ("/a", Refusal::Absolute),
            ("//", Refusal::Absolute),
            ("..", Refusal::Up),
            ("a/../b", Refusal::Up),
            ("a/..", Refusal::Up),
            ("", Refusal::Empty),
            ("a\0b", Refusal::Nul),
            (&"x".repeat(MAX_PATH + 1), Refusal::TooLong),
            (&deep, Refusal::TooDeep),
        ] {
            assert_eq!(inside(name.as_bytes()), Err(why), "{name:?}");
        }
    }

    #[test]
    fn links_stay_below() {
        let leads = |path: &str, target: &str| leads_inside(Path::new(path), target.as_bytes());
        for (path, target) in [
            ("l", "a"),
            ("l", "./a/b"),
            ("d/l", ".."),
            ("d/l", "../a"),
            ("d/e/l", "../../a/b"),
            ("l", "."),
        ] {
            assert_eq!(leads(path, target), Ok(()), "{path} -> {target}");
        }
        for (path, target) in [
            ("l", "/etc/passwd"),
            ("l", ".."),
            ("d/l", "../.."),
            ("d/l", "./../../a"),
            // Whatever `a` is, also if it is a link to here.
            ("l", "a/.."),
            ("d/l", "../a/../b"),
        ] {
            assert_eq!(leads(path, target), Err(Refusal::LinkOut), "{path} -> {target}");
        }
        assert_eq!(leads("l", ""), Err(Refusal::Empty));
    }
}
