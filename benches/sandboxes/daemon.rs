//! The daemon under measurement, and what /proc says about processes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use nestbox::domain::slot::SlotIndex;
use nestbox::vmm::guest::AGENT_PORT;
use nestbox::vmm::process::ProcessId;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// A daemon of its own, in a directory that goes with it.
pub struct Daemon {
    process: Child,
    dir: tempfile::TempDir,
    images: PathBuf,
    url: String,
    http: reqwest::Client,
}

/// What is needed of a sandbox's record.
#[derive(Deserialize)]
pub struct Record {
    pub slot: u32,
    pub process: ProcessId,
    pub access_token: String,
}

impl Record {
    pub fn agent_address(&self) -> Result<SocketAddr> {
        Ok((SlotIndex::try_from(self.slot)?.access_address(), AGENT_PORT).into())
    }
}

impl Daemon {
    pub async fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let base = std::env::var_os("NESTBOX_DATA_DIR").unwrap_or_else(|| ".nestbox".into());
        // cargo runs benchmarks in the package's root, as make does.
        let images = std::path::absolute(Path::new(&base).join("images"))?;
        let mut process = Command::new(env!("CARGO_BIN_EXE_nestbox"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log", "warn", "--data-dir"])
            .arg(dir.path())
            .arg("--image-dir")
            .arg(&images)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
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
        let key = std::fs::read_to_string(dir.path().join("api-key"))?;
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("x-api-key", key.trim().parse()?);
        let http = reqwest::Client::builder().no_proxy().default_headers(headers).build()?;
        Ok(Self { process, dir, images, url, http })
    }

    pub fn image_dir(&self) -> &Path {
        &self.images
    }

    pub async fn create(&self) -> Result<String> {
        let url = format!("{}/v1/sandboxes", self.url);
        let answer = self.http.post(url).json(&json!({})).send().await?;
        if !answer.status().is_success() {
            bail!("create failed: {}", answer.text().await?);
        }
        let answer: Value = answer.json().await?;
        Ok(answer["id"].as_str().context("no id")?.to_owned())
    }

    pub async fn destroy(&self, id: &str) -> Result<()> {
        let url = format!("{}/v1/sandboxes/{id}", self.url);
        self.http.delete(url).send().await?.error_for_status()?;
        Ok(())
    }

    pub async fn exec_true(&self, id: &str) -> Result<()> {
        let url = format!("{}/v1/sandboxes/{id}/exec", self.url);
        let body = json!({"cmd": "true", "args": []});
        let answer = self.http.post(url).json(&body).send().await?.error_for_status()?;
        let answer: Value = answer.json().await?;
        match answer["exit_code"].as_i64() {
            Some(0) => Ok(()),
            _ => bail!("true went wrong: {answer}"),
        }
    }

    pub fn record(&self, id: &str) -> Result<Record> {
        let path = self.dir.path().join("sandboxes").join(id).join("sandbox.json");
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    fn pid(&self) -> Result<i32> {
        Ok(i32::try_from(self.process.id().context("the daemon has ended")?)?)
    }

    pub fn cpu_seconds(&self) -> Result<f64> {
        Ok(cpu_seconds_of(&[self.pid()?])?[0])
    }

    pub fn rss_mb(&self) -> Result<f64> {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.pid()?))?;
        kib_line(&text, "VmRSS:").context("no VmRSS")
    }

    pub async fn stop(mut self) -> Result<()> {
        kill(Pid::from_raw(self.pid()?), Signal::SIGTERM)?;
        let status = self.process.wait().await?;
        if !status.success() {
            bail!("the daemon ended with {status}");
        }
        Ok(())
    }
}

/// User and system time of processes: fields 14 and 15 of `/proc/PID/stat`, proc(5).
pub fn cpu_seconds_of(pids: &[i32]) -> Result<Vec<f64>> {
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?.context("no clock")? as f64;
    let seconds = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (_, fields) = stat.rsplit_once(')').context("no name")?;
        let times = fields.split_ascii_whitespace().skip(11).take(2);
        let sum: f64 = times.filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(sum / ticks)
    };
    pids.iter().map(seconds).collect()
}

/// Memory of a process with its share of what it shares, in MB.
pub fn pss_mb(pid: i32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    kib_line(&text, "Pss:").context("no Pss")
}

fn kib_line(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: f64 = line.split_ascii_whitespace().next()?.parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}
