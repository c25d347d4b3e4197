//! One QEMU that runs.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use async_trait::async_trait;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde_json::json;

use super::command::DISK;
use super::qmp::{Qmp, QmpError, unexpected};
use crate::domain::rates::{Rate, RateLimits};
use crate::vmm::hypervisor::console::Console;
use crate::vmm::hypervisor::vmm_log::VmmLog;
use crate::vmm::hypervisor::{HypervisorError, LayeredDisk, OverlayPlan, Vm};
use crate::vmm::process::{KILL_LIMIT, ProcessId, VmProcess};
use crate::vmm::storage::memory::{GuestMemory, Lineage};

/// What QEMU itself has to say, in a sandbox's directory.
const LOG: &str = "qemu.log";
/// The pipe that it comes through.
pub const LOG_PIPE: &str = "qemu.pipe";

/// Largest state of the devices that is read, in bytes: some 10 kB are normal.
pub const MAX_DEVICES: u64 = 16 << 20;

/// A QEMU, its control connection and its guest's console.
pub struct QemuVm {
    process: VmProcess,
    console: Console,
    qmp: Qmp,
    log: VmmLog,
}

impl QemuVm {
    /// Connects to the QEMU that was started in `dir`.
    pub async fn connect(process: ProcessId, dir: &Path) -> Result<Self, HypervisorError> {
        let log = VmmLog::follow(dir, LOG, LOG_PIPE)
            .map_err(|source| HypervisorError::Open { path: dir.join(LOG_PIPE), source })?;
        let process = VmProcess::watch(process)?;
        let connect = async {
            let console = Console::follow(dir).await?;
            let qmp = Qmp::connect(dir).await.map_err(control("reach"))?;
            Ok((console, qmp))
        };
        tokio::select! {
            biased;
            connected = connect => match connected {
                Ok((console, qmp)) => Ok(Self { process, console, qmp, log }),
                Err(error) => Err(ended_or(&process, &log, error).await),
            },
            how = process.ended() => Err(early_end(&how, &log).await),
        }
    }

    /// Loads the state of the devices from a descriptor that QEMU inherited.
    pub async fn load(&self, fd: i32) -> Result<(), HypervisorError> {
        tokio::select! {
            biased;
            how = self.process.ended() => Err(early_end(&how, &self.log).await),
            loaded = self.qmp.load(fd) => match loaded {
                Ok(()) => Ok(()),
                Err(error) => {
                    Err(ended_or(&self.process, &self.log, control("restore")(error)).await)
                }
            },
        }
    }

    /// The state of the devices goes to memory first: QEMU could not make a file on the host.
    async fn save(&self) -> Result<Vec<u8>, QmpError> {
        let broken = |error: std::io::Error| QmpError::Broken(error);
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let state = memfd_create(c"devices", flags).map_err(|e| broken(e.into()))?;
        // QEMU takes a descriptor only in the very mode that it opens files in.
        let path = format!("/proc/self/fd/{}", state.as_raw_fd());
        let writer = std::fs::OpenOptions::new().write(true).open(path).map_err(broken)?;
        let set = self.qmp.add_fd(writer.as_fd()).await?;
        // Its name notwithstanding it has nothing to do with Xen: it saves all but RAM and disks.
        let filename = format!("/dev/fdset/{set}");
        // Else QEMU gives its disks up, as if another host took over, and has to get them back.
        let about = json!({"filename": filename, "live": false});
        let saved = self.qmp.execute("xen-save-devices-state", about).await;
        self.qmp.forget_fd(set).await?;
        saved?;
        drop(writer);
        read_sealed(File::from(state)).map_err(broken)
    }

