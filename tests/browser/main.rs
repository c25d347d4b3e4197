//! The page in a real browser: headless Chromium, used as a person would, on real microVMs.
//!
//! Needs what tests/vm needs, and Chromium with its driver; without them each test says why it is
//! skipped. Each test has a network of its own without a way to anywhere, so the page shows that it
//! needs none. What it looked like is kept in `target/browser`.

#![allow(unsafe_code, reason = "it talks to the kernel as a VM or an attacker does")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod docs;
mod driver;
mod errors;
mod journey;
mod keyboard;
mod keys;
mod late;
mod looks;
mod page;
mod terminal;
// The daemon and its VMs as tests/vm has them, which needs more of it.
#[path = "../vm/support/mod.rs"]
#[allow(dead_code, unused_imports, reason = "it is for tests of VMs")]
mod support;
