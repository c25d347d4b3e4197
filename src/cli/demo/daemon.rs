//! The daemon of the demo.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::timeout;

use crate::cli::client::{Client, ListQuery};
use crate::cli::discover::{Daemon, Way};
use crate::domain::lifecycle::SandboxState;

/// A daemon without sandboxes is up, and gone, in a fraction of this.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

/// A daemon for the demo alone.
pub(super) struct DemoDaemon {
    process: Child,
    /// Held for its end.
    _stdin: Option<ChildStdin>,
    /// Talks to it.
    pub client: Arc<Client>,
}

impl DemoDaemon {
    /// Starts it with its data in `dir`; no sandbox is there then.
    ///
    /// # Errors
    ///
    /// What kept it from starting.
    pub async fn start(dir: &Path, images: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut process = Command::new(program)
            .args(["serve", "--end-with-stdin"])
            .args(["--listen", "127.0.0.1:0", "--log", "warn"])
            .arg("--data-dir")
            .arg(dir)
            .arg("--image-dir")
            .arg(images)
            .env_remove("NESTBOX_CONFIG")
            .env_remove("NESTBOX_DATABASE_URL")
            // It ends with us, however that is: once the leases of our sandboxes have.
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // ^C is for the demo, which then ends the daemon in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the daemon")?;
        let stdin = process.stdin.take();
        let output = process.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output).lines();
        let url = async {
            while let Some(line) = lines.next_line().await? {
                if let Some((_, url)) = line.split_once(" listens on ") {
                    return Ok(url.to_owned());
                }
            }
            bail!("the daemon ended before it listened")
        };
        let url =
            timeout(DAEMON_LIMIT, url).await.context("the daemon did not start in time")??;
        // Nobody reads its further lines, so they may not fill the pipe.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        let key_file = dir.join("api-key");
        let api_key = std::fs::read_to_string(&key_file)
            .with_context(|| format!("cannot read {}", key_file.display()))?;
        let (api_key, way) = (api_key.trim().to_owned(), Way::Socket(dir.to_owned()));
        let client = Arc::new(Client::new(Daemon { url, api_key, way })?);
        let daemon = Self { process, client, _stdin: stdin };
        // What an interrupted demo left has been adopted.
        daemon.destroy_all().await?;
        Ok(daemon)
    }

    async fn destroy_all(&self) -> Result<()> {
        let states = SandboxState::ALL.into_iter().filter(|state| !state.is_final()).collect();
        let query = ListQuery { states, metadata: Default::default() };
        for sandbox in self.client.list(&query).await? {
            self.client.destroy(&sandbox.id).await?;
        }
        Ok(())
    }

    /// Ends it in order, with whatever sandboxes are left, and removes its directory.
    ///
    /// # Errors
    ///
    /// What was left behind.
    pub async fn stop(mut self, dir: &Path) -> Result<()> {
        let destroyed = self.destroy_all().await;
        if let Some(pid) = self.process.id() {
            let pid = Pid::from_raw(i32::try_from(pid).context("a pid is a positive i32")?);
            kill(pid, Signal::SIGTERM).context("cannot end the daemon")?;
        }
        let ended = timeout(DAEMON_LIMIT, self.process.wait()).await;
        let status = ended.context("the daemon did not end in time")??;
        destroyed?;
        if !status.success() {
            bail!("the daemon ended with {status}");
        }
        std::fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))
    }
}
