//! What can go wrong with a request, and of which kind it is.

use crate::actors::host::HostError;
use crate::actors::mailbox::CallError;
use crate::actors::sandbox::{OperationError, WorkError};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::sandbox::SandboxState;
use crate::domain::shape::Shape;
use crate::entity::StoreError;
use crate::entity::events::EventId;
use crate::vmm::guest::AgentError;
use crate::vmm::machine::MachineError;

/// What to do when the daemon's own disk is full.
const HOST_FULL: &str = "the host's disk is full: destroy sandboxes or delete snapshots that are not \
                         needed, or make room on it";

/// What the API may be told.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// There is no such sandbox.
    #[error("there is no sandbox {0}")]
    NoSandbox(SandboxId),
    /// There is no such API key.
    #[error("there is no API key {0}")]
    NoKey(String),
    /// The last API key would be gone, and with it the way in.
    #[error("this is the last API key: make another one first")]
    LastKey,
    /// The idempotency key was used for something else.
    #[error("the Idempotency-Key was used for another request, which made sandbox {0}")]
    IdempotencyConflict(SandboxId),
    /// A host refused or failed.
    #[error(transparent)]
    Host(#[from] HostError),
    /// There is no such event yet.
    #[error("there is no event {id} yet, the newest is {newest}: is it of another database?")]
    NoEvent { id: EventId, newest: EventId },
    /// There is no such snapshot.
    #[error("there is no snapshot {0}")]
    NoSnapshot(TemplateName),
    /// A snapshot cannot be given another shape.
    #[error(
        "a sandbox from the snapshot {name} has {} vCPUs and {} MiB of memory: ask for that, or \
         for nothing", .shape.vcpus, .shape.memory_mib
    )]
    FixedShape { name: TemplateName, shape: Shape },
    /// A template or a snapshot cannot be used.
    #[error(transparent)]
    Machine(MachineError),
    /// An operation on a sandbox was refused or failed.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Work in the sandbox was refused or failed.
    #[error(transparent)]
    Work(#[from] WorkError),
    /// An actor cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The database failed.
    #[error("the database failed")]
    Store(#[from] StoreError),
    /// The operating system's runtime ended an operation: the daemon is shutting down.
    #[error("the daemon is shutting down")]
    ShuttingDown,
}

/// Kinds of errors: what a caller can do about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// Change the request.
    Invalid,
    /// Ask for something else: this is not there.
    NotFound,
    /// Give it another name: this one is taken.
    Conflict,
    /// Bring the sandbox into another state first.
    InvalidState,
    /// Come back later.
    Unavailable,
    /// Look into the sandbox: its guest failed.
    Guest,
    /// Look into the sandbox: its guest did not answer in time.
    Silent,
    /// Ask for less: there is more than an answer holds.
    TooMuch,
    /// Ask for another part: there is none like this.
    OutOfRange,
    /// Make room on a disk.
    NoSpace,
    /// End processes in the sandbox: it can have no other.
    Exhausted,
    /// Give it up, or find out what has changed its files: it is not what was written.
    Damaged,
    /// Look into the daemon's log; the message says nothing about its insides.
    Internal,
}

impl ErrorKind {
    /// Whether it is the host that failed, rather than the caller who asked for too much.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Guest | Self::Silent | Self::NoSpace | Self::Damaged | Self::Internal => true,
            Self::Invalid | Self::NotFound | Self::Conflict => false,
            Self::TooMuch | Self::OutOfRange | Self::Exhausted => false,
            Self::InvalidState | Self::Unavailable => false,
        }
    }
}

