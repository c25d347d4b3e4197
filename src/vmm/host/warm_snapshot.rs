//! Warm snapshots: an image, booted once in one shape and frozen.
//!
//! ```text
//! {images}/{image}/warm/{vcpus}x{memory_mib}-{key}/     the key covers all that went into it
//! {images}/{image}/warm/.lock                           held while one is made
//! ```
//!
//! They lie with their images, so that daemons with different data share them, unless images are on
//! another file system than the data: sandboxes have hard links to them.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::Utc;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statvfs::statvfs;
use sha2::{Digest, Sha256};

use super::Host;
use super::capture::seal;
use super::disk::Base;
use super::error::file_error;
use super::resources::{MachineResources, overlay_name};
use crate::domain::exec::Exec;
use crate::domain::id::SandboxId;
use crate::domain::shape::Shape;
use crate::domain::token;
use crate::vmm::guest::{AGENT_PORT, Agent};
use crate::vmm::hypervisor::{BootPlan, Vm};
use crate::vmm::image::Image;
use crate::vmm::lock_file;
use crate::vmm::machine::{MachineError, Run};
use crate::vmm::record::{Record, RecordFile};
use crate::vmm::storage::disk::{DiskFormat, Layer};
use crate::vmm::storage::memory::{BuildId, Durability, Lineage};
use crate::vmm::storage::snapshot::{self, FORMAT, Manifest, ROOTFS, Snapshot, SnapshotError};

const WARM: &str = "warm";
const LOCK: &str = ".lock";
const MEMORY: &str = "memfile";

/// How long a guest whose agent has said that it listens may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest gets to end its connections and what else it does after the last command. Whatever
/// is left to do when it is frozen, every clone does after its thaw.
const SETTLE: Duration = Duration::from_millis(300);

/// What is run before the freeze, so that a clone finds programs and libraries in its memory instead
/// of reading them from disk. An image may not have them all.
const WARM_UP: [&str; 3] = ["true", "sh -c true", "python3 -c pass"];
const WARM_UP_LIMIT: Duration = Duration::from_secs(60);

/// How it is all done: another number when a warm snapshot that was made before is not to be used.
/// Since 2 the agent in it expects a token.
const WAY: u32 = 2;

/// Warm snapshots that are being made by this daemon.
#[derive(Default)]
pub(super) struct Making(Mutex<HashMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>);

impl Making {
    fn of(&self, dir: &Path) -> Arc<tokio::sync::Mutex<()>> {
        let mut making = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        making.entry(dir.to_owned()).or_default().clone()
    }
}

impl Host {
    /// The warm snapshot of an image in a shape; made now if there is none. Of any number of callers
    /// at a time, here and in other daemons, one makes it. A caller that goes away does not keep it
    /// from being made.
    pub(super) async fn warm(
        self: &Arc<Self>,
        image: Image,
        shape: Shape,
        run: &Run,
    ) -> Result<Arc<Snapshot>, MachineError> {
        let home = self.warm_home(&image);
        let dir = home.join(format!("{}x{}-{}", shape.vcpus, shape.memory_mib, self.key(&image)));
        if let Some(found) = open(&dir).await? {
            return Ok(found);
        }
        let host = self.clone();
        let work = async move {
            let turn = host.making.of(&dir);
            let _turn = turn.lock().await;
            if let Some(found) = open(&dir).await? {
                return Ok(found);
            }
            let _lock = lock(&home).await.map_err(file_error)?;
            if let Some(found) = open(&dir).await? {
                return Ok(found);
            }
            tracing::info!(image = %image.name, ?shape, "booting an image to freeze it");
            let made = host.boot_and_freeze(&image, shape, &dir).await?;
            remove_outdated(&home, &dir);
            Ok(made)
        };
        tokio::select! {
            biased;
            () = run.cancel.cancelled() => Err(MachineError::Cancelled),
            made = self.run(work) => made,
        }
    }

    fn warm_home(&self, image: &Image) -> PathBuf {
        let beside = image.rootfs.parent().expect("a root disk is in its image's directory");
        let device = |path: &Path| fs::metadata(path).map(|data| data.dev()).ok();
        match device(beside) == device(&self.sandboxes) {
            true => beside.join(WARM),
            false => self.data_dir.join(WARM).join(image.name.as_str()),
        }
    }

    /// A digest of everything that decides what a guest of this image looks like when it has booted,
    /// and whether it can be restored here.
    fn key(&self, image: &Image) -> String {
        let here = self.provenance(&image.kernel_version);
        let initramfs = image.initramfs.file_name().unwrap_or_default().to_string_lossy();
        let resources = [
            image.rootfs_sha256.as_str(),
            &image.kernel_sha256,
            &initramfs,
            &here.engine,
            &here.vmm_version,
            &here.cpu_model,
            &format!("{FORMAT}"),
            &format!("{WAY}"),
        ];
        let digest = Sha256::digest(resources.join("\n"));
        hex::encode(&digest[..8])
    }

