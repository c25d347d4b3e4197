//! What can only be seen from inside: actors that panic, news that is slow.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use actix::{Arbiter, System};
use async_trait::async_trait;
use chrono::Utc;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::{SandboxHandle, SinkError, StatusSink};
use crate::actors::sandbox_manager::ManagerHandle;
use crate::domain::exec::{Exec, ExecEnd};
use crate::domain::id::SandboxId;
use crate::domain::sandbox::SandboxState;
use crate::domain::shape::Shape;
use crate::vmm::machine::MachineSpec;
use crate::vmm::record::Life;
use crate::vmm::simulated::{Fault, Mode, SimulatedMachines, Step};
use crate::vmm::trace::Trace;

const PATIENCE: Duration = Duration::from_secs(20);

/// A control plane that takes news only while its gate is open.
struct GatedSink {
    open: watch::Sender<bool>,
    told: Mutex<Vec<SandboxState>>,
}

#[async_trait]
impl StatusSink for GatedSink {
    async fn publish(&self, _: &SandboxId, life: &Life, _: Option<u32>) -> Result<(), SinkError> {
        let mut open = self.open.subscribe();
        open.wait_for(|open| *open).await.expect("the gate is kept");
        self.told.lock().expect("no test panics with it").push(life.state);
        Ok(())
    }

    async fn touch(&self, _: &SandboxId, _: &Life) -> Result<(), SinkError> {
        Ok(())
    }
}

struct Bench {
    arbiter: Arbiter,
    machines: SimulatedMachines,
    sink: Arc<GatedSink>,
    manager: ManagerHandle,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.machines.end_all();
        self.arbiter.stop();
    }
}

/// Panics of actors that no test asked for: their supervisor would hide them.
static UNWANTED_PANICS: AtomicUsize = AtomicUsize::new(0);

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
    fn new() -> Self {
        count_panics();
        let arbiter = Arbiter::new();
        let machines = SimulatedMachines::new([template()]);
        let (open, _) = watch::channel(true);
        let sink = Arc::new(GatedSink { open, told: Mutex::default() });
        let known = Arc::new(machines.clone());
        let manager = ManagerHandle::start(&arbiter.handle(), known, sink.clone());
        Self { arbiter, machines, sink, manager }
    }

    async fn create(&self) -> SandboxHandle {
        let spec = spec();
        let id = spec.id.clone();
        self.manager.create(spec, Trace::default()).await.expect("is queued").expect("boots");
        self.manager.find(&id).expect("lives here")
    }

    /// Begins to make a sandbox, and returns it when its boot is held.
    async fn create_held(&self) -> (SandboxHandle, crate::vmm::simulated::Held) {
        self.machines.set_mode(Step::Boot, Mode::SingleStepDeaf);
        let manager = self.manager.clone();
        tokio::spawn(async move { manager.create(spec(), Trace::default()).await });
        let held = self.machines.held(Step::Boot).await;
        (self.manager.find(&held.id).expect("lives here"), held)
    }

    fn told(&self) -> Vec<SandboxState> {
        self.sink.told.lock().expect("no test panics with it").clone()
    }
}

fn template() -> crate::domain::name::TemplateName {
    "debian".parse().expect("a name")
}

fn spec() -> MachineSpec {
    MachineSpec {
        id: SandboxId::random(),
        origin: crate::vmm::machine::Origin::Template(template()),
        template: template(),
        shape: Shape::DEFAULT,
        envs: Default::default(),
        access_token: "token".to_owned(),
        life: Life {
            state: SandboxState::Starting,
            reason: None,
            generation: 1,
            timeout_sec: None,
            last_active_at: Utc::now(),
        },
    }
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < end, "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

async fn works(handle: &SandboxHandle) -> bool {
    let Ok(mut lease) = handle.begin_work().await else { return false };
    let agent = lease.agent();
    let exec = Exec { cmd: "true".to_owned(), output_limit: 1, ..Exec::default() };
    let abandoned = CancellationToken::new();
    let done = lease.run(agent.exec(exec, &abandoned)).await;
    done.is_ok_and(|done| done.end == ExecEnd::Exited(0))
}

#[test]
fn a_panicking_actor_is_rebuilt_and_its_sandbox_runs_on() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        assert!(works(&handle).await);
        for _ in 0..2 {
            handle.crash();
            eventually("it works again", async || works(&handle).await.then_some(())).await;
        }
        assert_eq!(handle.life().state, SandboxState::Running);
        assert_eq!((bench.machines.boots(), bench.machines.present().len()), (1, 1));
        handle.destroy().await.expect("ends");
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
    });
}

