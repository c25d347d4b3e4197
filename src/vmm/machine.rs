//! A sandbox's machine: the VM with its disk, network, cgroup and agent as one thing that is made,
//! found again and taken away.
//!
//! [`Machines`] is the host's edge: above it are actors that know no kernel, below it nothing that
//! knows an actor. [`crate::vmm::host`] is the real one, [`crate::vmm::simulated`] the one for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::snapshot::{Existing, ForkPoint, SnapshotInfo, Storage};
use crate::domain::status::SandboxStatus;
use crate::domain::trace::Trace;
use crate::domain::usage::Readiness;
use crate::vmm::guest::{Agent, AgentError};
use crate::vmm::hypervisor::HypervisorError;
use crate::vmm::process::cgroup::Share;
use crate::vmm::process::process_usage::Usage;
use crate::vmm::record::RecordError;

/// What went wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No template has that name.
    #[error("there is no template called {0}: `nestbox image ls` lists what there is")]
    UnknownTemplate(TemplateName),
    /// The template is there but cannot be used.
    #[error("the template {name} cannot be used")]
    Template { name: TemplateName, source: Box<dyn std::error::Error + Send + Sync> },
    /// The host's disk is full.
    #[error(
        "the host's disk is full: destroy sandboxes or delete snapshots that are not needed, or make \
         room on it"
    )]
    NoSpace { source: Box<dyn std::error::Error + Send + Sync> },
    /// There is a snapshot of that name, and it is not to be replaced.
    #[error("there is a snapshot called {0} already: overwrite it, or choose another name")]
    SnapshotExists(TemplateName),
    /// An image has that name, and would hide the snapshot.
    #[error("there is an image called {0}: choose another name for the snapshot")]
    NameOfImage(TemplateName),
    /// A snapshot cannot be written or read.
    #[error("the snapshot failed")]
    Snapshot { source: Box<dyn std::error::Error + Send + Sync> },
    /// The snapshot is not what was written.
    #[error(
        "the snapshot is damaged, nothing is restored from it: the host's log says what is wrong"
    )]
    Damaged { source: Box<dyn std::error::Error + Send + Sync> },
    /// The snapshot was made by something that this host does not have.
    #[error("the snapshot cannot be used on this host: {0}")]
    Incompatible(String),
    /// No network slot could be had.
    #[error("the sandbox's network could not be made")]
    Network { source: Box<dyn std::error::Error + Send + Sync> },
    /// Its disk could not be made.
    #[error("the sandbox's disk could not be made")]
    Disk { source: Box<dyn std::error::Error + Send + Sync> },
    /// Its cgroup could not be made.
    #[error("the sandbox's cgroup could not be made")]
    Cgroup { source: Box<dyn std::error::Error + Send + Sync> },
    /// Its record could not be written.
    #[error("the sandbox's record failed")]
    Record(#[source] RecordError),
    /// Its VM could not be started.
    #[error("the sandbox's VM failed")]
    Hypervisor(#[source] HypervisorError),
    /// Its VM ended before its agent answered.
    #[error("the VM {how} before its agent answered; its console ended with: {console}")]
    EndedEarly { how: String, console: String },
    /// Its guest did not come up in time.
    #[error("the guest did not start within {seconds} s; its console ended with: {console}")]
    BootTimeout { seconds: u64, console: String },
    /// Its agent did not take its identity.
    #[error("the guest's agent failed")]
    Agent(#[from] AgentError),
    /// It was cancelled, because the sandbox is to be destroyed.
    #[error("it was cancelled, because the sandbox is to be destroyed")]
    Cancelled,
    /// It cannot be found again; nothing of it is left.
    #[error("the sandbox's VM did not survive: {0}")]
    NotAdopted(String),
    /// Something of it could not be taken away.
    #[error("could not take away everything of the sandbox: {}", .0.join("; "))]
    Remains(Vec<String>),
}

/// What a new machine starts from.
#[derive(Debug, Clone)]
pub enum Origin {
    /// An image, restored from its warm snapshot, or a named snapshot.
    Template(TemplateName),
    /// What a fork has frozen of its parent.
    Fork(ForkPoint),
}

/// What to make.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Id of the sandbox.
    pub id: SandboxId,
    /// What it starts from.
    pub origin: Origin,
    /// What the sandbox says that it was created from; a forked one says the same as its parent.
    pub template: TemplateName,
    /// vCPUs and memory; those of the snapshot, if it starts from one.
    pub shape: Shape,
    /// Environment of its processes, beside what a snapshot's processes had already.
    pub envs: BTreeMap<String, String>,
    /// What it may reach, from its first packet on.
    pub network: Policy,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
    /// What its agent will expect with every request.
    pub access_token: String,
    /// Where it is in its life at the time of the start.
    pub status: SandboxStatus,
}

/// What can be known of a template before a machine is made from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// An image, which runs in any shape.
    Image,
    /// A named snapshot, which runs in its own shape only.
    Snapshot(Shape),
}

