//! VMs' processes that were started before it is known what they will run.
//!
//! The least that can be ready: a network slot, a cgroup, and in both a hypervisor's process that
//! listens. It serves any create that finds no standby, whatever it starts from: an image in any shape
//! or a named snapshot. What is left to do is to load that.
//!
//! As a standby, it has the id of the sandbox that it becomes from the beginning.

use std::sync::Arc;
use std::time::Duration;

use super::Host;
use super::error::file_error;
use super::resources::MachineResources;
use super::standby::{self, Kind, Standby};
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::vmm::machine::{MachineError, Run};
use crate::vmm::process::VmProcess;
use crate::vmm::process::cgroup::Share;
use crate::vmm::record::{Record, RecordFile};

/// What was just created is put to work at once, and nobody waits for the next process yet: on a busy
/// host one would be started at the expense of the other.
const LULL: Duration = Duration::from_millis(500);

impl Standby {
    /// Whether its process has not ended.
    pub fn waits(&self) -> bool {
        self.resources.process.is_some_and(|process| VmProcess::watch(process).is_ok())
    }
}

impl Host {
    /// The id that fits best what is ready.
    pub(super) async fn reserve(&self, template: &TemplateName, shape: Shape) -> SandboxId {
        let standby = self.standbys.reserve(template, shape).await;
        standby.or_else(|| self.vmms.offer(&Kind::Any)).unwrap_or_else(SandboxId::random)
    }

    /// Sees to it that processes wait for the next creates. Until one comes, their records say what the
    /// last one was.
    pub(super) fn start_ahead(self: &Arc<Self>, template: &TemplateName, shape: Shape) {
        while self.vmms.begin(&Kind::Any) {
            let (host, template) = (self.clone(), template.clone());
            self.runtime.spawn(async move {
                tokio::time::sleep(LULL).await;
                let made = match host.vmms.turn().await {
                    Some(_turn) => host.make_vmm(&template, shape).await,
                    None => None,
                };
                host.vmms.end(made).await;
            });
        }
    }

    async fn make_vmm(&self, template: &TemplateName, shape: Shape) -> Option<Standby> {
        let id = SandboxId::random();
        let mut resources = MachineResources::new(self.dir(&id));
        match self.begin_machine(&mut resources, &id, template, shape).await {
            Ok(()) => Some(Standby::new(Kind::Any, id, None, resources)),
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "no VM's process could be made ready");
                standby::report(resources.dismantle().await);
                None
            }
        }
    }

    async fn begin_machine(
        &self,
        resources: &mut MachineResources,
        id: &SandboxId,
        template: &TemplateName,
        shape: Shape,
    ) -> Result<(), MachineError> {
        let hypervisor = self.hypervisor.ahead().expect("nothing is wanted where there is no way");
        resources.make_dir().map_err(file_error)?;
        let record = Record::unassigned(id, template, shape, self.rates, self.hypervisor.engine());
        let record =
            resources.record.insert(Arc::new(RecordFile::create(&resources.dir, record)?)).clone();
        let run = Run { share: Share::Background, ..Run::default() };
        self.take_slot(resources, &record, &run).await?;
        let process = hypervisor.start_ahead(self.place(resources).await?).await?;
        resources.process = Some(process);
        Ok(record.update(|record| record.process = Some(process))?)
    }
}
