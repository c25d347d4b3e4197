//! A command without a terminal.

use std::future::pending;

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use tokio::io::{stderr, stdin, stdout};
use tokio::sync::mpsc;

use super::{End, QUEUE, Reader, read, speak, write};
use crate::cli::client::{
    Client, Data, ExecRequest, Heard, Listener, SessionMessage, SessionRequest,
};
use crate::cli::output::{printable, tell};
use crate::cli::signals::Signals;

/// Where a command's standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// It has none.
    Closed,
    /// It is ours.
    Ours,
}

/// Runs a command; passes on all it writes as it comes, and the signals that ask us to end.
///
/// # Errors
///
/// That it could not be started, or that nothing is heard of it any more, with the reason.
pub async fn follow(
    client: &Client,
    id: &str,
    request: ExecRequest,
    input: Input,
    signals: &mut Signals,
) -> Result<End> {
    let (to, from) = tokio::select! {
        opened = client.command(id) => opened?,
        signal = signals.next() => return Ok(End::Signalled(signal)),
    };
    let (say, said) = mpsc::channel(QUEUE);
    // There is room for the first ones.
    say.try_send(SessionRequest::Start(request.into())).expect("the queue is empty");
    tokio::select! {
        end = hear(from) => end,
        () = speak(to, said) => unreachable!("it does not end"),
        failed = feed(input, &say) => failed.map(|never| match never {}),
        signal = pass_on(signals, &say) => Ok(End::Signalled(signal)),
    }
}

/// Never the value of anything.
enum Never {}

/// Passes our input on.
async fn feed(input: Input, say: &mpsc::Sender<SessionRequest>) -> Result<Never> {
    let mut from = stdin();
    loop {
        let piece = match input {
            Input::Ours => read(&mut from).await?,
            Input::Closed => Vec::new(),
        };
        let eof = piece.is_empty();
        // A command that is gone takes nothing; what became of it is heard elsewhere.
        let taken = say.send(SessionRequest::Stdin { data: Data::of(&piece), eof }).await;
        if eof || taken.is_err() {
            return pending().await;
        }
    }
}

/// Passes a signal on that asks us to end; the second one is for us. So is the first in the end, but for
/// ^C, with which programs are talked to.
async fn pass_on(signals: &mut Signals, say: &mpsc::Sender<SessionRequest>) -> i32 {
    let number = signals.next().await;
    if let Ok(signal) = Signal::try_from(number) {
        // A full queue is one that the command does not read: then the first one is for us.
        if say.try_send(SessionRequest::Signal { signal: signal.as_str() }).is_err() {
            return number;
        }
    }
    if number == Signal::SIGINT as i32 {
        return signals.next().await;
    }
    signals.grace().await;
    let name = Signal::try_from(number).map_or("the signal", Signal::as_str);
    tell(&format!("nestbox: the command has not ended after {name}"));
    number
}

async fn hear(mut from: Listener) -> Result<End> {
    let (mut out, mut err) = (stdout(), stderr());
    // What was said last may be why it was closed, and is said by the error then.
    let mut told = None;
    loop {
        let reader = match from.next().await? {
            Heard::Message(SessionMessage::Stdout(data) | SessionMessage::Output(data)) => {
                write(&mut out, &data.bytes()?).await?
            }
            Heard::Message(SessionMessage::Stderr(data)) => write(&mut err, &data.bytes()?).await?,
            Heard::Message(SessionMessage::Error { message }) => {
                if let Some(before) = told.replace(printable(&message)) {
                    tell(&format!("nestbox: {before}"));
                }
                Reader::There
            }
            Heard::Message(SessionMessage::Start { .. } | SessionMessage::Gap { .. }) => {
                Reader::There
            }
            Heard::Message(SessionMessage::Exit { exit_code }) => {
                if let Some(told) = told {
                    tell(&format!("nestbox: {told}"));
                }
                return Ok(End::Exited(exit_code));
            }
            Heard::Closed(closing) => bail!(told.unwrap_or_else(|| printable(&closing.reason))),
        };
        if matches!(reader, Reader::Gone) {
            return Ok(End::Unread);
        }
    }
}