/// How one long operation on a machine goes.
#[derive(Debug, Clone, Default)]
pub struct Run {
    /// Ends it early, because the sandbox is to be destroyed.
    pub cancel: CancellationToken,
    /// Where its time went.
    pub trace: Trace,
    /// What a machine that is made gets of processors that others want too.
    pub share: Share,
}

/// A capture of a running machine failed.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// Nothing has changed for the machine: it runs on.
    #[error(transparent)]
    RunsOn(MachineError),
    /// The VM is gone, and with it what was not captured: [`Machine::destroy`] is what is left to do.
    #[error(transparent)]
    Lost(MachineError),
}

/// A machine that was paused.
pub struct Paused {
    /// What there is of it now.
    pub frozen: Arc<dyn Frozen>,
    /// [`MachineError::Remains`] if something is left of its VM that could not be taken away, such as
    /// a block device. It is paused all the same, but whoever asked for it has to know.
    pub taken_away: Result<(), MachineError>,
}

/// What runs the machines of a host.
#[derive(Debug, Clone)]
pub struct EngineInfo {
    /// Which hypervisor, and how.
    pub engine: Engine,
    /// Its version.
    pub version: String,
}

/// A machine that a former daemon left.
#[derive(Clone)]
pub struct Survivor {
    /// Id of the sandbox.
    pub id: SandboxId,
    /// Where it is in its life, as last decided.
    pub status: SandboxStatus,
    /// What it was created from.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Environment of its processes.
    pub envs: BTreeMap<String, String>,
    /// How fast it may use its disk and its network.
    pub rates: RateLimits,
}

/// What was found of a sandbox that a former daemon left.
pub enum Found {
    /// Its VM runs.
    Running(Arc<dyn Machine>),
    /// It is frozen: only files are left of it.
    Frozen(Arc<dyn Frozen>),
}

/// Makes the machines of one host and finds them again.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// What runs the machines.
    fn engine(&self) -> EngineInfo;

    /// What is ready for the next creates.
    fn readiness(&self) -> Readiness;

    /// Looks a template up.
    ///
    /// # Errors
    ///
    /// [`MachineError::UnknownTemplate`], [`MachineError::Template`] if it is broken,
    /// [`MachineError::Incompatible`].
    async fn template(&self, name: &TemplateName) -> Result<Template, MachineError>;

    /// The id for a new sandbox: that of a machine which stands by for it, if there is one.
    async fn reserve(&self, template: &TemplateName, shape: Shape) -> SandboxId;

    /// Makes a machine and returns it when its agent knows who it is.
    ///
    /// # Errors
    ///
    /// Everything made so far has been taken away again, [`MachineError::Remains`] apart.
    /// Cancelling ends in [`MachineError::Cancelled`] within a second.
    async fn make(&self, spec: MachineSpec, run: &Run) -> Result<Arc<dyn Machine>, MachineError>;

    /// Lists what a former daemon left; called once, before anything else.
    async fn survivors(&self) -> Vec<Survivor>;

    /// Takes over the machine of a sandbox. An operation that was under way when the former daemon
    /// ended has happened or has not: it runs, or it is frozen.
    ///
    /// # Errors
    ///
    /// [`MachineError::NotAdopted`] with the reason; everything of it has been taken away then.
    async fn adopt(&self, id: &SandboxId) -> Result<Found, MachineError>;

    /// Takes away whatever is left of a sandbox that has no machine any more; idempotent.
    ///
    /// # Errors
    ///
    /// [`MachineError::Remains`] lists what is still there: call again later.
    async fn sweep(&self, id: &SandboxId) -> Result<(), MachineError>;

    /// The named snapshots of this host.
    ///
    /// # Errors
    ///
    /// [`MachineError::Snapshot`].
    async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, MachineError>;

    /// Removes a named snapshot. Sandboxes that were made from it keep the files they need.
    ///
    /// # Errors
    ///
    /// [`MachineError::UnknownTemplate`], [`MachineError::Snapshot`].
    async fn remove_snapshot(&self, name: &TemplateName) -> Result<(), MachineError>;

    /// Removes what a fork has frozen, once all children are made or none will be.
    async fn discard(&self, point: ForkPoint);

    /// Gives back what is not in use by any machine. Machines run on.
    async fn shut_down(&self);
}

