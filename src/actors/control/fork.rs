//! Sandboxes are made from a running one, as it is at that moment.

use std::sync::Arc;

use chrono::Utc;
use futures::future::join_all;
use tokio::time::Instant;

use super::create::{expiry, spec_of};
use super::{CallerId, ControlError, ControlPlane, to_the_end};
use crate::actors::host_client::HostClient;
use crate::domain::host::{Origin, Prepare, Prepared};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::Command;
use crate::domain::trace::Trace;
use crate::entity::sandboxes::{NewSandbox, Sandbox};

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
            let host = control.host_of(&id, Command::Fork).await?;
            let forked = async {
                let parent = control.get(&id).await?;
                let request = Prepare {
                    origin: Origin::Fork(id.clone()),
                    vcpus: None,
                    memory_mib: None,
                    rates: parent.rates,
                    count,
                };
                let prepared = host.prepare(request).await?;
                let child = |child_id: &SandboxId| child(&parent, child_id, &prepared, &caller);
                let children = prepared.ids.iter().map(child).collect();
                control.make_children(&host, &id, children, lease_sec, trace).await
            };
            control.measured("fork", forked).await
        })
        .await
    }

    async fn make_children(
        &self,
        host: &Arc<dyn HostClient>,
        parent: &SandboxId,
        children: Vec<NewSandbox>,
        lease_sec: Option<u32>,
        trace: Trace,
    ) -> Result<Vec<Sandbox>, ControlError> {
        let started = Instant::now();
        for child in &children {
            let inserted = trace.span("record", self.database.sandboxes().insert(child)).await;
            if let Err(error) = inserted {
                self.forget_all(&children, &error.to_string()).await;
                return Err(error.into());
            }
        }
        let specs = children.iter().map(|child| spec_of(child, lease_sec)).collect();
        let reports = match host.fork(parent, specs, trace).await {
            Ok(reports) => reports,
            Err(error) => {
                self.forget_all(&children, &error.message).await;
                return Err(error.into());
            }
        };
        let recorded = join_all(reports.iter().map(|report| self.record(report))).await;
        let recorded: Result<Vec<_>, _> = recorded.into_iter().collect();
        match recorded {
            Ok(_) => children.iter().for_each(|_| self.metrics.sandbox_created(started.elapsed())),
            Err(_) => {
                join_all(children.iter().map(|child| self.end_unrecorded(host, &child.id))).await;
            }
        }
        recorded
    }

    async fn forget_all(&self, children: &[NewSandbox], reason: &str) {
        for child in children {
            self.metrics.sandbox_failed();
            self.forget(&child.id, reason.to_owned()).await;
        }
    }
}

/// What the parent was asked to be, with an id of its own.
fn child(parent: &Sandbox, id: &SandboxId, prepared: &Prepared, caller: &CallerId) -> NewSandbox {
    let created_at = Utc::now();
    NewSandbox {
        id: id.clone(),
        host_id: parent.host_id.clone(),
        template: parent.template.clone(),
        shape: prepared.shape,
        timeout_sec: parent.timeout_sec,
        envs: parent.envs.clone(),
        metadata: parent.metadata.clone(),
        public_ports: parent.public_ports.clone(),
        network: parent.network.clone(),
        rates: prepared.rates,
        hypervisor: prepared.engine.as_str().to_owned(),
        api_key_id: caller.0.clone(),
        idempotency: None,
        created_at,
        expires_at: expiry(parent.timeout_sec, created_at),
    }
}
