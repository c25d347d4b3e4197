//! What all proxies and resolvers of a daemon may hold at a time. They share its files with
//! everything else that the daemon does, so no number of guests may use these up.
//!
//! A guest that has as many as it may have waits, and its oldest idle one is cut for it. When all
//! guests together have as many as there may be, whoever has fewer gets one of whoever has most:
//! so a guest that hoards them keeps nobody else away.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::domain::slot::SlotIndex;

/// What a guest's own connection has to be idle for, to be cut for another one of the same guest.
const IDLE_ENOUGH: Duration = Duration::from_secs(10);

/// How long to wait before looking again whether something is idle by now.
const PAUSE: Duration = Duration::from_secs(1);

/// Places for things that take files.
#[derive(Debug)]
pub(super) struct Budget {
    /// The most of one guest.
    per_guest: usize,
    /// The files that the daemon may open, divided by this, are places of all guests.
    files_per_place: u64,
    state: Mutex<State>,
    freed: Notify,
}

#[derive(Debug, Default)]
struct State {
    guests: HashMap<SlotIndex, HashMap<u64, Held>>,
    all: usize,
    next: u64,
}

/// A place that somebody has.
#[derive(Debug)]
struct Held {
    activity: Activity,
    cut: CancellationToken,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    budget: Arc<Budget>,
    guest: SlotIndex,
    number: u64,
    /// Whoever uses the place notes here that it does.
    pub activity: Activity,
    /// Whoever has the place gives it back at once when this is cancelled.
    pub cut: CancellationToken,
}

/// When something was used the last time.
#[derive(Debug, Clone)]
pub(super) struct Activity(Arc<AtomicU64>);

impl Budget {
    pub fn new(per_guest: usize, files_per_place: u64) -> Arc<Self> {
        let (state, freed) = (Mutex::default(), Notify::new());
        Arc::new(Self { per_guest, files_per_place, state, freed })
    }

    /// Waits for a place for a guest, if need be until somebody has given one back.
    pub async fn place(self: &Arc<Self>, guest: SlotIndex) -> Place {
        loop {
            let mut freed = pin!(self.freed.notified());
            // From here on nothing that is given back is missed.
            freed.as_mut().enable();
            if let Some(place) = self.take(guest) {
                return place;
            }
            let _ = timeout(PAUSE, freed).await;
        }
    }

    /// Takes a place; if there is none, cuts what is in the way.
    fn take(self: &Arc<Self>, guest: SlotIndex) -> Option<Place> {
        let mut state = self.state();
        let own = state.held_by(guest);
        if own >= self.per_guest {
            state.cut_oldest(guest, IDLE_ENOUGH);
            return None;
        }
        if state.all >= self.most() {
            match state.richest() {
                Some((richest, most)) if most > own + 1 => {
                    state.cut_oldest(richest, Duration::ZERO);
                }
                Some(_) | None => state.cut_oldest(guest, IDLE_ENOUGH),
            }
            return None;
        }
        let number = state.next;
        state.next += 1;
        state.all += 1;
        let (activity, cut) = (Activity::now(), CancellationToken::new());
        let held = Held { activity: activity.clone(), cut: cut.clone() };
        state.guests.entry(guest).or_default().insert(number, held);
        Some(Place { budget: self.clone(), guest, number, activity, cut })
    }

    /// The most of all guests: by the files that the daemon may open now.
    fn most(&self) -> usize {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        (files / self.files_per_place).clamp(1, 1 << 16) as usize
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that holds the lock can panic halfway through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn held_by(&self, guest: SlotIndex) -> usize {
        self.guests.get(&guest).map_or(0, HashMap::len)
    }

    /// Who has most, and how many.
    fn richest(&self) -> Option<(SlotIndex, usize)> {
        let counts = self.guests.iter().map(|(guest, held)| (*guest, held.len()));
        counts.max_by_key(|(_, count)| *count)
    }

    /// Cuts what a guest has not used for longest, unless something of it is being cut already.
    fn cut_oldest(&self, guest: SlotIndex, idle_enough: Duration) {
        let held = || self.guests.get(&guest).into_iter().flat_map(HashMap::values);
        if held().any(|held| held.cut.is_cancelled()) {
            return;
        }
        let oldest = held().max_by_key(|held| held.activity.idle());
        if let Some(oldest) = oldest.filter(|held| held.activity.idle() >= idle_enough) {
            oldest.cut.cancel();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.budget.state();
        state.all -= 1;
        if let Some(held) = state.guests.get_mut(&self.guest) {
            held.remove(&self.number);
            if held.is_empty() {
                state.guests.remove(&self.guest);
            }
        }
        drop(state);
        self.budget.freed.notify_waiters();
    }
}

impl Activity {
    fn now() -> Self {
        Self(Arc::new(AtomicU64::new(now())))
    }

    /// Notes that something is used.
    pub fn touch(&self) {
        self.0.store(now(), Ordering::Relaxed);
    }

    /// How long it has not been used.
    fn idle(&self) -> Duration {
        Duration::from_millis(now().saturating_sub(self.0.load(Ordering::Relaxed)))
    }

    /// Waits until it has not been used for so long.
    pub async fn idle_for(&self, limit: Duration) {
        loop {
            match limit.checked_sub(self.idle()) {
                Some(left) if !left.is_zero() => sleep(left).await,
                Some(_) | None => return,
            }
        }
    }
}

/// Milliseconds since this was asked first.
fn now() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
#[path = "budget_tests.rs"]
mod tests;