    async fn boot_and_freeze(
        &self,
        image: &Image,
        shape: Shape,
        dir: &Path,
    ) -> Result<Arc<Snapshot>, MachineError> {
        let id = SandboxId::random();
        let mut resources = MachineResources::new(self.dir(&id));
        let made = self.boot_in(&mut resources, id, image, shape, dir).await;
        let remains = resources.dismantle().await;
        let made = made?;
        if !remains.is_empty() {
            return Err(MachineError::Remains(remains));
        }
        // With the machine its overlay was closed, so this copies nothing.
        seal(&made, Durability::Synced, &Run::default()).await?;
        Ok(made)
    }

    async fn boot_in(
        &self,
        resources: &mut MachineResources,
        id: SandboxId,
        image: &Image,
        shape: Shape,
        dir: &Path,
    ) -> Result<Arc<Snapshot>, MachineError> {
        let run = Run::default();
        resources.make_dir().map_err(file_error)?;
        // As any machine has one, so that a later daemon takes away what is left of it.
        let engine = self.hypervisor.engine();
        let record = Record::unassigned(&id, &image.name, shape, self.rates, engine);
        let record = RecordFile::create(&resources.dir, record)?;
        let record = resources.record.insert(Arc::new(record)).clone();
        self.take_slot(resources, &record, &run).await?;

        let build = BuildId::random();
        let base = Layer { file: ROOTFS.to_owned(), format: DiskFormat::Raw };
        let name = overlay_name(build);
        let below = Base::single(&image.rootfs, &base, image.rootfs_bytes);
        let now = record.get();
        resources.disk = Some(self.disks.make(&resources.dir, &now.id, &name, &below).await?);
        let memory = resources.dir.join(MEMORY);
        make_memory(&memory, shape).map_err(file_error)?;
        let plan = BootPlan {
            vm: self.plan(resources, &now, &name, &below).await?,
            kernel: &image.kernel,
            initramfs: &image.initramfs,
            memory: &memory,
        };
        let vm: Arc<dyn Vm> = Arc::from(self.hypervisor.boot(plan).await?);
        let process = vm.process();
        resources.vm = Some(vm.clone());
        record.update(|record| record.process = Some(process))?;

        let slot = resources.slot.as_ref().expect("it was just taken");
        // Every sandbox that comes from here knows it, and has one of its own instead at once.
        let access_token = token::random();
        let agent = Agent::new((slot.address(), AGENT_PORT).into(), &access_token);
        let up = async {
            vm.agent_started().await;
            agent.wait_until_healthy(ANSWER_LIMIT).await?;
            agent.claim().await?;
            warm_up(&agent).await;
            Ok(agent.sync().await?)
        };
        let up = self.unless_it_ends(&*vm, &resources.dir, &run, up).await;
        up.map_err(|error| no_space_or(error, &memory))?;
        // Its connections end before the freeze, so that no clone thinks that it has them.
        drop(agent);
        tokio::time::sleep(SETTLE).await;
        vm.freeze().await?;
        let devices = vm.save_devices().await?;
        vm.save_memory(&memory).await?;
        let disk = resources.disk.as_ref().expect("it was just made");
        disk.flush().await?;
        let overlay = disk.path().to_owned();
        resources.kill().await.map_err(|error| MachineError::Remains(vec![error]))?;

        let layers = vec![base, snapshot::overlay(build, self.disks.format())];
        let manifest = Manifest {
            format: FORMAT,
            build,
            created_at: Utc::now(),
            sandbox_id: now.id,
            image: image.name.clone(),
            shape,
            engine: now.engine,
            layers,
            disk_size: image.rootfs_bytes,
            access_token: Some(access_token),
            rates: Default::default(),
            envs: Default::default(),
        };
        let provenance = self.provenance(&image.kernel_version);
        let (dir, rootfs) = (dir.to_owned(), image.rootfs.clone());
        let durability = Durability::Synced;
        let write = move || {
            Snapshot::create::<SnapshotError>(&dir, &manifest, &devices, durability, |new| {
                let to = |file: &str| new.join(file);
                move_file(&memory, &to(MEMORY))?;
                make_read_only(&to(MEMORY))?;
                Lineage::seal(new, shape, provenance, durability)?;
                link_or_copy(&rootfs, &to(ROOTFS))?;
                move_file(&overlay, &to(&manifest.layers[1].file))
            })
        };
        let written = tokio::task::spawn_blocking(write).await;
        Ok(Arc::new(written.expect("writing a snapshot does not panic")?))
    }
}

