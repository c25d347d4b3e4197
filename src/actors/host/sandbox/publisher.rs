//! The only writer of a sandbox's visible state.
//!
//! The actor decides; this task makes the decision known, in order: first in the record on the host's
//! disk, so that a later daemon never knows less than the control plane, then to the control plane.
//! What is done to a sandbox waits for the record alone. Whoever asked for it is answered when the
//! control plane was told once; the answer holds the status, so it is no harm if that failed. What the
//! control plane has not taken it is told again, the latest alone, until it takes it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::idleness::ActivityTracker;
use super::instance::Instance;
use crate::actors::host_client::{Published, SinkError, StatusSink};
use crate::domain::id::SandboxId;
use crate::domain::status::{HostEpoch, SandboxReport, SandboxStatus};

/// Activity is made known at most this often.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(1);

/// How long a control plane that does not take a status is left alone; the pause doubles up to the
/// longest one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The number of the last change of a sandbox. Shared by all actors that it has had.
#[derive(Debug)]
pub struct Generation(AtomicI64);

impl Generation {
    /// Goes on from `last`.
    pub fn new(last: i64) -> Self {
        Self(AtomicI64::new(last))
    }

    /// The number of the next change.
    pub fn next(&self) -> i64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The number of the last change.
    pub fn current(&self) -> i64 {
        self.0.load(Ordering::SeqCst)
    }

    /// A number beyond `known`, for a status that has the number `own`; none if there is a later
    /// status, which speaks for itself.
    fn overtake(&self, own: i64, known: i64) -> Option<i64> {
        let next = known.max(own) + 1;
        self.0
            .compare_exchange(own, next, Ordering::SeqCst, Ordering::SeqCst)
            .is_ok()
            .then_some(next)
    }
}

/// What is done when a status has come so far.
pub enum Then {
    /// Nothing.
    Nothing,
    /// This, once it is in the record on disk.
    OnceKept(Box<dyn FnOnce() + Send>),
    /// This, once the control plane knows it or has failed to take it.
    OnceTold(Box<dyn FnOnce() + Send>),
}

impl Then {
    /// See [`Then::OnceKept`].
    pub fn once_kept(what: impl FnOnce() + Send + 'static) -> Self {
        Self::OnceKept(Box::new(what))
    }

    /// See [`Then::OnceTold`].
    pub fn once_told(what: impl FnOnce() + Send + 'static) -> Self {
        Self::OnceTold(Box::new(what))
    }
}

struct Publication {
    /// None if only what came before is waited for.
    news: Option<(SandboxStatus, Option<Instance>)>,
    then: Then,
}

/// Hands decisions to the publishing task; the task ends when this is dropped and all is told.
pub struct Publisher {
    queue: mpsc::UnboundedSender<Publication>,
}

/// What a publisher works with.
pub struct PublisherDeps {
    pub id: SandboxId,
    pub epoch: HostEpoch,
    pub sink: Arc<dyn StatusSink>,
    pub activity: Arc<ActivityTracker>,
    pub generation: Arc<Generation>,
}

impl Publisher {
    /// Starts the task.
    pub fn start(deps: PublisherDeps) -> Self {
        // Unbounded, for a sandbox changes its state a handful of times in its life.
        let (queue, publications) = mpsc::unbounded_channel();
        tokio::spawn(Task::new(deps).run(publications));
        Self { queue }
    }

    /// Makes `status` known. The record of it goes with `instance`.
    pub fn publish(&self, status: &SandboxStatus, instance: Option<Instance>, then: Then) {
        self.enqueue(Some((status.clone(), instance)), then);
    }

    /// Calls `what` when everything that was to be published so far was told.
    pub fn afterwards(&self, what: impl FnOnce() + Send + 'static) {
        self.enqueue(None, Then::once_told(what));
    }

    fn enqueue(&self, news: Option<(SandboxStatus, Option<Instance>)>, then: Then) {
        if self.queue.send(Publication { news, then }).is_err() {
            tracing::error!("a publisher ended before its actor");
        }
    }
}

