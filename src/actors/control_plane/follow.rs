//! Commands in sandboxes that are followed while they run.

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ControlError, ControlPlane};
use crate::domain::exec::{Exec, ExecControl, ExecEvent, ExecInput};
use crate::domain::id::SandboxId;
use crate::vmm::guest::Wires;

/// Events that wait for whoever follows. One is at most what the agent reads at once, 32 KiB.
const EVENTS: usize = 4;
/// Pieces of input that wait for the command.
const INPUTS: usize = 2;
/// Signals that wait for the agent.
const CONTROLS: usize = 16;

/// What is heard of a command.
pub struct ExecEvents {
    events: mpsc::Receiver<ExecEvent>,
    /// Why it is not heard any more, if it is lost.
    lost: Option<oneshot::Receiver<ControlError>>,
}

impl ExecEvents {
    /// Waits for the next event. Nothing comes after [`ExecEvent::Ended`] or an error. While nobody
    /// waits the command stands still, as soon as the queues between it and here are full. Nothing
    /// is lost when the future is dropped.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`]: it could not be started, or the sandbox went away.
    pub async fn next(&mut self) -> Option<Result<ExecEvent, ControlError>> {
        if let Some(event) = self.events.recv().await {
            return Some(Ok(event));
        }
        let outcome = self.lost.as_mut()?.await;
        self.lost = None;
        outcome.ok().map(Err)
    }
}

/// A command that is followed, or leave to start one. Dropping this ends the command.
pub struct ExecHandle {
    /// Where the command goes, once.
    start: Option<oneshot::Sender<Exec>>,
    /// Leads to its standard input. A queue that is full waits for the command to read.
    pub input: mpsc::Sender<ExecInput>,
    /// What is done to it.
    pub control: mpsc::Sender<ExecControl>,
    _abandon: DropGuard,
}

impl ExecHandle {
    /// Starts the command. Only the first one counts.
    pub fn start(&mut self, exec: Exec) {
        if let Some(start) = self.start.take() {
            // A sandbox that went away meanwhile is in the events.
            let _ = start.send(exec);
        }
    }
}

impl ControlPlane {
    /// Asks for leave to run a command that is followed while it runs. From now on the sandbox is
    /// not idle; what becomes of it is heard, whether or not the command has been started.
    ///
    /// # Errors
    ///
    /// [`ControlError::Work`]; [`ControlError::NoSandbox`].
    pub async fn follow_exec(
        &self,
        id: &SandboxId,
    ) -> Result<(ExecHandle, ExecEvents), ControlError> {
        let mut lease = self.begin_work(id).await?;
        let (events, heard) = mpsc::channel(EVENTS);
        let (input, inputs) = mpsc::channel(INPUTS);
        let (control, controls) = mpsc::channel(CONTROLS);
        let (start, started) = oneshot::channel();
        let (lose, lost) = oneshot::channel();
        let abandoned = CancellationToken::new();
        let handle = ExecHandle {
            start: Some(start),
            input,
            control,
            _abandon: abandoned.clone().drop_guard(),
        };
        let metrics = self.metrics.clone();
        tokio::spawn(async move {
            let exec = tokio::select! {
                biased;
                () = lease.gone() => {
                    let _ = lose.send(lease.lost().into());
                    return;
                }
                exec = started => exec,
            };
            // Whoever had leave has hung up without a command.
            let Ok(exec) = exec else { return };
            let began = Instant::now();
            let agent = lease.agent();
            let wires = Wires { events, input: inputs, control: controls };
            let outcome = lease.run(agent.follow(exec, wires, &abandoned)).await;
            // The sandbox may idle again, whoever has yet to take the news.
            drop(lease);
            match outcome {
                Ok(()) => metrics.command_run(began.elapsed()),
                Err(error) => drop(lose.send(error.into())),
            }
        });
        Ok((handle, ExecEvents { events: heard, lost: Some(lost) }))
    }
}
