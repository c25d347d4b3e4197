//! The daemon under measurement.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nestbox::domain::slot::SlotIndex;
use nestbox::vmm::guest::AGENT_PORT;
use nestbox::vmm::process::ProcessId;
use nestbox::vmm::storage::memory::BuildId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::client::Client;
use crate::processes;

/// Work in the background is over when no process has used more than this of a core...
const QUIET: f64 = 0.03;
/// ...for this long.
const QUIET_WINDOW: Duration = Duration::from_secs(1);
const SETTLE_LIMIT: Duration = Duration::from_secs(60);

/// A daemon ends in moments.
const END_LIMIT: Duration = Duration::from_secs(30);

/// Sandboxes that stand by for the next create.
#[derive(Debug, Clone, Copy)]
pub enum Standbys {
    /// As many as by default.
    Default,
    /// None, so that every create is a restore.
    Off,
}

/// A daemon of its own, in a directory that goes with it.
pub struct Daemon {
    process: Child,
    dir: tempfile::TempDir,
    settings: Vec<String>,
    pub client: Client,
}

/// What is needed of a sandbox's record.
#[derive(Deserialize)]
pub struct Record {
    pub slot: Option<u32>,
    pub process: Option<ProcessId>,
    pub snapshot: Option<BuildId>,
    pub access_token: String,
}

impl Record {
    pub fn agent_address(&self) -> Result<SocketAddr> {
        let slot = self.slot.context("the sandbox has no slot")?;
        Ok((SlotIndex::try_from(slot)?.access_address(), AGENT_PORT).into())
    }

    pub fn pid(&self) -> Result<i32> {
        Ok(self.process.context("the sandbox has no VM")?.pid)
    }
}

/// Where images are, and beside them the data of the benchmark: on one file system, so that warm
/// snapshots are shared as they are in normal use.
pub fn base_dir() -> Result<PathBuf> {
    // cargo runs benchmarks in the package's root, as make does.
    let base = std::env::var_os("NESTBOX_DATA_DIR").unwrap_or_else(|| ".nestbox".into());
    std::fs::canonicalize(&base).with_context(|| format!("there is no {}", base.display()))
}

impl Daemon {
    pub async fn start(standbys: Standbys) -> Result<Self> {
        let base = base_dir()?;
        let dir = tempfile::Builder::new().prefix("bench-").tempdir_in(&base)?;
        let mut settings = vec!["--image-dir".to_owned(), text(&base.join("images"))?];
        if let Standbys::Off = standbys {
            settings.extend(["--standbys", "0"].map(str::to_owned));
        }
        let (process, client) = serve(dir.path(), &settings).await?;
        Ok(Self { process, dir, settings, client })
    }

    pub fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.process.id().context("the daemon has ended")?)?)
    }

    pub fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.dir.path().join("sandboxes").join(id)
    }

    pub fn record(&self, id: &str) -> Result<Record> {
        let path = self.sandbox_dir(id).join("sandbox.json");
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    /// The snapshot that a sandbox was restored from last, or that it is in.
    pub fn snapshot_dir(&self, id: &str) -> Result<PathBuf> {
        let build = self.record(id)?.snapshot.context("the sandbox has no snapshot")?;
        Ok(self.sandbox_dir(id).join(format!("snapshot-{build}")))
    }

    /// Waits until the daemon and its VMs have nothing to do, those included that stand by or are
    /// being made: what was asked for before must not be paid by what is asked for next.
    pub async fn settle(&self) -> Result<()> {
        let started = Instant::now();
        let mut before = self.used()?;
        loop {
            tokio::time::sleep(QUIET_WINDOW).await;
            let now = self.used()?;
            let quiet = |(pid, used): (&i32, &f64)| {
                before.get(pid).is_some_and(|before| used - before <= QUIET)
            };
            if now.len() == before.len() && now.iter().all(quiet) {
                return Ok(());
            }
            if started.elapsed() > SETTLE_LIMIT {
                eprintln!("there is still something going on after {SETTLE_LIMIT:?}");
                return Ok(());
            }
            before = now;
        }
    }

    /// CPU time in seconds of the daemon and of every VM.
    fn used(&self) -> Result<BTreeMap<i32, f64>> {
        let mut pids = vec![self.pid()?];
        for entry in std::fs::read_dir(self.dir.path().join("sandboxes"))? {
            let id = entry?.file_name();
            // One that is being made or taken away has no record, or no process.
            let record = self.record(&id.to_string_lossy());
            pids.extend(record.ok().and_then(|record| record.pid().ok()));
        }
        let used = pids.into_iter().map(|pid| Some((pid, processes::cpu_seconds(pid).ok()?)));
        Ok(used.flatten().collect())
    }

    /// Destroys every sandbox and ends the daemon, and with it the standbys. If it does not do that,
    /// its successor finds and takes away what is left.
    pub async fn stop(mut self) -> Result<()> {
        let Err(error) = self.end().await else { return Ok(()) };
        eprintln!("the daemon did not end in order, starting another one to clean up: {error:#}");
        // Refused if it has ended already.
        let _ = self.process.kill().await;
        (self.process, self.client) = serve(self.dir.path(), &self.settings).await?;
        self.end().await?;
        Err(error.context("the daemon did not end in order"))
    }

    async fn end(&mut self) -> Result<()> {
        let pid = Pid::from_raw(self.pid()?);
        for id in self.client.list().await? {
            self.client.destroy(&id).await?;
        }
        self.settle().await?;
        kill(pid, Signal::SIGTERM)?;
        let status = timeout(END_LIMIT, self.process.wait()).await;
        match status.with_context(|| format!("it does not end within {END_LIMIT:?}"))?? {
            status if status.success() => Ok(()),
            status => bail!("it ended with {status}"),
        }
    }
}

/// Starts a daemon and waits until it listens.
async fn serve(dir: &Path, settings: &[String]) -> Result<(Child, Client)> {
    let mut process = Command::new(env!("CARGO_BIN_EXE_nestbox"))
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"])
        .arg(dir)
        .args(settings)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // Not ended by Ctrl-C, before its sandboxes are destroyed.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .context("cannot start the daemon")?;
    let mut lines = BufReader::new(process.stdout.take().expect("it is piped")).lines();
    let url = loop {
        let line = lines.next_line().await?.context("the daemon ended before it listened")?;
        if let Some((_, url)) = line.split_once(" listens on ") {
            break url.to_owned();
        }
    };
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    let key = std::fs::read_to_string(dir.join("api-key"))?;
    Ok((process, Client::new(&url, key.trim())?))
}

fn text(path: &Path) -> Result<String> {
    Ok(path.to_str().with_context(|| format!("{} is no UTF-8", path.display()))?.to_owned())
}
