//! Turns a path from the wire into an absolute one. Knows no file system: `..` is resolved in the
//! text, as the SDKs expect, not along symbolic links.

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
pub fn resolve(path: &str, home: &Path, workdir: Option<&Path>) -> Result<PathBuf, PathError> {
    if path.contains('\0') {
        return Err(PathError::Nul);
    }
    let joined = match path {
        "" => workdir.unwrap_or(home).to_owned(),
        "~" => home.to_owned(),
        _ => match path.strip_prefix('~') {
            Some(rest) if rest.starts_with('/') => home.join(rest.trim_start_matches('/')),
            Some(_) => return Err(PathError::OtherHome { path: path.to_owned() }),
            None => home.join(path),
        },
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
            ("a//b/./c/", "/home/user/a/b/c"),
            ("../x", "/home/x"),
            ("/etc/../../passwd", "/passwd"),
            ("/", "/"),
            ("a~b", "/home/user/a~b"),
        ] {
            assert_eq!(resolve(given, home, None).unwrap(), Path::new(expected), "{given:?}");
        }
        assert_eq!(resolve("", home, Some(Path::new("/srv"))).unwrap(), Path::new("/srv"));
        assert_eq!(resolve("a\0b", home, None), Err(PathError::Nul));
        assert!(matches!(resolve("~root/x", home, None), Err(PathError::OtherHome { .. })));
    }
}
