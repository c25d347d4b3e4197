//! The least that could restore the same guest: a pager and a Firecracker, started by hand in a
//! network, a cgroup, a jail and on a disk that are ready, told to load the same snapshot, and asked
//! again and again whether the agent answers.
//!
//! No record, no identity for the guest: what a daemon adds to that is its price.

use std::fs::{self, DirBuilder, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nestbox::domain::id::SandboxId;
use nestbox::vmm::guest::AGENT_PORT;
use nestbox::vmm::hypervisor::console;
use nestbox::vmm::network::{NetworkConfig, Slot, SlotPool};
use nestbox::vmm::process::cgroup::{Cgroup, Cgroups, DeviceAccess, Limits, Share};
use nestbox::vmm::process::{
    Confinement, Files, ProcessId, ProcessLimits, Processes, User, VmProcess,
};
use nestbox::vmm::storage::disk::Devices;
use nestbox::vmm::storage::pager::{PagerPlan, WorkingSet, start_program};
use nestbox::vmm::storage::snapshot::Snapshot;
use nix::libc::{self, dev_t};
use nix::sys::stat::{Mode, SFlag, mknod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use crate::support::Lab;

/// More than a VM takes.
const LIMITS: Limits = Limits {
    memory_bytes: 1 << 30,
    pids: 64,
    vcpus: 1,
    share: Share::Full,
    devices: DeviceAccess::Unrestricted,
};

const RESTORE_LIMIT: Duration = Duration::from_secs(60);
const KILL_LIMIT: Duration = Duration::from_secs(10);
const ATTEMPT: Duration = Duration::from_secs(2);
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(2);

/// As the daemon has it: the user of a slot's VM.
const FIRST_UID: u32 = 700_000;

nix::ioctl_write_int_bad!(tun_set_owner, libc::TUNSETOWNER);

/// Who starts Firecracker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Its jailer, as for a sandbox.
    Jailer,
    /// Nobody else: it is root, with the host's files in sight.
    Directly,
}

/// A directory, a cgroup, a network and block devices to restore in.
pub struct Floor {
    dir: PathBuf,
    id: SandboxId,
    cgroup: Cgroup,
    pool: SlotPool,
    slot: Slot,
    devices: Devices,
}

impl Floor {
    /// Prepares one beside the lab's daemon, which runs.
    pub async fn start(lab: &Lab) -> Self {
        let (dir, id) = (lab.path("floor"), SandboxId::random());
        fs::create_dir(&dir).expect("a directory");
        let cgroups = Cgroups::open(&dir).expect("cgroups");
        let cgroup = cgroups.create(&id, LIMITS).await.expect("a cgroup");
        let config = NetworkConfig { pool_size: 0, ..NetworkConfig::new(dir.clone()) };
        let pool = SlotPool::start(config, &[]).await.expect("a pool");
        let slot = pool.acquire().await.expect("a slot");
        let tap = slot.tap().await.expect("a tap");
        let uid = libc::c_int::try_from(FIRST_UID + slot.index().get()).expect("a user");
        // SAFETY: the descriptor is an attached tap; the argument is a plain integer.
        unsafe { tun_set_owner(tap.as_raw_fd(), uid) }.expect("it can be given away");
        // The daemon's own: layers that are in use already are shared, as among sandboxes.
        let devices = Devices::open(lab.data_dir()).expect("device-mapper");
        Self { dir, id, cgroup, pool, slot, devices }
    }

    /// Takes it away.
    pub async fn release(self) {
        self.cgroup.kill().await.expect("it can be killed");
        self.cgroup.release().await.expect("it can be removed");
        self.slot.release().await.expect("it can be removed");
        self.pool.shutdown().await.expect("it ends");
        fs::remove_dir_all(&self.dir).expect("removed");
    }

    /// Restores once and gives the milliseconds from the start of the pager to the agent's first
    /// answer. Disk and jail are made before; the VM is killed after that.
    pub async fn restore(&self, snapshot: &Snapshot, prefetch: &WorkingSet, way: Way) -> f64 {
        let manifest = snapshot.manifest();
        let layers = manifest.layers.iter();
        let layers: Vec<_> =
            layers.map(|layer| (snapshot.dir().join(&layer.file), layer.format)).collect();
        let overlay = self.dir.join("disk.cow");
        let disk = self.devices.create(self.id.as_str(), &layers, &overlay, manifest.disk_size);
        let disk = disk.await.expect("a disk");
        let uid = match way {
            Way::Jailer => FIRST_UID + self.slot.index().get(),
            Way::Directly => 0,
        };
        let jail = self.jail(snapshot, disk.number(), uid);

        let started = Instant::now();
        let pager = self.start_pager(snapshot, prefetch, &jail, uid);
        let vm = self.start_vm(&jail, uid, way);
        let answered = timeout(RESTORE_LIMIT, self.bring_up(&jail)).await;
        let took = started.elapsed();

        for process in [vm, pager] {
            if let Ok(process) = VmProcess::watch(process) {
                process.kill(KILL_LIMIT).await.expect("it dies");
            }
        }
        let log = fs::read_to_string(self.dir.join("vm.log")).unwrap_or_default();
        assert!(answered.is_ok(), "{way:?}: the guest does not answer: {log}");
        disk.remove(None).await.expect("removed");
        let _ = fs::remove_file(&overlay);
        took.as_secs_f64() * 1e3
    }

    /// Makes a new jail, with all that Firecracker opens in it.
    fn jail(&self, snapshot: &Snapshot, disk: dev_t, uid: u32) -> PathBuf {
        let base = self.dir.join("jail");
        let _ = fs::remove_dir_all(&base);
        let root = base.join("firecracker/vm/root");
        DirBuilder::new().recursive(true).mode(0o700).create(&root).expect("a directory");
        let mut devices = snapshot.open_devices().expect("its devices");
        let mut copy = File::create(root.join("devices")).expect("a file");
        std::io::copy(&mut devices, &mut copy).expect("a copy");
        let mode = Mode::S_IRUSR | Mode::S_IWUSR;
        mknod(&root.join("disk"), SFlag::S_IFBLK, mode, disk).expect("a node");
        for name in ["", "devices", "disk"] {
            chown(root.join(name), Some(uid), Some(uid)).expect("given away");
        }
        root
    }

    fn start_pager(
        &self,
        snapshot: &Snapshot,
        prefetch: &WorkingSet,
        jail: &Path,
        uid: u32,
    ) -> ProcessId {
        let socket = console::listen(jail, "pager.sock").expect("a socket");
        chown(jail.join("pager.sock"), Some(uid), Some(uid)).expect("given away");
        let plan = PagerPlan {
            lineage: snapshot.memory(),
            socket,
            prefetch,
            dir: &self.dir,
            namespace: self.slot.namespace(),
            cgroup: self.cgroup.entry().expect("its cgroup"),
            uid,
        };
        start_program(Path::new(env!("CARGO_BIN_EXE_nestbox")), plan).expect("a pager")
    }

    fn start_vm(&self, jail: &Path, uid: u32, way: Way) -> ProcessId {
        let program = nestbox::vmm::find_program("firecracker").expect("it is installed");
        let own = "--id vm --api-sock api.sock --level Error";
        let (start, args) = match way {
            Way::Directly => (program, own.to_owned()),
            Way::Jailer => {
                let base = self.dir.join("jail");
                let args = format!(
                    "--id vm --exec-file {} --uid {uid} --gid {uid} --chroot-base-dir {} -- {}",
                    program.display(),
                    base.display(),
                    own.trim_start_matches("--id vm "),
                );
                (program.with_file_name("jailer"), args)
            }
        };
        let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
        let confinement = Confinement {
            namespace: self.slot.namespace().to_owned(),
            cgroup: self.cgroup.entry().expect("its cgroup"),
            user: User::Root,
            files: Files::Host(jail.to_owned()),
            processes: Processes::Host,
            limits: ProcessLimits { open_files: 1024, file_bytes: u64::MAX, threads: 1024 },
            inherited: Vec::new(),
            output: OwnedFd::from(File::create("/dev/null").expect("it is there")),
            log: File::create(self.dir.join("vm.log")).expect("a file").into(),
            answered: None,
        };
        VmProcess::spawn(&start, &args, confinement).expect("a VM")
    }

    async fn bring_up(&self, jail: &Path) {
        let body = r#"{"snapshot_path":"devices","resume_vm":true,"mem_backend":{"backend_type":"Uffd","backend_path":"pager.sock"}}"#;
        let mut api = loop {
            match UnixStream::connect(jail.join("api.sock")).await {
                Ok(stream) => break stream,
                Err(_) => sleep(Duration::from_millis(1)).await,
            }
        };
        let request = format!(
            "PUT /snapshot/load HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        api.write_all(request.as_bytes()).await.expect("it listens");
        let mut answer = vec![0; 1000];
        let length = api.read(&mut answer).await.expect("it answers");
        let answer = String::from_utf8_lossy(&answer[..length]);
        assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
        while !self.answers().await {
            sleep(BETWEEN_ATTEMPTS).await;
        }
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
