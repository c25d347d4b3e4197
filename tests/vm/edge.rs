//! Local users without rights: what they try at the daemon's doors, its locks and its VMs' users.

use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::support::{Options, eventually, in_a_lab, run};

const NOBODY: u32 = 65534;

/// Connections that say nothing, and come again when they are cut.
struct Flood {
    stop: Arc<AtomicBool>,
    /// How many were made.
    made: Arc<AtomicUsize>,
    work: Option<JoinHandle<()>>,
}

impl Flood {
    const COUNT: usize = 1000;

    fn start(address: SocketAddr) -> Self {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit");
        setrlimit(Resource::RLIMIT_NOFILE, hard.min(1 << 16), hard).expect("a higher limit");
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (end, count) = (stop.clone(), made.clone());
        let work = thread::spawn(move || {
            let mut all: Vec<TcpStream> = Vec::new();
            while !end.load(Ordering::Relaxed) {
                all.retain(|stream| {
                    matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
                });
                // In bursts, and not as fast as the machine can: the processors are for the daemon.
                for _ in 0..50.min(Self::COUNT - all.len()) {
                    let Ok(stream) = TcpStream::connect(address) else { break };
                    stream.set_nonblocking(true).expect("a socket");
                    all.push(stream);
                    count.fetch_add(1, Ordering::Relaxed);
                }
                thread::sleep(std::time::Duration::from_millis(20));
            }
        });
        Self { stop, made, work: Some(work) }
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        drop(self.work.take().map(JoinHandle::join));
    }
}

#[test]
fn idle_connections_without_a_key_take_nothing_from_sandboxes() {
    in_a_lab(1, async |lab| {
        // A soft limit with which nothing would go, as a shell gives it.
        let options = Options { nofile: Some((100, 700)), ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let limits = fs::read_to_string(format!("/proc/{}/limits", daemon.pid())).expect("limits");
        let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
        assert_eq!(line.split_whitespace().nth(3), Some("700"), "{line}");
        assert!(daemon.announced().contains("Descriptors: 700"), "{}", daemon.announced());

        let address = daemon.url.trim_start_matches("http://").parse().expect("an address");
        let flood = Flood::start(address);
        eventually("many have come", || async { flood.made() > 1000 }).await;
        let sandbox = daemon.create().await;
        for _ in 0..5 {
            assert_eq!(sandbox.sh("echo hi").await, "hi");
        }
        assert!(lab.cli_ok(&["ls"]).contains(&sandbox.id));
        let open = fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("descriptors").count();
        assert!(open < 650, "{open} descriptors are open");
        eventually("more have come", || async { flood.made() > 3000 }).await;
        sandbox.destroy().await;
        drop(flood);
        let log = daemon.log();
        assert!(!log.contains("Too many open files"), "{log}");
        assert!(log.len() < 64 << 10, "the log has {} bytes", log.len());
        daemon.stop().await;
    });
}

#[test]
fn a_vm_starts_however_many_descriptors_the_daemon_has() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon_with(Options { standbys: 0, ..Options::default() }).await;
        let flood =
            Flood::start(daemon.url.trim_start_matches("http://").parse().expect("an address"));
        let descriptors = || fs::read_dir(format!("/proc/{}/fd", daemon.pid()));
        // More than a VMM may have, which has these between its fork and its exec.
        eventually("the daemon has many", || async {
            descriptors().expect("descriptors").count() > 600
        })
        .await;
        let sandbox = daemon.create().await;
        assert_eq!(sandbox.sh("echo hi").await, "hi");
        sandbox.destroy().await;
        drop(flood);
        daemon.stop().await;
    });
}

/// Tries again and again to open and lock what daemons lock, and writes down what it got.
const LOCK_ALL: &str = r#"
import fcntl, os, sys
record, *places = sys.argv[1:]
attempts, held = 0, []
with open(record, "w") as out:
    while True:
        for place in places:
            try:
                fd = os.open(place, os.O_RDONLY)
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                held.append(fd)
                print("got", place, file=out, flush=True)
            except OSError:
                pass
        attempts += 1
        if attempts % 100 == 0:
            print("tried", file=out, flush=True)
"#;

struct Locker {
    child: Child,
    dir: tempfile::TempDir,
}

impl Locker {
    fn start(places: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        std::os::unix::fs::chown(dir.path(), Some(NOBODY), Some(NOBODY)).expect("theirs");
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", LOCK_ALL]).arg(dir.path().join("record")).args(places);
        command.uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
        let child = command.spawn().expect("python3 is there");
        Self { child, dir }
    }

