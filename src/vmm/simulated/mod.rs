//! Machines without root, VM, network or disk, for tests of everything above them.
//!
//! Each machine is the real guest agent as a process of this host, so that commands, files, exit
//! codes and time limits are real. A test decides how the life of a machine goes: see [`Mode`].
//!
//! Architecture invariant: no setting of the daemon leads here. Code in such a machine is not
//! confined at all.

mod guest;
mod running;
mod steps;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use self::guest::Guest;
use self::running::{SimulatedFrozen, SimulatedMachine};
use self::steps::Steps;
use crate::domain::egress::PolicyRevision;
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::domain::snapshot::ForkPoint;
use crate::domain::snapshot::SnapshotInfo;
use crate::domain::status::SandboxStatus;
use crate::domain::usage::Readiness;
use crate::vmm::guest::{Agent, Identity};
use crate::vmm::hypervisor::HypervisorError;
use crate::vmm::machine::{
    EngineInfo, Found, Machine, MachineError, MachineSpec, Machines, Origin, Run, Survivor,
    Template,
};
use crate::vmm::process::VmProcess;

pub use steps::{Fault, Held, Mode, Step};

/// How long an agent that runs already may take to answer.
const INIT_LIMIT: std::time::Duration = std::time::Duration::from_secs(5);

/// The machines of a simulated host. Clones are the same host; all machines end with the last one.
#[derive(Clone)]
pub struct SimulatedMachines(Arc<Host>);

struct Host {
    templates: BTreeSet<TemplateName>,
    steps: Steps,
    /// What is on the host, as its disk would tell a later daemon.
    present: Mutex<HashMap<SandboxId, Present>>,
    snapshots: Mutex<BTreeMap<TemplateName, SnapshotInfo>>,
    forks: Mutex<HashMap<ForkPoint, TemplateName>>,
    slots: AtomicU32,
    boots: AtomicUsize,
}

/// A machine that is there, as long as anything of it is left.
struct Present {
    guest: Arc<Guest>,
    phase: Phase,
    access_token: String,
    slot: u32,
    /// Kept and shown, for there is no network to enforce it in.
    network: PolicyRevision,
    status: SandboxStatus,
    /// The image that it all began with.
    image: TemplateName,
    shape: Shape,
    /// How often its memory was written to disk.
    generations: u32,
}

/// What a machine is to whoever finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// A VM, even if it is stopped for a moment.
    Running,
    /// Files.
    Frozen,
}

impl SimulatedMachines {
    /// Makes a host that knows `templates` and takes every step at once.
    pub fn new(templates: impl IntoIterator<Item = TemplateName>) -> Self {
        Self(Arc::new(Host {
            templates: templates.into_iter().collect(),
            steps: Steps::default(),
            present: Mutex::default(),
            snapshots: Mutex::default(),
            forks: Mutex::default(),
            slots: AtomicU32::new(0),
            boots: AtomicUsize::new(0),
        }))
    }

    /// Decides how steps of one kind are taken from now on.
    pub fn set_mode(&self, step: Step, mode: Mode) {
        self.0.steps.set_mode(step, mode);
    }

    /// Waits for the next step that is held.
    pub async fn held(&self, step: Step) -> Held {
        self.0.steps.held(step).await
    }

    /// Ends a sandbox's VM at once, as `kill -9` would; whether there was one.
    pub fn kill(&self, id: &SandboxId) -> bool {
        let guest = self.0.present().get(id).map(|present| present.guest.clone());
        guest.is_some_and(|guest| {
            guest.kill();
            true
        })
    }

    /// Ends all machines, whoever still knows them.
    pub fn end_all(&self) {
        self.0.end_all();
    }

    /// How often a machine was asked for.
    pub fn boots(&self) -> usize {
        self.0.boots.load(Ordering::SeqCst)
    }

    /// How many forks have left something on the host.
    pub fn fork_points(&self) -> usize {
        self.0.forks().len()
    }

    /// The sandboxes of which anything is left on the host.
    pub fn present(&self) -> BTreeSet<SandboxId> {
        self.0.present().keys().cloned().collect()
    }
}

