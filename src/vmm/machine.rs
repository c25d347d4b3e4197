//! A sandbox's machine: the VM with its disk, network, cgroup and agent as one thing that is made,
//! found again and taken away.
//!
//! [`Machines`] is the host's edge: above it are actors that know no kernel, below it nothing that
//! knows an actor. [`super::host`] is the real one, [`super::simulated`] the one for tests.

use std::collections::BTreeMap;
use std::sync::Arc;

use async_trait::async_trait;
use tokio_util::sync::CancellationToken;

use super::guest::{Agent, AgentError};
use super::hypervisor::{Engine, HypervisorError};
use super::record::{Life, RecordError};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;

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
    #[error("the host's disk is full")]
    NoSpace { source: Box<dyn std::error::Error + Send + Sync> },
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
    Record(#[from] RecordError),
    /// Its VM could not be started.
    #[error("the sandbox's VM failed")]
    Hypervisor(#[from] HypervisorError),
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
    #[error("the start was cancelled")]
    Cancelled,
    /// It cannot be found again; nothing of it is left.
    #[error("the sandbox's VM did not survive: {0}")]
    NotAdopted(String),
    /// Something of it could not be taken away.
    #[error("could not take away everything of the sandbox: {}", .0.join("; "))]
    Remains(Vec<String>),
}

/// What to make.
#[derive(Debug, Clone)]
pub struct MachineSpec {
    /// Id of the sandbox.
    pub id: SandboxId,
    /// What it is created from.
    pub template: TemplateName,
    /// vCPUs and memory.
    pub shape: Shape,
    /// Environment of its processes.
    pub envs: BTreeMap<String, String>,
    /// What its agent will expect with every request.
    pub access_token: String,
    /// Its life at the time of the start.
    pub life: Life,
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
#[derive(Debug)]
pub struct Survivor {
    /// Id of the sandbox.
    pub id: SandboxId,
    /// Its life as last decided.
    pub life: Life,
}

/// Makes the machines of one host and finds them again.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// What runs the machines.
    fn engine(&self) -> EngineInfo;

    /// Checks that sandboxes can be created from `template`.
    ///
    /// # Errors
    ///
    /// [`MachineError::UnknownTemplate`] or [`MachineError::Template`].
    fn check_template(&self, template: &TemplateName) -> Result<(), MachineError>;

    /// Makes a machine and returns it when its agent knows who it is.
    ///
    /// # Errors
    ///
    /// Everything made so far has been taken away again, [`MachineError::Remains`] apart.
    /// Cancelling `cancel` ends in [`MachineError::Cancelled`] within a second.
    async fn boot(
        &self,
        spec: MachineSpec,
        cancel: &CancellationToken,
    ) -> Result<Arc<dyn Machine>, MachineError>;

    /// Lists what a former daemon left; called once, before anything else.
    async fn survivors(&self) -> Vec<Survivor>;

    /// Takes over the machine of a sandbox.
    ///
    /// # Errors
    ///
    /// [`MachineError::NotAdopted`] with the reason; everything of it has been taken away then.
    async fn adopt(&self, id: &SandboxId) -> Result<Arc<dyn Machine>, MachineError>;

    /// Takes away whatever is left of a sandbox that has no machine any more; idempotent.
    ///
    /// # Errors
    ///
    /// [`MachineError::Remains`] lists what is still there: call again later.
    async fn sweep(&self, id: &SandboxId) -> Result<(), MachineError>;

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
    fn keep(&self, life: &Life) -> Result<(), MachineError>;

    /// Waits for the VM to end and says how.
    async fn ended(&self) -> String;

    /// Ends the VM and gives back everything it held; idempotent, never cancelled half-way by a
    /// caller that goes away.
    ///
    /// # Errors
    ///
    /// [`MachineError::Remains`] lists what is still there: call again later.
    async fn destroy(&self) -> Result<(), MachineError>;
}
