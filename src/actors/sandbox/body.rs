//! What there is of a sandbox on its host.

use std::sync::{Arc, PoisonError, RwLock};

use crate::domain::egress::Policy;
use crate::vmm::machine::{Found, Frozen, Machine, MachineError, Storage};
use crate::vmm::record::Life;

/// A machine, or what a pause has left of one.
#[derive(Clone)]
pub enum Body {
    /// Its VM runs.
    Machine(Arc<dyn Machine>),
    /// Only files are left of it.
    Frozen(Arc<dyn Frozen>),
}

impl From<Found> for Body {
    fn from(found: Found) -> Self {
        match found {
            Found::Running(machine) => Self::Machine(machine),
            Found::Frozen(frozen) => Self::Frozen(frozen),
        }
    }
}

impl Body {
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
    pub fn keep(&self, life: &Life) -> Result<(), MachineError> {
        match self {
            Self::Machine(machine) => machine.keep(life),
            Self::Frozen(frozen) => frozen.keep(life),
        }
    }

    /// What it may reach.
    pub fn network(&self) -> Policy {
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
    pub async fn set_network(&self, policy: &Policy) -> Result<(), MachineError> {
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

/// The body of a sandbox, which its actor changes and others look at without asking it.
#[derive(Clone, Default)]
pub struct Presence(Arc<RwLock<Option<Body>>>);

impl Presence {
    /// What there is now.
    pub fn get(&self) -> Option<Body> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes what there is from now on.
    pub fn set(&self, body: Option<Body>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = body;
    }
}
