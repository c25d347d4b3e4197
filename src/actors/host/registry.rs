//! The sandboxes that live on this host, by id. Written by the manager alone, read by everybody
//! without a trip through a mailbox.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::sandbox::SandboxHandle;
use crate::domain::id::SandboxId;

/// A shared, readable map of living sandboxes.
#[derive(Clone, Default)]
pub struct Registry(Arc<RwLock<HashMap<SandboxId, SandboxHandle>>>);

impl Registry {
    /// The sandbox called `id`, if it lives here.
    pub fn find(&self, id: &SandboxId) -> Option<SandboxHandle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    /// All that live here.
    pub fn all(&self) -> Vec<SandboxHandle> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(super) fn insert(&self, handle: SandboxHandle) {
        let mut map = self.0.write().unwrap_or_else(PoisonError::into_inner);
        map.insert(handle.id().clone(), handle);
    }

    pub(super) fn remove(&self, id: &SandboxId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}
