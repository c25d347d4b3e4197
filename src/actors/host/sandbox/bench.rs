//! A host with simulated machines, for tests of actors from inside.

use std::sync::atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use actix::Arbiter;
use async_trait::async_trait;
use chrono::Utc;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::SandboxHandle;
use crate::actors::host::manager::ManagerHandle;
use crate::actors::host_client::{Published, SinkError, StatusSink};
use crate::domain::exec::{Exec, ExecEnd};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;
use crate::domain::name::TemplateName;
use crate::domain::shape::Shape;
use crate::domain::status::{HostEpoch, SandboxReport, SandboxStatus};
use crate::domain::trace::Trace;
use crate::vmm::machine::{MachineSpec, Origin};
use crate::vmm::simulated::{Held, Mode, SimulatedMachines, Step};

const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane that takes news only while its gate is open.
pub(super) struct GatedSink {
    pub open: watch::Sender<bool>,
    /// Whether it takes nothing at all.
    pub away: AtomicBool,
    pub told: Mutex<Vec<SandboxState>>,
    /// What it knows by itself, and nobody has told it: the next status up to here is stale.
    pub known: AtomicI64,
}

#[async_trait]
impl StatusSink for GatedSink {
    async fn publish(&self, report: &SandboxReport) -> Result<Published, SinkError> {
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("the gate is kept");
        if self.away.load(Ordering::SeqCst) {
            return Err(SinkError("away".into()));
        }
        let known = self.known.load(Ordering::SeqCst);
        if report.status.generation <= known {
            return Ok(Published::Stale(known));
        }
        self.told.lock().expect("no test panics with it").push(report.status.state);
        Ok(Published::Known)
    }

    async fn touch(&self, _: &SandboxId, _: &SandboxStatus) -> Result<(), SinkError> {
        Ok(())
    }
}

pub(super) struct Bench {
    arbiter: Arbiter,
    pub machines: SimulatedMachines,
    pub sink: Arc<GatedSink>,
    pub manager: ManagerHandle,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.machines.end_all();
        self.arbiter.stop();
    }
}

/// Panics of actors that no test asked for: their supervisor would hide them.
pub(super) static UNWANTED_PANICS: AtomicUsize = AtomicUsize::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let thread = std::thread::current();
            let actor = thread.name().is_some_and(|name| name.starts_with("actix-rt"));
            if actor && panic.payload_as_str() != Some("a bug") {
                UNWANTED_PANICS.fetch_add(1, Ordering::SeqCst);
            }
            usual(panic);
        }));
    });
}

impl Bench {
    pub fn new() -> Self {
        count_panics();
        let arbiter = Arbiter::new();
        let machines = SimulatedMachines::new([template()]);
        let (open, _) = watch::channel(true);
        let sink = Arc::new(GatedSink {
            open,
            away: AtomicBool::new(false),
            told: Mutex::default(),
            known: AtomicI64::new(0),
        });
        let known = Arc::new(machines.clone());
        let manager = ManagerHandle::start(
            &arbiter.handle(),
            HostEpoch(1),
            known,
            sink.clone(),
            Arc::default(),
        );
        Self { arbiter, machines, sink, manager }
    }

    /// The manager of a later daemon on the same host.
    pub fn next(&self) -> ManagerHandle {
        let machines = Arc::new(self.machines.clone());
        let (handle, sink) = (self.arbiter.handle(), self.sink.clone());
        ManagerHandle::start(&handle, HostEpoch(2), machines, sink, Arc::default())
    }

    pub async fn create(&self) -> SandboxHandle {
        let spec = spec();
        let id = spec.id.clone();
        self.manager.create(spec, Trace::default()).await.expect("is queued").expect("boots");
        self.manager.find(&id).expect("lives here")
    }

    /// Begins to make a sandbox, and returns it when its boot is held.
    pub async fn create_held(&self) -> (SandboxHandle, Held) {
        self.machines.set_mode(Step::Boot, Mode::SingleStepDeaf);
        let manager = self.manager.clone();
        tokio::spawn(async move { manager.create(spec(), Trace::default()).await });
        let held = self.machines.held(Step::Boot).await;
        (self.manager.find(&held.id).expect("lives here"), held)
    }

    pub fn told(&self) -> Vec<SandboxState> {
        self.sink.told.lock().expect("no test panics with it").clone()
    }
}

pub(super) fn template() -> TemplateName {
    "debian".parse().expect("a name")
}

pub(super) fn spec() -> MachineSpec {
    MachineSpec {
        id: SandboxId::random(),
        origin: Origin::Template(template()),
        template: template(),
        shape: Shape::DEFAULT,
        envs: Default::default(),
        network: Default::default(),
        rates: Default::default(),
        access_token: "token".to_owned(),
        status: SandboxStatus {
            state: SandboxState::Starting,
            reason: None,
            generation: 1,
            timeout_sec: None,
            lease_sec: None,
            last_active_at: Utc::now(),
        },
    }
}

pub(super) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn works(handle: &SandboxHandle) -> bool {
    let Ok(mut lease) = handle.begin_work().await else { return false };
    let agent = lease.agent();
    let exec = Exec { cmd: "true".to_owned(), output_limit: 1, ..Exec::default() };
    let abandoned = CancellationToken::new();
    let done = lease.run(agent.exec(exec, &abandoned)).await;
    done.is_ok_and(|done| done.end == ExecEnd::Exited(0))
}
