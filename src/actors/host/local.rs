//! The host that this process is, as the control plane sees it.

use std::sync::{Arc, OnceLock};

use actix::ArbiterHandle;
use async_trait::async_trait;
use chrono::Utc;
use futures::future::join_all;

use super::admission::{Admission, Limits};
use super::manager::{Adoption, ManagerHandle};
use super::sandbox::SandboxHandle;
use super::workplace::Workplace;
use crate::actors::host_client::{HostClient, StatusSink};
use crate::actors::mailbox::CallError;
use crate::actors::metrics::Metrics;
use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::host::{
    Destroyed, HostError, Inventory, Origin, Prepare, Prepared, SandboxSpec,
};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::{Admission as Verdict, Command, Refused, SandboxState, admit};
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::domain::snapshot::{Existing, SnapshotInfo, Storage};
use crate::domain::status::{HostEpoch, SandboxReport, SandboxStatus};
use crate::domain::token;
use crate::domain::trace::Trace;
use crate::domain::usage::{HostLoad, Sample, UsageReport};
use crate::vmm::machine::{self, MachineError, MachineSpec, Machines, Template};

/// Who this host is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its id, which it keeps.
    pub id: String,
    /// Which run of its daemon this is.
    pub epoch: HostEpoch,
}

/// The host that this process is. Cheap to clone.
#[derive(Clone)]
pub struct LocalHost {
    identity: Identity,
    admission: Admission,
    manager: ManagerHandle,
    machines: Arc<dyn Machines>,
    metrics: Arc<Metrics>,
    /// Sandboxes of a former daemon that could not be found again.
    lost: Arc<OnceLock<Vec<SandboxId>>>,
}

impl LocalHost {
    /// Starts the actors of the host.
    pub fn start(
        arbiter: &ArbiterHandle,
        identity: Identity,
        limits: Limits,
        machines: Arc<dyn Machines>,
        sink: Arc<dyn StatusSink>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let manager =
            ManagerHandle::start(arbiter, identity.epoch, machines.clone(), sink, metrics.clone());
        let (admission, lost) = (Admission::new(limits), Arc::default());
        Self { identity, admission, manager, machines, metrics, lost }
    }

    /// Takes over what a former daemon left; called once, before the first create.
    pub async fn adopt_survivors(&self) -> Adoption {
        let adoption = self.manager.adopt_survivors().await;
        self.lost.get_or_init(|| adoption.lost.keys().cloned().collect());
        adoption
    }

    fn find(&self, id: &SandboxId) -> Result<SandboxHandle, HostError> {
        Ok(self.manager.find(id).ok_or(CallError::Gone)?)
    }

    /// Which shape sandboxes of a template have that are asked for like this. A snapshot has its own,
    /// and an image a usual one.
    async fn shape(&self, template: &TemplateName, asked: &Prepare) -> Result<Shape, HostError> {
        let (usual, fixed) = match self.machines.template(template).await? {
            Template::Image => (Shape::DEFAULT, false),
            Template::Snapshot(shape) => (shape, true),
        };
        let shape = Shape {
            vcpus: asked.vcpus.unwrap_or(usual.vcpus),
            memory_mib: asked.memory_mib.unwrap_or(usual.memory_mib),
        };
        match fixed && shape != usual {
            true => Err(super::error::fixed_shape(template, usual)),
            false => Ok(shape),
        }
    }

    /// Has a machine made, in memory that is kept for it meanwhile.
    async fn make(
        &self,
        spec: SandboxSpec,
        origin: machine::Origin,
        trace: Trace,
    ) -> Result<SandboxReport, HostError> {
        let id = spec.id.clone();
        let _memory = self.admission.reserve(&id, spec.shape)?;
        let made = self.manager.create(machine_spec(spec, origin), trace).await?;
        made.map_err(|error| HostError::from(&*error))?;
        Ok(self.find(&id)?.report())
    }

    async fn destroy_all(&self, children: &[SandboxReport]) {
        let gone = children.iter().map(|child| self.destroy(&child.id));
        for outcome in join_all(gone).await {
            if let Err(error) = outcome {
                tracing::error!(error = error.cause, "failed to destroy a child of a failed fork");
            }
        }
    }
}

#[async_trait]
impl HostClient for LocalHost {
    fn id(&self) -> &str {
        &self.identity.id
    }

    async fn prepare(&self, request: Prepare) -> Result<Prepared, HostError> {
        let shape = match &request.origin {
            Origin::Template(template) => self.shape(template, &request).await?,
            Origin::Fork(parent) => {
                let parent = self.find(parent)?;
                let status = parent.status();
                if let Verdict::Refused(refusal) = admit(status.state, None, Command::Fork) {
                    return Err(Refused { refusal, reason: status.reason }.into());
                }
                parent.facts().shape
            }
        };
        self.admission.check_shape(shape)?;
        let rates = match &request.origin {
            Origin::Template(_) => self.admission.rates(request.rates)?,
            // Those of its parent, which were allowed once.
            Origin::Fork(_) => request.rates,
        };
        let mut ids = Vec::with_capacity(request.count);
        for _ in 0..request.count {
            ids.push(match &request.origin {
                Origin::Template(template) => self.machines.reserve(template, shape).await,
                Origin::Fork(_) => SandboxId::random(),
            });
        }
        self.admission.promise(&ids, shape)?;
        Ok(Prepared { ids, shape, rates, engine: self.machines.engine().engine })
    }

    async fn create(&self, spec: SandboxSpec, trace: Trace) -> Result<SandboxReport, HostError> {
        if let Some(known) = self.manager.find(&spec.id) {
            known.started().await;
            return Ok(known.report());
        }
        let origin = machine::Origin::Template(spec.template.clone());
        self.make(spec, origin, trace).await
    }

