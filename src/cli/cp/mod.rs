//! `cp`: files and directories into a sandbox, out of it, or from one to another. It means what cp(1)
//! means: into a directory that is there, else by the new name; with modes and times; through links
//! that are given, and links as links below a directory.
//!
//! - `place`: what an argument names
//! - `target`: where it goes
//! - `file`: one file
//! - `directory`: with `-r`, all that is in one

mod directory;
mod file;
mod place;
mod target;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::client::Client;
use super::exit::{self, NESTBOX_FAILED};
use super::output::Format;
use super::resolve::resolve;
use place::{Place, Spot};

/// Arguments of `cp`.
#[derive(Debug, Args)]
#[command(
    override_usage = "nestbox cp [-r] [-u USER] SRC... ID:[DST]\n       nestbox cp [-r] [-u USER] ID:[SRC]... DST",
    after_help = "\
Into a directory that is there it goes by its own name, else by the name that is given; `DIR/.` is all \
that is in a directory. Modes and times come along. `ID:` alone is the home of the user."
)]
pub struct CpArgs {
    /// Copy directories with all in them; with `-`, as a tar archive
    #[arg(short, long)]
    recursive: bool,
    /// User in the sandboxes whose rights count, and to whom belongs what is made
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Files here, `ID:PATH` for one in a sandbox, or `-` for stdin; and last where to: a file or
    /// directory here, `ID:PATH`, or `-` for stdout
    #[arg(value_name = "SRC... DST", required = true, num_args = 2.., value_parser = place::parser())]
    places: Vec<Place>,
}

/// What all copies of one call share.
struct Copying<'a> {
    client: &'a Client,
    format: Format,
    user: Option<&'a str>,
    recursive: bool,
}

pub(super) async fn run(client: &Client, format: Format, args: CpArgs) -> Result<ExitCode> {
    let mut spots = Vec::new();
    for place in args.places {
        spots.push(match place {
            Place::Stream => Spot::Stream,
            Place::Here(path) => Spot::Here(path),
            Place::Sandbox { id, path } => Spot::There { id: resolve(client, &id).await?, path },
        });
    }
    let (to, from) = spots.split_last().expect("clap requires two");
    let copying = Copying { client, format, user: args.user.as_deref(), recursive: args.recursive };
    if let [from] = from {
        copying.one(from, to).await?;
        return Ok(ExitCode::SUCCESS);
    }
    if from.contains(&Spot::Stream) || !copying.is_directory(to).await? {
        bail!("of several, each goes into a directory: {to} is none");
    }
    let mut code = ExitCode::SUCCESS;
    for from in from {
        // The others are no worse for it.
        if let Err(error) = copying.one(from, to).await.with_context(|| from.to_string()) {
            exit::failed(&error);
            code = ExitCode::from(NESTBOX_FAILED);
        }
    }
    Ok(code)
}

impl Copying<'_> {
    async fn one(&self, from: &Spot, to: &Spot) -> Result<()> {
        if !matches!((from, to), (Spot::There { .. }, _) | (_, Spot::There { .. })) {
            bail!("neither is in a sandbox: write ID:PATH for the one that is");
        }
        match self.recursive && (*from == Spot::Stream || self.is_directory(from).await?) {
            true => self.directory(from, to).await,
            false => self.file(from, to).await,
        }
    }
}
