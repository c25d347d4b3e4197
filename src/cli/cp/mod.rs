//! `cp`: files and directories into a sandbox or out of it.
//!
//! - `file`: one file
//! - `directory`: with `-r`, all that is in one

mod directory;
mod file;

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Result, bail};
use clap::Args;

use super::client::Client;
use super::output::Format;
use super::resolve::resolve;

/// Arguments of `cp`.
#[derive(Debug, Args)]
#[command(override_usage = "nestbox cp [-r] SRC ID:DST\n       nestbox cp [-r] ID:SRC DST")]
pub struct CpArgs {
    /// Copy directories with all in them; with `-`, as a tar archive
    #[arg(short, long)]
    recursive: bool,
    /// A file here, `ID:PATH` for one in a sandbox, or `-` for stdin
    #[arg(value_name = "SRC")]
    from: Place,
    /// A file or directory here, `ID:PATH` for one in a sandbox, or `-` for stdout
    #[arg(value_name = "DST")]
    to: Place,
}

/// One end of a copy.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// Stdin or stdout.
    Stream,
    /// A path on this machine.
    Here(PathBuf),
    /// A path in a sandbox.
    Sandbox { id: String, path: String },
}

/// The argument names no place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
enum PlaceError {
    #[error("the path is empty")]
    Empty,
    #[error("there is no path after the colon")]
    NoPath,
}

impl FromStr for Place {
    type Err = PlaceError;

    fn from_str(text: &str) -> Result<Self, PlaceError> {
        match text.split_once(':') {
            _ if text.is_empty() => Err(PlaceError::Empty),
            _ if text == "-" => Ok(Self::Stream),
            // A local name with a colon is written with a slash before it: ./a:b
            Some((id, _)) if id.is_empty() || id.contains('/') => Ok(Self::Here(text.into())),
            Some((_, "")) => Err(PlaceError::NoPath),
            Some((id, path)) => Ok(Self::Sandbox { id: id.to_owned(), path: path.to_owned() }),
            None => Ok(Self::Here(text.into())),
        }
    }
}

pub(super) async fn run(client: &Client, format: Format, args: CpArgs) -> Result<ExitCode> {
    match (args.from, args.to) {
        (Place::Sandbox { .. }, Place::Sandbox { .. }) => {
            bail!("cannot copy between sandboxes directly: copy through `-` or a file here")
        }
        (Place::Sandbox { id, path }, to) => {
            let id = resolve(client, &id).await?;
            match args.recursive && directory::is_one_there(client, &id, &path).await? {
                true => directory::download(client, format, &id, &path, &to).await?,
                false => file::download(client, format, &id, &path, &to).await?,
            }
        }
        (from, Place::Sandbox { id, path }) => {
            let id = resolve(client, &id).await?;
            match args.recursive && directory::is_one_here(&from) {
                true => directory::upload(client, format, &from, &id, &path).await?,
                false => file::upload(client, format, &from, &id, &path).await?,
            }
        }
        (_, _) => bail!("neither is in a sandbox: write ID:PATH for the one that is"),
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_in_a_sandbox_when_an_id_stands_before_the_colon() {
        let sandbox =
            |id: &str, path: &str| Ok(Place::Sandbox { id: id.to_owned(), path: path.to_owned() });
        let here = |path: &str| Ok(Place::Here(path.into()));
        for (text, want) in [
            ("abc:/tmp/x", sandbox("abc", "/tmp/x")),
            ("abc:x", sandbox("abc", "x")),
            ("abc:/a:b", sandbox("abc", "/a:b")),
            ("-", Ok(Place::Stream)),
            ("file", here("file")),
            ("./a:b", here("./a:b")),
            ("/tmp/a:b", here("/tmp/a:b")),
            (":x", here(":x")),
            ("abc:", Err(PlaceError::NoPath)),
            ("", Err(PlaceError::Empty)),
        ] {
            assert_eq!(text.parse::<Place>(), want, "{text}");
        }
    }
}