impl ControlError {
    /// Of which kind it is.
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NoSandbox(_) | Self::NoSnapshot(_) | Self::NoKey(_) => ErrorKind::NotFound,
            Self::FixedShape { .. } | Self::NoEvent { .. } => ErrorKind::Invalid,
            Self::LastKey | Self::IdempotencyConflict(_) => ErrorKind::Conflict,
            Self::Host(error) => host_kind(error),
            Self::Machine(error) => machine_kind(error),
            Self::Operation(error) => operation_kind(error),
            Self::Work(error) => work_kind(error),
            Self::Call(error) => call_kind(error),
            Self::Store(StoreError::Full { .. }) => ErrorKind::NoSpace,
            Self::Store(_) => ErrorKind::Internal,
            Self::ShuttingDown => ErrorKind::Unavailable,
        }
    }

    /// What the sandbox became, if it went away while work was done in it.
    pub fn lost_to(&self) -> Option<SandboxState> {
        match self {
            Self::Work(WorkError::Lost { state, .. }) => Some(*state),
            _ => None,
        }
    }

    /// How long the file is, if it has no byte of the range that was asked for.
    pub fn length_of_file(&self) -> Option<u64> {
        match self {
            Self::Work(WorkError::Agent(AgentError::OutOfRange { length })) => Some(*length),
            _ => None,
        }
    }

    /// What a caller may read. The rest is for the log.
    pub fn public_message(&self) -> String {
        match (self, self.kind()) {
            (Self::Store(StoreError::Full { .. }), _) => HOST_FULL.to_owned(),
            (Self::Store(_), _) => "the database failed".to_owned(),
            (_, ErrorKind::Internal) => "the host failed to do it".to_owned(),
            (Self::Work(WorkError::Agent(error)), ErrorKind::Guest) => match error {
                AgentError::Failed { message, .. } => {
                    format!("the guest's agent failed: {message}")
                }
                AgentError::PortRefused { .. } => error.to_string(),
                _ => "the guest's agent does not answer".to_owned(),
            },
            (_, _) => self.to_string(),
        }
    }
}

fn host_kind(error: &HostError) -> ErrorKind {
    match error {
        HostError::TooManyVcpus { .. }
        | HostError::MemoryOutOfRange { .. }
        | HostError::Rates(_) => ErrorKind::Invalid,
        HostError::OutOfMemory { .. } => ErrorKind::Unavailable,
        HostError::UnknownMemory(_) => ErrorKind::Internal,
        HostError::Call(error) => call_kind(error),
        HostError::Machine(error) => machine_kind(error),
        HostError::Operation(error) => operation_kind(error),
    }
}

fn operation_kind(error: &OperationError) -> ErrorKind {
    match error {
        OperationError::Refused(_) => ErrorKind::InvalidState,
        OperationError::Call(error) => call_kind(error),
        OperationError::Machine(error) => machine_kind(error),
    }
}

fn machine_kind(error: &MachineError) -> ErrorKind {
    match error {
        MachineError::UnknownTemplate(_) => ErrorKind::NotFound,
        MachineError::NoSpace { .. } => ErrorKind::NoSpace,
        MachineError::Damaged { .. } => ErrorKind::Damaged,
        MachineError::SnapshotExists(_) | MachineError::NameOfImage(_) => ErrorKind::Conflict,
        MachineError::Cancelled | MachineError::Incompatible(_) => ErrorKind::InvalidState,
        MachineError::EndedEarly { .. }
        | MachineError::BootTimeout { .. }
        | MachineError::Agent(_) => ErrorKind::Guest,
        MachineError::Template { .. }
        | MachineError::Snapshot { .. }
        | MachineError::Network { .. }
        | MachineError::Disk { .. }
        | MachineError::Cgroup { .. }
        | MachineError::Record(_)
        | MachineError::Hypervisor(_)
        | MachineError::NotAdopted(_)
        | MachineError::Remains(_) => ErrorKind::Internal,
    }
}

fn work_kind(error: &WorkError) -> ErrorKind {
    match error {
        WorkError::Refused(_) => ErrorKind::InvalidState,
        WorkError::Lost { state: SandboxState::Error, .. } => ErrorKind::Guest,
        WorkError::Lost { .. } => ErrorKind::InvalidState,
        WorkError::Call(error) => call_kind(error),
        WorkError::Agent(error) => match error {
            AgentError::Invalid { .. } => ErrorKind::Invalid,
            AgentError::NotFound { .. } => ErrorKind::NotFound,
            AgentError::Conflict { .. } => ErrorKind::Conflict,
            AgentError::OutOfRange { .. } => ErrorKind::OutOfRange,
            AgentError::TooMuch { .. } => ErrorKind::TooMuch,
            AgentError::NoSpace { .. } => ErrorKind::NoSpace,
            AgentError::Exhausted { .. } => ErrorKind::Exhausted,
            AgentError::PortSilent { .. } => ErrorKind::Silent,
            AgentError::Unreachable { .. }
            | AgentError::PortRefused { .. }
            | AgentError::Silent { .. }
            | AgentError::Failed { .. } => ErrorKind::Guest,
        },
    }
}

fn call_kind(error: &CallError) -> ErrorKind {
    match error {
        CallError::Overloaded => ErrorKind::Unavailable,
        CallError::Gone => ErrorKind::InvalidState,
    }
}
