//! The network's walls, attacked: by a local user of the host, by whoever has a VMM, and by guests that
//! hold on to all that they get.

use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use nestbox::domain::slot::SlotIndex;
use nix::sched::{CloneFlags, setns};
use serde_json::json;

use crate::support::{
    Daemon, NOBODY, Options, Prowler, Sandbox, World, as_user, eventually, in_a_lab, reaches_agent,
    run,
};

/// The first user of VMs; the others follow by slot.
const FIRST_UID: u32 = 700_000;

fn slot(sandbox: &Sandbox) -> SlotIndex {
    SlotIndex::try_from(sandbox.slot()).expect("a slot")
}

/// Runs something in a network namespace, as a user.
fn inside<T: Send + 'static>(
    namespace: &str,
    uid: u32,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = File::open(format!("/run/netns/{namespace}")).expect("the namespace");
    let worker = std::thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        as_user(uid, work)
    });
    worker.join().expect("no panic inside")
}

/// Asserts that nobody but root reaches a guest that runs, and that its VMM's user reaches nothing.
fn assert_walled(sandbox: &Sandbox) {
    let slot = slot(sandbox);
    assert!(reaches_agent(0, slot.access_address()), "the guest is there for root");
    assert!(!reaches_agent(NOBODY, slot.access_address()));
    let uid = FIRST_UID + slot.get();
    let status = fs::read_to_string(format!("/proc/{}/status", sandbox.vm_pid())).expect("alive");
    assert!(status.contains(&format!("Uid:\t{uid}\t")), "{status}");
    let places = [
        SocketAddr::from((World::OUTSIDE.parse::<Ipv4Addr>().expect("an address"), World::WEB)),
        SocketAddr::from((slot.host_address(), World::WEB)),
        SocketAddr::from((Ipv4Addr::new(169, 254, 0, 21), 49_983)),
    ];
    // Whether anybody answers or not: that it leaves is too much.
    let leave = move || {
        let leaves = |place: &SocketAddr| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).expect("a port");
            let connects = || TcpStream::connect_timeout(place, Duration::from_secs(5)).is_ok();
            socket.send_to(b"secret", place).is_ok() || connects()
        };
        places.into_iter().filter(leaves).collect::<Vec<_>>()
    };
    assert_eq!(inside(&slot.namespace_name(), uid, leave), []);
    assert_eq!(inside(&slot.namespace_name(), 0, leave).len(), places.len(), "as root it would");
}

#[test]
fn nobody_but_root_reaches_a_guest_at_any_moment_of_its_life() {
    in_a_lab(4, async |lab| {
        let world = World::connect();
        let neighbour = Prowler::start(NOBODY);
        let images = Some(lab.cold_images());
        let options = Options { images, standbys: 1, slot_pool: 1, ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        // The image boots, and a standby of it rehearses.
        let mut first = daemon.create_with(json!({})).await;
        eventually("a standby", || async { !daemon.unclaimed().await.is_empty() }).await;
        let second = daemon.create_with(json!({})).await;
        first.sh("cd /tmp && nohup python3 -m http.server 8000 >/dev/null 2>&1 &").await;
        assert_walled(&first);
        daemon.kill9().await;
        assert!(!reaches_agent(NOBODY, slot(&first).access_address()), "without a daemon");
        daemon.start_again().await;
        first = first.through(daemon.api());
        first.pause().await;
        first.resume().await;
        let children = first.fork(1).await;
        assert_walled(&children[0]);
        for sandbox in [&first, &second.through(daemon.api()), &children[0]] {
            sandbox.destroy().await;
        }
        daemon.stop().await;
        let tries = neighbour.stop();
        tries.all_were_refused();
        assert!(tries.slots.len() >= 5, "boot, standbys, create, resume, child: {tries:?}");
        world.disconnect();
    });
}

/// Sends back what it gets, for as long as anybody is there; notes how many were at the most.
fn serve_echo(port: u16, most: Arc<AtomicUsize>) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).expect("a free port");
    let now = Arc::new(AtomicUsize::new(0));
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            let now = now.clone();
            std::thread::spawn(move || {
                let _ = io::copy(&mut &client, &mut &client);
                now.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
}

/// The files that the daemon has open.
fn open_files(daemon: &Daemon) -> usize {
    fs::read_dir(format!("/proc/{}/fd", daemon.pid())).expect("its files").count()
}

/// Connects so many times to the web's port and says nothing.
const HOARD: &str = "import socket, time
held = []
for _ in range(250):
    s = socket.socket(); s.settimeout(1)
    try: s.connect(('198.51.100.2', 443)); held.append(s)
    except OSError: pass
open('/tmp/held', 'w').write(str(len(held)))
time.sleep(3600)
";

/// Connects to the same place and has one word sent back.
const SPEAK: &str = "import socket
s = socket.create_connection(('198.51.100.2', 443), 30); s.settimeout(30)
s.sendall(b'word\\n'); print(s.recv(16).decode().strip())
";

#[test]
fn guests_that_hoard_connections_keep_neither_creates_nor_other_guests_from_working() {
    const FILES: usize = 1024;
    in_a_lab(4, async |lab| {
        let world = World::connect();
        let most = Arc::new(AtomicUsize::new(0));
        let seen = most.clone();
        inside("outside", 0, move || serve_echo(443, seen));
        let mut daemon = lab.daemon().await;
        run(&format!("prlimit --pid {} --nofile={FILES}:{FILES}", daemon.pid()));
        let names = json!({ "memory_mb": 256, "network": { "deny": ["evil.example"] } });
        let mut hoarders = Vec::new();
        for _ in 0..3 {
            let hoarder = daemon.create_with(names.clone()).await;
            hoarder.write("/tmp/hoard.py", HOARD).await;
            hoarder.sh("nohup python3 /tmp/hoard.py >/dev/null 2>&1 &").await;
            hoarders.push(hoarder);
        }
        for hoarder in &hoarders {
            eventually("it has what it gets", || async {
                hoarder.try_read("/tmp/held").await.status == 200
            })
            .await;
        }
        assert!(most.load(Ordering::Relaxed) > 100, "they do hold on");
        let open = open_files(&daemon);
        assert!(open < FILES / 2, "{open} files are open");
        // The proxy has no room for it but what somebody else has to give up.
        let other = daemon.create_with(names).await;
        other.write("/tmp/speak.py", SPEAK).await;
        assert_eq!(other.sh("python3 /tmp/speak.py").await, "word");
        for sandbox in hoarders.iter().chain([&other]) {
            sandbox.destroy().await;
        }
        daemon.stop().await;
        world.disconnect();
    });
}
