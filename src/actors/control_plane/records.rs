//! Records that have to come right although the database did not take them at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use chrono::Utc;
use tokio::time::sleep;

use super::sink::expiry;
use super::{ControlError, ControlPlane, DatabaseSink};
use crate::actors::sandbox::StatusSink;
use crate::domain::id::SandboxId;
use crate::domain::sandbox::SandboxState;
use crate::entity::StoreError;
use crate::entity::sandboxes::{Change, NewSandbox, Sandbox};
use crate::vmm::machine::Survivor;

/// How long a database that does not take a record is left alone, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Who asked for a sandbox whose record is lost. No key has such an id.
const NOBODY: &str = "";

impl ControlPlane {
    /// A sandbox that has just come to `state`, once that is recorded. Whoever publishes states has
    /// given up for the moment if it is not by now.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`] if the database does not take it; that goes on being tried.
    pub(super) async fn get_as(
        &self,
        id: &SandboxId,
        state: SandboxState,
    ) -> Result<Sandbox, ControlError> {
        let sandbox = self.get(id).await?;
        let Some(handle) = self.host.find(id) else { return Ok(sandbox) };
        let life = handle.life();
        if life.state != state || life.generation <= sandbox.generation {
            return Ok(sandbox);
        }
        let change = Change { state, reason: life.reason, slot: handle.slot(), at: Utc::now() };
        self.database.sandboxes().publish(id, life.generation, &change).await?;
        self.get(id).await
    }

    /// Forgets a sandbox that could not be made: its name for the request is free again, and if no host
    /// has taken it on, so is its row. That goes on being tried while the database does not take it.
    pub(super) async fn forget(&self, id: &SandboxId, reason: String) {
        let Err(error) = self.forget_now(id, &reason).await else { return };
        tracing::warn!(sandbox_id = %id, error = %crate::chain(&error),
            "a sandbox that could not be made is still recorded, trying again");
        let (control, id) = (self.clone(), id.clone());
        tokio::spawn(async move {
            let mut pause = FIRST_PAUSE;
            loop {
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
                if control.forget_now(&id, &reason).await.is_ok() {
                    return;
                }
            }
        });
    }

    async fn forget_now(&self, id: &SandboxId, reason: &str) -> Result<(), StoreError> {
        let sandboxes = self.database.sandboxes();
        sandboxes.free_idempotency_key(id).await?;
        sandboxes.discard(id, reason, Utc::now()).await
    }

    /// Records sandboxes again that live here and that no row names, as when an older copy of the
    /// database was brought back: what runs is listed, and can be ended.
    pub(super) async fn record_again(&self, found: &[Survivor]) -> Result<(), ControlError> {
        for survivor in found {
            if self.database.sandboxes().find(&survivor.id).await?.is_some() {
                continue;
            }
            tracing::warn!(sandbox_id = %survivor.id,
                "lives here but was not recorded: it is listed from now on, without its metadata");
            self.database.sandboxes().insert(&self.row_of(survivor)).await?;
            let Some(handle) = self.host.find(&survivor.id) else { continue };
            // Its actor has told its state already, to no row.
            let (life, sink) = (handle.life(), DatabaseSink(self.database.clone()));
            let told = sink.publish(&survivor.id, &life, handle.slot()).await;
            if let Err(error) = told {
                tracing::error!(sandbox_id = %survivor.id, error = %crate::chain(&error),
                    "a sandbox's state was not recorded");
            }
        }
        Ok(())
    }

    fn row_of(&self, survivor: &Survivor) -> NewSandbox {
        let Survivor { id, life, template, shape, envs, network, rates } = survivor.clone();
        NewSandbox {
            id,
            host_id: self.host.id().to_owned(),
            template,
            shape,
            timeout_sec: life.timeout_sec,
            envs,
            metadata: BTreeMap::new(),
            public_ports: BTreeSet::new(),
            network,
            rates,
            hypervisor: self.machines.engine().engine.as_str().to_owned(),
            api_key_id: NOBODY.to_owned(),
            idempotency: None,
            // When it was is known to nobody.
            created_at: life.last_active_at,
            expires_at: expiry(life.timeout_sec, life.last_active_at),
        }
    }
}