#[test]
fn an_actor_that_panics_while_its_machine_boots_leaves_no_machine() {
    System::new().block_on(async {
        let bench = Bench::new();
        bench.machines.set_mode(Step::Boot, Mode::SingleStep);
        let manager = bench.manager.clone();
        let creating = tokio::spawn(async move { manager.create(spec(), Trace::default()).await });
        let held = bench.machines.held(Step::Boot).await;
        let handle = bench.manager.find(&held.id).expect("lives here");
        handle.crash();
        assert!(creating.await.expect("does not panic").is_err(), "nobody can say that it runs");
        eventually("it is over", async || {
            (handle.life().state == SandboxState::Error).then_some(())
        })
        .await;
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
    });
}

#[test]
fn an_actor_that_panics_while_it_destroys_is_rebuilt_and_goes_on() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Destroy, Mode::SingleStep);
        let destroying = handle.clone();
        tokio::spawn(async move { destroying.destroy().await });
        let first = bench.machines.held(Step::Destroy).await;
        handle.crash();
        bench.machines.held(Step::Destroy).await.succeed();
        first.succeed();
        eventually("it is over", async || {
            (handle.life().state == SandboxState::Stopped).then_some(())
        })
        .await;
        assert!(bench.machines.present().is_empty());
    });
}

#[test]
fn an_actor_that_panics_while_it_pauses_finds_its_sandbox_running() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Pause, Mode::SingleStep);
        let pausing = handle.clone();
        let pausing = tokio::spawn(async move { pausing.pause(Trace::default()).await });
        let _held = bench.machines.held(Step::Pause).await;
        handle.crash();
        assert!(
            pausing.await.expect("does not panic").is_err(),
            "nobody can say that it is paused"
        );
        eventually("it works again", async || works(&handle).await.then_some(())).await;
        assert_eq!(handle.life().state, SandboxState::Running);
        bench.machines.set_mode(Step::Pause, Mode::Automatic);
        handle.pause(Trace::default()).await.expect("can still be paused");
    });
}

/// What it worked on is over before it is built again: nobody else works on the same machine.
#[test]
fn an_actor_that_panics_while_a_pause_does_not_end_waits_for_what_becomes_of_it() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Pause, Mode::SingleStepDeaf);
        let pausing = handle.clone();
        tokio::spawn(async move { pausing.pause(Trace::default()).await });
        let held = bench.machines.held(Step::Pause).await;
        handle.crash();
        sleep(Duration::from_millis(200)).await;
        assert_eq!(handle.life().state, SandboxState::Pausing);
        held.succeed();
        eventually("it is paused", async || {
            (handle.life().state == SandboxState::Paused).then_some(())
        })
        .await;
        handle.resume(Trace::default()).await.expect("resumes");
        assert!(works(&handle).await);
    });
}

#[test]
fn an_actor_that_panics_while_its_sandbox_is_frozen_finds_it_so() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        handle.pause(Trace::default()).await.expect("pauses");
        handle.crash();
        eventually("it can be resumed", async || handle.resume(Trace::default()).await.ok()).await;
        assert!(works(&handle).await);

        handle.pause(Trace::default()).await.expect("pauses");
        bench.machines.set_mode(Step::Resume, Mode::SingleStep);
        let resuming = handle.clone();
        tokio::spawn(async move { resuming.resume(Trace::default()).await });
        let _held = bench.machines.held(Step::Resume).await;
        handle.crash();
        eventually("it is paused", async || {
            (handle.life().state == SandboxState::Paused).then_some(())
        })
        .await;
        handle.destroy().await.expect("ends");
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
        assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
    });
}

