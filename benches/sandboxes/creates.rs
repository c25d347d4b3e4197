//! New sandboxes: with others standing by, as by default, and restored from scratch.

use std::time::Instant;

use anyhow::Result;
use futures::future::try_join_all;

use crate::Bench;
use crate::client::Client;
use crate::measurement::{Measurement, milliseconds, percentile};

const CREATES: usize = 20;
const BURSTS: usize = 3;

/// Creates a sandbox and runs `true` in it.
async fn create_and_exec(client: &Client) -> Result<String> {
    let id = client.create().await?;
    client.exec_true(&id).await?;
    Ok(id)
}

async fn destroy_all(bench: &Bench, ids: Vec<String>) -> Result<()> {
    for id in ids {
        bench.daemon.client.destroy(&id).await?;
    }
    bench.daemon.settle().await
}

/// Creates without a pause in between: the first ones find sandboxes that stand by, and the others
/// compete with those that are made for the next ones. Half of the floor is measured before and half
/// after, as in between would be a pause.
pub async fn one_after_another(bench: &Bench) -> Result<Vec<Measurement>> {
    let Bench { daemon, floor } = bench;
    let first = create_and_exec(&daemon.client).await?;
    let script = floor.learn(daemon, &first)?;
    destroy_all(bench, vec![first]).await?;
    let mut least = Vec::new();
    for _ in 0..CREATES / 2 {
        least.push(floor.restore(&script).await?);
    }
    daemon.settle().await?;
    let (mut ids, mut ours) = (Vec::new(), Vec::new());
    let began = Instant::now();
    for _ in 0..CREATES {
        let started = Instant::now();
        ids.push(create_and_exec(&daemon.client).await?);
        ours.push(milliseconds(started));
    }
    let total = began.elapsed().as_secs_f64();
    daemon.settle().await?;
    destroy_all(bench, ids).await?;
    for _ in 0..CREATES / 2 {
        least.push(floor.restore(&script).await?);
    }
    let floor = percentile(&least, 50);
    eprintln!("{CREATES} creates in {total:.2} s; a restore by hand takes {floor:.0} ms");
    let times: Vec<f64> = ours.iter().map(|ours| ours / floor).collect();
    Ok(vec![
        Measurement::new("create to first exec", "ms", &ours).over(&least).bar(150.0),
        Measurement::new("create to first exec over floor", "times", &times).bar(1.5),
        Measurement::new("20 creates, one after another", "s", &[total]).bar(3.0),
    ])
}

/// All creates at the same time, each followed by its exec, until the last one is done.
pub async fn at_once(bench: &Bench) -> Result<Measurement> {
    let mut bursts = Vec::new();
    for turn in 1..=BURSTS {
        bench.daemon.settle().await?;
        let started = Instant::now();
        let all = (0..CREATES).map(|_| create_and_exec(&bench.daemon.client));
        let ids = try_join_all(all).await?;
        let took = started.elapsed().as_secs_f64();
        eprintln!("burst {turn} of {BURSTS}: {CREATES} creates in {took:.2} s");
        bursts.push(took);
        destroy_all(bench, ids).await?;
    }
    Ok(Measurement::new("20 creates at once", "s", &bursts).bar(4.0))
}

/// Creates of which each is a restore, against the same restore by hand; in turns, so that both see
/// the same noise. The floor ends with the agent's first answer and runs nothing.
pub async fn restored(bench: &Bench) -> Result<Vec<Measurement>> {
    let Bench { daemon, floor } = bench;
    let first = create_and_exec(&daemon.client).await?;
    let script = floor.learn(daemon, &first)?;
    daemon.client.destroy(&first).await?;
    let (mut ours, mut least, mut destroys) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 1..=CREATES {
        daemon.settle().await?;
        let started = Instant::now();
        let id = create_and_exec(&daemon.client).await?;
        let took = milliseconds(started);
        daemon.settle().await?;
        let started = Instant::now();
        daemon.client.destroy(&id).await?;
        destroys.push(milliseconds(started));
        daemon.settle().await?;
        let by_hand = floor.restore(&script).await?;
        eprintln!("restore {turn} of {CREATES}: {took:.0} ms, by hand {by_hand:.0} ms");
        ours.push(took);
        least.push(by_hand);
    }
    Ok(vec![
        Measurement::new("create to first exec, no standbys", "ms", &ours).over(&least),
        Measurement::new("destroy", "ms", &destroys),
    ])
}
