//! Commands and processes in sandboxes that are followed while they run.

use std::convert::Infallible;
use std::future::Future;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::Workplace;
use crate::actors::host::sandbox::Lease;
use crate::domain::exec::{Exec, ExecControl, ExecEvent, ExecInput};
use crate::domain::host::HostError;
use crate::domain::process::{ProcessRef, TerminalStart};
use crate::vmm::guest::{Agent, AgentError, Begin, ExecChannels, Following};

/// Events that wait for whoever follows. One is at most what the agent reads at once, 32 KiB.
const EVENTS: usize = 4;
/// Pieces of input that wait for the command.
const INPUTS: usize = 2;
/// Signals that wait for the agent.
const CONTROLS: usize = 16;

/// Bytes of what a terminal has shown that somebody who comes back to it sees again: some screens.
const SHOWN_AGAIN: u64 = 64 << 10;

/// What is heard of a command.
pub struct ExecEvents {
    events: mpsc::Receiver<ExecEvent>,
    /// Why it is not heard any more, if it is lost.
    lost: Option<oneshot::Receiver<HostError>>,
}

impl ExecEvents {
    /// Waits for the next event. Nothing comes after [`ExecEvent::Ended`] or an error. While nobody
    /// waits the command stands still, as soon as the queues between it and here are full; unless it
    /// runs in the background, whose output is kept as long as there is room. Nothing is lost when
    /// the future is dropped.
    ///
    /// # Errors
    ///
    /// [`HostError`]: it could not be started, or the sandbox went away.
    pub async fn next(&mut self) -> Option<Result<ExecEvent, HostError>> {
        if let Some(event) = self.events.recv().await {
            return Some(Ok(event));
        }
        let outcome = self.lost.as_mut()?.await;
        self.lost = None;
        outcome.ok().map(Err)
    }
}

/// Something that is followed, or leave to begin it with a `B`. Dropping this ends a command, and
/// leaves a process in the background alone.
pub struct FollowHandle<B> {
    /// Where it begins, once.
    begin: Option<oneshot::Sender<B>>,
    /// Leads to its standard input. A queue that is full waits for the command to read.
    pub input: mpsc::Sender<ExecInput>,
    /// What is done to it.
    pub control: mpsc::Sender<ExecControl>,
    _abandon: DropGuard,
}

impl<B> FollowHandle<B> {
    /// Begins. Only the first one counts.
    pub fn begin(&mut self, with: B) {
        if let Some(begin) = self.begin.take() {
            // A sandbox that went away meanwhile is in the events.
            let _ = begin.send(with);
        }
    }

    /// Begins, and leaves nothing to begin with.
    fn begun(mut self, with: B) -> FollowHandle<Infallible> {
        self.begin(with);
        let Self { input, control, _abandon, .. } = self;
        FollowHandle { begin: None, input, control, _abandon }
    }
}

impl Workplace {
    /// Asks for leave to run a command that is followed while it runs. From now on the sandbox is
    /// not idle; what becomes of it is heard, whether or not the command has been started.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn follow_exec(&self) -> Result<(FollowHandle<Exec>, ExecEvents), HostError> {
        let lease = self.begin_work().await?;
        let metrics = self.metrics.clone();
        Ok(follow(lease, move |agent, exec, channels, abandoned| async move {
            let began = Instant::now();
            agent.follow(exec, channels, &abandoned).await?;
            metrics.command_run(began.elapsed());
            Ok(())
        }))
    }

    /// Follows a process in the background from the byte after number `after` on. The sandbox is not
    /// idle meanwhile.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn follow_process(
        &self,
        process: &ProcessRef,
        after: u64,
    ) -> Result<(FollowHandle<Infallible>, ExecEvents), HostError> {
        let mut lease = self.begin_work().await?;
        let agent = lease.agent();
        let following = lease.run(agent.listen(process, Begin::After(after))).await?;
        let (handle, events) = follow(lease, |agent, following, channels, left| async move {
            agent.accompany(following, channels, &left).await
        });
        Ok((handle.begun(following), events))
    }

    /// Asks for leave to come to a terminal. The sandbox is not idle until its client leaves; the
    /// terminal stays.
    ///
    /// # Errors
    ///
    /// [`HostError`].
    pub async fn follow_terminal(
        &self,
    ) -> Result<(FollowHandle<TerminalStart>, ExecEvents), HostError> {
        let lease = self.begin_work().await?;
        Ok(follow(lease, |agent, start, channels, left| async move {
            let following = terminal(&agent, start).await?;
            agent.accompany(following, channels, &left).await
        }))
    }
}

/// Starts a terminal, or goes back to one.
async fn terminal(agent: &Agent, start: TerminalStart) -> Result<Following, AgentError> {
    match start {
        TerminalStart::New { exec, size, tag } => {
            let pid = agent.start_background(exec, Some(size), tag.as_ref()).await?;
            agent.listen(&ProcessRef::Pid(pid), Begin::After(0)).await
        }
        TerminalStart::Existing { process, size } => {
            let following = agent.listen(&process, Begin::Tail(SHOWN_AGAIN)).await?;
            if !following.has_terminal() {
                let message = "the process has no terminal: follow its stream".to_owned();
                return Err(AgentError::Invalid { message });
            }
            if let Some(size) = size {
                following.resize(size).await?;
            }
            Ok(following)
        }
    }
}

/// Has `work` done in a task of its own, under the lease, once it is known what to begin with.
fn follow<B, W>(
    mut lease: Lease,
    work: impl FnOnce(Agent, B, ExecChannels, CancellationToken) -> W + Send + 'static,
) -> (FollowHandle<B>, ExecEvents)
where
    B: Send + 'static,
    W: Future<Output = Result<(), AgentError>> + Send,
{
    let (events, heard) = mpsc::channel(EVENTS);
    let (input, inputs) = mpsc::channel(INPUTS);
    let (control, controls) = mpsc::channel(CONTROLS);
    let (begin, begun) = oneshot::channel();
    let (lose, lost) = oneshot::channel();
    let abandoned = CancellationToken::new();
    let abandon = abandoned.clone().drop_guard();
    let handle = FollowHandle { begin: Some(begin), input, control, _abandon: abandon };
    tokio::spawn(async move {
        let begun = tokio::select! {
            biased;
            () = lease.gone() => {
                let _ = lose.send(lease.lost().into());
                return;
            }
            begun = begun => begun,
        };
        // Whoever had leave has hung up before it began.
        let Ok(begun) = begun else { return };
        let agent = lease.agent();
        let channels = ExecChannels { events, input: inputs, control: controls };
        let outcome = lease.run(work(agent, begun, channels, abandoned)).await;
        // The sandbox may idle again, whoever has yet to take the news.
        drop(lease);
        if let Err(error) = outcome {
            drop(lose.send(error.into()));
        }
    });
    (handle, ExecEvents { events: heard, lost: Some(lost) })
}
