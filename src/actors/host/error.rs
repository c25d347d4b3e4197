//! What goes wrong on a host, told in the words of [`HostError`].

use super::admission::AdmissionError;
use super::sandbox::{OperationError, WorkError};
use crate::actors::mailbox::CallError;
use crate::domain::host::{ErrorKind, HostError};
use crate::domain::lifecycle::{Refused, SandboxState};
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::vmm::guest::AgentError;
use crate::vmm::machine::MachineError;

/// All that is said of a fault of ours; the log has the rest.
const INTERNAL: &str = "the host failed to do it";

fn of(kind: ErrorKind, error: &(dyn std::error::Error + 'static)) -> HostError {
    let message = match kind {
        ErrorKind::Internal => INTERNAL.to_owned(),
        _ => error.to_string(),
    };
    let cause = crate::chain(error).to_string();
    HostError { kind, message, cause, retryable: false, state: None }
}

impl From<AdmissionError> for HostError {
    fn from(error: AdmissionError) -> Self {
        let kind = match &error {
            AdmissionError::TooManyVcpus { .. }
            | AdmissionError::MemoryOutOfRange { .. }
            | AdmissionError::Rates(_) => ErrorKind::Invalid,
            AdmissionError::OutOfMemory { .. } => ErrorKind::Unavailable,
            AdmissionError::UnknownMemory(_) => ErrorKind::Internal,
        };
        Self { retryable: kind == ErrorKind::Unavailable, ..of(kind, &error) }
    }
}

impl From<CallError> for HostError {
    fn from(error: CallError) -> Self {
        let kind = match error {
            CallError::Overloaded => ErrorKind::Unavailable,
            CallError::Gone => ErrorKind::InvalidState,
        };
        Self { retryable: kind == ErrorKind::Unavailable, ..of(kind, &error) }
    }
}

impl From<Refused> for HostError {
    fn from(refused: Refused) -> Self {
        of(ErrorKind::InvalidState, &refused)
    }
}

impl From<OperationError> for HostError {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::Refused(refused) => refused.into(),
            OperationError::Call(error) => error.into(),
            OperationError::Machine(error) => (&*error).into(),
        }
    }
}

impl From<MachineError> for HostError {
    fn from(error: MachineError) -> Self {
        (&error).into()
    }
}

impl From<&MachineError> for HostError {
    fn from(error: &MachineError) -> Self {
        let (kind, retryable) = match error {
            // Another host may have it, or room for it.
            MachineError::UnknownTemplate(_) => (ErrorKind::NotFound, true),
            MachineError::NoSpace { .. } => (ErrorKind::NoSpace, true),
            MachineError::Damaged { .. } => (ErrorKind::Damaged, false),
            MachineError::SnapshotExists(_) | MachineError::NameOfImage(_) => {
                (ErrorKind::Conflict, false)
            }
            MachineError::Cancelled | MachineError::Incompatible(_) => {
                (ErrorKind::InvalidState, false)
            }
            MachineError::EndedEarly { .. }
            | MachineError::BootTimeout { .. }
            | MachineError::Agent(_) => (ErrorKind::Guest, false),
            MachineError::Template { .. }
            | MachineError::Snapshot { .. }
            | MachineError::Network { .. }
            | MachineError::Disk { .. }
            | MachineError::Cgroup { .. }
            | MachineError::Record(_)
            | MachineError::Hypervisor(_)
            | MachineError::NotAdopted(_)
            | MachineError::Remains(_) => (ErrorKind::Internal, false),
        };
        Self { retryable, ..of(kind, error) }
    }
}

impl From<WorkError> for HostError {
    fn from(error: WorkError) -> Self {
        match error {
            WorkError::Refused(refused) => refused.into(),
            WorkError::Call(error) => error.into(),
            WorkError::Agent(error) => error.into(),
            WorkError::Lost { state, .. } => {
                let kind = match state {
                    SandboxState::Error => ErrorKind::Guest,
                    _ => ErrorKind::InvalidState,
                };
                Self { state: Some(state), ..of(kind, &error) }
            }
        }
    }
}

impl From<AgentError> for HostError {
    fn from(error: AgentError) -> Self {
        let kind = match &error {
            AgentError::Invalid { .. } => ErrorKind::Invalid,
            AgentError::NotFound { .. } => ErrorKind::NotFound,
            AgentError::Conflict { .. } => ErrorKind::Conflict,
            AgentError::OutOfRange { length } => ErrorKind::OutOfRange { length: *length },
            AgentError::TooMuch { .. } => ErrorKind::TooMuch,
            AgentError::NoSpace { .. } => ErrorKind::NoSpace,
            AgentError::Exhausted { .. } => ErrorKind::Exhausted,
            AgentError::PortSilent { .. } => ErrorKind::Silent,
            AgentError::Unreachable { .. }
            | AgentError::PortRefused { .. }
            | AgentError::Silent { .. }
            | AgentError::Failed { .. } => ErrorKind::Guest,
        };
        let told = of(kind, &error);
        let message = match &error {
            AgentError::Failed { message, .. } => format!("the guest's agent failed: {message}"),
            AgentError::Unreachable { .. } | AgentError::Silent { .. } => {
                "the guest's agent does not answer".to_owned()
            }
            _ => told.message,
        };
        Self { message, ..told }
    }
}

/// A snapshot cannot be given another shape.
pub fn fixed_shape(name: &TemplateName, shape: Shape) -> HostError {
    let Shape { vcpus, memory_mib } = shape;
    let message = format!(
        "a sandbox from the snapshot {name} has {vcpus} vCPUs and {memory_mib} MiB of memory: ask \
         for that, or for nothing"
    );
    HostError::new(ErrorKind::Invalid, message)
}
