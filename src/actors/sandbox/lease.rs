//! Leave to work in a sandbox, and what can go wrong with the work.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::sync::watch;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::refused::Refused;
use crate::actors::mailbox::CallError;
use crate::domain::sandbox::SandboxState;
use crate::vmm::guest::{Agent, AgentError};
use crate::vmm::record::Life;

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
    alive: CancellationToken,
    published: watch::Receiver<Life>,
    ledger: Arc<Ledger>,
    worked: bool,
}

impl Lease {
    pub(super) fn new(
        agent: Agent,
        alive: CancellationToken,
        published: watch::Receiver<Life>,
        ledger: Arc<Ledger>,
    ) -> Self {
        ledger.begin();
        Self { agent, alive, published, ledger, worked: false }
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
        self.worked = true;
        Ok(value)
    }

    /// As [`Lease::run`], for what only looks: it is no activity.
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
            () = self.alive.cancelled() => return Err(self.lost()),
            outcome = work => outcome,
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(error @ AgentError::Unreachable { .. }) => {
                match timeout(NEWS_DELAY, self.alive.cancelled()).await {
                    Ok(()) => Err(self.lost()),
                    Err(_) => Err(error.into()),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Becomes ready when the VM is gone; for work that goes on after [`Lease::run`].
    pub fn gone(&self) -> impl Future<Output = ()> + Send + 'static {
        self.alive.clone().cancelled_owned()
    }

    /// Why the VM is gone, once [`Lease::gone`] is ready.
    pub fn lost(&self) -> WorkError {
        let life = self.published.borrow();
        WorkError::Lost { state: life.state, reason: life.reason.clone() }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.ledger.end(self.worked, Utc::now());
    }
}
