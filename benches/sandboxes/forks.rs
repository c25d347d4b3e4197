//! One sandbox becomes two.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::Bench;
use crate::client::Span;
use crate::measurement::{Measurement, milliseconds};

const FORKS: usize = 10;
const EXECS_BEFORE: usize = 3;

/// From the request for a child to the answer that it runs, and how much of that the parent stood
/// still. Each time of a new parent that has run a few commands: a second fork has less to write.
pub async fn forks(bench: &Bench) -> Result<Vec<Measurement>> {
    let daemon = &bench.daemon;
    let client = &daemon.client;
    let (mut forks, mut stills) = (Vec::new(), Vec::new());
    for turn in 1..=FORKS {
        let parent = client.create().await?;
        for _ in 0..EXECS_BEFORE {
            client.exec_true(&parent).await?;
        }
        daemon.settle().await?;
        let started = Instant::now();
        let (child, trace) = client.fork(&parent).await?;
        let took = milliseconds(started);
        let still = stood_still(&trace).context("the trace of a fork has no freeze and thaw")?;
        eprintln!("fork {turn} of {FORKS}: {took:.0} ms, of which frozen {still:.0} ms");
        forks.push(took);
        stills.push(still);
        for id in [&parent, &child] {
            client.exec_true(id).await?;
            client.destroy(id).await?;
        }
    }
    daemon.settle().await?;
    Ok(vec![
        Measurement::new("fork of one child", "ms", &forks).bar(200.0),
        Measurement::new("parent frozen by a fork", "ms", &stills).bar(30.0),
    ])
}

/// From the request that freezes the parent to the answer that it runs again. The child's thaw is a
/// later one.
fn stood_still(trace: &[Span]) -> Option<f64> {
    let freeze = trace.iter().find(|span| span.span == "freeze")?;
    let thaws = trace.iter().filter(|span| span.span == "thaw");
    let end = thaws.map(|span| span.start_ms + span.took_ms).min_by(f64::total_cmp)?;
    Some(end - freeze.start_ms)
}
