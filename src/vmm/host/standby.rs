//! Machines that were restored before anybody asked for them.
//!
//! A restore costs what it costs: in software mostly the translation of what a guest runs first.
//! A standby has that behind it. It is restored like any machine, does once what a create will ask
//! of it, and is frozen; a create then thaws it and tells it who it is. It is made for what was
//! created last, is as untouched as a warm snapshot, and goes to one sandbox only.
//!
//! Its id is the one of the sandbox that it becomes, so that nothing has to be renamed: whoever
//! creates a sandbox asks for an id first.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use super::Host;
use super::resources::MachineResources;
use crate::domain::exec::Exec;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::domain::status::SandboxStatus;
use crate::domain::token;
use crate::vmm::guest::Agent;
use crate::vmm::host_memory::host_memory;
use crate::vmm::machine::{MachineError, MachineSpec, Origin, Run};
use crate::vmm::process::cgroup::Share;
use crate::vmm::storage::memory::BuildId;

/// Longest wait for a standby that is being made. It is ahead of a restore that would begin now, and
/// two at a time would only slow each other down.
const WAIT_LIMIT: Duration = Duration::from_secs(10);

/// An id that was given out and not used by then is given to somebody else.
const OFFER_LIMIT: Duration = Duration::from_secs(10);

/// How many are made at a time, however many are missing.
const PARALLEL: usize = 2;

/// A standby is made only if the host has room for this many machines of its shape.
const ROOM: u64 = 4;

/// What something is ready for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Creates from an image in a shape: a machine that waits, frozen.
    Of { image: TemplateName, shape: Shape },
    /// All: see [`super::ahead`].
    Any,
}

/// A machine, or the beginning of one, that waits.
pub(super) struct Standby {
    kind: Kind,
    id: SandboxId,
    /// The warm snapshot that it came from.
    source: Option<BuildId>,
    pub resources: MachineResources,
    offered: Option<Instant>,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Standby>,
    /// How many are being made.
    making: usize,
    /// How many creates wait for one of those.
    waiting: usize,
}

/// What a host has ready, and how much of it there is to be.
pub(super) struct Standbys {
    wanted: usize,
    state: Mutex<State>,
    made: Notify,
    /// Limits how many are made at a time; closed once nothing is to be made any more.
    turns: Semaphore,
}

impl Standbys {
    pub fn new(wanted: usize) -> Self {
        let turns = Semaphore::new(PARALLEL);
        Self { wanted, state: Mutex::default(), made: Notify::new(), turns }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many are ready.
    pub fn ready(&self) -> usize {
        self.state().ready.len()
    }

    /// The id of one that was not offered yet, or long ago.
    pub fn offer(&self, kind: &Kind) -> Option<SandboxId> {
        let mut state = self.state();
        let free = |standby: &&mut Standby| {
            standby.kind == *kind
                && standby.offered.is_none_or(|offered| offered.elapsed() > OFFER_LIMIT)
        };
        let standby = state.ready.iter_mut().find(free)?;
        standby.offered = Some(Instant::now());
        Some(standby.id.clone())
    }

    /// The id of a standby, or of one that is about to be ready.
    pub async fn reserve(&self, image: &TemplateName, shape: Shape) -> Option<SandboxId> {
        let kind = Kind::Of { image: image.clone(), shape };
        let made = self.made.notified();
        tokio::pin!(made);
        made.as_mut().enable();
        if let Some(id) = self.offer(&kind) {
            return Some(id);
        }
        {
            let mut state = self.state();
            if state.waiting >= state.making {
                return None;
            }
            state.waiting += 1;
        }
        // One that is made meanwhile may be of another kind, or its making may fail: no matter.
        let _ = tokio::time::timeout(WAIT_LIMIT, made).await;
        self.state().waiting -= 1;
        self.offer(&kind)
    }

    /// Takes the standby of that id, if it is one.
    pub fn take(&self, id: &SandboxId) -> Option<Standby> {
        let mut state = self.state();
        let place = state.ready.iter().position(|standby| standby.id == *id)?;
        state.ready.remove(place)
    }

    /// Takes one that is not for `kind`, if they are too many together.
    fn take_other(&self, kind: &Kind) -> Option<Standby> {
        let mut state = self.state();
        if state.ready.len() + state.making < self.wanted {
            return None;
        }
        let place = state.ready.iter().position(|standby| standby.kind != *kind)?;
        state.ready.remove(place)
    }

    /// Leave to make one, if one is missing.
    pub fn begin(&self, kind: &Kind) -> bool {
        let mut state = self.state();
        let of_kind = state.ready.iter().filter(|standby| standby.kind == *kind).count();
        let missing = !self.turns.is_closed() && of_kind + state.making < self.wanted;
        state.making += usize::from(missing);
        missing
    }

    /// Waits for leave to make it now; `None` if nothing is to be made any more.
    pub async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        self.turns.acquire().await.ok()
    }

    /// Ends all and keeps new ones from being made.
    pub async fn close(&self) {
        loop {
            let made = self.made.notified();
            tokio::pin!(made);
            // Before the look: what ends after it is not missed.
            made.as_mut().enable();
            let (standby, making) = {
                let mut state = self.state();
                self.turns.close();
                (state.ready.pop_front(), state.making)
            };
            match standby {
                Some(standby) => dismiss(standby).await,
                None if making == 0 => return,
                None => made.await,
            }
        }
    }

