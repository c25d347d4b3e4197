//! Sandboxes are made from a running one, as it is at that moment.

use chrono::Utc;
use futures::future::join_all;

use super::create::Made;
use super::sink::expiry;
use super::{CallerId, ControlError, ControlPlane, to_the_end};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::Command;
use crate::entity::sandboxes::{NewSandbox, Sandbox};
use crate::vmm::machine::Origin;
use crate::vmm::trace::Trace;

impl ControlPlane {
    /// Makes `count` sandboxes that begin as `id` is now, and returns them running: all of them or
    /// none. Each has the lease that is asked for, not its parent's. A caller that goes away does not
    /// cancel it.
    ///
    /// # Errors
    ///
    /// There are no children then. The parent runs on, or its state says what became of it.
    pub async fn fork(
        &self,
        id: &SandboxId,
        count: usize,
        lease_sec: Option<u32>,
        caller: &CallerId,
        trace: Trace,
    ) -> Result<Vec<Sandbox>, ControlError> {
        let (control, id, caller) = (self.clone(), id.clone(), caller.clone());
        to_the_end(async move {
            let handle = control.find_live(&id, Command::Fork).await?;
            let forked = async {
                let parent = control.get(&id).await?;
                let point = handle.fork(trace.clone()).await?;
                let each = || {
                    let child = control.child(&parent, &caller);
                    control.make(child, Origin::Fork(point.clone()), lease_sec, trace.clone())
                };
                let children = control.make_children(count, each).await;
                control.machines.discard(point).await;
                children
            };
            control.measured("fork", forked).await
        })
        .await
    }

    async fn make_children<F>(
        &self,
        count: usize,
        make: impl Fn() -> F,
    ) -> Result<Vec<Sandbox>, ControlError>
    where
        F: Future<Output = Result<Made, ControlError>>,
    {
        let outcomes = join_all((0..count).map(|_| make())).await;
        let mut children = Vec::new();
        let mut failure = None;
        for outcome in outcomes {
            match outcome {
                Ok(Made::New(child)) => children.push(*child),
                Ok(Made::Before(_)) => unreachable!("a child has no idempotency key"),
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        let Some(error) = failure else { return Ok(children) };
        let gone = children.iter().map(|child| self.destroy(&child.id));
        for outcome in join_all(gone).await {
            if let Err(error) = outcome {
                tracing::error!(error = %crate::chain(&error),
                    "a child of a fork that failed was not destroyed");
            }
        }
        Err(error)
    }

    /// What the parent was asked to be, with an id of its own.
    fn child(&self, parent: &Sandbox, caller: &CallerId) -> NewSandbox {
        let created_at = Utc::now();
        NewSandbox {
            id: SandboxId::random(),
            host_id: parent.host_id.clone(),
            template: parent.template.clone(),
            shape: parent.shape,
            timeout_sec: parent.timeout_sec,
            envs: parent.envs.clone(),
            metadata: parent.metadata.clone(),
            public_ports: parent.public_ports.clone(),
            network: parent.network.clone(),
            rates: parent.rates,
            hypervisor: parent.hypervisor.clone(),
            api_key_id: caller.0.clone(),
            idempotency: None,
            created_at,
            expires_at: expiry(parent.timeout_sec, created_at),
        }
    }
}
