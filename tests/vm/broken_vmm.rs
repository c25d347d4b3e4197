//! Whoever has taken over a VM's process: what is in its reach, and what is not.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::support::{BrokenVmm, Engine, Options, eventually, in_a_lab, in_place_of};

/// The most that may be kept of what a VMM prints, in bytes: two logs and what was read at once.
const MOST_LOGGED: u64 = 2 * (132 << 10);

/// What is left of the host's files for a QEMU.
const NEEDED: [&str; 5] = ["etc", "lib", "lib64", "proc", "usr"];

fn outcome<T>(tried: io::Result<T>) -> &'static str {
    match tried {
        Ok(_) => "done",
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => "not found",
            io::ErrorKind::PermissionDenied => "refused",
            io::ErrorKind::ReadOnlyFilesystem => "read-only",
            _ => "failed",
        },
    }
}

#[test]
fn a_broken_vmm_finds_nothing_of_the_host() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let (sandbox, neighbour) = (daemon.create().await, daemon.create().await);
        let vmm = BrokenVmm::of(sandbox.vm_pid());

        for kind in ["mnt", "pid", "ipc", "net"] {
            let host = fs::read_link(format!("/proc/thread-self/ns/{kind}")).expect("a namespace");
            assert_ne!(vmm.namespace(kind), host, "{kind}");
        }
        assert_ne!(vmm.namespace("pid"), BrokenVmm::of(neighbour.vm_pid()).namespace("pid"));
        assert_eq!(vmm.cwd(), Path::new("/"));
        if Engine::present() == Engine::Firecracker {
            // The jail's inside is tested with Firecracker's own names.
            sandbox.destroy().await;
            neighbour.destroy().await;
            return daemon.stop().await;
        }

        let data_dir = lab.data_dir().to_owned();
        let (own, other) = (sandbox.vm_pid(), neighbour.vm_pid());
        let said = in_place_of(own, move || {
            let names = |dir: &str| {
                let entries = fs::read_dir(dir).into_iter().flatten().flatten();
                let mut names: Vec<_> =
                    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
                names.sort();
                names.join(" ")
            };
            let processes = names("/proc");
            let mut others: Vec<i32> = processes.split(' ').flat_map(str::parse).collect();
            others.retain(|pid| ![own, std::process::id() as i32].contains(pid));
            let node = || {
                use nix::sys::stat::{Mode, SFlag, makedev, mknod};
                mknod("/usr/zero", SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5))
            };
            [
                format!("root: {}", names("/")),
                format!("other processes: {others:?}"),
                format!("passwd: {}", outcome(File::open("/etc/passwd"))),
                format!("sandboxes: {}", outcome(fs::read_dir(&data_dir))),
                format!("neighbour seen: {}", Path::new(&format!("/proc/{other}/maps")).exists()),
                format!("init: {}", outcome(fs::read("/proc/1/environ"))),
                format!("kernel settings: {}", outcome(fs::read_dir("/proc/sys"))),
                format!("write: {}", outcome(File::create("/written"))),
                format!("write below usr: {}", outcome(File::create("/usr/written"))),
                format!("node: {}", outcome(node().map_err(io::Error::from))),
            ]
            .join("\n")
        });
        let root = said.lines().next().expect("a line").trim_start_matches("root: ");
        assert!(root.split(' ').all(|name| NEEDED.contains(&name)), "{said}");
        let rest: Vec<&str> = said.lines().skip(1).collect();
        assert_eq!(
            rest,
            [
                "other processes: []",
                "passwd: not found",
                "sandboxes: not found",
                "neighbour seen: false",
                "init: not found",
                "kernel settings: not found",
                "write: read-only",
                "write below usr: read-only",
                "node: read-only",
            ]
        );
        sandbox.destroy().await;
        neighbour.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_vm_has_only_the_descriptors_that_it_was_given() {
    in_a_lab(1, async |lab| {
        // As a shell may do to what it starts.
        let left_open = File::open("/etc/passwd").expect("a file");
        fcntl(&left_open, FcntlArg::F_SETFD(FdFlag::empty())).expect("it is inherited");
        let mut daemon = lab.daemon().await;
        let number = std::os::fd::AsRawFd::as_raw_fd(&left_open);
        let inherited = fs::read_link(format!("/proc/{}/fd/{number}", daemon.pid()));
        assert_eq!(inherited.expect("the daemon has it"), Path::new("/etc/passwd"));
        drop(left_open);

        let sandbox = daemon.create().await;
        let vmm = BrokenVmm::of(sandbox.vm_pid());
        let found: Vec<_> = vmm.descriptors();
        assert!(found.iter().all(|it| it.path != Path::new("/etc/passwd")), "{found:?}");
        // No directory: each would lead to all below it, whatever the root is.
        let directories = found.iter().filter(|it| it.path.is_dir());
        assert_eq!(directories.count(), 0, "{found:?}");

        let limits = fs::read_to_string(format!("/proc/{}/limits", sandbox.vm_pid()));
        let limits = limits.expect("its limits");
        let limit = |name: &str| {
            let line = limits.lines().find(|line| line.starts_with(name)).expect(name);
            line[name.len()..].split_whitespace().next().expect("a number").to_owned()
        };
        assert_eq!(limit("Max open files"), "512");
        assert_eq!(limit("Max processes"), "64");
        assert_ne!(limit("Max file size"), "unlimited");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn no_vmm_can_write_to_what_another_one_reads() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandboxes = [daemon.create().await, daemon.create().await];
        let [one, other] = sandboxes.each_ref().map(|sandbox| BrokenVmm::of(sandbox.vm_pid()));
        let others: HashMap<_, _> = other
            .descriptors()
            .into_iter()
            .filter(|it| it.is_file)
            .map(|it| (it.file, it))
            .collect();
        let all = one.descriptors();
        let shared: Vec<_> =
            all.iter().filter(|it| it.is_file && others.contains_key(&it.file)).collect();
        if Engine::present() != Engine::Firecracker {
            assert!(!shared.is_empty(), "the base of their memory, and their lower layers");
        }
        for it in shared {
            assert!(!it.writable && !others[&it.file].writable, "{it:?}");
            one.take(it.number).write_at(b"changed", 4096).expect_err("it is for reading");
            // Nor by its name, as whom the process runs.
            let path = format!("/proc/{}/fd/{}", sandboxes[0].vm_pid(), it.number);
            let uid = one.uid();
            let opened = std::thread::spawn(move || {
                nix::unistd::setfsgid(uid.into());
                nix::unistd::setfsuid(uid.into());
                File::options().read(true).write(true).open(path)
            });
            let refused = opened.join().expect("no panic").expect_err("it is nobody's to write");
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{it:?}");
        }
        // What a guest writes to its memory is its own all the same.
        for sandbox in &sandboxes {
            assert_eq!(sandbox.sh("echo alive > /dev/shm/own; cat /dev/shm/own").await, "alive");
        }
        for sandbox in sandboxes {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

/// Takes the devices from the guest's kernel and drives that of random numbers by hand: each notification
/// has the VMM complain about a queue that makes no sense. The kernel lets nobody map a page in which it
/// uses a device itself, and all are in one, so the disk and the network go too. What is needed later is
/// in memory before.
const FLOOD: &str = r#"
import ctypes, mmap, os
ctypes.CDLL(None).mlockall(3)
def parent(name): return os.path.basename(os.path.dirname(os.path.realpath(f'/sys/bus/virtio/devices/{name}')))
kinds = {d: int(open(f'/sys/bus/virtio/devices/{d}/device').read(), 16) for d in os.listdir('/sys/bus/virtio/devices')}
rng = next(parent(d) for d, kind in kinds.items() if kind == 4)
start = next(int(line.split('-')[0], 16) for line in open('/proc/iomem') if rng in line)
memory = os.open('/dev/mem', os.O_RDWR | os.O_SYNC)
unbind = os.open('/sys/bus/platform/drivers/virtio-mmio/unbind', os.O_WRONLY)
def put(at, value): regs[at // 4] = value
# The disk last: what is not in memory by then is gone.
for name in sorted(kinds, key=lambda d: kinds[d] == 2): os.write(unbind, parent(name).encode())
page = mmap.mmap(memory, 4096, offset=start & ~4095)
regs = memoryview(page)[start & 4095:].cast('I')
while True:
    put(0x70, 0); put(0x70, 3)
    put(0x24, 1); put(0x20, 1); put(0x24, 0); put(0x20, 0)
    put(0x70, 11)
    put(0x30, 0); put(0x38, 8)
    for at in (0x80, 0x90, 0xa0): put(at, 0x1000000); put(at + 4, 0)
    put(0x44, 1); put(0x70, 15); put(0x50, 0)
"#;

#[test]
fn a_vmm_that_prints_what_its_guest_wants_fills_no_disk() {
    in_a_lab(1, async |lab| {
        if Engine::present() == Engine::Firecracker {
            // It prints nothing of the kind, and its log is kept by the same code.
            return;
        }
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        sandbox.write("/tmp/flood.py", FLOOD).await;
        let flood = json!({"cmd": "sudo python3 /tmp/flood.py", "background": true});
        sandbox.try_exec(flood).await.expect(200);
        // It prints: more than one log has room for.
        let former = sandbox.dir().join("qemu.log.1");
        eventually("the log starts anew", || async { former.exists() }).await;
        let logs = fs::read_dir(sandbox.dir()).expect("its directory").flatten();
        let logs = logs.filter(|entry| entry.file_name().to_string_lossy().starts_with("qemu.log"));
        let kept: u64 = logs.map(|entry| entry.metadata().map_or(0, |data| data.len())).sum();
        assert!(kept <= MOST_LOGGED, "{kept} bytes are kept");
        let data = fs::metadata(sandbox.dir().join("qemu.log")).expect("the log");
        assert_eq!((data.mode() & 0o777, data.uid()), (0o600, 0));
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_vmm_that_hangs_is_ended_and_the_others_are_left_alone() {
    in_a_lab(2, async |lab| {
        let flags = ["--vmm-timeout-sec", "8"].map(str::to_owned).to_vec();
        let mut daemon = lab.daemon_with(Options { flags, ..Options::default() }).await;
        let (hung, neighbour) = (daemon.create().await, daemon.create().await);
        let pid = hung.vm_pid();
        kill(Pid::from_raw(pid), Signal::SIGSTOP).expect("it lives");
        assert_eq!(hung.becomes("error").await, "its VM did not answer for 8 s, and was ended");
        assert_eq!(kill(Pid::from_raw(pid), None), Err(Errno::ESRCH), "it is gone");
        assert_eq!(neighbour.sh("echo on").await, "on");
        neighbour.destroy().await;
        daemon.stop().await;
    });
}
