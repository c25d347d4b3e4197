//! Records that have to come right although the database did not take them at once.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use tokio::time::sleep;

use super::create::expiry;
use super::sink::change;
use super::{ControlError, ControlPlane};
use crate::actors::host_client::HostClient;
use crate::domain::engine::Engine;
use crate::domain::host::SandboxEntry;
use crate::domain::id::SandboxId;
use crate::domain::status::SandboxReport;
use crate::entity::StoreError;
use crate::entity::sandboxes::{NewSandbox, Sandbox};

/// How long a database that does not take a record is left alone, at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Who asked for a sandbox whose record is lost. No key has such an id.
const NOBODY: &str = "";

impl ControlPlane {
    /// Records what a host has answered, unless as much is known; gives the sandbox as everybody can
    /// read it then. The host tells the same by itself, which has mostly come before.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`] if the database does not take it; the host goes on trying.
    pub(super) async fn record(&self, report: &SandboxReport) -> Result<Sandbox, ControlError> {
        let sandbox = self.get(&report.id).await?;
        let generation = report.status.generation;
        if generation <= sandbox.generation {
            return Ok(sandbox);
        }
        let sandboxes = self.database.sandboxes();
        sandboxes.publish(&report.id, generation, Some(report.epoch), &change(report)).await?;
        self.get(&report.id).await
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

    /// Brings the records in line with what each host found when it started. Gives the sandboxes that
    /// are not there.
    ///
    /// # Errors
    ///
    /// [`ControlError::Store`]; [`ControlError::Host`] if a host does not say what it has.
    pub async fn reconcile(&self) -> Result<Vec<SandboxId>, ControlError> {
        let mut missing = Vec::new();
        for host in self.hosts.all() {
            missing.extend(self.reconcile_host(host).await?);
        }
        Ok(missing)
    }

    async fn reconcile_host(
        &self,
        host: &Arc<dyn HostClient>,
    ) -> Result<Vec<SandboxId>, ControlError> {
        self.reconcile_snapshots(host).await?;
        let inventory = host.inventory().await?;
        for entry in &inventory.sandboxes {
            self.record_again(host.id(), inventory.engine, entry).await?;
        }
        self.reconcile_networks(&inventory).await?;
        let found = inventory.sandboxes.iter().map(|entry| &entry.report.id);
        let found: HashSet<SandboxId> = found.chain(&inventory.lost).cloned().collect();
        let reason = "VM not found at startup";
        let sandboxes = self.database.sandboxes();
        Ok(sandboxes.stop_all_except(host.id(), &found, reason, Utc::now()).await?)
    }

    /// Records a sandbox again that lives on a host and that no row names, as when an older copy of the
    /// database was brought back: what runs is listed, and can be ended.
    async fn record_again(
        &self,
        host_id: &str,
        engine: Engine,
        entry: &SandboxEntry,
    ) -> Result<(), ControlError> {
        let id = &entry.report.id;
        // What has just ended needs no row to say so.
        if entry.report.status.state.is_final() {
            return Ok(());
        }
        if self.database.sandboxes().find(id).await?.is_some() {
            return Ok(());
        }
        tracing::warn!(sandbox_id = %id,
            "lives here but was not recorded: it is listed from now on, without its metadata");
        self.database.sandboxes().insert(&row_of(host_id, engine, entry)).await?;
        // Its host has told its state already, to no row.
        self.record(&entry.report).await.map(drop)
    }
}

fn row_of(host_id: &str, engine: Engine, entry: &SandboxEntry) -> NewSandbox {
    let SandboxEntry { report, template, shape, envs, rates, network } = entry.clone();
    let status = report.status;
    NewSandbox {
        id: report.id,
        host_id: host_id.to_owned(),
        template,
        shape,
        timeout_sec: status.timeout_sec,
        envs,
        metadata: BTreeMap::new(),
        public_ports: BTreeSet::new(),
        network: network.map(|network| network.policy).unwrap_or_default(),
        rates,
        hypervisor: engine.as_str().to_owned(),
        api_key_id: NOBODY.to_owned(),
        idempotency: None,
        // When it was is known to nobody.
        created_at: status.last_active_at,
        expires_at: expiry(status.timeout_sec, status.last_active_at),
    }
}