    async fn replace_overlay(&self, overlay: OverlayPlan<'_>) -> Result<(), QmpError> {
        let OverlayPlan { name, file } = overlay;
        let present = self.disk_name().await?;
        let reading = reading(&file).map_err(QmpError::Broken)?;
        let set = self.qmp.add_fd(reading.as_fd()).await?;
        let about = json!({"fdset-id": set, "opaque": name});
        self.qmp.add_fd_with(file.as_fd(), about).await?;
        let file_name = format!("file-{name}");
        let switched = async {
            let node = json!({
                "driver": "file", "node-name": file_name, "filename": format!("/dev/fdset/{set}"),
                // As in the command line: see there.
                "auto-read-only": true, "locking": "off", "discard": "unmap",
            });
            self.qmp.execute("blockdev-add", node).await?;
            let node = json!({
                "driver": "qcow2", "node-name": name, "file": file_name, "backing": null,
                "discard": "unmap",
            });
            self.qmp.execute("blockdev-add", node).await?;
            let both = json!({"node": present, "overlay": name});
            self.qmp.execute("blockdev-snapshot", both).await
        };
        let switched = switched.await;
        if switched.is_err() {
            // What was added is not in use. What was not added cannot be removed, which is as good.
            for node in [name, &file_name] {
                let _ = self.qmp.execute("blockdev-del", json!({"node-name": node})).await;
            }
            self.qmp.forget_fd(set).await?;
        }
        switched.map(drop)
    }

    /// Closes what former overlays could be written to through: they are layers now. QEMU closes
    /// nothing while the guest stands still.
    async fn forget_former(&self) -> Result<(), QmpError> {
        let answer = self.qmp.execute("query-fdsets", json!({})).await?;
        let sets = answer.as_array().into_iter().flatten();
        let fds = sets.flat_map(|set| {
            let fds = set["fds"].as_array().into_iter().flatten();
            fds.map(move |fd| (&set["fdset-id"], fd))
        });
        // Only those of overlays have a name.
        let writers: Vec<_> = fds.filter(|(_, fd)| fd["opaque"].is_string()).collect();
        if writers.len() < 2 {
            return Ok(());
        }
        let present = self.disk_name().await?;
        for (set, fd) in writers {
            if fd["opaque"] != present.as_str() {
                let which = json!({"fdset-id": set, "fd": fd["fd"]});
                self.qmp.execute("remove-fd", which).await?;
            }
        }
        Ok(())
    }

    async fn disk_name(&self) -> Result<String, QmpError> {
        let disks = self.qmp.execute("query-block", json!({})).await?;
        // The only one there is.
        let name = disks[0]["inserted"]["node-name"].as_str();
        name.map(str::to_owned).ok_or_else(|| QmpError::Refused {
            command: "query-block".to_owned(),
            description: unexpected(&disks),
        })
    }
}

