//! A limit on how often something is done, with room for bursts.

use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::time::sleep;

/// Lets through so many a second, and as many at once after a second's rest.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// How many may come at once; below zero, how many wait.
    left: f64,
    at: Instant,
}

impl Bucket {
    pub fn new(per_second: NonZeroU32) -> Self {
        let per_second = f64::from(per_second.get());
        let state = Mutex::new(State { left: per_second, at: Instant::now() });
        Self { per_second, state }
    }

    /// Waits for one's turn. Turns come in the order of the calls; one that is not waited for is
    /// lost.
    pub async fn turn(&self) {
        sleep(self.take(Instant::now())).await;
    }

    /// Takes a turn, which comes after the time that is given back.
    fn take(&self, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let come = now.saturating_duration_since(state.at).as_secs_f64() * self.per_second;
        state.left = (state.left + come).min(self.per_second) - 1.0;
        state.at = now;
        Duration::from_secs_f64((-state.left).max(0.0) / self.per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: NonZeroU32 = NonZeroU32::new(10).expect("not zero");

    /// How long so many wait who come at one moment.
    fn waits(bucket: &Bucket, now: Instant, count: usize) -> Vec<u128> {
        (0..count).map(|_| bucket.take(now).as_millis()).collect()
    }

    #[test]
    fn a_burst_passes_at_once_and_the_rest_at_the_rate() {
        let bucket = Bucket::new(RATE);
        let start = Instant::now();
        let waits = waits(&bucket, start, 40);
        assert_eq!(waits[..10], [0; 10]);
        assert!((99..=100).contains(&waits[10]) && (2990..=3000).contains(&waits[39]), "{waits:?}");
        // Whoever comes then waits for all of them.
        let later = bucket.take(start + Duration::from_secs(1)).as_millis();
        assert!((2090..=2100).contains(&later), "{later}");
    }

    #[test]
    fn no_rest_is_long_enough_for_more_than_one_burst() {
        let bucket = Bucket::new(RATE);
        let later = Instant::now() + Duration::from_secs(3600);
        let waits = waits(&bucket, later, 12);
        assert_eq!(waits[..10], [0; 10]);
        assert!(waits[11] >= 199, "{waits:?}");
    }
}
