//! Keeps a line that comes again and again from filling the disk with the log: of equal lines the first
//! few are written, and from then on, once in a while, how many more there were.
//!
//! Lines are equal if they come from the same place with the same fields; whose request they are about
//! does not matter. Warnings that differ each time, by a port say, are bounded by their place.

use std::collections::HashMap;
use std::fmt::{self, Write};
use std::hash::{DefaultHasher, Hasher};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::{Context, Filter};

/// How long lines are counted before it is said how many there were.
const PERIOD: Duration = Duration::from_secs(10);

/// Equal lines that are written in that time.
const EQUAL: u64 = 10;

/// Warnings and errors of one place in the code that are written in that time.
const ALIKE: u64 = 200;

/// Different lines that are counted.
const KINDS: usize = 4096;

/// Characters of a line that are quoted.
const QUOTED: usize = 120;

/// Counts lines; clones are the same counters.
#[derive(Clone, Default)]
pub struct Repeats(Arc<Counters>);

#[derive(Default)]
struct Counters {
    now: Mutex<Now>,
    /// Something is counted, or it is over.
    news: Condvar,
}

#[derive(Default)]
struct Now {
    kinds: HashMap<u64, Kind>,
    over: bool,
}

#[derive(Default)]
struct Kind {
    seen: u64,
    kept_back: u64,
    line: String,
}

impl Repeats {
    /// Whether this line is written.
    fn lets_through(&self, event: &Event<'_>) -> bool {
        let metadata = event.metadata();
        // Who asks for more than usual gets it.
        if *metadata.level() > Level::INFO {
            return true;
        }
        let mut words = Words::of(metadata);
        event.record(&mut words);
        let mut now = self.lock();
        let written = now.is_news(words.hash.finish(), || words.line.clone())
            && (*metadata.level() == Level::INFO || now.is_rare(metadata));
        drop(now);
        self.0.news.notify_one();
        written
    }

    /// What was kept back since this was last asked.
    fn take(&self) -> Vec<(u64, String)> {
        let kinds = std::mem::take(&mut self.lock().kinds);
        let kept_back = kinds.into_values().filter(|kind| kind.kept_back > 0);
        kept_back.map(|kind| (kind.kept_back, kind.line)).collect()
    }

    fn tell(&self) {
        for (count, line) in self.take() {
            tracing::warn!(
                count,
                line,
                "a line of the log was repeated: this often it is left out"
            );
        }
    }

    /// Tells again and again what was kept back, in a thread of its own, until [`Repeats::end`].
    pub fn tell_in_the_background(&self) -> std::io::Result<()> {
        let repeats = self.clone();
        let work = move || {
            let mut now = repeats.lock();
            loop {
                let idle = |now: &mut Now| now.kinds.is_empty() && !now.over;
                let news = &repeats.0.news;
                now = news.wait_while(now, idle).unwrap_or_else(PoisonError::into_inner);
                let counting = |now: &mut Now| !now.over;
                let waited = news.wait_timeout_while(now, PERIOD, counting);
                now = waited.unwrap_or_else(PoisonError::into_inner).0;
                let over = now.over;
                drop(now);
                repeats.tell();
                if over {
                    break;
                }
                now = repeats.lock();
            }
        };
        std::thread::Builder::new().name("nestbox-log".to_owned()).spawn(work).map(drop)
    }

    /// Tells what was kept back last.
    pub fn end(&self) {
        self.tell();
        self.lock().over = true;
        self.0.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Now> {
        self.0.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Now {
    /// Whether few equal lines were seen.
    fn is_news(&mut self, line: u64, words: impl FnOnce() -> String) -> bool {
        // So many different ones are no repetition; warnings are bounded by their place still.
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&line) {
            return true;
        }
        self.kinds.entry(line).or_insert_with(|| Kind::of(words())).count(EQUAL)
    }

    /// Whether few lines of this place were seen. There are as many places as the program has.
    fn is_rare(&mut self, metadata: &Metadata<'_>) -> bool {
        let words = || format!("{} ...", metadata.target());
        self.kinds.entry(place(metadata)).or_insert_with(|| Kind::of(words())).count(ALIKE)
    }
}

impl Kind {
    fn of(line: String) -> Self {
        Self { line, ..Self::default() }
    }

    /// Counts one more; says whether it is written.
    fn count(&mut self, most: u64) -> bool {
        self.seen += 1;
        let written = self.seen <= most;
        self.kept_back += u64::from(!written);
        written
    }
}

/// A number for the place that a line comes from.
fn place(metadata: &Metadata<'_>) -> u64 {
    let mut hash = DefaultHasher::new();
    hash.write(metadata.target().as_bytes());
    hash.write(metadata.file().unwrap_or_default().as_bytes());
    hash.write_u32(metadata.line().unwrap_or_default());
    hash.write(metadata.level().as_str().as_bytes());
    hash.finish()
}

/// What a line says, as a number and, cut, in words.
struct Words {
    hash: DefaultHasher,
    line: String,
}

impl Words {
    fn of(metadata: &Metadata<'_>) -> Self {
        let mut hash = DefaultHasher::new();
        hash.write_u64(place(metadata));
        Self { hash, line: String::new() }
    }
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.hash.write(field.name().as_bytes());
        let separator = if self.line.is_empty() { "" } else { " " };
        // Writing into these does not fail.
        let _ = match field.name() {
            "message" => write!(self, "{separator}{value:?}"),
            name => write!(self, "{separator}{name}={value:?}"),
        };
    }
}

impl Write for Words {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.hash.write(text.as_bytes());
        let room = QUOTED.saturating_sub(self.line.len());
        self.line.extend(text.chars().take(room));
        Ok(())
    }
}

impl<S: Subscriber> Filter<S> for Repeats {
    fn enabled(&self, _: &Metadata<'_>, _: &Context<'_, S>) -> bool {
        true
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        // No lines of any level are left out by their level.
        Some(LevelFilter::TRACE)
    }

    fn event_enabled(&self, event: &Event<'_>, _: &Context<'_, S>) -> bool {
        self.lets_through(event)
    }
}

#[cfg(test)]
#[path = "log_repeats_tests.rs"]
mod tests;
