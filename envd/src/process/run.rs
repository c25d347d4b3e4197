//! One process from its start to its end: who follows it, how its output gets to them, how it is
//! waited for.
//!
//! ```text
//!   pipes / terminal --> run() --> follower 1 (its own queue)
//!   pidfd ------------>        --> follower 2 ...
//! ```
//!
//! While the process runs, `run` waits for the slowest follower, and so the process does too: its
//! pipe fills up. With nobody following, output is read and thrown away. Once the process has
//! ended, what is left in its pipes is little, and is queued without waiting, so that a stuck
//! follower delays nobody else's end event.
//!
//! What a process in the background writes is also kept in a [`Record`].

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use nestbox_proto::process::ProcessConfig;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::Pid;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::cgroup::Cgroup;
use super::record::Record;
use super::stream::{Kind, Shared, Source, Turn};

/// Chunks of output that may wait for one follower.
const QUEUE: usize = 4;
/// A terminal tells its end a little after the process is gone; longer than this only if another
/// process holds it open.
const TERMINAL_GRACE: Duration = Duration::from_millis(200);

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(Signal),
}

/// What a follower sees.
#[derive(Debug, Clone)]
pub enum Event {
    /// Some output.
    Data(Kind, Bytes),
    /// The end; nothing comes after it.
    End(Outcome),
}

/// Where input goes.
#[derive(Debug)]
pub enum Input {
    /// To a pipe.
    Pipe(Shared),
    /// To a terminal.
    Terminal(Shared),
    /// Nowhere: never opened, or closed since.
    Closed,
}

/// A process that was started and has not been waited for yet.
#[derive(Debug)]
pub struct Process {
    /// Its id.
    pub pid: i32,
    /// The caller's name for it.
    pub tag: Option<String>,
    /// As it was asked for.
    pub config: ProcessConfig,
    /// Held while writing, so that two writers do not mix.
    pub input: tokio::sync::Mutex<Input>,
    /// The agent's end of its terminal, if it has one.
    pub terminal: Option<Shared>,
    /// Cancelled when it has ended.
    pub ended: CancellationToken,
    cgroup: Mutex<Option<Cgroup>>,
    followers: Mutex<Vec<Follower>>,
    /// What it writes, if that is kept.
    record: Option<Arc<Record>>,
}

#[derive(Debug, Clone)]
struct Follower {
    queue: UnboundedSender<Queued>,
    room: Arc<Semaphore>,
}

/// An event, and the place it takes up until it is taken out.
type Queued = (Event, Option<OwnedSemaphorePermit>);

/// The receiving end of one follower. Dropping it is how one stops following.
#[derive(Debug)]
pub struct Events(UnboundedReceiver<Queued>);

impl Events {
    /// Waits for the next event; `None` after the last one.
    pub async fn next(&mut self) -> Option<Event> {
        self.0.recv().await.map(|(event, _place)| event)
    }
}

impl Process {
    /// A process that has just been started; [`run`] takes it from here.
    pub fn new(
        pid: i32,
        tag: Option<String>,
        config: ProcessConfig,
        input: Input,
        terminal: Option<Shared>,
        cgroup: Option<Cgroup>,
        record: Option<Arc<Record>>,
    ) -> Self {
        Self {
            pid,
            tag,
            config,
            input: tokio::sync::Mutex::new(input),
            terminal,
            ended: CancellationToken::new(),
            cgroup: Mutex::new(cgroup),
            followers: Mutex::new(Vec::new()),
            record,
        }
    }

    /// Follows it from now on.
    pub fn follow(&self) -> Events {
        let (queue, events) = unbounded_channel();
        let follower = Follower { queue, room: Arc::new(Semaphore::new(QUEUE)) };
        self.followers.lock().unwrap_or_else(PoisonError::into_inner).push(follower);
        Events(events)
    }

    /// Sends a signal to its process group.
    ///
    /// # Errors
    ///
    /// The kernel's, when the group is gone.
    pub fn signal(&self, signal: Signal) -> nix::Result<()> {
        killpg(Pid::from_raw(self.pid), signal)
    }

