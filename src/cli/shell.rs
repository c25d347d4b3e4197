//! `shell`: a terminal in a sandbox.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::{Client, StartRequest};
use super::exit;
use super::output::tell;
use super::pairs::{env_pair, map};
use super::resolve::resolve;
use super::session::{End, Target, attach};
use super::signals::Signals;

/// What a shell gives a program that a broken pipe has ended: 128 and the signal's number.
const BROKEN_PIPE: u8 = 128 + 13;

/// Arguments of `shell`.
#[derive(Debug, Args)]
#[command(after_help = "ctrl-p ctrl-q leaves the terminal, and lets it run.")]
pub struct ShellArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Come back to the terminal of this process instead: its id or tag, see ps
    #[arg(long, value_name = "PROCESS", conflicts_with_all = ["cwd", "user", "envs"])]
    connect: Option<String>,
    /// Directory to start in
    #[arg(long, value_name = "DIR")]
    cwd: Option<String>,
    /// User whose shell it is
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Environment variable for it; without a value, the one it has here
    #[arg(long = "env", short, value_name = "KEY[=VALUE]", value_parser = env_pair)]
    envs: Vec<(String, String)>,
}

pub(super) async fn run(client: &Client, args: ShellArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    let target = match args.connect {
        Some(process) => Target::Existing(process),
        None => Target::New(StartRequest {
            envs: map(args.envs),
            cwd: args.cwd,
            user: args.user,
            ..StartRequest::default()
        }),
    };
    let end = attach(client, &id, target, &mut Signals::listen()?).await?;
    Ok(ExitCode::from(after(end, &id)))
}

/// The exit code for how a command ended. Says how to come back to one that was left.
pub(super) fn after(end: End, id: &str) -> u8 {
    match end {
        End::Exited(code) => exit::of_command(code),
        End::Signalled(signal) => exit::of_signal(signal),
        End::Unread => BROKEN_PIPE,
        End::Detached { pid } => {
            tell(&format!("nestbox: left; `nestbox shell {id} --connect {pid}` comes back"));
            0
        }
    }
}
