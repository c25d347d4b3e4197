//! Tests of what is written of many equal lines.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::subscriber::with_default;
use tracing_subscriber::filter::FilterExt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use super::*;

/// A log in memory.
#[derive(Default, Clone)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The lines that are written while `work` logs.
fn lines(filter: &str, work: impl FnOnce(&Repeats)) -> Vec<String> {
    let (log, repeats) = (Log::default(), Repeats::default());
    let writer = log.clone();
    let layer = tracing_subscriber::fmt::layer::<Registry>().with_ansi(false);
    let layer = layer.with_writer(move || writer.clone());
    let layer = layer.with_filter(EnvFilter::new(filter).and(repeats.clone()));
    with_default(tracing_subscriber::registry().with(layer), || work(&repeats));
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn with<'a>(lines: &'a [String], words: &str) -> Vec<&'a String> {
    lines.iter().filter(|line| line.contains(words)).collect()
}

#[test]
fn a_line_that_comes_again_and_again_is_written_a_few_times_and_then_counted() {
    let lines = lines("info", |repeats| {
        for attempt in 0..1000 {
            let span = tracing::info_span!("request", request_id = attempt);
            let _entered = span.enter();
            tracing::error!(error = "Too many open files", "cannot accept");
            tracing::info!("once each");
        }
        tracing::info!("something else");
        repeats.tell();
        repeats.tell();
    });
    let written = with(&lines, "cannot accept error=\"Too many").len();
    assert_eq!(written, EQUAL as usize, "{lines:#?}");
    assert_eq!(with(&lines, "something else").len(), 1);
    let told = with(&lines, "was repeated");
    assert_eq!(told.len(), 2, "{told:#?}");
    let count = format!("count={}", 1000 - EQUAL);
    assert!(told.iter().all(|line| line.contains(&count)), "{told:#?}");
    assert_eq!(with(&lines, "cannot accept").len(), EQUAL as usize + 1, "it is quoted: {lines:#?}");
}

#[test]
fn warnings_that_differ_each_time_are_bounded_by_their_place() {
    let lines = lines("info", |repeats| {
        for port in 0..10_000 {
            tracing::warn!(port, "a client is odd");
            tracing::info!(port, "a sandbox was made");
        }
        repeats.tell();
    });
    assert_eq!(with(&lines, "a client is odd").len(), ALIKE as usize);
    assert_eq!(with(&lines, "a sandbox was made").len(), 10_000, "each is news");
    assert!(!with(&lines, "was repeated").is_empty());
}

#[test]
fn once_it_was_told_a_line_is_written_again() {
    let lines = lines("info", |repeats| {
        for _ in 0..3 {
            (0..20).for_each(|_| tracing::warn!("again"));
            repeats.tell();
        }
    });
    assert_eq!(with(&lines, "tests: again").len(), 3 * EQUAL as usize, "{lines:#?}");
}

#[test]
fn who_asks_for_more_gets_all_of_it() {
    let lines = lines("debug", |_| (0..500).for_each(|_| tracing::debug!("a step")));
    assert_eq!(lines.len(), 500);
}

#[test]
fn memory_for_counting_is_bounded() {
    let repeats = Repeats::default();
    let mut now = repeats.lock();
    assert!((0..100_000).all(|line| now.is_news(line, String::new)));
    assert_eq!(now.kinds.len(), KINDS);
}
