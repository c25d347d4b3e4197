//! What an argument of `cp` names.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use clap::builder::{OsStringValueParser, TypedValueParser};

use crate::cli::output::printable;

/// One end of a copy, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Stdin or stdout.
    Stream,
    /// A path on this machine.
    Here(PathBuf),
    /// A path in a sandbox.
    Sandbox { id: String, path: PathBuf },
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Spot {
    /// Stdin or stdout.
    Stream,
    /// A path on this machine.
    Here(PathBuf),
    /// A path in the sandbox with this id.
    There { id: String, path: PathBuf },
}

impl fmt::Display for Spot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stream => f.write_str("-"),
            Self::Here(path) => f.write_str(&printable(&path.to_string_lossy())),
            Self::There { id, path } => {
                write!(f, "{id}:{}", printable(&path.to_string_lossy()))
            }
        }
    }
}

/// The argument names no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the path is empty")]
pub(super) struct EmptyPath;

/// Reads an argument, which need not be text.
pub(super) fn parser() -> impl TypedValueParser<Value = Place> {
    OsStringValueParser::new().try_map(|text: OsString| parse(&text))
}

fn parse(text: &OsStr) -> Result<Place, EmptyPath> {
    let bytes = text.as_bytes();
    if bytes.is_empty() {
        return Err(EmptyPath);
    }
    if bytes == b"-" {
        return Ok(Place::Stream);
    }
    let colon = bytes.iter().position(|byte| *byte == b':');
    let split = colon.map(|colon| (&bytes[..colon], &bytes[colon + 1..]));
    // A local name with a colon is written with a slash before it: ./a:b
    match split.and_then(|(id, path)| Some((std::str::from_utf8(id).ok()?, path))) {
        Some((id, path)) if !id.is_empty() && !id.contains('/') => {
            // Where a user's relative paths begin is the home.
            let path = if path.is_empty() { b"." } else { path };
            Ok(Place::Sandbox { id: id.to_owned(), path: OsStr::from_bytes(path).into() })
        }
        _ => Ok(Place::Here(text.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_sandbox_when_an_id_stands_before_the_colon() {
        let sandbox = |id: &str, path: &[u8]| {
            Ok(Place::Sandbox { id: id.to_owned(), path: OsStr::from_bytes(path).into() })
        };
        let here = |path: &str| Ok(Place::Here(path.into()));
        for (text, want) in [
            (&b"abc:/tmp/x"[..], sandbox("abc", b"/tmp/x")),
            (b"abc:x", sandbox("abc", b"x")),
            (b"abc:/a:b", sandbox("abc", b"/a:b")),
            (b"abc:bad\xff", sandbox("abc", b"bad\xff")),
            (b"abc:", sandbox("abc", b".")),
            (b"-", Ok(Place::Stream)),
            (b"file", here("file")),
            (b"./a:b", here("./a:b")),
            (b"/tmp/a:b", here("/tmp/a:b")),
            (b":x", here(":x")),
            (b"", Err(EmptyPath)),
        ] {
            assert_eq!(parse(OsStr::from_bytes(text)), want, "{text:?}");
        }
    }
}
