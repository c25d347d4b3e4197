//! QEMU's control protocol by hand: one command at a time, one event.

use std::os::fd::RawFd;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nestbox::vmm::hypervisor::console;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::sleep;

/// Name of the control socket, in the directory in which QEMU was started.
pub const SOCKET: &str = "qmp.sock";

/// A connection to one QEMU.
pub struct Qmp {
    lines: Lines<BufReader<OwnedReadHalf>>,
    writer: OwnedWriteHalf,
    /// How the load went, once that is known.
    loaded: Option<String>,
}

impl Qmp {
    /// Connects as soon as QEMU listens. Does not return if it never does.
    pub async fn connect(dir: &Path) -> Result<Self> {
        let stream = loop {
            match console::connect(dir, SOCKET).await {
                Ok(stream) => break stream,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        };
        let (reader, writer) = stream.into_split();
        let mut qmp = Self { lines: BufReader::new(reader).lines(), writer, loaded: None };
        qmp.read().await.context("no greeting")?;
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    pub async fn execute(&mut self, command: &str, arguments: Value) -> Result<()> {
        let request = json!({"execute": command, "arguments": arguments});
        self.writer.write_all(format!("{request}\n").as_bytes()).await?;
        loop {
            let answer = self.read().await?;
            if answer.get("return").is_some() {
                return Ok(());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
        }
    }

    /// Loads the state of the devices from a descriptor that QEMU inherited.
    pub async fn load(&mut self, fd: RawFd) -> Result<()> {
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        self.execute("migrate-set-capabilities", events).await?;
        self.execute("migrate-incoming", json!({"uri": format!("fd:{fd}")})).await?;
        loop {
            match self.loaded.as_deref() {
                Some("completed") => return Ok(()),
                Some("failed") => bail!("QEMU could not load the state of the devices"),
                _ => self.read().await?,
            };
        }
    }

    async fn read(&mut self) -> Result<Value> {
        let line = self.lines.next_line().await?.context("QEMU has closed its control socket")?;
        let message: Value = serde_json::from_str(&line)?;
        if message["event"] == "MIGRATION" {
            self.loaded = message["data"]["status"].as_str().map(str::to_owned);
        }
        Ok(message)
    }
}