    async fn fork(
        &self,
        parent: &SandboxId,
        children: Vec<SandboxSpec>,
        trace: Trace,
    ) -> Result<Vec<SandboxReport>, HostError> {
        let point = self.find(parent)?.fork(trace.clone()).await?;
        let origin = machine::Origin::Fork(point.clone());
        let each = children.into_iter().map(|spec| self.make(spec, origin.clone(), trace.clone()));
        let outcomes = join_all(each).await;
        self.machines.discard(point).await;
        let (made, failed): (Vec<_>, Vec<_>) = outcomes.into_iter().partition(Result::is_ok);
        let made: Vec<_> = made.into_iter().flatten().collect();
        match failed.into_iter().find_map(Result::err) {
            Some(error) => {
                self.destroy_all(&made).await;
                Err(error)
            }
            None => Ok(made),
        }
    }

    async fn settle(&self, id: &SandboxId) {
        if let Some(handle) = self.manager.find(id) {
            handle.started().await;
        }
    }

    async fn destroy(&self, id: &SandboxId) -> Result<Destroyed, HostError> {
        let Some(handle) = self.manager.find(id) else { return Ok(Destroyed::Unknown) };
        handle.destroy().await?;
        Ok(Destroyed::Gone(handle.report()))
    }

    async fn pause(&self, id: &SandboxId, trace: Trace) -> Result<SandboxReport, HostError> {
        let handle = self.find(id)?;
        handle.pause(trace).await?;
        Ok(handle.report())
    }

    async fn resume(&self, id: &SandboxId, trace: Trace) -> Result<SandboxReport, HostError> {
        let handle = self.find(id)?;
        // One that is not paused has its memory already, or will be refused.
        let _memory = match handle.status().state {
            SandboxState::Paused => Some(self.admission.reserve(id, handle.facts().shape)?),
            _ => None,
        };
        handle.resume(trace).await?;
        Ok(handle.report())
    }

    async fn snapshot(
        &self,
        id: &SandboxId,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, HostError> {
        Ok(self.find(id)?.snapshot(name.clone(), existing).await?)
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, HostError> {
        Ok(self.machines.snapshots().await?)
    }

    async fn remove_snapshot(&self, name: &TemplateName) -> Result<bool, HostError> {
        match self.machines.remove_snapshot(name).await {
            Ok(()) => Ok(true),
            Err(MachineError::UnknownTemplate(_)) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn network(&self, id: &SandboxId) -> Result<Option<PolicyRevision>, HostError> {
        Ok(self.manager.find(id).and_then(|handle| handle.network()))
    }

    async fn set_network(
        &self,
        id: &SandboxId,
        policy: Policy,
    ) -> Result<PolicyRevision, HostError> {
        Ok(self.find(id)?.set_network(policy).await?)
    }

    async fn set_lease(&self, id: &SandboxId, lease_sec: Option<u32>) -> Result<(), HostError> {
        Ok(self.find(id)?.set_lease(lease_sec).await?)
    }

    async fn storage(&self, id: &SandboxId) -> Result<Option<Storage>, HostError> {
        match self.manager.find(id) {
            Some(handle) => Ok(handle.storage().await?),
            None => Ok(None),
        }
    }

    async fn usage(&self, id: &SandboxId) -> Result<Option<UsageReport>, HostError> {
        let Some(handle) = self.manager.find(id) else { return Ok(None) };
        let looking = handle.clone();
        let seen = tokio::task::spawn_blocking(move || looking.look()).await;
        let now = match seen.expect("reading small files does not panic") {
            Some(now) => now,
            // Only its disk is left of one that is paused.
            None => Sample {
                at: Utc::now(),
                cpu_percent: 0.0,
                memory_bytes: 0,
                disk_bytes: handle.storage().await?.map_or(0, |storage| storage.disk_bytes),
            },
        };
        let memory_total_bytes = u64::from(handle.facts().shape.memory_mib) << 20;
        Ok(Some(UsageReport { memory_total_bytes, now, history: handle.samples() }))
    }

    async fn sample(&self) -> Result<(), HostError> {
        Ok(self.manager.sample().await?)
    }

    async fn inventory(&self) -> Result<Inventory, HostError> {
        let sandboxes = self.manager.all().iter().map(SandboxHandle::entry).collect();
        let engine = self.machines.engine().engine;
        let lost = self.lost.get().cloned().unwrap_or_default();
        Ok(Inventory { epoch: self.identity.epoch, engine, sandboxes, lost })
    }

    fn load(&self) -> HostLoad {
        let mut load = HostLoad { readiness: self.machines.readiness(), ..HostLoad::default() };
        for sandbox in self.manager.all() {
            *load.population.entry(sandbox.status().state).or_default() += 1;
            load.memory_bytes += sandbox.last_seen().map_or(0, |sample| sample.memory_bytes);
        }
        load
    }

    fn workplace(&self, id: &SandboxId) -> Option<Workplace> {
        Some(Workplace::new(self.manager.find(id)?, self.metrics.clone()))
    }
}

fn machine_spec(spec: SandboxSpec, origin: machine::Origin) -> MachineSpec {
    MachineSpec {
        id: spec.id,
        origin,
        template: spec.template,
        shape: spec.shape,
        envs: spec.envs,
        network: spec.network,
        rates: spec.rates,
        access_token: token::random(),
        status: SandboxStatus {
            state: SandboxState::Starting,
            reason: None,
            generation: 1,
            timeout_sec: spec.timeout_sec,
            lease_sec: spec.lease_sec,
            last_active_at: spec.created_at,
        },
    }
}
