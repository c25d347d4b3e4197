//! What a sandbox has taken of its host: the last hour of it, for as long as it lives here.
//!
//! Whoever looks reads the machine once more, and what that read is compared with is written by the
//! sampler alone: any number of people who look see the same, and change nothing.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};

use crate::domain::usage::Sample;
use crate::vmm::process::process_usage::Usage;

/// Time between two samples.
pub const SAMPLE_PERIOD: Duration = Duration::from_secs(10);

/// Samples that are kept: an hour. A sample takes 32 bytes, so a sandbox takes 11.5 kB at most.
pub const SAMPLES: usize = 360;

/// Room for samples is taken ten minutes at a time: most sandboxes do not live for an hour.
const ROOM: usize = 60;

/// Samples of a running sandbox that are older are forgotten.
const MAX_AGE: TimeDelta = TimeDelta::hours(1);

/// Processor time is not told over less than this if that can be helped: over a moment it is all or
/// nothing.
const LEAST_SPAN: Duration = Duration::from_secs(1);

/// The processor time that a machine had used at a moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    cpu_time: Duration,
}

#[derive(Debug, Default)]
struct Log {
    /// The last reading and the one before it, both of the VM that runs now.
    readings: [Option<Reading>; 2],
    /// What was last seen, also if it is no sample.
    seen: Option<Sample>,
    samples: VecDeque<Sample>,
}

/// The log of one sandbox.
#[derive(Debug, Default)]
pub struct UsageLog(Mutex<Log>);

impl UsageLog {
    /// A VM begins to run, or is found running: what it has used so far is where counting begins.
    pub fn begin(&self, usage: &Usage, now: Instant, at: DateTime<Utc>) {
        let mut log = self.lock();
        log.readings = [None, None];
        log.read(usage, now, at);
    }

    /// Keeps a sample. Gives the processor time since the last reading.
    pub fn sample(&self, usage: &Usage, now: Instant, at: DateTime<Utc>) -> Duration {
        let mut log = self.lock();
        let known = log.readings[0].is_some();
        let (sample, used) = log.read(usage, now, at);
        // Without an earlier reading there is nothing to tell yet.
        if known {
            log.keep(sample);
        }
        used
    }

    /// The VM is about to end. Gives the processor time since the last reading.
    pub fn end(&self, usage: &Usage) -> Duration {
        let mut log = self.lock();
        let used = log.used_since(log.readings[0], usage);
        log.readings = [None, None];
        log.seen = None;
        used
    }

    /// What the sandbox takes now. Changes nothing.
    pub fn look(&self, usage: &Usage, now: Instant, at: DateTime<Utc>) -> Sample {
        let log = self.lock();
        let long_ago = |reading: &&Reading| now.saturating_duration_since(reading.at) >= LEAST_SPAN;
        let [last, before] = &log.readings;
        let from = last.as_ref().filter(long_ago).or(before.as_ref()).or(last.as_ref());
        log.compare(from.copied(), usage, now, at)
    }

    /// What was last seen of a VM that runs.
    pub fn seen(&self) -> Option<Sample> {
        self.lock().seen
    }

