//! New machines, each from a snapshot: an image's warm one, a named one, or a fork's.

use std::sync::Arc;

use super::Host;
use super::error::file_error;
use super::resources::{MachineResources, snapshot_dir};
use super::running::HostMachine;
use super::standby::{self, Standby};
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::domain::snapshot::{Existing, SnapshotInfo};
use crate::vmm::guest::{AGENT_PORT, Agent};
use crate::vmm::image::{Image, ImageError};
use crate::vmm::machine::{MachineError, MachineSpec, Origin, Run, Template};
use crate::vmm::record::{Record, RecordFile, Residency};
use crate::vmm::storage::memory::Durability;
use crate::vmm::storage::snapshot::{Named, Snapshot};

impl Host {
    pub(super) fn image(&self, name: &TemplateName) -> Result<Option<Image>, MachineError> {
        match self.images.get(name) {
            Ok(image) => Ok(Some(image)),
            Err(ImageError::NotFound { .. }) => Ok(None),
            Err(error) => {
                Err(MachineError::Template { name: name.clone(), source: Box::new(error) })
            }
        }
    }

    fn named(&self, name: &TemplateName) -> Result<Snapshot, MachineError> {
        match self.store.get(name) {
            Ok(Some(snapshot)) => Ok(snapshot),
            Ok(None) => Err(MachineError::UnknownTemplate(name.clone())),
            Err(error) => {
                Err(MachineError::Template { name: name.clone(), source: Box::new(error) })
            }
        }
    }

    /// Looks a template up. Blocks.
    pub(super) fn template(&self, name: &TemplateName) -> Result<Template, MachineError> {
        if self.image(name)?.is_some() {
            return Ok(Template::Image);
        }
        let snapshot = self.named(name)?;
        self.check(&snapshot)?;
        Ok(Template::Snapshot(snapshot.manifest().shape))
    }

    /// The snapshot that a machine starts from, and whose image it is the warm one of.
    pub(super) async fn source(
        self: &Arc<Self>,
        origin: &Origin,
        shape: Shape,
        run: &Run,
    ) -> Result<(Arc<Snapshot>, Option<TemplateName>), MachineError> {
        let (host, origin) = (self.clone(), origin.clone());
        let look = move || match &origin {
            Origin::Fork(point) => Ok((None, Some(host.store.fork(point)?))),
            Origin::Template(name) => match host.image(name)? {
                Some(image) => Ok((Some(image), None)),
                None => Ok((None, Some(host.named(name)?))),
            },
        };
        let found: Result<_, MachineError> =
            tokio::task::spawn_blocking(look).await.expect("opening files does not panic");
        match found? {
            (Some(image), _) => {
                let name = image.name.clone();
                Ok((self.warm(image, shape, run).await?, Some(name)))
            }
            (None, Some(snapshot)) => Ok((Arc::new(snapshot), None)),
            (None, None) => unreachable!("one of both is found"),
        }
    }

    /// Makes a machine. On failure nothing is left of it, [`MachineError::Remains`] apart.
    pub(super) async fn create(
        self: &Arc<Self>,
        spec: MachineSpec,
        run: &Run,
    ) -> Result<HostMachine, MachineError> {
        // Now: what is offered and not taken for long is offered again, and an image may have to boot.
        let vmm = self.vmms.take(&spec.id);
        let source = self.source(&spec.origin, spec.shape, run);
        let (source, image) = match run.trace.span("template", source).await {
            Ok(found) => found,
            Err(error) => {
                if let Some(vmm) = vmm {
                    standby::dismiss(vmm).await;
                }
                return Err(error);
            }
        };
        let template = spec.template.clone();
        let machine = self.create_from(spec, source, vmm, run).await?;
        self.start_ahead(&template, machine.shape());
        if let Some(image) = image {
            // What was created once is likely to be created again.
            self.stand_by(&image, machine.shape());
        }
        Ok(machine)
    }

