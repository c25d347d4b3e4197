//! The least that could restore the same guest: the hypervisor's own command line, started by hand
//! in a network and on an overlay that are ready, loaded by hand from the same snapshot, and asked
//! again and again whether its agent answers.
//!
//! No user of its own, no record, no identity for the guest: what a daemon adds to that is its
//! price. Only a cgroup like a sandbox's is ready too: without it the floor would get a larger share
//! of busy processors than what it is compared with.

use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nestbox::domain::id::SandboxId;
use nestbox::vmm::guest::AGENT_PORT;
use nestbox::vmm::network::{NetworkConfig, Slot, SlotPool};
use nestbox::vmm::process::cgroup::{Cgroup, Cgroups, DeviceAccess, Limits, Share};
use nestbox::vmm::storage::disk::Overlay;
use nestbox::vmm::storage::memory::{Durability, GuestMemory, inject};
use nestbox::vmm::storage::snapshot::Snapshot;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::daemon::{Daemon, base_dir};
use crate::qmp::{self, Qmp};

const PROGRAM: &str = "qemu-system-x86_64";
const RESTORE_LIMIT: Duration = Duration::from_secs(60);

/// The first answer of a guest takes long in software; only one that never comes is given up.
const ATTEMPT: Duration = Duration::from_secs(2);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(2);

/// More than a VM takes.
const LIMITS: Limits = Limits {
    memory_bytes: 1 << 30,
    pids: 64,
    vcpus: 1,
    share: Share::Full,
    devices: DeviceAccess::Unrestricted,
};

/// A directory, a cgroup and a network to restore in.
pub struct Floor {
    dir: tempfile::TempDir,
    cgroup: Cgroup,
    pool: SlotPool,
    slot: Slot,
}

/// How to restore one snapshot.
pub struct Script {
    /// All but the network.
    args: Vec<String>,
    overlay: PathBuf,
    snapshot: Snapshot,
}

impl Floor {
    pub async fn start() -> Result<Self> {
        // Where the daemon's data is, so that snapshots can be linked.
        let dir = tempfile::Builder::new().prefix("bench-floor-").tempdir_in(base_dir()?)?;
        let cgroup = Cgroups::open(dir.path())?.create(&SandboxId::random(), LIMITS).await?;
        let config = NetworkConfig { pool_size: 0, ..NetworkConfig::new(dir.path().to_owned()) };
        let pool = SlotPool::start(config, &[]).await?;
        match pool.acquire().await {
            Ok(slot) => Ok(Self { dir, cgroup, pool, slot }),
            Err(error) => {
                pool.shutdown().await?;
                Err(error.into())
            }
        }
    }

    pub async fn release(self) -> Result<()> {
        let killed = self.cgroup.kill().await;
        let removed = self.cgroup.release().await;
        let released = self.slot.release().await;
        self.pool.shutdown().await?;
        released?;
        killed?;
        Ok(removed?)
    }

    /// Takes the command line of a sandbox's VM, and links to the snapshot that it was restored from.
    /// What the VM inherited is named by its path instead.
    pub fn learn(&self, daemon: &Daemon, id: &str) -> Result<Script> {
        let snapshot = Snapshot::open(&daemon.snapshot_dir(id)?)?;
        let dir = self.dir.path().join(format!("snapshot-{}", snapshot.manifest().build));
        let snapshot = snapshot.link_into(&dir, Durability::Cached)?;
        let overlay = self.dir.path().join("overlay.qcow2");
        // The layers are in sets 0 and up, and above them is what the VM writes to.
        let disk = |set: &str| match snapshot.manifest().layers.get(set.parse::<usize>()?) {
            Some(layer) => Ok(dir.join(&layer.file)),
            None => Ok(overlay.clone()),
        };
        let memory = |_: &str| Ok(snapshot.memory().base_path());

        let pid = daemon.record(id)?.pid()?;
        let line = String::from_utf8(std::fs::read(format!("/proc/{pid}/cmdline"))?)?;
        let mut words = line.split_terminator('\0').skip(1);
        let mut args = Vec::new();
        while let Some(word) = words.next() {
            match word {
                // The network is added when there is a tap.
                "-add-fd" | "-netdev" => drop(words.next()),
                "-chardev" => {
                    let device = words.next().context("a character device of no kind")?;
                    args.extend([word.to_owned(), by_path(device)?]);
                }
                _ => {
                    let word = replace(word, "/dev/fdset/", disk)?;
                    args.push(replace(&word, "/proc/self/fd/", memory)?);
                }
            }
        }
        Ok(Script { args, overlay, snapshot })
    }