    /// The samples, the oldest first.
    pub fn samples(&self) -> Vec<Sample> {
        self.lock().samples.iter().copied().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn used_since(&self, from: Option<Reading>, usage: &Usage) -> Duration {
        from.map_or(Duration::ZERO, |from| usage.cpu_time.saturating_sub(from.cpu_time))
    }

    fn compare(
        &self,
        from: Option<Reading>,
        usage: &Usage,
        now: Instant,
        at: DateTime<Utc>,
    ) -> Sample {
        let span = from.map_or(Duration::ZERO, |from| now.saturating_duration_since(from.at));
        let cpu_percent = match span.is_zero() {
            true => 0.0,
            false => self.used_since(from, usage).as_secs_f32() / span.as_secs_f32() * 100.0,
        };
        // While an operation may be changing the disk, it is as it was.
        let former = || self.seen.map_or(0, |seen| seen.disk_bytes);
        let disk_bytes = usage.disk_bytes.unwrap_or_else(former);
        Sample { at, cpu_percent, memory_bytes: usage.memory_bytes, disk_bytes }
    }

    fn read(&mut self, usage: &Usage, now: Instant, at: DateTime<Utc>) -> (Sample, Duration) {
        let from = self.readings[0];
        let sample = self.compare(from, usage, now, at);
        let used = self.used_since(from, usage);
        self.readings = [Some(Reading { at: now, cpu_time: usage.cpu_time }), from];
        self.seen = Some(sample);
        (sample, used)
    }

    fn keep(&mut self, sample: Sample) {
        let old = |first: &Sample| sample.at - first.at > MAX_AGE;
        while self.samples.len() >= SAMPLES || self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
        if self.samples.len() == self.samples.capacity() {
            self.samples.reserve_exact(ROOM.min(SAMPLES - self.samples.len()));
        }
        self.samples.push_back(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn usage(cpu_ms: u64, memory_bytes: u64) -> Usage {
        let cpu_time = Duration::from_millis(cpu_ms);
        Usage { cpu_time, memory_bytes, disk_bytes: Some(7) }
    }

    /// Two clocks that go together.
    #[derive(Clone, Copy)]
    struct Clock(Instant, DateTime<Utc>);

    impl Clock {
        fn new() -> Self {
            Self(Instant::now(), Utc::now())
        }

        fn after(self, seconds: u64) -> Self {
            let span = Duration::from_secs(seconds);
            Self(self.0 + span, self.1 + span)
        }
    }

    #[test]
    fn processor_time_is_told_in_percent_of_one_cpu() {
        let (log, start) = (UsageLog::default(), Clock::new());
        log.begin(&usage(5_000, 1), start.0, start.1);
        assert!(log.samples().is_empty(), "a beginning is no sample");
        let Clock(now, at) = start.after(10);
        assert_eq!(log.sample(&usage(10_000, 2), now, at), Duration::from_secs(5));
        let Clock(now, at) = start.after(20);
        assert_eq!(log.sample(&usage(30_000, 3), now, at), Duration::from_secs(20));
        let told: Vec<_> =
            log.samples().iter().map(|it| (it.cpu_percent, it.memory_bytes)).collect();
        assert_eq!(told, [(50.0, 2), (200.0, 3)]);
    }

    #[test]
    fn a_look_changes_nothing_and_spans_a_second_at_least() {
        let (log, start) = (UsageLog::default(), Clock::new());
        log.begin(&usage(0, 1), start.0, start.1);
        let look = |cpu_ms, clock: Clock| log.look(&usage(cpu_ms, 1), clock.0, clock.1).cpu_percent;
        assert_eq!(look(500, start.after(5)), 10.0);
        assert_eq!(look(500, start.after(5)), 10.0);
        log.sample(&usage(1_000, 1), start.after(10).0, start.after(10).1);
        // Right after a sample the span reaches back to the one before it.
        assert_eq!(look(1_000, start.after(10)), 10.0);
        assert_eq!(look(3_000, start.after(12)), 100.0);
        assert_eq!(log.samples().len(), 1);
    }

    #[test]
    fn another_vm_is_not_compared_with_the_one_before() {
        let (log, start) = (UsageLog::default(), Clock::new());
        log.begin(&usage(9_000, 1), start.0, start.1);
        assert_eq!(log.end(&usage(9_500, 1)), Duration::from_millis(500));
        assert_eq!(log.seen(), None);
        let Clock(now, at) = start.after(10);
        assert_eq!(log.sample(&usage(100, 1), now, at), Duration::ZERO);
        assert!(log.samples().is_empty());
        let Clock(now, at) = start.after(20);
        assert_eq!(log.sample(&usage(1_100, 1), now, at), Duration::from_secs(1));
        assert_eq!(log.samples()[0].cpu_percent, 10.0);
    }

    #[test]
    fn a_disk_that_cannot_be_looked_at_is_as_it_was() {
        let (log, start) = (UsageLog::default(), Clock::new());
        log.begin(&usage(0, 1), start.0, start.1);
        let busy = Usage { disk_bytes: None, ..usage(0, 1) };
        assert_eq!(log.look(&busy, start.0, start.1).disk_bytes, 7);
    }

    #[test]
    fn an_hour_is_kept_in_no_more_room_than_was_said() {
        let (log, start) = (UsageLog::default(), Clock::new());
        log.begin(&usage(0, 1), start.0, start.1);
        for number in 1..=1000 {
            let Clock(now, at) = start.after(number * 10);
            log.sample(&usage(number, number), now, at);
        }
        let samples = log.samples();
        assert_eq!(samples.len(), SAMPLES);
        assert_eq!((samples[0].memory_bytes, samples[359].memory_bytes), (641, 1000));
        assert_eq!(log.lock().samples.capacity(), SAMPLES);
        // A sandbox that was paused for long forgets what is older when it runs again.
        let Clock(now, at) = start.after(10_000 + 3_500);
        log.sample(&usage(1001, 1001), now, at);
        assert_eq!(log.samples().len(), 12, "those of the last hour, and this one");
    }
}