    async fn create_from(
        self: &Arc<Self>,
        spec: MachineSpec,
        source: Arc<Snapshot>,
        vmm: Option<Standby>,
        run: &Run,
    ) -> Result<HostMachine, MachineError> {
        if let Some(standby) = self.standbys.take(&spec.id)
            && let Some(machine) = self.claim(standby, &spec, &source, run).await?
        {
            return Ok(machine);
        }
        let id = spec.id.clone();
        let mut resources = match vmm {
            Some(vmm) if vmm.waits() => vmm.resources,
            Some(dead) => {
                standby::dismiss(dead).await;
                MachineResources::new(self.dir(&id))
            }
            None => MachineResources::new(self.dir(&id)),
        };
        let made = async {
            self.found(&mut resources, spec, source, run).await?;
            self.restore(&mut resources, run).await
        };
        match made.await {
            Ok(agent) => Ok(HostMachine::new(self.clone(), resources, agent)),
            Err(error) => {
                let remains = resources.dismantle().await;
                if remains.is_empty() {
                    return Err(error);
                }
                tracing::error!(sandbox_id = %id, error = %crate::chain(&error),
                    "a machine could not be made");
                Err(MachineError::Remains(remains))
            }
        }
    }

    /// Makes a standby the machine that is asked for. Gives nothing if it does not fit, or does not
    /// live any more: then nothing is left of it.
    async fn claim(
        self: &Arc<Self>,
        standby: Standby,
        spec: &MachineSpec,
        source: &Snapshot,
        run: &Run,
    ) -> Result<Option<HostMachine>, MachineError> {
        if !standby.fits(source.manifest().build) {
            standby::dismiss(standby).await;
            return Ok(None);
        }
        let mut resources = standby.resources;
        match self.wake(&resources, spec, source, run).await {
            Ok(agent) => Ok(Some(HostMachine::new(self.clone(), resources, agent))),
            Err(error) => {
                let remains = resources.dismantle().await;
                tracing::warn!(sandbox_id = %spec.id, error = %crate::chain(&error),
                    "a standby did not become a sandbox");
                match (remains.is_empty(), error) {
                    (false, _) => Err(MachineError::Remains(remains)),
                    (true, MachineError::Cancelled) => Err(MachineError::Cancelled),
                    (true, _) => Ok(None),
                }
            }
        }
    }

    /// Thaws a standby and tells its guest who it is.
    async fn wake(
        &self,
        resources: &MachineResources,
        spec: &MachineSpec,
        source: &Snapshot,
        run: &Run,
    ) -> Result<Agent, MachineError> {
        let (record, vm, slot) = match (&resources.record, &resources.vm, &resources.slot) {
            (Some(record), Some(vm), Some(slot)) => (record, vm, slot),
            _ => unreachable!("a standby is whole"),
        };
        let wanted = self.new_record(spec.clone(), source);
        let known_token = Some(record.get().access_token.clone());
        run.trace.blocking("record", || record.update(|record| record.hand_over_to(wanted)))?;
        if let Some(cgroup) = &resources.cgroup {
            let shared = cgroup.set_share(record.get().shape.vcpus, run.share);
            shared.map_err(|error| MachineError::Cgroup { source: Box::new(error) })?;
        }
        // Before the guest runs: its first packet is the first that the policy is asked about.
        let now = record.get();
        let limited = slot.limit(&now.network, now.rates.network());
        let limited = run.trace.span("network", limited).await;
        limited.map_err(|error| MachineError::Network { source: Box::new(error) })?;
        self.limit_disk(&**vm, &now, source, run).await?;
        run.trace.span("thaw", vm.thaw()).await?;
        let agent = Agent::new((slot.address(), AGENT_PORT).into(), &spec.access_token);
        let up = self.introduce(&now, known_token, &agent);
        run.trace.span("init", self.unless_it_ends(&**vm, &resources.dir, run, up)).await?;
        Ok(agent)
    }

