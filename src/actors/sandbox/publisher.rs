//! The only writer of a sandbox's visible state.
//!
//! The actor decides; this task makes the decision known, in order: first the record on the host's
//! disk (so that a later daemon never knows less than the control plane), then the control plane,
//! then whoever waits for it. An answer is thus never ahead of what everybody can read, unless the
//! control plane does not take a state: it is told until it does, and whoever answers looks first.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

use super::body::Body;
use super::ledger::Ledger;
use crate::domain::id::SandboxId;
use crate::vmm::record::Life;

/// Activity is made known at most this often.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(1);

/// Whoever waits for a state to be known waits until the control plane was asked so many times, with
/// doubling pauses: a kill must not wait for a database. It has to look then itself.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// After that the latest state is told at such intervals, until it is known.
const LATER: Duration = Duration::from_secs(2);

/// Where a host's decisions become known: the control plane's side.
#[async_trait]
pub trait StatusSink: Send + Sync + 'static {
    /// Records a sandbox's life and the slot it holds, unless a newer generation is known.
    async fn publish(
        &self,
        id: &SandboxId,
        life: &Life,
        slot: Option<u32>,
    ) -> Result<(), SinkError>;

    /// Records when work was last done in a sandbox, and when its time is over if it runs out now.
    async fn touch(&self, id: &SandboxId, life: &Life) -> Result<(), SinkError>;
}

/// The control plane could not take a state.
#[derive(Debug, thiserror::Error)]
#[error("the control plane did not take the state")]
pub struct SinkError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// What is done once a state is known, or was not taken for a while.
type Afterwards = Box<dyn FnOnce() + Send>;

struct Publication {
    /// None if only what came before is to be known.
    news: Option<(Life, Option<Body>)>,
    afterwards: Afterwards,
}

/// Hands decisions to the publishing task; the task ends when this is dropped and all is said.
pub struct Publisher {
    queue: mpsc::UnboundedSender<Publication>,
}

impl Publisher {
    /// Starts the task.
    pub fn start(id: SandboxId, sink: Arc<dyn StatusSink>, ledger: Arc<Ledger>) -> Self {
        // Unbounded, for a sandbox changes its state a handful of times in its life.
        let (queue, publications) = mpsc::unbounded_channel();
        tokio::spawn(run(id, sink, ledger, publications));
        Self { queue }
    }

    /// Makes `life` known, then calls `afterwards`, also when it is not known for a while. The record of
    /// it goes with `body`.
    pub fn publish(
        &self,
        life: &Life,
        body: Option<Body>,
        afterwards: impl FnOnce() + Send + 'static,
    ) {
        self.enqueue(Some((life.clone(), body)), Box::new(afterwards));
    }

    /// Calls `afterwards` when everything that was to be published so far is known.
    pub fn afterwards(&self, afterwards: impl FnOnce() + Send + 'static) {
        self.enqueue(None, Box::new(afterwards));
    }

    fn enqueue(&self, news: Option<(Life, Option<Body>)>, afterwards: Afterwards) {
        if self.queue.send(Publication { news, afterwards }).is_err() {
            tracing::error!("a publisher ended before its actor");
        }
    }
}

async fn run(
    id: SandboxId,
    sink: Arc<dyn StatusSink>,
    ledger: Arc<Ledger>,
    mut publications: mpsc::UnboundedReceiver<Publication>,
) {
    let mut latest: Option<(Life, Option<Body>)> = None;
    let mut touched = None;
    let mut next_activity = Instant::now();
    // When to try again what the control plane has not taken. Only the latest counts.
    let mut overdue: Option<Instant> = None;
    let mut open = true;
    while open || overdue.is_some() {
        let mut afterwards = None;
        let changed = tokio::select! {
            biased;
            publication = publications.recv(), if open => match publication {
                Some(Publication { news: None, afterwards }) => {
                    afterwards();
                    continue;
                }
                Some(publication) => {
                    latest = publication.news;
                    afterwards = Some(publication.afterwards);
                    true
                }
                None => {
                    open = false;
                    continue;
                }
            },
            () = sleep_until(overdue.unwrap_or_else(Instant::now)), if overdue.is_some() => true,
            () = activity(&ledger, next_activity), if open => false,
        };
        let Some((life, body)) = &mut latest else { continue };
        life.last_active_at = ledger.last_active_at();
        keep(&id, life, body.as_ref());
        if changed {
            let slot = body.as_ref().and_then(Body::slot);
            // Nobody waits for what is overdue, so it is tried once at a time.
            let attempts = if afterwards.is_some() { ATTEMPTS } else { 1 };
            let told = insist(&id, life, attempts, || sink.publish(&id, life, slot)).await;
            overdue = (!told).then(|| Instant::now() + LATER);
        }
        let clock = (life.last_active_at, life.state.expires());
        if overdue.is_none() && touched != Some(clock) {
            let told = insist(&id, life, 1, || sink.touch(&id, life)).await;
            touched = told.then_some(clock);
            overdue = (!told).then(|| Instant::now() + LATER);
            next_activity = Instant::now() + ACTIVITY_INTERVAL;
        }
        if let Some(afterwards) = afterwards {
            afterwards();
        }
    }
}

/// Waits until work was done, not before `earliest`.
async fn activity(ledger: &Ledger, earliest: Instant) {
    sleep_until(earliest).await;
    ledger.activity.notified().await;
}

fn keep(id: &SandboxId, life: &Life, body: Option<&Body>) {
    if let Some(body) = body
        && let Err(error) = body.keep(life)
    {
        tracing::error!(sandbox_id = %id, error = %crate::chain(&error),
            "cannot keep a sandbox's record");
    }
}

/// Tells the control plane, so many times if need be; whether it took it.
async fn insist<F>(id: &SandboxId, life: &Life, attempts: u32, mut tell: impl FnMut() -> F) -> bool
where
    F: Future<Output = Result<(), SinkError>>,
{
    let mut pause = FIRST_PAUSE;
    for attempt in 1.. {
        let Err(error) = tell().await else { return true };
        let error = crate::chain(&error).to_string();
        tracing::warn!(sandbox_id = %id, state = %life.state, attempt, error,
            "recording a sandbox's state failed, trying again");
        if attempt >= attempts {
            break;
        }
        sleep(pause).await;
        pause *= 2;
    }
    false
}
