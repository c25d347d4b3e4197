//! Commands in a sandbox that runs.

use std::time::Instant;

use anyhow::{Context, Result};
use nestbox::domain::exec::Exec;
use nestbox::vmm::guest::Agent;
use tokio_util::sync::CancellationToken;

use crate::Bench;
use crate::measurement::{Measurement, milliseconds};

const EXECS: usize = 300;
/// The first ones pay for code that the guest has never run before.
const WARM_UP: usize = 20;

/// `true`, again and again over one connection, against the same asked of the agent directly.
pub async fn execs(bench: &Bench) -> Result<Measurement> {
    let daemon = &bench.daemon;
    let id = daemon.client.create().await?;
    daemon.settle().await?;
    let record = daemon.record(&id)?;
    let agent = Agent::new(record.agent_address()?, &record.access_token);
    let never = CancellationToken::new();
    let (mut ours, mut least) = (Vec::new(), Vec::new());
    eprintln!("{EXECS} execs, and as many of the agent directly");
    for turn in 0..WARM_UP + EXECS {
        let started = Instant::now();
        daemon.client.exec_true(&id).await?;
        let took = milliseconds(started);
        let started = Instant::now();
        let exec = Exec { cmd: "true".to_owned(), output_limit: 1024, ..Exec::default() };
        agent.exec(exec, &never).await.context("the agent does not answer")?;
        if turn >= WARM_UP {
            ours.push(took);
            least.push(milliseconds(started));
        }
    }
    daemon.client.destroy(&id).await?;
    daemon.settle().await?;
    Ok(Measurement::new("exec of true", "ms", &ours).over(&least))
}
