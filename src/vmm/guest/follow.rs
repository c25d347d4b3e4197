//! Commands in a guest that are followed while they run.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::process::{Control, Heard, Process, Start, Stdin};
use super::{Agent, AgentError};
use crate::domain::exec::{Exec, ExecControl, ExecEvent, ExecInput, OutputStream, Signal};

/// How long a command that is asked to stop may take, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// The command's end of the queues between it and whoever follows it. All are bounded: a follower
/// that does not take events stops the command, and one that sends too much has to wait.
pub struct Wires {
    /// Where it is heard.
    pub events: mpsc::Sender<ExecEvent>,
    /// What goes to its standard input.
    pub input: mpsc::Receiver<ExecInput>,
    /// What is done to it. A queue of its own, because input may have to wait for the command.
    pub control: mpsc::Receiver<ExecControl>,
}

impl Agent {
    /// Runs a command to its end and says what it does meanwhile. Cancelling `abandoned` kills it.
    /// The last event is [`ExecEvent::Ended`], but for a command that was abandoned.
    ///
    /// # Errors
    ///
    /// As [`Agent::exec`].
    pub async fn follow(
        &self,
        exec: Exec,
        wires: Wires,
        abandoned: &CancellationToken,
    ) -> Result<(), AgentError> {
        let Wires { events, mut input, mut control } = wires;
        let mut process = match self.start_process(exec, Stdin::Open).await? {
            Start::Runs(process) => process,
            Start::Failed { code, message } => {
                let line = ExecEvent::Output(OutputStream::Stderr, message.into());
                // Whoever hung up need not know.
                let _ = events.send(line).await;
                let _ = events.send(ExecEvent::Ended(code)).await;
                return Ok(());
            }
        };
        let reach = process.control.clone();
        tokio::select! {
            biased;
            () = abandoned.cancelled() => {
                reach.kill().await;
                Ok(())
            }
            outcome = hear(&mut process, &events) => outcome,
            never = carry(&mut input, &reach, &events) => match never {},
            never = obey(&mut control, &reach, &events) => match never {},
        }
    }
}

/// Passes on what is heard, at the pace at which it is taken.
async fn hear(process: &mut Process, events: &mpsc::Sender<ExecEvent>) -> Result<(), AgentError> {
    let mut event = ExecEvent::Started(process.control.pid);
    loop {
        let ended = matches!(event, ExecEvent::Ended(_));
        if events.send(event).await.is_err() {
            // Nobody listens, which `abandoned` says too: it is killed there.
            return std::future::pending().await;
        }
        if ended {
            return Ok(());
        }
        event = match process.next().await? {
            Heard::Output(stream, data) => ExecEvent::Output(stream, data),
            Heard::Ended(code) => ExecEvent::Ended(code),
        };
    }
}

/// Passes on input, at the pace at which the command reads it.
async fn carry(
    input: &mut mpsc::Receiver<ExecInput>,
    reach: &Control,
    events: &mpsc::Sender<ExecEvent>,
) -> Infallible {
    while let Some(piece) = input.recv().await {
        if let Err(error) = reach.write(piece).await {
            unreached(error, events).await;
        }
    }
    std::future::pending().await
}

/// Signals the command, and kills it when it was asked to stop and did not.
async fn obey(
    control: &mut mpsc::Receiver<ExecControl>,
    reach: &Control,
    events: &mpsc::Sender<ExecEvent>,
) -> Infallible {
    let mut patience: Option<Instant> = None;
    loop {
        let time_is_up = async {
            match patience {
                Some(end) => sleep_until(end).await,
                None => std::future::pending().await,
            }
        };
        let signal = tokio::select! {
            () = time_is_up => {
                patience = None;
                Signal::Kill
            }
            Some(control) = control.recv() => match control {
                ExecControl::Signal(signal) => signal,
                ExecControl::Stop => {
                    patience = patience.or(Some(Instant::now() + STOP_GRACE));
                    Signal::Terminate
                }
            },
        };
        if let Err(error) = reach.signal(signal).await {
            unreached(error, events).await;
        }
    }
}

async fn unreached(error: AgentError, events: &mpsc::Sender<ExecEvent>) {
    let message = match error {
        AgentError::Failed { message, .. } => message,
        other => other.to_string(),
    };
    // Whoever hung up need not know.
    let _ = events.send(ExecEvent::Unreached(message)).await;
}