    /// Keeps one that was made, if it was. Nothing is kept any more once this is closed; what is refused
    /// counts as being made until it is taken away.
    pub async fn end(&self, made: Option<Standby>) {
        if let Some(refused) = made.and_then(|standby| self.keep(standby)) {
            dismiss(refused).await;
        }
        self.state().making -= 1;
        self.made.notify_waiters();
    }

    fn keep(&self, standby: Standby) -> Option<Standby> {
        let mut state = self.state();
        if self.turns.is_closed() {
            return Some(standby);
        }
        state.ready.push_back(standby);
        None
    }
}

impl Standby {
    pub fn new(
        kind: Kind,
        id: SandboxId,
        source: Option<BuildId>,
        resources: MachineResources,
    ) -> Self {
        Self { kind, id, source, resources, offered: None }
    }

    /// Whether it is what a restore of that snapshot would give.
    pub fn fits(&self, source: BuildId) -> bool {
        self.source == Some(source)
    }
}

impl Host {
    /// Sees to it that machines stand by for the next creates from an image in a shape.
    pub(super) fn stand_by(self: &Arc<Self>, image: &TemplateName, shape: Shape) {
        let kind = Kind::Of { image: image.clone(), shape };
        while self.standbys.begin(&kind) {
            let (host, image, kind) = (self.clone(), image.clone(), kind.clone());
            self.runtime.spawn(async move {
                if let Some(other) = host.standbys.take_other(&kind) {
                    dismiss(other).await;
                }
                let made = match host.standbys.turn().await {
                    Some(_turn) if has_room(shape) => host.make_standby(image, shape).await,
                    _ => None,
                };
                host.standbys.end(made).await;
            });
        }
    }

    async fn make_standby(self: &Arc<Self>, image: TemplateName, shape: Shape) -> Option<Standby> {
        let spec = spec(&image, shape, self.rates);
        let id = spec.id.clone();
        let mut resources = MachineResources::new(self.dir(&id));
        let run = Run { share: Share::Background, ..Run::default() };
        let made = async {
            let (source, _) = self.source(&spec.origin, spec.shape, &run).await?;
            let build = source.manifest().build;
            self.found(&mut resources, spec, source, &run).await?;
            let agent = self.restore(&mut resources, &run).await?;
            rehearse(&agent).await?;
            let vm = resources.vm.as_ref().expect("it was just restored");
            vm.learn();
            vm.freeze().await?;
            Ok::<_, MachineError>(build)
        };
        match made.await {
            Ok(source) => {
                Some(Standby::new(Kind::Of { image, shape }, id, Some(source), resources))
            }
            Err(error) => {
                tracing::warn!(error = %crate::chain(&error), "a standby could not be made");
                report(resources.dismantle().await);
                None
            }
        }
    }
}

/// What a standby is until it becomes a sandbox: with a token of its own, for its guest answers to
/// whoever has that, and in a state in which a later daemon takes it away.
fn spec(image: &TemplateName, shape: Shape, rates: RateLimits) -> MachineSpec {
    MachineSpec {
        id: SandboxId::random(),
        origin: Origin::Template(image.clone()),
        template: image.clone(),
        shape,
        envs: Default::default(),
        // As most creates want it: nothing is to change when it becomes a sandbox.
        network: Default::default(),
        rates,
        access_token: token::random(),
        status: SandboxStatus::unassigned(),
    }
}

/// Has the guest do once what it will be asked first.
async fn rehearse(agent: &Agent) -> Result<(), MachineError> {
    let exec = Exec { cmd: "true".to_owned(), output_limit: 1024, ..Exec::default() };
    agent.exec(exec, &Default::default()).await?;
    Ok(agent.sync().await?)
}

fn has_room(shape: Shape) -> bool {
    let needed = u64::from(shape.memory_mib) * ROOM;
    host_memory().is_ok_and(|memory| memory.available_mib > needed)
}

pub(super) async fn dismiss(mut standby: Standby) {
    report(standby.resources.dismantle().await);
}

pub(super) fn report(remains: Vec<String>) {
    if !remains.is_empty() {
        // It is found again when the daemon starts.
        tracing::error!(remains = remains.join("; "), "something is left of a standby");
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn few_are_made_at_a_time_and_none_once_it_is_closed() {
        let wanted = PARALLEL + 3;
        let standbys = Standbys::new(wanted);
        let begun = (0..=wanted).filter(|_| standbys.begin(&Kind::Any)).count();
        assert_eq!(begun, wanted);

        let mut turns = Vec::new();
        while let Some(turn) = standbys.turn().now_or_never() {
            turns.push(turn.expect("it is open"));
        }
        assert_eq!(turns.len(), PARALLEL);
        let mut next = Box::pin(standbys.turn());
        assert!(next.as_mut().now_or_never().is_none(), "all turns are taken");
        turns.pop();
        assert!(next.now_or_never().flatten().is_some(), "one has ended");

        let mut closing = Box::pin(standbys.close());
        assert!(closing.as_mut().now_or_never().is_none(), "some are still being made");
        assert!(standbys.turn().await.is_none());
        for _ in 0..wanted {
            standbys.end(None).await;
        }
        closing.await;
        assert!(!standbys.begin(&Kind::Any), "it is closed");
    }
}