    /// Makes a machine's directory with its record, and its own copy of what it starts from.
    pub(super) async fn found(
        &self,
        resources: &mut MachineResources,
        spec: MachineSpec,
        source: Arc<Snapshot>,
        run: &Run,
    ) -> Result<(), MachineError> {
        let wanted = self.new_record(spec, &source);
        let (place, made) =
            (MachineResources::new(resources.dir.clone()), resources.record.clone());
        let cancel = run.cancel.clone();
        let work = move || {
            let record = match made {
                // Of a process that was started ahead.
                Some(record) => {
                    record.update(|record| record.hand_over_to(wanted))?;
                    record
                }
                None => {
                    place.make_dir().map_err(file_error)?;
                    Arc::new(RecordFile::create(&place.dir, wanted)?)
                }
            };
            // Sealed already, but for what an older version has made.
            source.seal(Durability::Synced, &|| cancel.is_cancelled())?;
            let dir = snapshot_dir(&place.dir, source.manifest().build);
            let snapshot = source.link_into(&dir, Durability::Cached)?;
            Ok::<_, MachineError>((record, snapshot))
        };
        let made = run.trace.span("directory", tokio::task::spawn_blocking(work)).await;
        let (record, snapshot) = made.expect("making files does not panic")?;
        resources.record = Some(record);
        resources.snapshot = Some(Arc::new(snapshot));
        Ok(())
    }

    fn new_record(&self, spec: MachineSpec, source: &Snapshot) -> Record {
        let manifest = source.manifest();
        let mut envs = manifest.envs.clone();
        envs.extend(spec.envs);
        Record {
            id: spec.id,
            template: spec.template,
            image: manifest.image.clone(),
            shape: manifest.shape,
            engine: self.hypervisor.engine(),
            access_token: spec.access_token,
            envs,
            network: spec.network,
            network_revision: 0,
            rates: spec.rates,
            residency: Residency::Vm,
            snapshot: Some(manifest.build),
            slot: None,
            process: None,
            status: spec.status,
        }
    }

    /// Checks that a snapshot may have a name.
    pub(super) async fn check_name(
        self: &Arc<Self>,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<(), MachineError> {
        let (host, name) = (self.clone(), name.clone());
        let check = move || {
            if host.image(&name)?.is_some() {
                return Err(MachineError::NameOfImage(name));
            }
            match (existing, host.store.get(&name)) {
                (Existing::Keep, Ok(Some(_))) => Err(MachineError::SnapshotExists(name)),
                // One that is broken may be replaced.
                (Existing::Replace, _) | (Existing::Keep, Ok(None)) => Ok(()),
                (Existing::Keep, Err(error)) => Err(error.into()),
            }
        };
        tokio::task::spawn_blocking(check).await.expect("looking files up does not panic")
    }

    /// Gives a snapshot a name.
    pub(super) async fn name(
        self: &Arc<Self>,
        snapshot: Arc<Snapshot>,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, MachineError> {
        let (host, name) = (self.clone(), name.clone());
        let work = move || match host.store.name(&snapshot, &name, existing)? {
            Named::Done(named) => info(name, &named),
            Named::Taken => Err(MachineError::SnapshotExists(name)),
        };
        tokio::task::spawn_blocking(work).await.expect("linking files does not panic")
    }
}

/// What is known of a named snapshot. Blocks.
pub(super) fn info(name: TemplateName, snapshot: &Snapshot) -> Result<SnapshotInfo, MachineError> {
    let manifest = snapshot.manifest();
    Ok(SnapshotInfo {
        name,
        build: manifest.build.to_string(),
        sandbox_id: manifest.sandbox_id.clone(),
        image: manifest.image.clone(),
        shape: manifest.shape,
        engine: manifest.engine,
        storage: snapshot.storage()?,
        created_at: manifest.created_at,
    })
}
