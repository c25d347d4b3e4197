//! Commands in a guest that are followed while they run.

use std::convert::Infallible;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::background::Following;
use super::process::{Control, Heard, Listen, Start, Stdin};
use super::{Agent, AgentError};
use crate::domain::exec::{Exec, ExecControl, ExecEvent, ExecInput, OutputStream, Signal};

/// How long a command that is asked to stop may take, before it is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// How long what a client has sent before it left is still passed on to a process in the background.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// The command's end of the queues between it and whoever follows it. All are bounded: a follower
/// that does not take events stops the command, and one that sends too much has to wait.
pub struct ExecChannels {
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
        channels: ExecChannels,
        abandoned: &CancellationToken,
    ) -> Result<(), AgentError> {
        let ExecChannels { events, mut input, mut control } = channels;
        let mut process = match self.start_process(exec, Stdin::Open).await? {
            Start::Runs(process) => process,
            Start::Failed { code, message } => {
                let (stream, data) = (OutputStream::Stderr, message.into());
                let line = ExecEvent::Output { stream, data, seq: None };
                // Whoever hung up need not know.
                let _ = events.send(line).await;
                let _ = events.send(ExecEvent::Ended(code)).await;
                return Ok(());
            }
        };
        let reach = process.control.clone();
        let started = ExecEvent::Started { pid: reach.pid, tag: None };
        let carrying = async {
            carry(&mut input, &reach, &events).await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            () = abandoned.cancelled() => {
                reach.kill().await;
                Ok(())
            }
            outcome = hear(started, &mut *process, &events) => outcome,
            never = carrying => match never {},
            never = obey(&mut control, &reach, &events) => match never {},
        }
    }

    /// Says what a process in the background does, until it ends or `left` is cancelled. It runs on
    /// then, and still gets what was sent to it before.
    ///
    /// # Errors
    ///
    /// [`AgentError::Unreachable`].
    pub async fn accompany(
        &self,
        mut process: Following,
        channels: ExecChannels,
        left: &CancellationToken,
    ) -> Result<(), AgentError> {
        let ExecChannels { events, mut input, mut control } = channels;
        let reach = process.control.clone();
        let started = ExecEvent::Started { pid: reach.pid, tag: process.tag.clone() };
        // Both end when nobody can send anything more and all of it is passed on.
        let last_words = async {
            let carrying = carry(&mut input, &reach, &events);
            tokio::join!(carrying, obey_from_afar(&mut control, &reach, &events));
        };
        let gone = async {
            left.cancelled().await;
            sleep(LAST_WORDS).await;
        };
        tokio::select! {
            outcome = hear(started, &mut process, &events) => outcome,
            () = last_words => Ok(()),
            // It does not read what it was sent.
            () = gone => Ok(()),
        }
    }
}

/// Passes on what is heard, at the pace at which it is taken.
async fn hear(
    started: ExecEvent,
    process: &mut impl Listen,
    events: &mpsc::Sender<ExecEvent>,
) -> Result<(), AgentError> {
    let mut event = started;
    loop {
        let ended = matches!(event, ExecEvent::Ended(_));
        if events.send(event).await.is_err() {
            // Nobody listens, which the caller knows by another way too.
            return std::future::pending().await;
        }
        if ended {
            return Ok(());
        }
        event = match process.next().await? {
            Heard::Output { stream, data, seq } => ExecEvent::Output { stream, data, seq },
            Heard::Lost(bytes) => ExecEvent::Lost(bytes),
            Heard::Ended(code) => ExecEvent::Ended(code),
        };
    }
}

/// Passes on input, at the pace at which the command reads it, until no more will come.
async fn carry(
    input: &mut mpsc::Receiver<ExecInput>,
    reach: &Control,
    events: &mpsc::Sender<ExecEvent>,
) {
    while let Some(piece) = input.recv().await {
        if let Err(error) = reach.write(piece).await {
            unreached(error, events).await;
        }
    }
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
        let done = tokio::select! {
            () = time_is_up => {
                patience = None;
                reach.signal(Signal::Kill).await
            }
            Some(control) = control.recv() => match control {
                ExecControl::Signal(signal) => reach.signal(signal).await,
                ExecControl::Resize(size) => reach.resize(size).await,
                ExecControl::Stop => {
                    patience = patience.or(Some(Instant::now() + STOP_GRACE));
                    reach.signal(Signal::Terminate).await
                }
            },
        };
        if let Err(error) = done {
            unreached(error, events).await;
        }
    }
}

/// Does to a process in the background what it is asked for, until nothing more will come. The agent
/// itself sees to it that what is stopped ends.
async fn obey_from_afar(
    control: &mut mpsc::Receiver<ExecControl>,
    reach: &Control,
    events: &mpsc::Sender<ExecEvent>,
) {
    while let Some(control) = control.recv().await {
        let done = match control {
            ExecControl::Signal(signal) => reach.signal(signal).await,
            ExecControl::Resize(size) => reach.resize(size).await,
            ExecControl::Stop => {
                let reach = reach.clone();
                // It is answered when the process has ended: what comes after it does not wait, and
                // that the process ends is heard anyway.
                tokio::spawn(async move {
                    if let Err(error) = reach.agent.stop_background(&reach.name()).await {
                        tracing::debug!(pid = reach.pid, error = %crate::chain(&error),
                            "nobody was told that a process was stopped");
                    }
                });
                Ok(())
            }
        };
        if let Err(error) = done {
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
