//! The pool: hands out ready slots, builds new ones ahead of need, and removes used ones.
//!
//! ```text
//! acquire --takes--> ready <--fills-- filler          (nudged by every acquire)
//! release ---------> remove                           (awaited by the caller)
//! drop ------------> janitor --retries--> remove
//! keeper: looks now and then whether the host's packet filter is still there
//!
//! (filler, janitor, keeper: upkeep.rs)
//! ```

mod upkeep;

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::stream::{self, StreamExt};
use rand::Rng;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::NetworkError;
use super::claim::{Claims, Presence};
use super::filter::egress::Reach;
use super::host;
use super::names::NameLimits;
use super::namespace::{self, on_thread};
use super::resolver::resolvers;
use super::setup::{self, BuildFailure};
use super::slot::Slot;
use crate::domain::egress::{Lan, Policy};
use crate::domain::slot::{SLOT_COUNT, SlotIndex};

/// How many slots are built or removed at a time. The kernel does most of both under one lock, so
/// more threads would only wait for each other.
const PARALLEL: usize = 4;

/// How many numbers in a row may turn out to be occupied without a claim before giving up.
const OCCUPIED_LIMIT: usize = 64;

/// Settings of the network layer.
#[derive(Debug, Clone)]
pub struct NetworkConfig {
    /// The daemon's data directory; it has to exist. Slots are claimed in its name.
    pub state_dir: PathBuf,
    /// How many slots are kept ready.
    pub pool_size: usize,
    /// How often to look whether somebody took the host's packet filter away. Each look starts `nft`
    /// once, which is some milliseconds of work.
    pub keep_period: Duration,
    /// Whom the resolver of sandboxes with rules about names asks; the host's name servers if absent.
    pub name_servers: Option<Vec<Ipv4Addr>>,
    /// Whether guests reach networks of somebody near without a rule about them.
    pub lan: Lan,
    /// Questions for names a second that are answered to each guest with rules about names.
    pub dns_rate: NonZeroU32,
    /// Bytes a second each way of a guest for whom nothing else was said.
    pub rate: Option<u32>,
}

/// Enough for a package manager that asks for all its mirrors at once.
pub const DNS_RATE: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

impl NetworkConfig {
    /// Settings for a data directory, with as many ready slots as bursts of creates need.
    pub fn new(state_dir: PathBuf) -> Self {
        Self {
            state_dir,
            pool_size: 8,
            keep_period: Duration::from_secs(30),
            name_servers: None,
            lan: Lan::Closed,
            dns_rate: DNS_RATE,
            rate: None,
        }
    }
}

/// What a pool holds at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolStatus {
    /// Slots that an acquire gets without waiting.
    pub ready: usize,
}

/// Hands out network slots. One for each daemon; clones are handles to the same pool.
#[derive(Debug, Clone)]
pub struct SlotPool {
    shared: Arc<Shared>,
    /// `None` once the pool was shut down.
    running: Arc<Mutex<Option<Running>>>,
}

/// What a pool has to end when it is shut down.
#[derive(Debug)]
struct Running {
    presence: Presence,
    tasks: Vec<JoinHandle<()>>,
}

/// What the pool, its tasks and its slots share.
#[derive(Debug)]
pub(super) struct Shared {
    claims: Claims,
    pool_size: usize,
    keep_period: Duration,
    name_servers: Option<Vec<Ipv4Addr>>,
    lan: Lan,
    rate: Option<u32>,
    name_limits: NameLimits,
    state: Mutex<State>,
    /// Wakes the filler.
    taken: Notify,
    /// Limits the threads that build and remove.
    workers: Semaphore,
    janitor: mpsc::UnboundedSender<SlotIndex>,
    closing: CancellationToken,
    /// The executor that the pool was started on, which outlives those of single actors.
    executor: Handle,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    ready: VecDeque<Built>,
    /// Where to look for the next free number.
    next: SlotIndex,
}

/// A slot that was built, and what its rules let through.
#[derive(Debug)]
struct Built {
    index: SlotIndex,
    reach: Reach,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Closed,
}

