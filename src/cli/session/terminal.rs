//! A terminal in a sandbox, shown on ours.

use std::future::pending;

use anyhow::{Context, Result, bail};
use tokio::io::{stdin, stdout};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::raw::{Keys, RawMode, Typed, size, typed};
use super::{End, QUEUE, Reader, speak, write};
use crate::cli::client::{
    Client, ClientError, Closing, Data, Heard, Listener, SessionMessage, SessionRequest,
    StartRequest,
};
use crate::cli::output::printable;
use crate::cli::signals::Signals;

/// Which terminal.
#[derive(Debug)]
pub enum Target {
    /// A new one, and what runs on it.
    New(StartRequest),
    /// One that is there, by process id or tag.
    Existing(String),
}

impl From<Target> for SessionRequest {
    fn from(target: Target) -> Self {
        let size = size();
        match target {
            Target::New(start) => Self::Start(StartRequest { size, ..start }),
            Target::Existing(process) => match process.parse() {
                Ok(pid) => Self::Connect { pid: Some(pid), tag: None, size },
                Err(_) => Self::Connect { pid: None, tag: Some(process), size },
            },
        }
    }
}

/// Shows a terminal until what runs on it ends, or the person leaves it.
///
/// # Errors
///
/// That ours is none, that it could not be started, or that it is not heard of any more: with the
/// reason, and how to come back to it.
pub async fn attach(
    client: &Client,
    id: &str,
    target: Target,
    signals: &mut Signals,
) -> Result<End> {
    RawMode::possible()?;
    let (to, mut from) = tokio::select! {
        opened = client.terminal(id) => opened?,
        signal = signals.next() => return Ok(End::Signalled(signal)),
    };
    let (say, said) = mpsc::channel(QUEUE);
    // There is room for the first one.
    say.try_send(target.into()).expect("the queue is empty");
    let shown = async {
        let pid = tokio::select! {
            pid = started(&mut from) => pid?,
            signal = signals.next() => return Ok(End::Signalled(signal)),
        };
        // Only now: until then an error is shown on a terminal as it was.
        let raw = RawMode::begin()?;
        let end = tokio::select! {
            end = show(&mut from) => end,
            failed = resize(&say) => failed,
            end = pass_on(&say) => end.map(|()| Shown::Left),
            signal = signals.next() => Ok(Shown::Signalled(signal)),
        };
        drop(raw);
        match end? {
            Shown::Exited(code) => Ok(End::Exited(code)),
            Shown::Signalled(signal) => Ok(End::Signalled(signal)),
            Shown::Left => Ok(End::Detached { pid }),
            Shown::Lost(why) => {
                let back = format!("nestbox shell {id} --connect {pid}");
                bail!("{why}; what runs on the terminal goes on, and `{back}` leads back to it")
            }
            Shown::Closed(closing) if closing.code == Closing::PAUSED => bail!(
                "{}; `nestbox resume {id}`, then `nestbox shell {id} --connect {pid}` goes on where it was",
                printable(&closing.reason)
            ),
            Shown::Closed(closing) => bail!(printable(&closing.reason)),
        }
    };
    tokio::select! {
        end = shown => end,
        () = speak(to, said) => unreachable!("it does not end"),
    }
}

/// Why nothing more is shown.
enum Shown {
    Exited(i64),
    Signalled(i32),
    /// By the person.
    Left,
    /// The connection broke.
    Lost(String),
    Closed(Closing),
}

/// Waits until something runs on the terminal; gives its process id.
async fn started(from: &mut Listener) -> Result<u32> {
    let mut told = None;
    loop {
        match from.next().await? {
            Heard::Message(SessionMessage::Start { pid }) => return Ok(pid),
            Heard::Message(SessionMessage::Error { message }) => told = Some(message),
            Heard::Message(_) => {}
            Heard::Closed(closing) => bail!(printable(&told.unwrap_or(closing.reason))),
        }
    }
}

async fn show(from: &mut Listener) -> Result<Shown> {
    let mut out = stdout();
    loop {
        let message = match from.next().await {
            Ok(Heard::Message(message)) => message,
            Ok(Heard::Closed(closing)) => return Ok(Shown::Closed(closing)),
            Err(ClientError::NoStream { source, .. }) => {
                return Ok(Shown::Lost(source.to_string()));
            }
            Err(error) => return Err(error.into()),
        };
        let reader = match message {
            SessionMessage::Output(data)
            | SessionMessage::Stdout(data)
            | SessionMessage::Stderr(data) => write(&mut out, &data.bytes()?).await?,
            // On a raw terminal a line begins where the last one has ended.
            SessionMessage::Error { message } => {
                let line = format!("\r\nnestbox: {}\r\n", printable(&message));
                write(&mut out, line.as_bytes()).await?
            }
            SessionMessage::Exit { exit_code } => return Ok(Shown::Exited(exit_code)),
            SessionMessage::Start { .. } | SessionMessage::Gap { .. } => Reader::There,
        };
        if matches!(reader, Reader::Gone) {
            return Ok(Shown::Left);
        }
    }
}

/// Passes on what is typed; ends when the person leaves, or is gone.
async fn pass_on(say: &mpsc::Sender<SessionRequest>) -> Result<()> {
    let mut from = stdin();
    let mut keys = Keys::default();
    loop {
        let bytes = typed(&mut from).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        let (input, leaves) = match keys.typed(&bytes) {
            Typed::Input(input) => (input, false),
            Typed::Leave(input) => (input, true),
        };
        if !input.is_empty() && say.send(SessionRequest::Input(Data::of(&input))).await.is_err() {
            return pending().await;
        }
        if leaves {
            return Ok(());
        }
    }
}

/// Has the terminal change its size with ours.
async fn resize(say: &mpsc::Sender<SessionRequest>) -> Result<Shown> {
    let mut changes =
        signal(SignalKind::window_change()).context("cannot listen for the window's size")?;
    loop {
        changes.recv().await;
        if let Some(size) = size()
            && say.send(SessionRequest::Resize(size)).await.is_err()
        {
            return pending().await;
        }
    }
}
