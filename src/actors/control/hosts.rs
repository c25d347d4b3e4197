//! The hosts that the control plane knows.

use std::sync::Arc;

use super::ControlError;
use crate::actors::host::workplace::Workplace;
use crate::actors::host_client::HostClient;
use crate::domain::id::SandboxId;
use crate::domain::usage::HostLoad;

/// All of them. Cheap to clone.
#[derive(Clone)]
pub struct Hosts(Arc<[Arc<dyn HostClient>]>);

impl Hosts {
    /// These, the first one preferred for what is new.
    pub fn new(hosts: impl IntoIterator<Item = Arc<dyn HostClient>>) -> Self {
        Self(hosts.into_iter().collect())
    }

    /// Each of them, in the order in which they are asked for room.
    pub fn all(&self) -> impl Iterator<Item = &Arc<dyn HostClient>> {
        self.0.iter()
    }

    /// The host of that id.
    ///
    /// # Errors
    ///
    /// [`ControlError::UnknownHost`].
    pub fn get(&self, id: &str) -> Result<Arc<dyn HostClient>, ControlError> {
        let found = self.all().find(|host| host.id() == id);
        found.cloned().ok_or_else(|| ControlError::UnknownHost(id.to_owned()))
    }

    /// The host of this process that has the sandbox. Asks no other machine.
    pub fn holding(&self, id: &SandboxId) -> Option<Arc<dyn HostClient>> {
        self.all().find(|host| host.workplace(id).is_some()).cloned()
    }

    /// Leads into a sandbox of this process.
    pub fn workplace(&self, id: &SandboxId) -> Option<Workplace> {
        self.all().find_map(|host| host.workplace(id))
    }

    /// What all of them carry.
    pub fn load(&self) -> HostLoad {
        let mut all = HostLoad::default();
        for HostLoad { population, memory_bytes, readiness } in self.all().map(|host| host.load()) {
            for (state, count) in population {
                *all.population.entry(state).or_default() += count;
            }
            all.memory_bytes += memory_bytes;
            all.readiness.slots += readiness.slots;
            all.readiness.vmms += readiness.vmms;
            all.readiness.standbys += readiness.standbys;
        }
        all
    }
}
