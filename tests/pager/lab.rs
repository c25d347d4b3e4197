//! Lineages, and VMs that are restored from them through pagers.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nestbox::domain::id::SandboxId;
use nestbox::domain::shape::Shape;
use nestbox::vmm::process::ProcessId;
use nestbox::vmm::process::cgroup::{Cgroup, Cgroups, DeviceAccess, Limits, Share};
use nestbox::vmm::storage::memory::{
    BuildId, Captured, Durability, GuestMemory, Lineage, Origin, PAGE_SIZE, Provenance, capture,
};
use nestbox::vmm::storage::pager::{self, Counters, PagerPlan, State, WorkingSet};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::TempDir;

use super::vm::Vm;

/// User of the pagers and VMs of these tests.
pub const USER: u32 = 61_234;

/// The longest that a test waits for something.
pub const PATIENCE: Duration = Duration::from_secs(20);

const PAGES_PER_MIB: u64 = (1 << 20) / PAGE_SIZE as u64;

/// Where a test's files and processes are.
pub struct Lab {
    dir: TempDir,
    runtime: tokio::runtime::Runtime,
    cgroup: Option<Cgroup>,
    program: PathBuf,
}

/// A VM and its pager.
pub struct Restored {
    pub dir: PathBuf,
    pub pager: ProcessId,
    pub vm: Vm,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The VM connects as somebody else.
        fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build();
        let runtime = runtime.unwrap();
        let devices = DeviceAccess::Unrestricted;
        let limits = Limits {
            memory_bytes: 1 << 30,
            pids: 1000,
            vcpus: 2,
            share: Share::default(),
            devices,
        };
        let cgroups = Cgroups::open(dir.path()).unwrap();
        let cgroup = runtime.block_on(cgroups.create(&SandboxId::random(), limits)).unwrap();
        let program = PathBuf::from(env!("CARGO_BIN_EXE_nestbox"));
        Self { dir, runtime, cgroup: Some(cgroup), program }
    }

    /// Has pagers serve other windows.
    pub fn with_windows(mut self, first: u64, largest: u64) -> Self {
        let script = format!(
            "#!/bin/sh\nNESTBOX_PAGER_WINDOWS={first},{largest} exec {} \"$@\"\n",
            self.program.display()
        );
        self.program = self.dir.path().join("program");
        fs::write(&self.program, script).unwrap();
        fs::set_permissions(&self.program, Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub fn dir(&self) -> PathBuf {
        let dir = self.dir.path().join(BuildId::random().to_string());
        fs::create_dir(&dir).unwrap();
        dir
    }

    /// A base in which the runs of pages have content that is different on each page.
    pub fn base(&self, mib: u32, runs: &[std::ops::Range<u64>]) -> Lineage {
        let dir = self.dir();
        let file = File::create(dir.join("memfile")).unwrap();
        file.set_len(u64::from(mib) << 20).unwrap();
        for page in runs.iter().cloned().flatten() {
            file.write_all_at(&page_content(page), page * PAGE_SIZE as u64).unwrap();
        }
        let Origin { shape, provenance } = origin(mib);
        Lineage::seal(&dir, shape, provenance, Durability::Cached).unwrap()
    }

    /// Starts a pager.
    pub fn pager(&self, lineage: &Lineage, prefetch: &WorkingSet) -> (PathBuf, ProcessId) {
        let dir = self.dir();
        let path = dir.join("pager.sock");
        let socket = UnixListener::bind(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        let plan = PagerPlan {
            lineage,
            socket: socket.into(),
            prefetch,
            dir: &dir,
            namespace: Path::new("/proc/self/ns/net"),
            cgroup: self.cgroup.as_ref().unwrap().entry().unwrap(),
            uid: USER,
        };
        let id = pager::start_program(&self.program, plan).unwrap();
        (dir, id)
    }

    /// Starts a pager and a VM of two regions that gives a handshake of some kind.
    pub fn restore_with(&self, lineage: &Lineage, handshake: &str, set: &WorkingSet) -> Restored {
        let (dir, pager) = self.pager(lineage, set);
        let pages = lineage.memory_bytes() / PAGE_SIZE as u64;
        let vm = Vm::start(&dir, USER, handshake, &[pages / 4 * 3, pages / 4]);
        Restored { dir, pager, vm }
    }

    pub fn restore(&self, lineage: &Lineage) -> Restored {
        self.restore_with(lineage, "good", &WorkingSet::default())
    }

    /// Takes a VM's memory.
    pub fn capture(&self, restored: &Restored, parent: &Lineage) -> Captured {
        let mib = (parent.memory_bytes() >> 20) as u32;
        let (dir, build) = (self.dir(), BuildId::random());
        let guest = restored.guest();
        capture(&guest, parent, &dir, build, origin(mib), Durability::Cached).unwrap()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Some(cgroup) = self.cgroup.take() else { return };
        let gone = self.runtime.block_on(async {
            cgroup.kill().await?;
            cgroup.release().await
        });
        if !thread::panicking() {
            gone.unwrap();
        }
    }
}

impl Restored {
    pub fn state(&self) -> State {
        State::read(&self.dir).unwrap()
    }

    /// What the pager has done, once it says nothing new.
    pub fn counters(&self) -> Counters {
        let mut last = self.state().counters();
        loop {
            thread::sleep(Duration::from_millis(250));
            let counters = self.state().counters();
            if counters == last {
                return counters;
            }
            last = counters;
        }
    }

    pub fn guest(&self) -> GuestMemory {
        let state = self.state();
        let given_back = state.given_back().to_vec();
        GuestMemory::served(self.vm.pid(), state.regions(), given_back).unwrap()
    }

    /// Waits until the VM has given its memory.
    pub fn served(self) -> Self {
        eventually(|| !self.state().regions().is_empty());
        self
    }
}

pub fn origin(memory_mib: u32) -> Origin {
    let provenance = Provenance {
        engine: "firecracker".to_owned(),
        vmm_version: "1".to_owned(),
        host_kernel: "6".to_owned(),
        guest_kernel: "6".to_owned(),
        cpu_model: "any".to_owned(),
    };
    Origin { shape: Shape { vcpus: 1, memory_mib }, provenance }
}

/// The content of a page of a base.
pub fn page_content(page: u64) -> [u8; PAGE_SIZE] {
    let mut content = [0; PAGE_SIZE];
    for (at, word) in content.chunks_exact_mut(8).enumerate() {
        let number = (page << 20 | at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        word.copy_from_slice(&number.to_le_bytes());
    }
    content
}

pub fn content(lineage: &Lineage) -> Vec<u8> {
    let mut content = vec![1; lineage.memory_bytes() as usize];
    lineage.read(&[0..lineage.memory_bytes() / PAGE_SIZE as u64], &mut content).unwrap();
    content
}

pub fn pages(mib: u64) -> u64 {
    mib * PAGES_PER_MIB
}

/// Waits for a pager to end and says how.
pub fn exit_of(pager: ProcessId, limit: Duration) -> WaitStatus {
    let end = Instant::now() + limit;
    loop {
        match waitpid(Pid::from_raw(pager.pid), Some(WaitPidFlag::WNOHANG)).unwrap() {
            WaitStatus::StillAlive if Instant::now() > end => panic!("{pager:?} still runs"),
            WaitStatus::StillAlive => thread::sleep(Duration::from_millis(5)),
            other => return other,
        }
    }
}

pub fn exit_code(pager: ProcessId, limit: Duration) -> i32 {
    match exit_of(pager, limit) {
        WaitStatus::Exited(_, code) => code,
        other => panic!("{other:?}"),
    }
}

pub fn eventually(condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kilobytes of a line of `/proc/PID/status`.
pub fn status_kb(pid: i32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
