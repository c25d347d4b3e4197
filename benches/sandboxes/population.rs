//! Sandboxes that have nothing to do, and the daemon that looks after them. None stands by.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use futures::future::try_join_all;

use crate::Bench;
use crate::client::Created;
use crate::daemon::Daemon;
use crate::measurement::{Measurement, milliseconds};
use crate::processes;

const FEW: usize = 10;
const MANY: usize = 100;
const CREATES_AT_A_TIME: usize = 4;
const EXECS: usize = 5;

/// Guests have things to do for a while after they were restored.
const SETTLE: Duration = Duration::from_secs(10);
const IDLE_WINDOW: Duration = Duration::from_secs(30);

/// What idle sandboxes cost.
struct Idle {
    daemon_percent: f64,
    daemon_rss_mb: f64,
    /// Of each VM: percent of a core.
    percents: Vec<f64>,
    /// Of each VM: memory with its share of what it shares.
    pss_mb: Vec<f64>,
}

/// A few, so that each has its own share of the host's attention.
pub async fn few(bench: &Bench) -> Result<Vec<Measurement>> {
    let daemon = &bench.daemon;
    let mut ids = Vec::new();
    for _ in 0..FEW {
        ids.push(daemon.client.create().await?);
    }
    let idle = idle(daemon, &ids).await?;
    destroy_all(daemon, ids).await?;
    Ok(vec![
        Measurement::new("daemon resident, 10 sandboxes", "MB", &[idle.daemon_rss_mb]),
        Measurement::new("daemon idle, 10 sandboxes", "% core", &[idle.daemon_percent]),
        Measurement::new("idle sandbox, proportional", "MB", &idle.pss_mb).bar(40.0),
        Measurement::new("idle sandbox", "% core", &idle.percents).bar(0.5),
    ])
}

/// As many as the host has room for, up to a hundred.
pub async fn many(bench: &Bench) -> Result<Vec<Measurement>> {
    let daemon = &bench.daemon;
    let started = Instant::now();
    let (ids, refusal) = create_many(daemon).await?;
    let took = started.elapsed().as_secs_f64();
    eprintln!("{} sandboxes in {took:.1} s", ids.len());
    if ids.is_empty() {
        bail!("the host has no room for a sandbox: {}", refusal.unwrap_or_default());
    }
    let note = refusal.map(|why| format!("the host has no room for {MANY}: {why}"));
    let idle = idle(daemon, &ids).await?;
    let execs = exec_in_some(daemon, &ids).await?;
    let count = ids.len() as f64;
    destroy_all(daemon, ids).await?;
    let total: f64 = idle.pss_mb.iter().sum();
    Ok(vec![
        Measurement::new("100 idle sandboxes: running", "count", &[count]).note(note),
        Measurement::new("100 idle sandboxes: mean memory", "MB", &[total / count]),
        Measurement::new("100 idle sandboxes: total memory", "MB", &[total]),
        Measurement::new("100 idle sandboxes: each", "% core", &idle.percents),
        Measurement::new("100 idle sandboxes: daemon", "% core", &[idle.daemon_percent]),
        Measurement::new("100 idle sandboxes: exec of true", "ms", &execs),
    ])
}

/// Creates until there are enough or the host refuses; then also says why.
async fn create_many(daemon: &Daemon) -> Result<(Vec<String>, Option<String>)> {
    let left = Mutex::new((MANY, None));
    let next = || {
        let mut left = left.lock().expect("nobody panics with it");
        let more = left.0 > 0 && left.1.is_none();
        left.0 -= usize::from(more);
        more
    };
    let worker = async || {
        let mut ids = Vec::new();
        while next() {
            match daemon.client.try_create().await? {
                Created::Sandbox(id) => ids.push(id),
                Created::NoRoom(why) => left.lock().expect("nobody panics with it").1 = Some(why),
            }
        }
        Ok::<_, anyhow::Error>(ids)
    };
    let ids = try_join_all((0..CREATES_AT_A_TIME).map(|_| worker())).await?.concat();
    let (_, refusal) = left.into_inner().expect("nobody panics with it");
    Ok((ids, refusal))
}

async fn idle(daemon: &Daemon, ids: &[String]) -> Result<Idle> {
    daemon.settle().await?;
    tokio::time::sleep(SETTLE).await;
    eprintln!("looking at {} idle sandboxes for {IDLE_WINDOW:?}", ids.len());
    let vms: Vec<i32> = ids.iter().map(|id| daemon.record(id)?.pid()).collect::<Result<_>>()?;
    let used = || vms.iter().map(|pid| processes::cpu_seconds(*pid)).collect::<Result<Vec<f64>>>();
    let (started, daemon_before) = (Instant::now(), processes::cpu_seconds(daemon.pid()?)?);
    let before = used()?;
    tokio::time::sleep(IDLE_WINDOW).await;
    let window = started.elapsed().as_secs_f64();
    let daemon_after = processes::cpu_seconds(daemon.pid()?)?;
    let after = used()?;
    let percent = |before: f64, after: f64| (after - before) / window * 100.0;
    Ok(Idle {
        daemon_percent: percent(daemon_before, daemon_after),
        daemon_rss_mb: processes::rss_mb(daemon.pid()?)?,
        percents: before.into_iter().zip(after).map(|(b, a)| percent(b, a)).collect(),
        pss_mb: vms.iter().map(|pid| processes::pss_mb(*pid)).collect::<Result<_>>()?,
    })
}

/// The first exec in some of them, from the first to the last.
async fn exec_in_some(daemon: &Daemon, ids: &[String]) -> Result<Vec<f64>> {
    let mut execs = Vec::new();
    for nth in 0..EXECS {
        let id = &ids[nth * (ids.len() - 1) / (EXECS - 1)];
        let started = Instant::now();
        daemon.client.exec_true(id).await?;
        execs.push(milliseconds(started));
    }
    Ok(execs)
}

async fn destroy_all(daemon: &Daemon, ids: Vec<String>) -> Result<()> {
    for id in ids {
        daemon.client.destroy(&id).await?;
    }
    daemon.settle().await
}