/// One machine. Dropping it leaves it running.
#[async_trait]
pub trait Machine: Send + Sync {
    /// The client of its agent.
    fn agent(&self) -> &Agent;

    /// Number of its network slot.
    fn slot(&self) -> Option<u32>;

    /// Keeps where the sandbox is in its life, for a later daemon.
    ///
    /// # Errors
    ///
    /// [`MachineError::Record`].
    fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError>;

    /// What it may reach.
    fn network(&self) -> PolicyRevision;

    /// Changes what it may reach, at once. Connections that it may not have any more end.
    ///
    /// # Errors
    ///
    /// It reaches what it did before; [`MachineError::Network`], [`MachineError::Record`].
    async fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError>;

    /// What it takes on disk.
    ///
    /// # Errors
    ///
    /// [`MachineError::Snapshot`], [`MachineError::Disk`].
    async fn storage(&self) -> Result<Storage, MachineError>;

    /// What it takes of the host now; none if its VM has ended. Blocks for some small reads, and never
    /// for an operation that is under way, nor for the guest.
    fn usage(&self) -> Option<Usage>;

    /// Waits for the VM to end and says how. The end of a VM that is being paused is no news.
    async fn ended(&self) -> String;

    /// Freezes it to disk and frees everything else that it holds on the host.
    ///
    /// # Errors
    ///
    /// [`CaptureError`] says whether it runs on. Cancelling makes it fail as well.
    async fn pause(&self, run: &Run) -> Result<Paused, CaptureError>;

    /// Captures it under a name. It is frozen only for the capture.
    ///
    /// # Errors
    ///
    /// As [`Machine::pause`]; [`MachineError::SnapshotExists`] and [`MachineError::NameOfImage`]
    /// within.
    async fn snapshot(
        &self,
        name: &TemplateName,
        existing: Existing,
        run: &Run,
    ) -> Result<SnapshotInfo, CaptureError>;

    /// Captures it for children that are then made from the [`ForkPoint`]. It is frozen only for the
    /// capture.
    ///
    /// # Errors
    ///
    /// As [`Machine::pause`].
    async fn fork(&self, run: &Run) -> Result<ForkPoint, CaptureError>;

    /// Ends the VM and gives back everything it held; idempotent, never cancelled half-way by a
    /// caller that goes away. Waits for an operation that was cancelled.
    ///
    /// # Errors
    ///
    /// [`MachineError::Remains`] lists what is still there: call again later.
    async fn destroy(&self) -> Result<(), MachineError>;
}

/// A machine that is frozen: a directory of files.
#[async_trait]
pub trait Frozen: Send + Sync {
    /// Keeps where the sandbox is in its life, for a later daemon.
    ///
    /// # Errors
    ///
    /// [`MachineError::Record`].
    fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError>;

    /// What it may reach when it is resumed.
    fn network(&self) -> PolicyRevision;

    /// Changes what it may reach when it is resumed.
    ///
    /// # Errors
    ///
    /// Nothing has changed; [`MachineError::Record`].
    fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError>;

    /// What it takes on disk.
    ///
    /// # Errors
    ///
    /// [`MachineError::Snapshot`], [`MachineError::Disk`].
    async fn storage(&self) -> Result<Storage, MachineError>;

    /// Makes a machine of it again, which goes on where it was frozen.
    ///
    /// # Errors
    ///
    /// It is still frozen then, with all its files, and can be resumed once more;
    /// [`MachineError::Incompatible`] if never on this host.
    async fn resume(&self, run: &Run) -> Result<Arc<dyn Machine>, MachineError>;

    /// Keeps it under a name; nothing is copied.
    ///
    /// # Errors
    ///
    /// [`MachineError::SnapshotExists`], [`MachineError::NameOfImage`], [`MachineError::Snapshot`].
    async fn snapshot(
        &self,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<SnapshotInfo, MachineError>;

    /// Merges generations and overlays where there have come to be many, while nobody needs it.
    /// Ends early, having changed nothing, when it is resumed or destroyed.
    async fn tidy(&self);

    /// Removes its files; idempotent.
    ///
    /// # Errors
    ///
    /// [`MachineError::Remains`] lists what is still there: call again later.
    async fn destroy(&self) -> Result<(), MachineError>;
}