async fn open(dir: &Path) -> Result<Option<Arc<Snapshot>>, MachineError> {
    let path = dir.to_owned();
    let opened = tokio::task::spawn_blocking(move || Snapshot::open(&path)).await;
    match opened.expect("opening files does not panic") {
        Ok(snapshot) => Ok(Some(Arc::new(snapshot))),
        Err(SnapshotError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        Err(error) => {
            tracing::warn!(path = %dir.display(), error = %crate::chain(&error),
                "a warm snapshot is damaged and will be made again");
            snapshot::remove(dir)?;
            Ok(None)
        }
    }
}

/// Waits until no other process makes a warm snapshot there.
async fn lock(home: &Path) -> io::Result<Flock<File>> {
    let home = home.to_owned();
    let work = move || {
        fs::create_dir_all(&home)?;
        let file = lock_file::open(&home.join(LOCK))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive).map_err(|(_, errno)| errno)?;
        // Under the lock, what is not finished is nobody's.
        for entry in fs::read_dir(&home)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "new") {
                fs::remove_dir_all(path)?;
            }
        }
        Ok(lock)
    };
    tokio::task::spawn_blocking(work).await.expect("locking a file does not panic")
}

/// Removes what was made for the same shape by another agent, hypervisor or image. Sandboxes that
/// began with it have the files they need.
fn remove_outdated(home: &Path, current: &Path) {
    let shape = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        Some(name.split_once('-')?.0.to_owned())
    };
    for entry in fs::read_dir(home).into_iter().flatten().flatten() {
        let path = entry.path();
        if path != current
            && shape(&path).is_some_and(|it| Some(it) == shape(current))
            && let Err(error) = snapshot::remove(&path)
        {
            tracing::warn!(error = %crate::chain(&error), "an outdated warm snapshot stays");
        }
    }
}

/// Makes the file that becomes the guest's memory. The hypervisor's user has to open it for writing;
/// only root comes near it.
fn make_memory(path: &Path, shape: Shape) -> io::Result<()> {
    let file = File::options().create_new(true).write(true).open(path)?;
    file.set_len(u64::from(shape.memory_mib) << 20)?;
    file.set_permissions(Permissions::from_mode(0o666))
}

/// What was one VM's to write is what all others read from now on.
fn make_read_only(path: &Path) -> Result<(), SnapshotError> {
    let done = fs::set_permissions(path, Permissions::from_mode(0o444));
    done.map_err(SnapshotError::io("protect", path))
}

/// A guest writes its memory through to a file while it boots, and where there is no room for that
/// the kernel ends it with SIGBUS. By then there may be some room again, such as the daemon's own reserve.
fn no_space_or(error: MachineError, memory: &Path) -> MachineError {
    let full = || statvfs(memory).is_ok_and(|disk| disk.blocks_available() == 0);
    match &error {
        MachineError::EndedEarly { how, .. } if how.contains("SIGBUS") || full() => {
            MachineError::NoSpace { source: error.into() }
        }
        _ => error,
    }
}

async fn warm_up(agent: &Agent) {
    for line in WARM_UP {
        let mut words = line.split_whitespace().map(str::to_owned);
        let exec = Exec {
            cmd: words.next().expect("there is a program"),
            args: words.collect(),
            time_limit: Some(WARM_UP_LIMIT),
            output_limit: 1024,
            ..Exec::default()
        };
        if let Err(error) = agent.exec(exec, &Default::default()).await {
            tracing::debug!(line, error = %crate::chain(&error), "not warmed up");
        }
    }
}

fn move_file(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(from, to),
        moved => moved.map_err(SnapshotError::io("move", from)),
    }
}

fn link_or_copy(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    match fs::hard_link(from, to) {
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => copy(from, to),
        linked => linked.map_err(SnapshotError::io("link", from)),
    }
}

/// Copies a file without filling its holes.
fn copy(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    let output = Command::new("cp").arg("--sparse=always").args([from, to]).output();
    let failed = SnapshotError::io("copy", from);
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(failed(io::Error::other(said)))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_whose_memory_finds_no_room_is_told_from_one_that_ends() {
        let dir = tempfile::tempdir().expect("a directory");
        let ended = |how: &str| {
            let (how, console) = (how.to_owned(), "nothing".to_owned());
            no_space_or(MachineError::EndedEarly { how, console }, dir.path())
        };
        assert!(matches!(ended("was ended by SIGBUS"), MachineError::NoSpace { .. }));
        assert!(matches!(ended("exited with code 1"), MachineError::EndedEarly { .. }));
    }
}