    /// Restores once and gives the milliseconds from the start of the process to the agent's first
    /// answer. The overlay is made before, and the VM is killed after that.
    pub async fn restore(&self, script: &Script) -> Result<f64> {
        let manifest = script.snapshot.manifest();
        let top = manifest.layers.last().context("the snapshot has no disk")?;
        let overlay = Overlay::create(&script.overlay, top, manifest.disk_size)?;
        let took = self.run(script).await;
        overlay.remove()?;
        took
    }

    async fn run(&self, script: &Script) -> Result<f64> {
        let (tap, devices) = (self.slot.tap().await?, script.snapshot.open_devices()?);
        let (tap, devices) = (tap.as_raw_fd(), devices.as_raw_fd());
        let cgroup = self.cgroup.entry()?;
        let started = Instant::now();
        let mut command = Command::new(PROGRAM);
        command.args(&script.args).arg("-netdev").arg(format!("tap,id=net0,fd={tap}"));
        command.current_dir(self.dir.path()).stdin(Stdio::null()).kill_on_drop(true);
        let prepare = move || {
            cgroup.enter()?;
            keep(tap)?;
            keep(devices)
        };
        // SAFETY: only system calls on descriptors that the parent keeps open; nothing allocates.
        unsafe { command.pre_exec(prepare) };
        let mut vm = command.spawn().context("cannot start QEMU")?;
        let pid = i32::try_from(vm.id().context("QEMU has ended")?)?;
        let answered = tokio::select! {
            status = vm.wait() => bail!("QEMU ended with {}", status?),
            answered = timeout(RESTORE_LIMIT, self.bring_up(script, pid, devices)) => answered,
        };
        answered.context("the guest does not answer")??;
        let took = started.elapsed().as_secs_f64() * 1e3;
        vm.kill().await?;
        Ok(took)
    }

    async fn bring_up(&self, script: &Script, pid: i32, devices: RawFd) -> Result<()> {
        let mut qmp = Qmp::connect(self.dir.path()).await?;
        let memory = script.snapshot.memory();
        if memory.diffs() > 0 {
            inject(memory, &GuestMemory::find(pid, memory.base())?)?;
        }
        qmp.load(devices).await?;
        qmp.execute("cont", serde_json::json!({})).await?;
        while !self.answers().await {
            sleep(BETWEEN_ATTEMPTS).await;
        }
        Ok(())
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
        timeout(ATTEMPT, ask).await.ok().flatten().unwrap_or(false)
    }
}

/// Has a descriptor inherited.
fn keep(number: RawFd) -> std::io::Result<()> {
    // SAFETY: the descriptor is open in the parent, thus in this copy of it.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// A character device without a descriptor: the control socket by its path, the console nowhere.
fn by_path(device: &str) -> Result<String> {
    let id = device.split(',').find_map(|option| option.strip_prefix("id="));
    match id {
        Some("qmp") => Ok(format!("socket,id=qmp,path={},server=on,wait=off", qmp::SOCKET)),
        Some(id) => Ok(format!("null,id={id}")),
        None => bail!("{device} has no name"),
    }
}

/// Replaces a prefix and the number that follows it, if it is there, by a path.
fn replace(word: &str, prefix: &str, path: impl Fn(&str) -> Result<PathBuf>) -> Result<String> {
    let Some((before, after)) = word.split_once(prefix) else { return Ok(word.to_owned()) };
    let end = after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len());
    let (number, after) = after.split_at(end);
    Ok(format!("{before}{}{after}", path(number)?.display()))
}