/// What a VMM has written into memory that it was given, which nobody can change any more: it may
/// still have the descriptor, whatever it said.
fn read_sealed(mut memory: File) -> std::io::Result<Vec<u8>> {
    let seals = SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
    // Fails while somebody has mapped it for writing, which QEMU does not do.
    fcntl(&memory, FcntlArg::F_ADD_SEALS(seals))?;
    let length = memory.metadata()?.len();
    if length > MAX_DEVICES {
        let why = format!("the state of the devices has {length} bytes, more than {MAX_DEVICES}");
        return Err(std::io::Error::other(why));
    }
    let mut bytes = Vec::new();
    memory.rewind()?;
    memory.take(MAX_DEVICES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Opens a file that is open for writing once more, read-only. QEMU works with the descriptor whose
/// mode is what it needs: that of an overlay which has become a layer is read-only.
pub fn reading(file: &OwnedFd) -> std::io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}

fn control(verb: &'static str) -> impl Fn(QmpError) -> HypervisorError {
    move |source| HypervisorError::Control { verb, source: Box::new(source) }
}

/// A connection that breaks is the first sign of QEMU's end; the end itself says more.
async fn ended_or(process: &VmProcess, log: &VmmLog, error: HypervisorError) -> HypervisorError {
    let HypervisorError::Control { source, .. } = &error else { return error };
    let broken = source.downcast_ref::<QmpError>();
    if !matches!(broken, Some(QmpError::Broken(_))) {
        return error;
    }
    match tokio::time::timeout(KILL_LIMIT, process.ended()).await {
        Ok(how) => early_end(&how, log).await,
        Err(_) => error,
    }
}

async fn early_end(how: &str, log: &VmmLog) -> HypervisorError {
    let words = log.last_words().await.map(|words| format!(": {words}")).unwrap_or_default();
    HypervisorError::Ended { how: format!("{how}{words}") }
}

#[async_trait]
impl Vm for QemuVm {
    fn process(&self) -> ProcessId {
        self.process.id()
    }

    fn companion(&self) -> Option<ProcessId> {
        None
    }

    async fn agent_started(&self) {
        self.console.agent_started().await;
    }

    async fn ended(&self) -> String {
        let how = self.process.ended().await;
        match self.log.last_words().await {
            Some(words) => format!("{how}: {words}"),
            None => how,
        }
    }

    async fn answers(&self) -> Result<(), HypervisorError> {
        self.qmp.execute("query-status", json!({})).await.map(drop).map_err(control("reach"))
    }

    async fn freeze(&self) -> Result<(), HypervisorError> {
        self.qmp.execute("stop", json!({})).await.map(drop).map_err(control("freeze"))
    }

    async fn thaw(&self) -> Result<(), HypervisorError> {
        self.qmp.execute("cont", json!({})).await.map_err(control("thaw"))?;
        if let Err(error) = self.forget_former().await {
            // It runs, and nothing writes to them.
            tracing::warn!(pid = self.process.id().pid, error = %crate::chain(&error),
                "former overlays stay open");
        }
        Ok(())
    }

    async fn save_devices(&self) -> Result<Vec<u8>, HypervisorError> {
        self.save().await.map_err(control("save the devices of"))
    }

    async fn save_memory(&self, _: &Path) -> Result<(), HypervisorError> {
        // It has written through to that very file all the time.
        Ok(())
    }

    async fn limit_disk(&self, rates: &RateLimits) -> Result<(), HypervisorError> {
        let (bytes, ops) = (rates.of(Rate::DiskBytes), rates.of(Rate::DiskOps));
        // Reads and writes together; 0 is no limit.
        let limits = json!({
            "id": DISK,
            "bps": bytes.unwrap_or(0), "bps_rd": 0, "bps_wr": 0,
            "iops": ops.unwrap_or(0), "iops_rd": 0, "iops_wr": 0,
        });
        let limited = self.qmp.execute("block_set_io_throttle", limits).await;
        limited.map(drop).map_err(control("limit the disk of"))
    }

    fn memory(&self, former: &Lineage) -> Result<GuestMemory, HypervisorError> {
        Ok(GuestMemory::find(self.process.id().pid, former.base())?)
    }

    fn learn(&self) {}

    fn layered_disk(&self) -> Option<&dyn LayeredDisk> {
        Some(self)
    }

    async fn kill(&self) -> Result<(), HypervisorError> {
        Ok(self.process.kill(KILL_LIMIT).await?)
    }
}

#[async_trait]
impl LayeredDisk for QemuVm {
    async fn switch(&self, overlay: OverlayPlan<'_>) -> Result<(), HypervisorError> {
        self.replace_overlay(overlay).await.map_err(control("switch the disk of"))
    }

    async fn active(&self) -> Result<String, HypervisorError> {
        self.disk_name().await.map_err(control("ask about the disk of"))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn memory() -> File {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        memfd_create(c"devices", flags).expect("memory").into()
    }

    #[test]
    fn what_a_vmm_has_written_is_read_once_it_cannot_be_changed() {
        let mut state = memory();
        state.write_all(b"state").expect("written");
        let mut kept = state.try_clone().expect("another descriptor of the VMM's");
        assert_eq!(read_sealed(state).expect("it is read"), b"state");
        for refused in [kept.write_all(b"changed"), kept.set_len(1 << 30), kept.set_len(0)] {
            assert_eq!(refused.expect_err("sealed").raw_os_error(), Some(nix::libc::EPERM));
        }
    }

    #[test]
    fn a_state_of_a_size_that_no_devices_have_is_refused_unread() {
        let state = memory();
        state.set_len(1 << 40).expect("a hole");
        let error = read_sealed(state).expect_err("too large");
        assert!(error.to_string().contains("1099511627776 bytes"), "{error}");
    }
}