    fn record(&self) -> String {
        fs::read_to_string(self.dir.path().join("record")).unwrap_or_default()
    }
}

impl Drop for Locker {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn nobody_else_can_lock_what_daemons_lock() {
    in_a_lab(1, async |lab| {
        // As an older version, or a loose umask, has left them.
        let slots = Path::new("/run/nestbox/slots");
        fs::create_dir_all(slots).expect("directories");
        for dir in [Path::new("/run/nestbox"), slots, lab.path("").as_path()] {
            fs::set_permissions(dir, Permissions::from_mode(0o777)).expect("a mode");
        }
        fs::create_dir(lab.data_dir()).expect("a directory");
        for file in [Path::new("/run/nestbox/daemons.lock"), &lab.data_dir().join("daemon.lock")] {
            fs::write(file, "").expect("a file");
            fs::set_permissions(file, Permissions::from_mode(0o666)).expect("a mode");
        }
        let mut daemon = lab.daemon().await;
        for (path, want) in [
            ("/run/nestbox", 0o700),
            ("/run/nestbox/slots", 0o700),
            ("/run/nestbox/daemons.lock", 0o600),
            (&lab.data_dir().display().to_string(), 0o700),
            (&lab.data_dir().join("daemon.lock").display().to_string(), 0o600),
            (&lab.data_dir().join("nestbox.sock").display().to_string(), 0o600),
            (&lab.data_dir().join("token-secret").display().to_string(), 0o600),
        ] {
            let mode = fs::metadata(path).expect(path).mode() & 0o777;
            assert_eq!(mode, want, "{path} has {mode:o}");
        }
        daemon.stop().await;

        let data_dir = lab.data_dir().display().to_string();
        let places = ["", "/daemon.lock", "/nestbox.db", "/nestbox.sock", "/api-key"];
        let places = places.map(|place| format!("{data_dir}{place}"));
        let shared = ["/run/nestbox", "/run/nestbox/slots", "/run/nestbox/daemons.lock"];
        // One that it may lock, so that it is known to try.
        let open = lab.path("open");
        fs::write(&open, "").expect("a file");
        let open = open.display().to_string();
        let all: Vec<&str> = shared.into_iter().chain(places.iter().map(String::as_str)).collect();
        let locker = Locker::start(&[&all[..], &[open.as_str()]].concat());
        eventually("it tries", || async { locker.record().contains("tried") }).await;
        daemon.start_again().await;
        let sandbox = daemon.create().await;
        sandbox.destroy().await;
        daemon.stop().await;
        let tried = locker.record().matches("tried").count();
        eventually("it still tries", || async { locker.record().matches("tried").count() > tried })
            .await;
        let got: Vec<String> =
            locker.record().lines().filter(|line| *line != "tried").map(str::to_owned).collect();
        assert_eq!(got, [format!("got {open}")]);
    });
}

#[test]
fn users_that_somebody_has_are_not_given_to_vms() {
    in_a_lab(1, async |lab| {
        // In this lab alone, somebody's containers have the users of VMs.
        let etc = lab.path("etc");
        let copied = Command::new("cp").args(["-a", "/etc"]).arg(&etc).status().expect("cp runs");
        assert!(copied.success());
        fs::write(etc.join("subuid"), "odd line\nann:689824:65536\n").expect("a file");
        fs::write(etc.join("subgid"), "").expect("a file");
        run(&format!("mount --bind {} /etc", etc.display()));

        for verb in [&["serve", "--listen", "127.0.0.1:0"][..], &["doctor"]] {
            let output = lab.cli(verb);
            let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("text");
            assert!(said.contains("\"ann\" in /etc/subuid"), "{verb:?}: {said}");
            assert!(said.contains("--vm-uid-base") && said.contains("such as 1048576"), "{said}");
            assert!(verb[0] == "doctor" || !output.status.success(), "{said}");
        }
        let flags = ["--vm-uid-base", "1048576"].map(str::to_owned).into();
        let mut daemon = lab.daemon_with(Options { flags, ..Options::default() }).await;
        let sandbox = daemon.create().await;
        let process = fs::metadata(format!("/proc/{}", sandbox.vm_pid())).expect("its process");
        assert_eq!(process.uid(), 1_048_576 + sandbox.slot());
        sandbox.destroy().await;
        daemon.stop().await;
        run("umount /etc");
    });
}
