//! Commands and terminals in sandboxes, followed as if they ran here: what is typed goes in, what is
//! written comes out, signals are passed on, and the exit code is ours.
//!
//! ```text
//! stdin   --+
//! signals --+--> queue of a few --> daemon
//! window  --+
//! stdout, stderr <----------------- daemon
//! ```
//!
//! Each arrow waits for the next one, and none for another: neither side is ever buffered without
//! bound, and a program that reads only after it has written does not get stuck.

mod command;
mod raw;
mod terminal;

use std::future::pending;
use std::io;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::client::{SessionRequest, Speaker};

pub(super) use command::{Input, follow};
pub(super) use terminal::{Target, attach};

/// Bytes that are read of our standard input at once.
const PIECE: usize = 16 << 10;

/// What waits to be said.
const QUEUE: usize = 4;

/// A daemon whose output nobody takes hears from us at least so often: it gives up after four times
/// as long.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

/// How a command or a terminal ended, as far as we are concerned.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// It ended with this exit code.
    Exited(i64),
    /// A signal asked us to end.
    Signalled(i32),
    /// Nobody reads our output any more.
    Unread,
    /// The person at the terminal has left it, and it runs on.
    Detached { pid: u32 },
}

/// Says what is to be said, in order, and that we are there. Ends never: if the daemon takes nothing
/// any more, the other direction tells why.
async fn speak(mut to: Speaker, mut said: mpsc::Receiver<SessionRequest>) {
    let mut rest = interval(SIGN_OF_LIFE);
    rest.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let done = tokio::select! {
            request = said.recv() => match request {
                Some(request) => to.say(&request).await,
                None => None,
            },
            _ = rest.tick() => to.give_sign_of_life().await,
        };
        if done.is_none() {
            return pending().await;
        }
    }
}

/// Reads a piece of our standard input; empty at its end.
async fn read(from: &mut tokio::io::Stdin) -> io::Result<Vec<u8>> {
    let mut piece = vec![0; PIECE];
    let size = from.read(&mut piece).await?;
    piece.truncate(size);
    Ok(piece)
}

/// Whether anybody still reads what we write.
enum Reader {
    There,
    Gone,
}

/// Writes output without making everything else wait for who reads it.
async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> Result<Reader> {
    let written = async {
        to.write_all(bytes).await?;
        to.flush().await
    };
    match written.await {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error.into()),
    }
}
