//! What a sandbox answers that does not do what it is asked to do.

use std::sync::Arc;

use crate::actors::mailbox::CallError;
use crate::domain::sandbox::Refusal;
use crate::vmm::machine::MachineError;

/// It is in no state for it.
#[derive(Debug, thiserror::Error)]
#[error("{refusal}{}", .reason.as_deref().map(|r| format!(": {r}")).unwrap_or_default())]
pub struct Refused {
    /// Why not.
    pub refusal: Refusal,
    /// How it came to that state, where that needs saying.
    pub reason: Option<String>,
}

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
