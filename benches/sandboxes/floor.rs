//! The least that could boot the same guest: the hypervisor's own command line, started by hand in a
//! network that is ready, and asked again and again whether its agent answers.

use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nestbox::vmm::disk::{Overlay, Owner};
use nestbox::vmm::guest::AGENT_PORT;
use nestbox::vmm::network::{NetworkConfig, Slot, SlotPool};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::daemon::Record;

const BOOT_LIMIT: Duration = Duration::from_secs(60);

/// A command line and a network to run it in.
pub struct Floor {
    args: Vec<String>,
    dir: tempfile::TempDir,
    rootfs: PathBuf,
    pool: SlotPool,
    slot: Slot,
}

impl Floor {
    /// Takes the command line of a running VM; what that VM inherited is named by its path instead.
    pub async fn of(record: &Record, images: &Path) -> Result<Self> {
        let pid = record.process.pid;
        let line = std::fs::read(format!("/proc/{pid}/cmdline"))?;
        let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
        let words: Vec<String> =
            words.map(|word| String::from_utf8_lossy(word).into_owned()).collect();
        let mut rootfs = None;
        let mut args = Vec::new();
        for word in words.into_iter().skip(1) {
            let word = match word.split_once("/proc/self/fd/") {
                Some((before, after)) => {
                    let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
                    let path = std::fs::read_link(format!("/proc/{pid}/fd/{digits}"))?;
                    if word.contains("node-name=base-file") {
                        rootfs = Some(path.clone());
                    }
                    format!("{before}{}{}", path.display(), &after[digits.len()..])
                }
                None => word,
            };
            args.push(word);
        }
        let rootfs = rootfs.context("the VM has no root disk")?;
        if !rootfs.starts_with(images) {
            bail!("{} is no image", rootfs.display());
        }
        let dir = tempfile::tempdir()?;
        let config = NetworkConfig { pool_size: 0, ..NetworkConfig::new(dir.path().to_owned()) };
        let pool = SlotPool::start(config, &[]).await?;
        let slot = pool.acquire().await?;
        Ok(Self { args, dir, rootfs, pool, slot })
    }

    /// Boots once and gives the milliseconds to the agent's first answer.
    pub async fn boot(&self) -> Result<f64> {
        let path = self.dir.path().join("overlay.qcow2");
        let overlay = Overlay::create(&self.rootfs, &path, Owner { uid: 0, gid: 0 })?;
        let tap = self.slot.tap().await?;
        let args = self.args_with(tap.as_raw_fd());
        let started = Instant::now();
        let mut command = Command::new("qemu-system-x86_64");
        command.args(args).current_dir(self.dir.path()).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        let number = tap.as_raw_fd();
        // SAFETY: one system call on a descriptor that the parent keeps open.
        unsafe {
            command.pre_exec(move || match nix::libc::fcntl(number, nix::libc::F_SETFD, 0) {
                -1 => Err(std::io::Error::last_os_error()),
                _ => Ok(()),
            })
        };
        let mut vm = command.spawn().context("cannot start QEMU")?;
        while !self.answers().await {
            if started.elapsed() > BOOT_LIMIT {
                bail!("the guest did not start");
            }
            if let Some(status) = vm.try_wait()? {
                bail!("QEMU ended with {status}");
            }
            sleep(Duration::from_millis(2)).await;
        }
        let took = started.elapsed().as_secs_f64() * 1e3;
        vm.kill().await?;
        overlay.remove()?;
        Ok(took)
    }

    pub async fn release(self) -> Result<()> {
        self.slot.release().await?;
        self.pool.shutdown().await?;
        Ok(())
    }

    /// The command line with a descriptor of ours, and without control sockets.
    fn args_with(&self, tap: i32) -> Vec<String> {
        let mut args = Vec::new();
        let mut words = self.args.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "-chardev" | "-mon" | "-serial" => drop(words.next()),
                "-netdev" => {
                    words.next();
                    args.extend(["-netdev".to_owned(), format!("tap,id=net0,fd={tap}")]);
                }
                _ => args.push(word.clone()),
            }
        }
        args.extend(["-serial", "null"].map(str::to_owned));
        args
    }

    /// One attempt; a guest that is not there yet answers nothing at all.
    async fn answers(&self) -> bool {
        let ask = async {
            let mut stream = TcpStream::connect((self.slot.address(), AGENT_PORT)).await.ok()?;
            stream.write_all(b"GET /health HTTP/1.1\r\nHost: guest\r\n\r\n").await.ok()?;
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).await.ok()?;
            Some(answer.ends_with(b"204"))
        };
        timeout(Duration::from_millis(50), ask).await.ok().flatten().unwrap_or(false)
    }
}