/// The intention is on disk, and everybody knows, before anything is done.
#[test]
fn a_pause_or_resume_begins_only_when_it_is_known() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        for (step, during, after) in [
            (Step::Pause, SandboxState::Pausing, SandboxState::Paused),
            (Step::Resume, SandboxState::Resuming, SandboxState::Running),
        ] {
            bench.machines.set_mode(step, Mode::SingleStep);
            bench.sink.open.send_replace(false);
            let asking = handle.clone();
            let done = tokio::spawn(async move {
                match step {
                    Step::Pause => asking.pause(Trace::default()).await,
                    _ => asking.resume(Trace::default()).await,
                }
            });
            eventually("it is decided", async || (handle.life().state == during).then_some(()))
                .await;
            let early = tokio::time::timeout(Duration::from_millis(100), bench.machines.held(step));
            assert!(early.await.is_err(), "it began before it was known");
            bench.sink.open.send_replace(true);
            bench.machines.held(step).await.succeed();
            done.await.expect("does not panic").expect("succeeds");
            assert_eq!(bench.told().last(), Some(&after), "the answer comes after the state");
        }
        assert!(works(&handle).await);
    });
}

/// F15: what is cancelled before it began never begins.
#[test]
fn a_pause_that_is_overtaken_before_it_began_freezes_nothing() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        bench.machines.set_mode(Step::Pause, Mode::SingleStepDeaf);
        bench.sink.open.send_replace(false);
        let pausing = handle.clone();
        let pausing = tokio::spawn(async move { pausing.pause(Trace::default()).await });
        eventually("it is decided", async || {
            (handle.life().state == SandboxState::Pausing).then_some(())
        })
        .await;
        let destroying = handle.clone();
        let destroying = tokio::spawn(async move { destroying.destroy().await });
        eventually("it stops", async || {
            (handle.life().state == SandboxState::Stopping).then_some(())
        })
        .await;
        bench.sink.open.send_replace(true);
        destroying.await.expect("does not panic").expect("ends");
        assert!(pausing.await.expect("does not panic").is_err());
        assert!(bench.machines.present().is_empty());
        assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
    });
}

#[test]
fn a_sandbox_whose_actor_panics_again_and_again_is_given_up_and_says_so() {
    System::new().block_on(async {
        let bench = Bench::new();
        let handle = bench.create().await;
        let life = eventually("it is given up", async || {
            handle.crash();
            Some(handle.life()).filter(|life| life.state == SandboxState::Error)
        })
        .await;
        assert!(life.reason.is_some_and(|reason| reason.contains("bug")));
        eventually("nothing is left", async || bench.machines.present().is_empty().then_some(()))
            .await;
        eventually("it is told", async || {
            (bench.told().last() == Some(&SandboxState::Error)).then_some(())
        })
        .await;
        eventually("it lives here no more", async || {
            bench.manager.find(handle.id()).is_none().then_some(())
        })
        .await;
    });
}

/// F15: a cancelled boot may be over before the control plane has heard of the stop.
#[test]
fn a_boot_that_ends_before_its_stop_is_known_ends_the_sandbox_once() {
    for fault in [None, Some(Fault::EndedEarly)] {
        System::new().block_on(async {
            let bench = Bench::new();
            let (handle, held) = bench.create_held().await;
            bench.sink.open.send_replace(false);
            let destroying = handle.clone();
            let destroyed = tokio::spawn(async move { destroying.destroy().await });
            eventually("it stops", async || {
                (handle.life().state == SandboxState::Stopping).then_some(())
            })
            .await;
            match fault {
                Some(fault) => held.fail(fault),
                None => held.succeed(),
            }
            eventually("it is over", async || {
                (handle.life().state == SandboxState::Stopped).then_some(())
            })
            .await;
            assert!(bench.machines.present().is_empty() && !destroyed.is_finished());
            bench.sink.open.send_replace(true);
            destroyed.await.expect("does not panic").expect("ends");
            eventually("it lives here no more", async || {
                bench.manager.find(handle.id()).is_none().then_some(())
            })
            .await;
            let told = bench.told();
            let last = &told[told.len() - 2..];
            assert_eq!(last, [SandboxState::Stopping, SandboxState::Stopped], "{told:?}");
            assert_eq!(handle.life().generation, 3);
            assert_eq!(UNWANTED_PANICS.load(Ordering::SeqCst), 0);
        });
    }
}
