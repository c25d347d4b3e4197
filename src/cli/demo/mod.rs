//! `demo`: shows on a daemon of its own that everything works, from an image to nothing left.

#![allow(clippy::print_stdout, reason = "it talks to who runs it")]

mod counter;
mod daemon;

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Result, bail};
use clap::Args;

use super::WarmUp;
use super::client::{Client, CreateRequest, ExecRequest, There, Tracing};
use super::image;
use super::lease::{LEASE_SEC, Renewal};
use super::output::table;
use super::progress::Steps;
use crate::config::{Config, ConfigArgs};
use crate::print::say;
use counter::Counter;
use daemon::DemoDaemon;

/// Where everything goes unless the data directory is given.
const DEFAULT_DIR: &str = ".nestbox";

/// Copies of the sandbox that are made.
const FORKS: u32 = 3;

const NUMBERS: &str = "/home/user/numbers.txt";
const RESULT: &str = "/home/user/result.txt";

/// What runs in the sandbox: reads one file, writes another, says where it is.
const PROGRAM: &str = "\
import platform
total = sum(int(line) for line in open('numbers.txt'))
open('result.txt', 'w').write(f'{total}\\n')
print(f'kernel {platform.release()}, sum {total}')
";

/// Arguments of `demo`: none.
#[derive(Debug, Args)]
pub struct DemoArgs {}

pub(super) async fn run(
    _: DemoArgs,
    data_dir: Option<PathBuf>,
    warm_up: WarmUp,
) -> Result<ExitCode> {
    let base = std::path::absolute(data_dir.unwrap_or_else(|| PathBuf::from(DEFAULT_DIR)))?;
    // Its own directory, so that it meets no other daemon; images are shared.
    let (dir, images) = (base.join("demo"), base.join("images"));
    let steps = Steps::start();

    steps.begin("image");
    let settings = ConfigArgs { image_dir: Some(images.clone()), ..ConfigArgs::default() };
    image::ensure_debian(&Config::load(&settings, Some(&dir))?, warm_up).await?;
    steps.begin("daemon");
    let daemon = DemoDaemon::start(&dir, &images).await?;
    let shown = tokio::select! {
        shown = show(&daemon.client, &steps) => shown,
        _ = tokio::signal::ctrl_c() => Err(anyhow::anyhow!("interrupted")),
    };
    steps.begin("stop");
    let stopped = daemon.stop(&dir).await;
    shown?;
    stopped?;
    let rows: Vec<[String; 2]> = steps
        .finish()
        .into_iter()
        .map(|(step, took)| [step, format!("{:>8.0} ms", took.as_secs_f64() * 1e3)])
        .collect();
    say(format_args!("\n{}\ndemo passed", table(["STEP", "     TOOK"], &rows).trim_end()));
    Ok(ExitCode::SUCCESS)
}

/// The life of one sandbox and its copies.
async fn show(client: &Arc<Client>, steps: &Steps) -> Result<()> {
    steps.begin("create");
    let (template, lease_sec) = ("debian".to_owned(), Some(LEASE_SEC));
    let request = CreateRequest { template, lease_sec, ..CreateRequest::default() };
    let id = client.create(&request, None, Tracing::Off).await?.id;
    let mut renewals = vec![Renewal::start(client, &id, LEASE_SEC)];
    work(client, steps, &id).await?;

    steps.begin("start a counter");
    let started = Counter::start(client, &id).await?;
    steps.begin("pause");
    client.pause(&id, Tracing::Off).await?;
    steps.begin("resume");
    client.resume(&id, Tracing::Off).await?;
    steps.begin("count on");
    let resumed = started.goes_on_in(client, &id).await?;
    let (before, after) = (started.number(), resumed.number());
    steps.note(&format!("it had counted to {before} before the pause, and is at {after} now"));

    steps.begin(&format!("fork {FORKS}"));
    let forks = client.fork(&id, FORKS, Some(LEASE_SEC), Tracing::Off).await?.sandboxes;
    let forks: Vec<String> = forks.into_iter().map(|fork| fork.id).collect();
    renewals.extend(forks.iter().map(|fork| Renewal::start(client, fork, LEASE_SEC)));
    steps.begin("count on in each");
    let mut all = vec![id];
    all.extend(forks);
    check_copies(client, steps, &resumed, &all).await?;

    steps.begin("destroy");
    for id in &all {
        client.destroy(id).await?;
    }
    Ok(())
}

/// A file goes in, a program reads it and writes another, which comes out.
async fn work(client: &Client, steps: &Steps, id: &str) -> Result<()> {
    steps.begin("upload");
    let numbers: String = (1..=1000).map(|number| format!("{number}\n")).collect();
    client.write_file(There::new(id, NUMBERS), numbers.into()).await?;

    steps.begin("python");
    let output = run_in(client, id, "python3", &["-c", PROGRAM]).await?;
    if !output.contains("sum 500500") {
        bail!("the program printed {output:?}");
    }
    steps.note(&format!("sandbox {id} says: {}", output.trim_end()));

    steps.begin("download");
    let file = client.read_file(There::new(id, RESULT)).await?.text().await?;
    if file != "500500\n" {
        bail!("{RESULT} holds {file:?}");
    }
    Ok(())
}

/// In each of the sandboxes the counter goes on, and no two of them take themselves for the same.
async fn check_copies(
    client: &Client,
    steps: &Steps,
    counter: &Counter,
    ids: &[String],
) -> Result<()> {
    if ids.len() != 1 + FORKS as usize {
        bail!("{} copies were made, not {FORKS}", ids.len() - 1);
    }
    let mut seen = HashSet::new();
    for id in ids {
        let count = counter.goes_on_in(client, id).await?.number();
        let hostname = run_in(client, id, "cat", &["/proc/sys/kernel/hostname"]).await?;
        let random = run_in(client, id, "cat", &["/proc/sys/kernel/random/uuid"]).await?;
        let (hostname, random) = (hostname.trim_end(), random.trim_end());
        steps.note(&format!("{hostname} counts on: {count}; its random number is {random}"));
        if !seen.insert(hostname.to_owned()) || !seen.insert(random.to_owned()) {
            bail!("{id} has the hostname or the random numbers of another copy");
        }
    }
    Ok(())
}

/// Runs a command that has to succeed; gives what it printed.
async fn run_in(client: &Client, id: &str, cmd: &str, args: &[&str]) -> Result<String> {
    let request = ExecRequest {
        cmd: cmd.to_owned(),
        args: args.iter().map(|&arg| arg.to_owned()).collect(),
        timeout_sec: Some(60),
        ..ExecRequest::default()
    };
    let answer = client.exec(id, &request).await?;
    if answer.exit_code != 0 {
        bail!("{cmd} went wrong in {id}: {}{}", answer.stdout, answer.stderr);
    }
    Ok(answer.stdout)
}