impl Host {
    fn present(&self) -> MutexGuard<'_, HashMap<SandboxId, Present>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn snapshots(&self) -> MutexGuard<'_, BTreeMap<TemplateName, SnapshotInfo>> {
        self.snapshots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forks(&self) -> MutexGuard<'_, HashMap<ForkPoint, TemplateName>> {
        self.forks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The image that everything which starts there began with.
    fn image(&self, origin: &Origin) -> Result<TemplateName, MachineError> {
        match origin {
            Origin::Template(name) if self.templates.contains(name) => Ok(name.clone()),
            Origin::Template(name) => match self.snapshots().get(name) {
                Some(snapshot) => Ok(snapshot.image.clone()),
                None => Err(MachineError::UnknownTemplate(name.clone())),
            },
            Origin::Fork(point) => {
                let image = self.forks().get(point).cloned();
                image.ok_or_else(|| MachineError::Snapshot { source: "no such fork".into() })
            }
        }
    }

    fn watch(self: &Arc<Self>, id: &SandboxId) -> Result<SimulatedMachine, MachineError> {
        let present = self.present();
        let Some(found) = present.get(id) else {
            return Err(MachineError::NotAdopted("nothing is known of it".to_owned()));
        };
        let process = VmProcess::watch(found.guest.process()).map_err(HypervisorError::from)?;
        let agent = Agent::new(found.guest.address, &found.access_token);
        let guest = found.guest.clone();
        Ok(SimulatedMachine {
            id: id.clone(),
            slot: found.slot,
            agent,
            guest,
            process,
            host: self.clone(),
        })
    }

    /// Starts a guest and tells it who it is.
    async fn make(
        self: &Arc<Self>,
        spec: MachineSpec,
        image: TemplateName,
    ) -> Result<SimulatedMachine, MachineError> {
        let started = tokio::task::spawn_blocking(Guest::start).await;
        let guest = started.map_err(|error| MachineError::EndedEarly {
            how: format!("could not be started: {error}"),
            console: String::new(),
        })??;
        let present = Present {
            guest: Arc::new(guest),
            phase: Phase::Running,
            access_token: spec.access_token,
            slot: self.slots.fetch_add(1, Ordering::SeqCst),
            network: PolicyRevision { policy: spec.network, revision: 0 },
            status: spec.status,
            image,
            shape: spec.shape,
            generations: 0,
        };
        self.present().insert(spec.id.clone(), present);
        let machine = self.watch(&spec.id)?;
        let hostname = spec.id.to_string();
        let identity =
            Identity { hostname, envs: spec.envs, nameservers: Vec::new(), known_token: None };
        machine.agent().init(&identity, INIT_LIMIT).await?;
        Ok(machine)
    }

    /// Ends whatever is left of a sandbox. Nothing being left is fine.
    async fn end(self: &Arc<Self>, id: &SandboxId) {
        let guest = self.present().get(id).map(|present| present.guest.clone());
        let Some(guest) = guest else { return };
        match VmProcess::watch(guest.process()) {
            Ok(process) => {
                if let Err(error) = guest.destroy(&process).await {
                    tracing::error!(sandbox_id = %id, error = %crate::chain(&error),
                        "a simulated machine was not ended");
                }
            }
            Err(_) => guest.forget(),
        }
    }

    fn end_all(&self) {
        let present = std::mem::take(&mut *self.present());
        for present in present.values() {
            present.guest.kill_and_reap();
        }
    }

    async fn take_away(self: &Arc<Self>, step: Step, id: &SandboxId) -> Result<(), MachineError> {
        if !self.present().contains_key(id) {
            return Ok(());
        }
        let taken = self.steps.take(step, id, &CancellationToken::new()).await;
        // Whatever else is left, the VM is not.
        self.end(id).await;
        taken?;
        self.present().remove(id);
        Ok(())
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.end_all();
    }
}

#[async_trait]
impl Machines for SimulatedMachines {
    fn engine(&self) -> EngineInfo {
        EngineInfo { engine: Engine::Simulated, version: "1".to_owned() }
    }

    fn readiness(&self) -> Readiness {
        Readiness::default()
    }

    async fn template(&self, name: &TemplateName) -> Result<Template, MachineError> {
        if self.0.templates.contains(name) {
            return Ok(Template::Image);
        }
        match self.0.snapshots().get(name) {
            Some(snapshot) => Ok(Template::Snapshot(snapshot.shape)),
            None => Err(MachineError::UnknownTemplate(name.clone())),
        }
    }

    async fn reserve(&self, _: &TemplateName, _: Shape) -> SandboxId {
        SandboxId::random()
    }

    async fn make(&self, spec: MachineSpec, run: &Run) -> Result<Arc<dyn Machine>, MachineError> {
        let image = self.0.image(&spec.origin)?;
        self.0.boots.fetch_add(1, Ordering::SeqCst);
        let id = spec.id.clone();
        let made = async {
            let machine = run.trace.span("guest", self.0.make(spec, image)).await?;
            // Held when the guest runs: what a failure has to take away is there.
            run.trace.span("boot", self.0.steps.take(Step::Boot, &id, &run.cancel)).await?;
            Ok(machine)
        };
        match made.await {
            Ok(machine) => Ok(Arc::new(machine)),
            Err(error) => {
                self.0.end(&id).await;
                if !matches!(error, MachineError::Remains(_)) {
                    self.0.present().remove(&id);
                }
                Err(error)
            }
        }
    }

    async fn survivors(&self) -> Vec<Survivor> {
        let present = self.0.present();
        let survivor = |(id, present): (&SandboxId, &Present)| Survivor {
            id: id.clone(),
            status: present.status.clone(),
            template: present.image.clone(),
            shape: present.shape,
            // Its agent knows them.
            envs: BTreeMap::new(),
            rates: Default::default(),
        };
        present.iter().map(survivor).collect()
    }

    async fn adopt(&self, id: &SandboxId) -> Result<Found, MachineError> {
        let known = self.0.present().get(id).map(|found| (found.phase, found.status.state));
        let reason = match (self.0.watch(id), known) {
            (Ok(_), Some((_, SandboxState::Starting))) => {
                "the daemon ended while the sandbox was starting".to_owned()
            }
            (Ok(_), Some((Phase::Frozen, _))) => {
                return Ok(Found::Frozen(Arc::new(SimulatedFrozen::new(id, &self.0))));
            }
            (Ok(machine), _) => {
                // A capture that was under way has not happened.
                machine.thaw();
                return Ok(Found::Running(Arc::new(machine)));
            }
            (Err(error), _) => crate::chain(&error).to_string(),
        };
        self.0.end(id).await;
        self.0.present().remove(id);
        Err(MachineError::NotAdopted(reason))
    }

    async fn sweep(&self, id: &SandboxId) -> Result<(), MachineError> {
        self.0.take_away(Step::Sweep, id).await
    }

    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, MachineError> {
        Ok(self.0.snapshots().values().cloned().collect())
    }

    async fn remove_snapshot(&self, name: &TemplateName) -> Result<(), MachineError> {
        match self.0.snapshots().remove(name) {
            Some(_) => Ok(()),
            None => Err(MachineError::UnknownTemplate(name.clone())),
        }
    }

    async fn discard(&self, point: ForkPoint) {
        self.0.forks().remove(&point);
    }

    async fn shut_down(&self) {}
}
