//! `kill`: the end of a process in the background, or a signal for it.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use clap::builder::PossibleValuesParser;

use super::client::{Client, Heard, SessionMessage, SessionRequest};
use super::output::printable;
use super::ps::find;
use super::resolve::resolve;

/// The signals that can be sent into a sandbox.
const SIGNALS: [&str; 7] =
    ["SIGHUP", "SIGINT", "SIGQUIT", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGTERM"];

/// Arguments of `kill`.
#[derive(Debug, Args)]
pub struct KillArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Its process id or tag, see ps
    process: String,
    /// Signal to send [default: SIGTERM, and SIGKILL to all it has started after 5 s; waits for its end]
    #[arg(long, short, value_name = "SIGNAL", value_parser = PossibleValuesParser::new(SIGNALS))]
    signal: Option<String>,
}

pub(super) async fn run(client: &Client, args: KillArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    match args.signal.and_then(|name| SIGNALS.into_iter().find(|signal| *signal == name)) {
        None => client.stop_process(&id, &args.process).await?,
        Some(signal) => send(client, &id, &args.process, signal).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Sends a signal, and waits until it has arrived.
async fn send(client: &Client, id: &str, process: &str, signal: &'static str) -> Result<()> {
    let found = find(client, id, process).await?;
    if found.exit_code.is_some() {
        bail!("process {process} has ended");
    }
    // What it has written does not matter here.
    let (mut to, mut from) = client.process(id, process, found.next_seq.saturating_sub(1)).await?;
    to.say(&SessionRequest::Signal { signal }).await;
    // What is said before a goodbye arrives before it.
    to.close().await;
    loop {
        match from.next().await? {
            Heard::Message(SessionMessage::Error { message }) => bail!(printable(&message)),
            Heard::Message(SessionMessage::Exit { .. }) | Heard::Closed(_) => return Ok(()),
            Heard::Message(_) => {}
        }
    }
}