impl SlotPool {
    /// Prepares the host, removes what earlier daemons with this data directory left behind, except
    /// the slots `in_use`, which [`SlotPool::adopt`] expects, and what daemons left whose data
    /// directory is gone. Then fills the pool in the background.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotRoot`], or whatever kept the host from being prepared. That some leftover
    /// could not be removed is only logged: its number stays claimed and is tried at the next start.
    pub async fn start(
        config: NetworkConfig,
        in_use: &[SlotIndex],
    ) -> Result<SlotPool, NetworkError> {
        if !nix::unistd::geteuid().is_root() {
            return Err(NetworkError::NotRoot);
        }
        let (claims, presence, leftovers) = {
            let (data_dir, in_use) = (config.state_dir.clone(), in_use.to_vec());
            on_thread("nestbox-netprep", move || prepare(&data_dir, &in_use)).await?
        };
        let (janitor, dropped) = mpsc::unbounded_channel();
        let first = rand::rng().random_range(0..SLOT_COUNT);
        let shared = Arc::new(Shared {
            claims,
            pool_size: config.pool_size,
            keep_period: config.keep_period,
            name_servers: config.name_servers,
            lan: config.lan,
            rate: config.rate,
            name_limits: NameLimits::new(config.dns_rate),
            state: Mutex::new(State {
                phase: Phase::Open,
                ready: VecDeque::new(),
                next: SlotIndex::try_from(first).expect("drawn from the valid numbers"),
            }),
            taken: Notify::new(),
            workers: Semaphore::new(PARALLEL),
            janitor,
            closing: CancellationToken::new(),
            executor: Handle::current(),
        });
        shared.reap(leftovers).await;
        let tasks = upkeep::start(&shared, dropped);
        let running = Arc::new(Mutex::new(Some(Running { presence, tasks })));
        Ok(SlotPool { shared, running })
    }

    /// Hands out a slot: a ready one at once, else one that is built now.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Exhausted`] when the machine has no number left, [`NetworkError::Closed`] after
    /// shutdown, or why none could be built.
    pub async fn acquire(&self) -> Result<Slot, NetworkError> {
        let ready = {
            let mut state = self.shared.state();
            if state.phase == Phase::Closed {
                return Err(NetworkError::Closed);
            }
            state.ready.pop_front()
        };
        self.shared.taken.notify_one();
        let Built { index, reach } = match ready {
            Some(built) => built,
            None => self.shared.build().await?,
        };
        Ok(Slot::new(index, self.shared.clone(), reach))
    }

    /// Takes over the slot of a VM that outlived its daemon, with the policy and the rate of its guest.
    ///
    /// # Errors
    ///
    /// [`NetworkError::NotAdoptable`] when a part of it is missing,
    /// [`NetworkError::ClaimedElsewhere`] when it is another daemon's. The slot is left as it is.
    pub async fn adopt(
        &self,
        index: SlotIndex,
        policy: &Policy,
        rate: Option<u32>,
    ) -> Result<Slot, NetworkError> {
        let reach = self.shared.reach(policy, rate);
        let (shared, rules) = (self.shared.clone(), reach.clone());
        on_thread("nestbox-adopt", move || setup::adopt(&shared.claims, index, &rules)).await?;
        let slot = Slot::new(index, self.shared.clone(), reach);
        match slot.guard_names().await {
            Ok(()) => Ok(slot),
            Err(error) => {
                slot.detach();
                Err(error)
            }
        }
    }

    /// Removes what is left of a slot that could not be adopted. Its VM has to be gone.
    ///
    /// # Errors
    ///
    /// As for [`Slot::release`].
    pub async fn discard(&self, index: SlotIndex) -> Result<(), NetworkError> {
        self.shared.clone().release(index).await
    }

    /// What the pool holds now.
    pub fn status(&self) -> PoolStatus {
        PoolStatus { ready: self.shared.state().ready.len() }
    }

    /// Removes the ready slots and stops. Slots in use stay as they are, also when they are dropped
    /// from now on, for the next daemon to adopt; so this comes before whatever drops them. The last
    /// daemon on the machine without any slot left removes the host's packet filter.
    ///
    /// # Errors
    ///
    /// The first failure; the rest is done all the same.
    pub async fn shutdown(&self) -> Result<(), NetworkError> {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { presence, tasks }) = running else { return Ok(()) };
        let shared = self.shared.clone();
        let ready = {
            let mut state = shared.state();
            state.phase = Phase::Closed;
            std::mem::take(&mut state.ready)
        };
        shared.closing.cancel();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the network pool panicked");
            }
        }
        let removed = shared.remove_all(ready.into_iter().map(|it| it.index).collect()).await;
        let last = on_thread("nestbox-netdown", move || {
            presence.run_if_last(|| match shared.claims.any()? {
                true => Ok(()),
                false => host::clean_up(),
            })
        });
        let cleaned = last.await;
        removed.into_iter().find_map(Result::err).map_or(cleaned.map(|_| ()), Err)
    }
}

