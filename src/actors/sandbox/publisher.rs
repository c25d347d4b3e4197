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

use super::ledger::Ledger;
use crate::domain::id::SandboxId;
use crate::vmm::machine::Machine;
use crate::vmm::record::Life;

/// Activity is made known at most this often.
const ACTIVITY_INTERVAL: Duration = Duration::from_secs(1);

/// A control plane that does not take a state is asked again this many times, with doubling pauses.
const ATTEMPTS: u32 = 6;
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Where a host's decisions become known: the control plane's side.
#[async_trait]
pub trait StatusSink: Send + Sync + 'static {
    /// Records a sandbox's life, unless a newer generation is known.
    async fn publish(&self, id: &SandboxId, life: &Life) -> Result<(), SinkError>;
}

/// The control plane could not take a state.
#[derive(Debug, thiserror::Error)]
#[error("the control plane did not take the state")]
pub struct SinkError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// What is done once a state is known.
type Afterwards = Box<dyn FnOnce() + Send>;

struct Publication {
    life: Life,
    machine: Option<Arc<dyn Machine>>,
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

    /// Makes `life` known, then calls `afterwards`.
    pub fn publish(
        &self,
        life: &Life,
        machine: Option<Arc<dyn Machine>>,
        afterwards: impl FnOnce() + Send + 'static,
    ) {
        let publication =
            Publication { life: life.clone(), machine, afterwards: Box::new(afterwards) };
        if self.queue.send(publication).is_err() {
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
    let mut latest: Option<(Life, Option<Arc<dyn Machine>>)> = None;
    let mut next_activity = Instant::now();
    loop {
        tokio::select! {
            biased;
            publication = publications.recv() => {
                let Some(Publication { mut life, machine, afterwards }) = publication else { return };
                life.last_active_at = ledger.last_active_at();
                make_known(&id, &*sink, &life, machine.as_ref()).await;
                afterwards();
                latest = Some((life, machine));
            }
            () = activity(&ledger, next_activity) => {
                next_activity = Instant::now() + ACTIVITY_INTERVAL;
                if let Some((life, machine)) = &mut latest {
                    life.last_active_at = ledger.last_active_at();
                    make_known(&id, &*sink, life, machine.as_ref()).await;
                }
            }
        }
    }
}

/// Waits until work was done, not before `earliest`.
async fn activity(ledger: &Ledger, earliest: Instant) {
    sleep_until(earliest).await;
    ledger.activity.notified().await;
}

async fn make_known(
    id: &SandboxId,
    sink: &dyn StatusSink,
    life: &Life,
    machine: Option<&Arc<dyn Machine>>,
) {
    if let Some(machine) = machine
        && let Err(error) = machine.keep(life)
    {
        tracing::error!(sandbox_id = %id, %error, "cannot keep a sandbox's record");
    }
    let mut pause = FIRST_PAUSE;
    for attempt in 1..=ATTEMPTS {
        match sink.publish(id, life).await {
            Ok(()) => return,
            Err(error) if attempt == ATTEMPTS => {
                tracing::error!(sandbox_id = %id, state = %life.state, error = %crate::chain(&error),
                    "a sandbox's state was not recorded");
            }
            Err(error) => {
                tracing::warn!(sandbox_id = %id, attempt, error = %crate::chain(&error),
                    "recording a sandbox's state failed, trying again");
                sleep(pause).await;
                pause *= 2;
            }
        }
    }
}
