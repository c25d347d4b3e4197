//! What a test says that cannot run here.
//!
//! The harness knows no such end: it counts the test as passed. So it is told past the harness, on
//! stderr and in the file that [`LIST`] names, of which `scripts/test.sh` makes its last lines. Where
//! everything has to be there, a test that cannot run has failed: see [`STRICT`].
//!
//! A test says it here or not at all: `tests/layers.rs` looks for others.

#![allow(dead_code, reason = "each test program uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test fails by a panic")]

use std::fs::OpenOptions;
use std::io::Write;

/// `1` where the machine is to have all that tests need, as in CI.
const STRICT: &str = "NESTBOX_TEST_STRICT";

/// Names the file to which a line is written for each test that is skipped.
const LIST: &str = "NESTBOX_TEST_SKIPPED";

/// Says that the calling test, or the rest of it, cannot run: what is missing, and what brings it.
///
/// # Panics
///
/// Where nothing may be missing: that is what fails the test.
pub fn skip(missing: &str) {
    assert!(
        std::env::var_os(STRICT).is_none_or(|value| value != "1"),
        "cannot run, and {STRICT}=1 allows no skipped test: {missing}"
    );
    tell(missing);
}

/// Says that the calling test is about another hypervisor than this run. That one's run has it, so
/// it is missing nowhere.
pub fn belongs_elsewhere(place: &str) {
    tell(place);
}

/// Whether the test is root's; skips it if not.
pub fn is_root(need: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        skip(&format!("{need} needs root: run the tests as root"));
    }
    root
}

fn tell(reason: &str) {
    let thread = std::thread::current();
    // The harness gives a test's name to its thread.
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Not by `eprintln`, which the harness keeps to itself. In one piece: tests run side by side.
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    if let Some(path) = std::env::var_os(LIST) {
        let mut list = OpenOptions::new().append(true).create(true).open(path).unwrap();
        list.write_all(line.as_bytes()).unwrap();
    }
}