impl Shared {
    /// What a guest with a policy reaches on this host. Reads small files.
    pub(super) fn reach(&self, policy: &Policy, rate: Option<u32>) -> Reach {
        let servers = self.name_servers.clone().unwrap_or_else(resolvers);
        Reach { policy: policy.clone(), lan: self.lan, servers, rate }
    }

    /// What resolvers and proxies keep to.
    pub(super) fn name_limits(&self) -> NameLimits {
        self.name_limits.clone()
    }

    /// Removes a slot in use.
    pub(super) async fn release(self: Arc<Self>, index: SlotIndex) -> Result<(), NetworkError> {
        // A task of its own, so that it is not lost with a caller that stops waiting.
        let pool = self.clone();
        let removal = self.executor.spawn(async move {
            let removed = pool.remove(index).await;
            if removed.is_err() {
                pool.hand_to_janitor(index);
            }
            removed
        });
        removal.await.map_err(|_| NetworkError::WorkerDied)?
    }

    /// Has a slot removed later. After shutdown it is left alone.
    pub(super) fn hand_to_janitor(&self, index: SlotIndex) {
        if self.state().phase == Phase::Open && self.janitor.send(index).is_err() {
            tracing::warn!(slot = %index, "a slot outlived the network pool; the next start removes it");
        }
    }

    /// Builds a slot under a number of its own.
    async fn build(self: &Arc<Self>) -> Result<Built, NetworkError> {
        for _ in 0..OCCUPIED_LIMIT {
            let shared = self.clone();
            let _permit = self.workers.acquire().await.map_err(|_| NetworkError::Closed)?;
            let built = on_thread("nestbox-netup", move || shared.build_next()).await;
            match built {
                Err(error @ NetworkError::Occupied { .. }) => {
                    tracing::warn!(%error, "passing over a network slot");
                }
                other => return other,
            }
        }
        Err(NetworkError::Exhausted)
    }

    fn build_next(&self) -> Result<Built, NetworkError> {
        let first = {
            let mut state = self.state();
            let first = state.next;
            state.next = first.next();
            first
        };
        let index = self.claims.claim_free(first)?;
        if index != first {
            self.state().next = index.next();
        }
        let reach = self.reach(&Policy::default(), self.rate);
        let built = setup::build(&self.claims, index, &reach);
        built.map(|()| Built { index, reach }).map_err(|failure| match failure {
            BuildFailure::Undone(error) => error,
            BuildFailure::Remains(error) => {
                self.hand_to_janitor(index);
                error
            }
        })
    }

    async fn remove(self: &Arc<Self>, index: SlotIndex) -> Result<(), NetworkError> {
        let _permit = self.workers.acquire().await.map_err(|_| NetworkError::Closed)?;
        let shared = self.clone();
        on_thread("nestbox-netdown", move || setup::remove(&shared.claims, index)).await
    }

    async fn remove_all(self: &Arc<Self>, slots: Vec<SlotIndex>) -> Vec<Result<(), NetworkError>> {
        stream::iter(slots)
            .map(|index| self.remove(index))
            .buffer_unordered(PARALLEL)
            .collect()
            .await
    }

    async fn reap(self: &Arc<Self>, leftovers: Vec<SlotIndex>) {
        if leftovers.is_empty() {
            return;
        }
        let count = leftovers.len();
        for error in self.remove_all(leftovers).await.into_iter().filter_map(Result::err) {
            tracing::warn!(%error, "a network slot of an earlier daemon could not be removed");
        }
        tracing::info!(count, "removed network slots that earlier daemons left");
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Registers the daemon, prepares the host, and finds the slots that nobody will adopt.
fn prepare(
    data_dir: &std::path::Path,
    in_use: &[SlotIndex],
) -> Result<(Claims, Presence, Vec<SlotIndex>), NetworkError> {
    let claims = Claims::open(data_dir)?;
    // Registered first: from now on no other daemon takes the host's packet filter away.
    let presence = claims.register()?;
    {
        let _lock = claims.lock()?;
        namespace::prepare().map_err(NetworkError::NamespaceDir)?;
    }
    host::prepare()?;
    for index in in_use {
        // Adopting it will say so, too; the others need not suffer.
        if let Err(error) = claims.ensure(*index) {
            tracing::warn!(%error, "a network slot to adopt is not ours");
        }
    }
    claims.take_over_abandoned()?;
    let mut leftovers = claims.own()?;
    leftovers.retain(|index| !in_use.contains(index));
    Ok((claims, presence, leftovers))
}
