//! Turns a path from the wire, which is bytes, into an absolute one. Knows no file system: `..` is resolved in the
//! text, as the SDKs expect, not along symbolic links.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use thiserror::Error;

/// Why a path cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PathError {
    /// The kernel's paths end at a zero byte.
    #[error("path contains a NUL byte")]
    Nul,
    /// `~name` would mean somebody else's home.
    #[error("only one's own home can be abbreviated: {path}")]
    OtherHome {
        /// What was asked for.
        path: String,
    },
}

/// Resolves `path` against a home directory; an empty one means `workdir`, or home without it.
///
/// # Errors
///
/// [`PathError::Nul`] and [`PathError::OtherHome`].
pub fn resolve(path: &OsStr, home: &Path, workdir: Option<&Path>) -> Result<PathBuf, PathError> {
    let bytes = path.as_bytes();
    if bytes.contains(&0) {
        return Err(PathError::Nul);
    }
    let joined = match bytes {
        b"" => workdir.unwrap_or(home).to_owned(),
        b"~" => home.to_owned(),
        // Whatever follows is below home, also behind more than one slash.
        [b'~', b'/', ..] => home.join(OsStr::from_bytes(&[b".", &bytes[1..]].concat())),
        [b'~', ..] => {
            return Err(PathError::OtherHome { path: path.to_string_lossy().into_owned() });
        }
        _ => home.join(path),
    };
    Ok(clean(&joined))
}

fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => cleaned.push(name),
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_resolve_as_in_a_shell_at_home() {
        let home = Path::new("/home/user");
        for (given, expected) in [
            ("", "/home/user"),
            ("~", "/home/user"),
            ("~/a", "/home/user/a"),
            ("~//a", "/home/user/a"),
            ("a//b/./c/", "/home/user/a/b/c"),
            ("../x", "/home/x"),
            ("/etc/../../passwd", "/passwd"),
            ("/", "/"),
            ("a~b", "/home/user/a~b"),
        ] {
            assert_eq!(
                resolve(given.as_ref(), home, None).unwrap(),
                Path::new(expected),
                "{given:?}"
            );
        }
        let bytes = OsStr::from_bytes(b"~/a\xff/..\xff");
        let resolved = resolve(bytes, home, None).unwrap();
        assert_eq!(resolved.as_os_str().as_bytes(), b"/home/user/a\xff/..\xff");
        assert_eq!(resolve("".as_ref(), home, Some(Path::new("/srv"))).unwrap(), Path::new("/srv"));
        assert_eq!(resolve("a\0b".as_ref(), home, None), Err(PathError::Nul));
        assert!(matches!(
            resolve("~root/x".as_ref(), home, None),
            Err(PathError::OtherHome { .. })
        ));
    }
}