/// One thing that is told to the control plane.
enum Telling {
    /// A status, and who waits for it.
    Status(SandboxReport, Then),
    /// When work was last done, and who waits for it.
    Activity(SandboxStatus, Then),
    /// Nothing; only its turn is waited for.
    Turn(Then),
}

/// What came of it.
enum Told {
    Status(SandboxReport, Then, Result<Published, SinkError>),
    Activity(Clock, Then, Result<(), SinkError>),
}

/// What of a status the idle time follows from.
type Clock = (DateTime<Utc>, bool);

type Pending = Pin<Box<dyn Future<Output = Told> + Send>>;

struct Task {
    deps: PublisherDeps,
    latest: Option<(SandboxStatus, Option<Instance>)>,
    queue: VecDeque<Telling>,
    pending: Option<Pending>,
    /// When to tell again what was not taken, and how long the pause before it was.
    retry: Option<(Instant, Duration)>,
    touched: Option<Clock>,
    next_activity: Instant,
}

impl Task {
    fn new(deps: PublisherDeps) -> Self {
        Self {
            deps,
            latest: None,
            queue: VecDeque::new(),
            pending: None,
            retry: None,
            touched: None,
            next_activity: Instant::now(),
        }
    }

    async fn run(mut self, mut publications: mpsc::UnboundedReceiver<Publication>) {
        let mut open = true;
        while open || self.pending.is_some() || !self.queue.is_empty() || self.retry.is_some() {
            let retry_at = self.retry.map_or_else(Instant::now, |(at, _)| at);
            let may_retry = self.retry.is_some() && self.pending.is_none();
            let activity = self.deps.activity.clone();
            let may_touch = open && self.pending.is_none() && self.retry.is_none();
            tokio::select! {
                biased;
                publication = publications.recv(), if open => match publication {
                    Some(publication) => self.take(publication),
                    None => open = false,
                },
                told = poll(&mut self.pending), if self.pending.is_some() => {
                    self.pending = None;
                    self.heard(told);
                }
                () = sleep_until(retry_at), if may_retry => self.tell_again(),
                () = worked(&activity, self.next_activity), if may_touch => self.note_activity(),
            }
            self.tell_next();
        }
    }

    /// Keeps what was decided, and has it told.
    fn take(&mut self, Publication { news, then }: Publication) {
        let Some((mut status, instance)) = news else {
            self.queue.push_back(Telling::Turn(then));
            return;
        };
        status.last_active_at = self.deps.activity.last_active_at();
        // Its actor does not know that a stale status has taken a later number, as when it only changes a
        // lease.
        let latest = self.latest.as_ref().map_or(0, |(latest, _)| latest.generation);
        status.generation = status.generation.max(latest);
        self.keep(&status, instance.as_ref());
        let then = match then {
            Then::OnceKept(what) => {
                what();
                Then::Nothing
            }
            then => then,
        };
        let report = self.report(&status, instance.as_ref());
        self.latest = Some((status, instance));
        self.queue.push_back(Telling::Status(report, then));
    }

    fn keep(&self, status: &SandboxStatus, instance: Option<&Instance>) {
        if let Some(instance) = instance
            && let Err(error) = instance.keep(status)
        {
            tracing::error!(sandbox_id = %self.deps.id, error = %crate::chain(&error),
                "cannot keep a sandbox's record");
        }
    }

    fn report(&self, status: &SandboxStatus, instance: Option<&Instance>) -> SandboxReport {
        SandboxReport {
            id: self.deps.id.clone(),
            status: status.clone(),
            slot: instance.and_then(Instance::slot),
            epoch: self.deps.epoch,
        }
    }

    /// Work was done: the record has it at once, the control plane when it is told next.
    fn note_activity(&mut self) {
        let Some((mut status, instance)) = self.latest.take() else { return };
        status.last_active_at = self.deps.activity.last_active_at();
        self.keep(&status, instance.as_ref());
        self.latest = Some((status, instance));
        self.tell_activity(Then::Nothing);
    }

