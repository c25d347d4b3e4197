//! What the README's numbers come from: a real daemon, real microVMs, and beside each number that
//! of the least that could do the same ("floor"), measured in the same run.
//!
//! `make bench` runs it and writes `bench/results.json`.

mod daemon;
mod floor;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nestbox::domain::exec::Exec;
use nestbox::vmm::guest::Agent;
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::daemon::Daemon;
use crate::floor::Floor;

const BOOTS: usize = 10;
const EXECS: usize = 300;
/// The first ones pay for code that the guest has never run before.
const WARM_UP: usize = 20;
const POPULATION: usize = 10;
const SETTLE: Duration = Duration::from_secs(10);
const IDLE_WINDOW: Duration = Duration::from_secs(30);

/// One line of the results.
#[derive(Debug, Serialize)]
struct Measurement {
    name: &'static str,
    unit: &'static str,
    n: usize,
    p50: f64,
    p95: f64,
    floor_p50: Option<f64>,
    ratio: Option<f64>,
}

impl Measurement {
    fn new(
        name: &'static str,
        unit: &'static str,
        samples: Vec<f64>,
        floor: Option<Vec<f64>>,
    ) -> Self {
        let n = samples.len();
        let (p50, p95) = (percentile(&samples, 50), percentile(&samples, 95));
        let floor_p50 = floor.map(|floor| percentile(&floor, 50));
        let ratio = floor_p50.map(|floor| rounded(p50 / floor));
        Self { name, unit, n, p50, p95, floor_p50, ratio }
    }
}

fn percentile(samples: &[f64], percent: usize) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100).clamp(1, sorted.len());
    rounded(sorted[rank - 1])
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

fn main() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let results = runtime.block_on(measure())?;
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/bench");
    std::fs::create_dir_all(dir)?;
    let mut text = serde_json::to_string_pretty(&results)?;
    text.push('\n');
    std::fs::write(format!("{dir}/results.json"), text)?;
    println!("\n{:<34} {:>5} {:>9} {:>9} {:>9} {:>6}", "", "n", "p50", "p95", "floor", "ratio");
    for result in &results {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.2}"));
        let name = format!("{} ({})", result.name, result.unit);
        let (floor, ratio) = (show(result.floor_p50), show(result.ratio));
        let (n, p50, p95) = (result.n, result.p50, result.p95);
        println!("{name:<34} {n:>5} {p50:>9.2} {p95:>9.2} {floor:>9} {ratio:>6}");
    }
    Ok(())
}

async fn measure() -> Result<Vec<Measurement>> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the benchmark runs microVMs, so it has to be started as root");
    }
    let daemon = Daemon::start().await?;
    let mut results = boots(&daemon).await?;
    let id = daemon.create().await?;
    results.push(execs(&daemon, &id).await?);
    daemon.destroy(&id).await?;
    results.extend(population(&daemon).await?);
    daemon.stop().await?;
    Ok(results)
}

/// From the request for a sandbox to its first answer, against the same command line run by hand;
/// in turns, so that both see the same noise.
async fn boots(daemon: &Daemon) -> Result<Vec<Measurement>> {
    let first = daemon.create().await?;
    let floor = Floor::of(&daemon.record(&first)?, daemon.image_dir()).await?;
    daemon.destroy(&first).await?;
    let (mut ours, mut least, mut destroys) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=BOOTS {
        let started = Instant::now();
        let id = daemon.create().await?;
        let took = milliseconds(started);
        let started = Instant::now();
        daemon.destroy(&id).await?;
        destroys.push(milliseconds(started));
        let by_hand = floor.boot().await?;
        eprintln!("boot {turn} of {BOOTS}: {took:.0} ms, by hand {by_hand:.0} ms");
        ours.push(took);
        least.push(by_hand);
    }
    floor.release().await?;
    Ok(vec![
        Measurement::new("cold boot to first answer", "ms", ours, Some(least)),
        Measurement::new("destroy", "ms", destroys, None),
    ])
}

/// `true`, again and again over one connection, against the same asked of the agent directly.
async fn execs(daemon: &Daemon, id: &str) -> Result<Measurement> {
    let record = daemon.record(id)?;
    let agent = Agent::new(record.agent_address()?, &record.access_token);
    let never = CancellationToken::new();
    let (mut ours, mut least) = (Vec::new(), Vec::new());
    for turn in 0..WARM_UP + EXECS {
        let started = Instant::now();
        daemon.exec_true(id).await?;
        let took = milliseconds(started);
        let started = Instant::now();
        let exec = Exec { cmd: "true".to_owned(), output_limit: 1024, ..Exec::default() };
        agent.exec(exec, &never).await.context("the agent does not answer")?;
        if turn >= WARM_UP {
            ours.push(took);
            least.push(milliseconds(started));
        }
    }
    Ok(Measurement::new("exec of true", "ms", ours, Some(least)))
}

/// What a daemon costs that looks after idle sandboxes, and what they cost themselves.
async fn population(daemon: &Daemon) -> Result<Vec<Measurement>> {
    let mut ids = Vec::new();
    for _ in 0..POPULATION {
        ids.push(daemon.create().await?);
    }
    // Guests have things to do for a while after they have booted.
    tokio::time::sleep(SETTLE).await;
    let vms: Vec<i32> =
        ids.iter().map(|id| Ok(daemon.record(id)?.process.pid)).collect::<Result<_>>()?;
    let (started, daemon_before) = (Instant::now(), daemon.cpu_seconds()?);
    let vms_before = daemon::cpu_seconds_of(&vms)?;
    tokio::time::sleep(IDLE_WINDOW).await;
    let percent = |seconds: f64| seconds / started.elapsed().as_secs_f64() * 100.0;
    let daemon_percent = percent(daemon.cpu_seconds()? - daemon_before);
    let vms_after = daemon::cpu_seconds_of(&vms)?;
    let vm_percent =
        vms_before.iter().zip(&vms_after).map(|(before, after)| percent(after - before)).collect();
    let pss = vms.iter().map(|pid| daemon::pss_mb(*pid)).collect::<Result<_>>()?;
    let rss = daemon.rss_mb()?;
    for id in ids {
        daemon.destroy(&id).await?;
    }
    Ok(vec![
        Measurement::new("daemon resident, 10 sandboxes", "MB", vec![rss], None),
        Measurement::new("daemon idle, 10 sandboxes", "% core", vec![daemon_percent], None),
        Measurement::new("idle sandbox, proportional", "MB", pss, None),
        Measurement::new("idle sandbox", "% core", vm_percent, None),
    ])
}
