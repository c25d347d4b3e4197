//! What the README's numbers come from: a real daemon, real microVMs, and beside each number that
//! of the least that could do the same ("floor"), measured in the same run.
//!
//! `make bench` runs it and writes `bench/results.json`. A "bar" is what p50 is to be at most.

#![allow(unsafe_code, reason = "it talks to the kernel as a VM or an attacker does")]
#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod client;
mod creates;
mod daemon;
mod execs;
mod floor;
mod forks;
mod measurement;
mod pauses;
mod population;
mod processes;
mod qmp;

use anyhow::{Context, Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use crate::daemon::{Daemon, Standbys};
use crate::floor::Floor;
use crate::measurement::Measurement;

/// What is compared with what.
struct Bench {
    daemon: Daemon,
    floor: Floor,
}

fn main() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark runs microVMs, so it has to be started as root");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let results = runtime.block_on(measure())?;
    measurement::print(&results);
    measurement::write(&results)
}

async fn measure() -> Result<Vec<Measurement>> {
    let mut results = with_bench(Standbys::Default, async |bench| {
        let mut results = creates::one_after_another(bench).await?;
        results.push(creates::at_once(bench).await?);
        Ok(results)
    })
    .await?;
    // From here on nothing is made in advance, so that nothing but what is measured runs.
    let others = with_bench(Standbys::Off, async |bench| {
        let mut results = creates::restored(bench).await?;
        results.extend(pauses::little_changed(bench).await?);
        results.extend(pauses::much_changed(bench).await?);
        results.extend(forks::forks(bench).await?);
        results.push(execs::execs(bench).await?);
        results.extend(population::few(bench).await?);
        results.extend(population::many(bench).await?);
        Ok(results)
    });
    results.extend(others.await?);
    Ok(results)
}

/// Measures with a daemon and a floor of its own. Both are gone afterwards, with everything they
/// started, also if the measurement failed or was interrupted.
async fn with_bench<T>(
    standbys: Standbys,
    work: impl AsyncFnOnce(&Bench) -> Result<T>,
) -> Result<T> {
    let daemon = Daemon::start(standbys).await?;
    let floor = match Floor::start().await {
        Ok(floor) => floor,
        Err(error) => {
            daemon.stop().await?;
            return Err(error);
        }
    };
    let bench = Bench { daemon, floor };
    let outcome = tokio::select! {
        outcome = work(&bench) => outcome,
        interrupted = interrupted() => interrupted,
    };
    if let Err(error) = &outcome {
        eprintln!("cleaning up: {error:#}");
    }
    let released = bench.floor.release().await.context("something is left of the floor");
    let stopped = bench.daemon.stop().await.context("something is left of the daemon");
    let outcome = outcome?;
    released?;
    stopped?;
    Ok(outcome)
}

async fn interrupted<T>() -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    bail!("interrupted")
}