    /// Kills it and all its descendants, where there is a cgroup; else its process group.
    ///
    /// # Errors
    ///
    /// The kernel's, when the group is gone.
    pub fn kill(&self) -> nix::Result<()> {
        let cgroup = self.cgroup.lock().unwrap_or_else(PoisonError::into_inner);
        match cgroup.as_ref().map(Cgroup::kill) {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => killpg(Pid::from_raw(self.pid), Signal::SIGKILL),
        }
    }

    /// Gives up its cgroup, once it has ended.
    pub fn take_cgroup(&self) -> Option<Cgroup> {
        self.cgroup.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn followers(&self) -> Vec<Follower> {
        let mut followers = self.followers.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain(|follower| !follower.queue.is_closed());
        followers.clone()
    }

    /// Queues an event for everybody; waits for room while the process runs.
    async fn deliver(&self, event: Event, watch: &mut Watch<'_>) {
        if let (Some(record), Event::Data(kind, chunk)) = (&self.record, &event) {
            record.append(*kind, chunk);
            tokio::select! {
                biased;
                () = watch.ended() => {}
                () = record.room() => {}
            }
        }
        for follower in self.followers() {
            let place = tokio::select! {
                biased;
                () = watch.ended() => None,
                place = Arc::clone(&follower.room).acquire_owned() => place.ok(),
                () = follower.queue.closed() => continue,
            };
            // Fails only for a follower that has just left.
            let _ = follower.queue.send((event.clone(), place));
        }
    }
}

/// Waits for the end of a process, and kills it when its time is up.
struct Watch<'a> {
    process: &'a Process,
    pidfd: AsyncFd<OwnedFd>,
    deadline: Option<Instant>,
    outcome: Option<Outcome>,
}

impl Watch<'_> {
    /// Returns once the process has ended, at once if it had before. Safe to drop and call again.
    async fn ended(&mut self) {
        while self.outcome.is_none() {
            let deadline = self.deadline;
            let time_is_up = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep_until(deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                ready = self.pidfd.readable() => {
                    let outcome = wait(&self.pidfd);
                    if let Ok(mut ready) = ready && outcome.is_none() {
                        ready.clear_ready();
                    }
                    self.outcome = outcome;
                }
                () = time_is_up => {
                    self.deadline = None;
                    // It may have ended at this very moment.
                    let _ = self.process.kill();
                }
            }
        }
    }
}

/// Reaps the process; `None` while it still runs.
fn wait(pidfd: &AsyncFd<OwnedFd>) -> Option<Outcome> {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
    match waitid(Id::PIDFd(pidfd.get_ref().as_fd()), flags) {
        Ok(WaitStatus::Exited(_, status)) => Some(Outcome::Exited(status)),
        Ok(WaitStatus::Signaled(_, signal, _)) => Some(Outcome::Killed(signal)),
        Ok(_) => None,
        // Nobody else waits for our children, so it cannot have been reaped elsewhere.
        Err(_) => Some(Outcome::Exited(255)),
    }
}

/// Runs the process to its end: passes on its output, reaps it, tells its followers. Returns the
/// streams that descendants still hold open, for [`discard`].
pub async fn run(
    process: &Process,
    pidfd: AsyncFd<OwnedFd>,
    mut sources: Vec<Source>,
    deadline: Option<Instant>,
) -> (Vec<Source>, Outcome) {
    let mut watch = Watch { process, pidfd, deadline, outcome: None };
    // One for all streams: else the one would go on in the other's turn.
    let mut turn = Turn::default();
    while watch.outcome.is_none() {
        turn.go_on().await;
        let (kind, chunk) = tokio::select! {
            () = watch.ended() => break,
            output = next_of(&mut sources) => output,
        };
        turn.spend(chunk.len());
        process.deliver(Event::Data(kind, chunk), &mut watch).await;
    }
    for source in &mut sources {
        drain(process, source, &mut watch).await;
    }
    let outcome = watch.outcome.unwrap_or(Outcome::Exited(255));
    sources.retain(Source::is_open);
    (sources, outcome)
}

impl Process {
    /// Tells all followers that it has ended, and lets go of them.
    pub fn announce(&self, outcome: Outcome) {
        if let Some(record) = &self.record {
            record.end(outcome);
        }
        let followers =
            std::mem::take(&mut *self.followers.lock().unwrap_or_else(PoisonError::into_inner));
        for follower in followers {
            let _ = follower.queue.send((Event::End(outcome), None));
        }
        self.ended.cancel();
    }
}

