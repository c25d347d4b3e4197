//! `demo`: shows on a daemon of its own that everything works, from an image to nothing left.

use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::multipart;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::client::{Client, CreateRequest, ExecRequest, ListQuery, Tracing};
use super::discover::Daemon;
use super::image;
use super::output::table;
use super::progress::Steps;
use crate::domain::sandbox::SandboxState;

/// Where everything goes unless the data directory is given.
const DEFAULT_DIR: &str = ".nestbox";

/// A daemon without sandboxes is up, and gone, in a fraction of this.
const DAEMON_LIMIT: Duration = Duration::from_secs(60);

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

pub(super) async fn run(_: DemoArgs, data_dir: Option<PathBuf>) -> Result<ExitCode> {
    let base = std::path::absolute(data_dir.unwrap_or_else(|| PathBuf::from(DEFAULT_DIR)))?;
    // Its own directory, so that it meets no other daemon; images are shared.
    let (dir, images) = (base.join("demo"), base.join("images"));
    let steps = Steps::start();

    steps.begin("image");
    image::ensure_debian(&images).await?;
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
    println!("\n{}\ndemo passed", table(["STEP", "     TOOK"], &rows).trim_end());
    Ok(ExitCode::SUCCESS)
}

/// The life of one sandbox.
async fn show(client: &Client, steps: &Steps) -> Result<()> {
    steps.begin("create");
    let request = CreateRequest { template: "debian".to_owned(), ..CreateRequest::default() };
    let sandbox = client.create(&request, None, Tracing::Off).await?;
    let id = &sandbox.id;

    steps.begin("upload");
    let numbers: String = (1..=1000).map(|number| format!("{number}\n")).collect();
    client.write_file(id, NUMBERS, multipart::Part::text(numbers)).await?;

    steps.begin("python");
    let args = vec!["-c".to_owned(), PROGRAM.to_owned()];
    let python = ExecRequest {
        cmd: "python3".to_owned(),
        args,
        envs: Default::default(),
        cwd: None,
        user: None,
        timeout_sec: Some(60),
    };
    let answer = client.exec(id, &python).await?;
    if answer.exit_code != 0 || !answer.stdout.contains("sum 500500") {
        bail!("the program went wrong: {}{}", answer.stdout, answer.stderr);
    }
    steps.note(&format!("sandbox {id} says: {}", answer.stdout.trim_end()));

    steps.begin("download");
    let file = client.read_file(id, RESULT).await?.text().await?;
    if file != "500500\n" {
        bail!("{RESULT} holds {file:?}");
    }
    steps.begin("destroy");
    client.destroy(id).await?;
    Ok(())
}

/// A daemon for the demo alone.
struct DemoDaemon {
    process: Child,
    client: Client,
}

impl DemoDaemon {
    async fn start(dir: &Path, images: &Path) -> Result<Self> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut process = Command::new(program)
            .arg("serve")
            .args(["--listen", "127.0.0.1:0", "--log", "warn"])
            .arg("--data-dir")
            .arg(dir)
            .arg("--image-dir")
            .arg(images)
            .env_remove("NESTBOX_CONFIG")
            .env_remove("NESTBOX_DATABASE_URL")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // ^C is for the demo, which then ends the daemon in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the daemon")?;
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
        let client = Client::new(Daemon { url, api_key: api_key.trim().to_owned() })?;
        let daemon = Self { process, client };
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

    /// Ends the daemon in order and removes its directory.
    async fn stop(mut self, dir: &Path) -> Result<()> {
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
