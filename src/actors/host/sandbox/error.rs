//! Why an operation on a sandbox was not done.

use std::sync::Arc;

use crate::actors::mailbox::CallError;
use crate::domain::lifecycle::Refused;
use crate::vmm::machine::MachineError;

/// Why an operation on a sandbox was not done.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// It is in no state for it.
    #[error(transparent)]
    Refused(#[from] Refused),
    /// Its actor cannot be asked.
    #[error(transparent)]
    Call(#[from] CallError),
    /// Its machine failed.
    #[error(transparent)]
    Machine(Arc<MachineError>),
}