    /// Tells when work was last done, if that is not known, and `then` does what waits for it.
    fn tell_activity(&mut self, then: Then) {
        match &self.latest {
            Some((status, _)) if self.touched != Some(clock(status)) => {
                self.next_activity = Instant::now() + ACTIVITY_INTERVAL;
                self.queue.push_front(Telling::Activity(status.clone(), then));
            }
            _ => finish(then),
        }
    }

    /// Tells the latest once more, unless a later actor of the sandbox has another one to tell.
    fn tell_again(&mut self) {
        let own = |(status, _): &&(SandboxStatus, Option<Instance>)| {
            status.generation == self.deps.generation.current()
        };
        let Some((status, instance)) = self.latest.as_ref().filter(own) else {
            self.retry = None;
            return;
        };
        let report = self.report(status, instance.as_ref());
        self.queue.push_back(Telling::Status(report, Then::Nothing));
    }

    fn tell_next(&mut self) {
        while self.pending.is_none() {
            let Some(telling) = self.queue.pop_front() else { return };
            let (sink, id) = (self.deps.sink.clone(), self.deps.id.clone());
            self.pending = match telling {
                Telling::Status(report, then) => Some(Box::pin(async move {
                    let outcome = sink.publish(&report).await;
                    Told::Status(report, then, outcome)
                })),
                Telling::Activity(status, then) => Some(Box::pin(async move {
                    let outcome = sink.touch(&id, &status).await;
                    Told::Activity(clock(&status), then, outcome)
                })),
                Telling::Turn(then) => {
                    finish(then);
                    None
                }
            };
        }
    }

    fn heard(&mut self, told: Told) {
        match told {
            Told::Status(report, then, Ok(Published::Stale(known))) => {
                self.overtake(report, then, known);
            }
            Told::Status(report, then, Ok(Published::Unknown)) => {
                // Of what is over nobody needs to hear; what lives is listed sooner or later.
                match report.status.state.is_final() {
                    true => self.retry = None,
                    false => self.try_later(&"nothing is known of the sandbox"),
                }
                finish(then);
            }
            Told::Status(_, then, Ok(Published::Known)) => {
                self.retry = None;
                self.tell_activity(then);
            }
            Told::Status(_, then, Err(error)) => {
                self.try_later(&crate::chain(&error));
                finish(then);
            }
            Told::Activity(clock, then, Ok(())) => {
                self.touched = Some(clock);
                finish(then);
            }
            Told::Activity(_, then, Err(error)) => {
                self.try_later(&crate::chain(&error));
                finish(then);
            }
        }
    }

    /// The control plane knows something else by such a number or a later one. This host is the truth
    /// about its sandboxes: it takes the next number and says it again.
    fn overtake(&mut self, report: SandboxReport, then: Then, known: i64) {
        let own = report.status.generation;
        let next = self.deps.generation.overtake(own, known);
        let Some((next, (mut status, instance))) =
            next.zip(self.latest.take_if(|it| it.0.generation == own))
        else {
            // A later status is on its way.
            self.retry = None;
            return finish(then);
        };
        tracing::warn!(sandbox_id = %self.deps.id, state = %status.state, own, known, next,
            "the control plane knew another status of the sandbox");
        status.generation = next;
        self.keep(&status, instance.as_ref());
        let report = self.report(&status, instance.as_ref());
        self.latest = Some((status, instance));
        self.queue.push_front(Telling::Status(report, then));
    }

    fn try_later(&mut self, why: &dyn std::fmt::Display) {
        let pause = self.retry.map_or(FIRST_PAUSE, |(_, former)| LONGEST_PAUSE.min(former * 2));
        tracing::warn!(sandbox_id = %self.deps.id, error = %why, again_in = ?pause,
            "failed to publish a sandbox's status");
        self.retry = Some((Instant::now() + pause, pause));
    }
}

fn finish(then: Then) {
    if let Then::OnceTold(what) = then {
        what();
    }
}

fn clock(status: &SandboxStatus) -> Clock {
    (status.last_active_at, status.state.expires())
}

async fn poll(pending: &mut Option<Pending>) -> Told {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

/// Waits until work was done, not before `earliest`.
async fn worked(activity: &ActivityTracker, earliest: Instant) {
    sleep_until(earliest).await;
    activity.activity.notified().await;
}
