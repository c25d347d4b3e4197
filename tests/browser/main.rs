//! The page in a real browser: headless Chromium, used as a person would, on real microVMs.
//!
//! Needs what tests/vm needs, and Chromium with its driver; without them each test says why it is
//! skipped. Each test has a network of its own without a way to anywhere, so the page shows that it
//! needs none. What it looked like is kept in `target/browser`.

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
#[allow(dead_code, unused_imports)]
mod support;
