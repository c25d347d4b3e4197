//! What there is of a sandbox on its host.

use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::egress::{Policy, PolicyRevision};
use crate::domain::snapshot::Storage;
use crate::domain::status::SandboxStatus;
use crate::vmm::machine::{Found, Frozen, Machine, MachineError};

/// A machine, or what a pause has left of one.
#[derive(Clone)]
pub enum Instance {
    /// Its VM runs.
    Machine(Arc<dyn Machine>),
    /// Only files are left of it.
    Frozen(Arc<dyn Frozen>),
}

impl From<Found> for Instance {
    fn from(found: Found) -> Self {
        match found {
            Found::Running(machine) => Self::Machine(machine),
            Found::Frozen(frozen) => Self::Frozen(frozen),
        }
    }
}

impl Instance {
    /// The network slot that it holds.
    pub fn slot(&self) -> Option<u32> {
        match self {
            Self::Machine(machine) => machine.slot(),
            Self::Frozen(_) => None,
        }
    }

    /// Keeps where the sandbox is in its life, for a later daemon.
    ///
    /// # Errors
    ///
    /// As [`Machine::keep`].
    pub fn keep(&self, status: &SandboxStatus) -> Result<(), MachineError> {
        match self {
            Self::Machine(machine) => machine.keep(status),
            Self::Frozen(frozen) => frozen.keep(status),
        }
    }

    /// What it may reach.
    pub fn network(&self) -> PolicyRevision {
        match self {
            Self::Machine(machine) => machine.network(),
            Self::Frozen(frozen) => frozen.network(),
        }
    }

    /// Changes what it may reach.
    ///
    /// # Errors
    ///
    /// As [`Machine::set_network`].
    pub async fn set_network(&self, policy: &Policy) -> Result<PolicyRevision, MachineError> {
        match self {
            Self::Machine(machine) => machine.set_network(policy).await,
            Self::Frozen(frozen) => {
                let (frozen, policy) = (frozen.clone(), policy.clone());
                let set = tokio::task::spawn_blocking(move || frozen.set_network(&policy)).await;
                set.expect("writing a record does not panic")
            }
        }
    }

    /// What it takes on disk.
    ///
    /// # Errors
    ///
    /// As [`Machine::storage`].
    pub async fn storage(&self) -> Result<Storage, MachineError> {
        match self {
            Self::Machine(machine) => machine.storage().await,
            Self::Frozen(frozen) => frozen.storage().await,
        }
    }

    /// Takes it away.
    ///
    /// # Errors
    ///
    /// As [`Machine::destroy`].
    pub async fn destroy(&self) -> Result<(), MachineError> {
        match self {
            Self::Machine(machine) => machine.destroy().await,
            Self::Frozen(frozen) => frozen.destroy().await,
        }
    }
}

/// The instance of a sandbox, which its actor changes and others look at without asking it.
#[derive(Clone, Default)]
pub struct InstanceCell(Arc<RwLock<Option<Instance>>>);

impl InstanceCell {
    /// What there is now.
    pub fn get(&self) -> Option<Instance> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what there is from now on.
    pub fn set(&self, instance: Option<Instance>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = instance;
    }
}
