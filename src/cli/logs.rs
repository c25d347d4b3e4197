//! `logs`: what a process in the background has written, and writes.

use std::io;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;

use super::client::{Client, Data, Heard, Listener, SessionMessage};
use super::output::{Format, printable, reader_gone, tell, write};
use super::ps::find;
use super::resolve::resolve;

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// Its process id or tag, see ps
    process: String,
    /// Go on with what it writes, until it ends
    #[arg(long, short)]
    follow: bool,
    /// Only what comes after the byte with this number; --json shows numbers
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    after: u64,
}

pub(super) async fn run(client: &Client, format: Format, args: LogsArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    // Number of the last byte that there is now, which is where a reader who does not follow stops.
    let process = find(client, &id, &args.process).await?;
    let last = process.next_seq.saturating_sub(1);
    if !args.follow && args.after >= last {
        return Ok(ExitCode::SUCCESS);
    }
    let (_to, from) = client.process(&id, &args.process, args.after).await?;
    let until = (!args.follow).then_some(last);
    tokio::select! {
        shown = show_all(from, until, format) => shown?,
        () = reader_gone() => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what it writes, until the byte with that number or its end.
async fn show_all(mut from: Listener, until: Option<u64>, format: Format) -> Result<()> {
    loop {
        let message = match from.next().await? {
            Heard::Message(message) => message,
            Heard::Closed(closing) if closing.code == 1000 => return Ok(()),
            Heard::Closed(closing) => bail!(printable(&closing.reason)),
        };
        show(&message, format)?;
        let is_last = match message {
            SessionMessage::Exit { .. } => true,
            SessionMessage::Stdout(data)
            | SessionMessage::Stderr(data)
            | SessionMessage::Output(data) => {
                until.is_some_and(|last| data.seq.is_some_and(|seq| seq >= last))
            }
            SessionMessage::Start { .. }
            | SessionMessage::Gap { .. }
            | SessionMessage::Error { .. } => false,
        };
        if is_last {
            return Ok(());
        }
    }
}

/// Output as it is; as JSON one message a line, so that a reader need not wait for the end.
fn show(message: &SessionMessage, format: Format) -> Result<()> {
    if format == Format::Json {
        let line = format!("{}\n", serde_json::to_string(message)?);
        return Ok(write(&mut io::stdout(), line.as_bytes())?);
    }
    let pass = |to: &mut dyn io::Write, data: &Data| -> Result<()> {
        Ok(write(&mut { to }, &data.bytes()?)?)
    };
    match message {
        SessionMessage::Stdout(data) | SessionMessage::Output(data) => {
            pass(&mut io::stdout(), data)
        }
        SessionMessage::Stderr(data) => pass(&mut io::stderr(), data),
        SessionMessage::Gap { lost_bytes } => {
            tell(&format!(
                "nestbox: {lost_bytes} bytes are missing here, they are not kept any more"
            ));
            Ok(())
        }
        SessionMessage::Error { message } => {
            tell(&format!("nestbox: {}", printable(message)));
            Ok(())
        }
        SessionMessage::Start { .. } | SessionMessage::Exit { .. } => Ok(()),
    }
}