/// The next bytes of whichever stream has some; never returns once all have ended.
async fn next_of(sources: &mut [Source]) -> (Kind, Bytes) {
    let open = sources.iter_mut().filter(|source| source.is_open());
    let mut reads: FuturesUnordered<_> = open.map(read_one).collect();
    while let Some((kind, chunk)) = reads.next().await {
        if let Some(chunk) = chunk {
            return (kind, chunk);
        }
    }
    std::future::pending().await
}

async fn read_one(source: &mut Source) -> (Kind, Option<Bytes>) {
    (source.kind(), source.next().await)
}

/// Passes on what the process has left behind in a stream.
async fn drain(process: &Process, source: &mut Source, watch: &mut Watch<'_>) {
    let kind = source.kind();
    if kind == Kind::Terminal {
        // Its output passes through a kernel worker, so what waits now need not be all.
        let end = Instant::now() + TERMINAL_GRACE;
        let mut turn = Turn::default();
        // The clock is looked at as well: a timeout lets what is ready at once go first, for ever.
        while Instant::now() < end
            && let Ok(Some(chunk)) = tokio::time::timeout_at(end, source.next()).await
        {
            turn.spend(chunk.len());
            process.deliver(Event::Data(kind, chunk), watch).await;
            turn.go_on().await;
        }
        return;
    }
    // Counted first: descendants may go on writing, and theirs is not waited for.
    let mut waiting = source.waiting();
    while waiting > 0 {
        let Some(chunk) = source.next_waiting(waiting) else { return };
        waiting = waiting.saturating_sub(chunk.len());
        process.deliver(Event::Data(kind, chunk), watch).await;
    }
}

/// Reads what descendants of an ended process still write, and throws it away: closing their
/// output would kill them.
pub async fn discard(sources: Vec<Source>) {
    futures::future::join_all(sources.into_iter().map(read_to_end)).await;
}

async fn read_to_end(mut source: Source) {
    let mut turn = Turn::default();
    while let Some(chunk) = source.next().await {
        turn.spend(chunk.len());
        turn.go_on().await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::fs::File;
    use std::io::Write;

    use nix::fcntl::{FcntlArg, fcntl};

    use super::super::stream::output_pipe;
    use super::*;

    /// As much as a process without rights may have in a pipe.
    const FULL: usize = 1 << 20;

    /// How often others get their turn while a full pipe is read.
    fn turns(work: impl AsyncFnOnce(Source)) -> usize {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (ours, theirs) = output_pipe().unwrap();
            fcntl(&theirs, FcntlArg::F_SETPIPE_SZ(FULL as i32)).unwrap();
            File::from(theirs).write_all(&[b'x'; FULL]).unwrap();
            let turns = Cell::new(0);
            let others = async {
                loop {
                    tokio::task::yield_now().await;
                    turns.set(turns.get() + 1);
                }
            };
            tokio::select! {
                biased;
                () = work(Source::new(Kind::Stdout, ours)) => {}
                () = others => {}
            }
            turns.get()
        })
    }

    #[test]
    fn whoever_reads_a_flood_lets_others_have_their_turn() {
        let thrown_away = turns(async |source| discard(vec![source]).await);
        assert!(thrown_away >= 8, "{thrown_away}");

        let kept = turns(async |source| {
            let mut child = std::process::Command::new("/bin/cat")
                .stdin(std::process::Stdio::piped())
                .spawn()
                .unwrap();
            let pid = child.id().cast_signed();
            let record = Arc::new(Record::new(super::super::record::Pace::Own));
            let process = Process::new(
                pid,
                None,
                ProcessConfig::default(),
                Input::Closed,
                None,
                None,
                Some(Arc::clone(&record)),
            );
            // SAFETY: it takes plain numbers, and answers with a descriptor or -1.
            let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
            // SAFETY: the kernel has just made it for us.
            let pidfd = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(pidfd as i32) };
            let interest = tokio::io::Interest::READABLE;
            let pidfd = super::super::stream::watched(pidfd, interest).unwrap();
            let all = async {
                while record.extent().written < FULL as u64 {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                _ = run(&process, pidfd, vec![source], None) => {}
                () = all => {}
            }
            drop(child.stdin.take());
            child.wait().unwrap();
        });
        assert!(kept >= 8, "{kept}");
    }
}
