//! Leave to work in a sandbox, and what can go wrong with the work.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::idleness::ActivityTracker;
use crate::actors::mailbox::CallError;
use crate::domain::lifecycle::{Refused, SandboxState};
use crate::domain::status::SandboxStatus;
use crate::vmm::guest::{Agent, AgentError};

/// When an agent stops answering, its VM may just have ended: the news of that take a moment.
const NEWS_DELAY: Duration = Duration::from_millis(500);

/// Why work in a sandbox was not done.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// It is in no state for it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// It went away while the work was being done.
    #[error("the sandbox became {state} while it worked{}",
        .reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default())]
    Lost { state: SandboxState, reason: Option<String> },
    /// Its actor cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its agent failed or refused.
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// Leave to work in a sandbox. While it is held the sandbox is not idle.
pub struct Lease {
    agent: Agent,
    watch: Watch,
    activity: Arc<ActivityTracker>,
    worked: bool,
}

/// Sees a VM go, in which work is being done. Each start of a VM has its own: what was begun in one
/// never goes on in another, whatever its address is.
#[derive(Clone)]
pub struct Watch {
    alive: CancellationToken,
    published: watch::Receiver<SandboxStatus>,
}

impl Watch {
    /// Becomes ready when the VM is gone.
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.alive.clone().cancelled_owned()
    }

    /// Whether it is gone.
    pub fn is_gone(&self) -> bool {
        self.alive.is_cancelled()
    }

    /// Why it is gone, once it is.
    pub fn lost(&self) -> WorkError {
        let status = self.published.borrow();
        WorkError::Lost { state: status.state, reason: status.reason.clone() }
    }

    /// Why it is gone, after something in it has stopped to answer; nothing if it is not.
    pub async fn news(&self) -> Option<WorkError> {
        timeout(NEWS_DELAY, self.alive.cancelled()).await.ok().map(|()| self.lost())
    }
}

impl Lease {
    pub(super) fn new(
        agent: Agent,
        alive: CancellationToken,
        published: watch::Receiver<SandboxStatus>,
        activity: Arc<ActivityTracker>,
    ) -> Self {
        activity.begin();
        Self { agent, watch: Watch { alive, published }, activity, worked: false }
    }

    /// The client of the guest's agent.
    pub fn agent(&self) -> Agent {
        self.agent.clone()
    }

    /// Does `work` with the agent; ends early when the VM does. Success counts as activity.
    ///
    /// # Errors
    ///
    /// [`WorkError::Lost`] when the sandbox went away, else what the agent said.
    pub async fn run<T>(
        &mut self,
        work: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, WorkError> {
        let value = self.look(work).await?;
        self.count();
        Ok(value)
    }

    /// As [`Lease::run`], for what only looks or only leads to work: it is no activity.
    ///
    /// # Errors
    ///
    /// As [`Lease::run`].
    pub async fn look<T>(
        &self,
        work: impl Future<Output = Result<T, AgentError>>,
    ) -> Result<T, WorkError> {
        let outcome = tokio::select! {
            biased;
            () = self.gone() => return Err(self.lost()),
            outcome = work => outcome,
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(error @ AgentError::Unreachable { .. }) => {
                Err(self.watch.news().await.unwrap_or_else(|| error.into()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Notes that something was done.
    pub fn count(&mut self) {
        self.worked = true;
    }

    /// Sees the VM go, whatever becomes of the lease.
    pub fn watch(&self) -> Watch {
        self.watch.clone()
    }

    /// Becomes ready when the VM is gone; for work that goes on after [`Lease::run`].
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.watch.gone()
    }

    /// Why the VM is gone, once [`Lease::gone`] is ready.
    pub fn lost(&self) -> WorkError {
        self.watch.lost()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.activity.end(self.worked, Utc::now());
    }
}
