//! The only writer of a sandbox's visible state.
//!
//! The actor decides; this task makes the decision known, in order: first the record on the host's
//! disk (so that a later daemon never knows less than the control plane), then the control plane,
//! then whoever waits for it. An answer is thus never ahead of what everybody can read.

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

/// A control plane that does not take a state is asked again this many times, with doubling pauses.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

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

/// What is done once a state is known.
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

    /// Makes `life` known, then calls `afterwards`. The record of it goes with `body`.
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
    loop {
        let afterwards = tokio::select! {
            biased;
            publication = publications.recv() => {
                let Some(Publication { news, afterwards }) = publication else { return };
                if news.is_none() {
                    afterwards();
                    continue;
                }
                latest = news;
                Some(afterwards)
            }
            () = activity(&ledger, next_activity) => None,
        };
        let Some((life, body)) = &mut latest else { continue };
        life.last_active_at = ledger.last_active_at();
        keep(&id, life, body.as_ref());
        if afterwards.is_some() {
            let slot = body.as_ref().and_then(Body::slot);
            insist(&id, life, || sink.publish(&id, life, slot)).await;
        }
        let clock = (life.last_active_at, life.state.expires());
        if touched.replace(clock) != Some(clock) {
            insist(&id, life, || sink.touch(&id, life)).await;
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

/// Tells the control plane, again and again if need be.
async fn insist<F>(id: &SandboxId, life: &Life, mut tell: impl FnMut() -> F)
where
    F: Future<Output = Result<(), SinkError>>,
{
    let mut pause = FIRST_PAUSE;
    for attempt in 1..=ATTEMPTS {
        let Err(error) = tell().await else { return };
        let error = crate::chain(&error).to_string();
        if attempt == ATTEMPTS {
            tracing::error!(sandbox_id = %id, state = %life.state, error,
                "a sandbox's state was not recorded");
        } else {
            tracing::warn!(sandbox_id = %id, attempt, error,
                "recording a sandbox's state failed, trying again");
            sleep(pause).await;
            pause *= 2;
        }
    }
}
