//! `ps`: what runs in the background of a sandbox.

use std::process::ExitCode;

use anyhow::{Result, bail};
use chrono::Utc;
use clap::Args;

use super::client::{Client, Process};
use super::output::{Format, age, printable, table};
use super::resolve::resolve;

/// Arguments of `ps`.
#[derive(Debug, Args)]
pub struct PsArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Also those that have ended
    #[arg(long, short)]
    all: bool,
}

pub(super) async fn run(client: &Client, format: Format, args: PsArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    let mut processes = client.processes(&id).await?;
    processes.retain(|process| args.all || process.exit_code.is_none());
    let now = Utc::now();
    format.print(&serde_json::json!({ "processes": processes }), || {
        let rows: Vec<_> = processes
            .iter()
            .map(|process| {
                [
                    process.pid.to_string(),
                    printable(process.tag.as_deref().unwrap_or_default()),
                    state(process),
                    age(process.started_at, now),
                    command(process),
                ]
            })
            .collect();
        table(["PID", "TAG", "STATE", "AGE", "COMMAND"], &rows)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Looks a process up by its id or tag; of several that have had a tag, the last one.
///
/// # Errors
///
/// That there is none, and where those are listed that there are.
pub(super) async fn find(client: &Client, id: &str, name: &str) -> Result<Process> {
    let known = client.processes(id).await?;
    let is_it =
        |known: &Process| known.tag.as_deref() == Some(name) || known.pid.to_string() == name;
    match known.into_iter().rev().find(is_it) {
        Some(process) => Ok(process),
        None => bail!("there is no process {name:?}: see `nestbox ps --all {id}`"),
    }
}

fn state(process: &Process) -> String {
    match process.exit_code {
        Some(code) => format!("exited {code}"),
        None => printable(&process.state),
    }
}

/// The command in one line.
fn command(process: &Process) -> String {
    let words = std::iter::once(&process.cmd).chain(&process.args);
    let line = words.map(|word| printable(word).replace('\n', " ")).collect::<Vec<_>>().join(" ");
    // A login shell has no command.
    match line.is_empty() {
        true => "(shell)".to_owned(),
        false => line,
    }
}
