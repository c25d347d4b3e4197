//! Shows the steps of long work on standard error: a spinner on a terminal, plain lines elsewhere.
//! And how far a transfer has got, on a terminal only.

use std::io::{self, IsTerminal};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::output::tell;
use crate::vmm::image::Progress;

/// Steps one after the other; each is timed.
pub(super) struct Steps {
    bar: Option<ProgressBar>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    current: Option<(String, Instant)>,
    done: Vec<(String, Duration)>,
}

impl Steps {
    pub fn start() -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::new_spinner();
            let style = ProgressStyle::with_template("{spinner} {msg} ({elapsed})");
            bar.set_style(style.expect("the template is a constant"));
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        });
        Self { bar, state: Mutex::new(State::default()) }
    }

    /// Begins a step; the one before is done.
    pub fn begin(&self, step: &str) {
        self.enter(Some(step));
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.set_message(step.to_owned());
            }
            None => tell(&format!("          {step} ...")),
        }
    }

    /// Leaves a line to read.
    pub fn note(&self, line: &str) {
        match &self.bar {
            Some(bar) => bar.println(line),
            None => tell(line),
        }
    }

    /// Ends the last step; gives all of them with their times.
    pub fn finish(&self) -> Vec<(String, Duration)> {
        self.enter(None);
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        std::mem::take(&mut self.state().done)
    }

    /// Replaces the step at hand, and leaves a line about the one that ended.
    fn enter(&self, next: Option<&str>) {
        let next = next.map(|step| (step.to_owned(), Instant::now()));
        let before = std::mem::replace(&mut self.state().current, next);
        if let Some((step, since)) = before {
            let took = since.elapsed();
            self.note(&format!("{:6.1} s  {step}", took.as_secs_f64()));
            self.state().done.push((step, took));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A poisoned lock only means that a thread panicked between two lines.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Progress for Steps {
    fn step(&self, text: &str) {
        self.begin(text);
    }

    fn detail(&self, text: &str) {
        if let Some(bar) = &self.bar {
            let step = self.state().current.as_ref().map(|(step, _)| step.clone());
            bar.set_message(format!("{}: {text}", step.unwrap_or_default()));
        }
    }
}

/// A transfer. Dropping it takes the bar away.
pub(super) struct Transfer(Option<ProgressBar>);

impl Transfer {
    /// Begins one of so many bytes, if that is known.
    pub fn begin(size: Option<u64>) -> Self {
        Self(io::stderr().is_terminal().then(|| {
            let (bar, template) = match size {
                Some(size) => (
                    ProgressBar::new(size),
                    "{bar:30} {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left",
                ),
                None => (ProgressBar::new_spinner(), "{spinner} {bytes}, {bytes_per_sec}"),
            };
            bar.set_style(
                ProgressStyle::with_template(template).expect("the template is a constant"),
            );
            bar
        }))
    }

    /// So many more bytes are on their way.
    pub fn add(&self, bytes: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes as u64);
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
