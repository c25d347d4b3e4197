//! What work is being done in a sandbox, and when it was last done.
//!
//! Only work that was done counts as activity: a refused or failed request leaves no trace here
//! beyond the moment it lasts.

use std::sync::{Mutex, MutexGuard, PoisonError};

use chrono::{DateTime, TimeDelta, Utc};
use tokio::sync::Notify;

/// Whether a sandbox's time is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Idleness {
    /// It is over.
    Expired,
    /// It cannot be over before then.
    NotBefore(DateTime<Utc>),
}

#[derive(Debug)]
struct Entry {
    in_flight: usize,
    last_active_at: DateTime<Utc>,
}

/// The activity of one sandbox.
#[derive(Debug)]
pub struct ActivityTracker {
    entry: Mutex<Entry>,
    /// Wakes the publisher after work was done.
    pub(super) activity: Notify,
}

impl ActivityTracker {
    pub fn new(last_active_at: DateTime<Utc>) -> Self {
        Self { entry: Mutex::new(Entry { in_flight: 0, last_active_at }), activity: Notify::new() }
    }

    /// When work was last done.
    pub fn last_active_at(&self) -> DateTime<Utc> {
        self.lock().last_active_at
    }

    /// The time counts from `now`, as after work: the sandbox has just become ready for it.
    pub fn restart(&self, now: DateTime<Utc>) {
        self.lock().last_active_at = now;
    }

    /// Work begins.
    pub fn begin(&self) {
        self.lock().in_flight += 1;
    }

    /// Work ends: with something done, or without.
    pub fn end(&self, worked: bool, now: DateTime<Utc>) {
        let mut entry = self.lock();
        entry.in_flight -= 1;
        if worked {
            entry.last_active_at = entry.last_active_at.max(now);
            self.activity.notify_one();
        }
    }

    /// Whether `timeout` has passed since the last work, none being done now.
    pub fn idleness(&self, timeout: TimeDelta, now: DateTime<Utc>) -> Idleness {
        let entry = self.lock();
        let end = match entry.in_flight {
            0 => entry.last_active_at + timeout,
            // Work under way keeps it alive; look again when it could have idled long enough.
            _ => now + timeout,
        };
        if end <= now { Idleness::Expired } else { Idleness::NotBefore(end) }
    }

    fn lock(&self) -> MutexGuard<'_, Entry> {
        self.entry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: TimeDelta = TimeDelta::seconds(10);

    #[test]
    fn only_work_done_resets_the_idle_timer() {
        let start = Utc::now();
        let later = start + TimeDelta::seconds(5);
        let activity = ActivityTracker::new(start);

        activity.begin();
        activity.end(false, later);
        assert_eq!(activity.idleness(TIMEOUT, later), Idleness::NotBefore(start + TIMEOUT));

        activity.begin();
        activity.end(true, later);
        assert_eq!(activity.idleness(TIMEOUT, later), Idleness::NotBefore(later + TIMEOUT));
    }

    #[test]
    fn work_under_way_keeps_it_alive() {
        let start = Utc::now();
        let activity = ActivityTracker::new(start);
        activity.begin();
        let late = start + TimeDelta::seconds(100);
        assert_eq!(activity.idleness(TIMEOUT, late), Idleness::NotBefore(late + TIMEOUT));
        activity.end(false, late);
        assert_eq!(activity.idleness(TIMEOUT, late), Idleness::Expired);
    }
}
