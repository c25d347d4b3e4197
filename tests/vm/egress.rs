//! Egress policies: in place before a guest's first packet, whichever way it came to run, and kept.

use std::fs::{self, File};
use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::rr::RData;
use hickory_proto::rr::rdata::A;
use nix::sched::{CloneFlags, setns};
use serde_json::{Value, json};

use crate::support::{Sandbox, World, eventually, in_a_lab, run, serve_dns};

const OUTSIDE: &str = World::OUTSIDE;
const WEB: u16 = World::WEB;

/// Where guests send to without end.
const NOISE: u16 = 9999;

fn outside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let worker = std::thread::spawn(|| {
        let namespace = File::open("/run/netns/outside").expect("the namespace");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        work()
    });
    worker.join().expect("no panic outside")
}

/// Hears what guests send.
struct Ear(UdpSocket);

impl Ear {
    fn open() -> Self {
        let socket = outside(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, NOISE)).expect("a port"));
        socket.set_nonblocking(true).expect("it is set");
        Self(socket)
    }

    /// Forgets what has come, and says whether more comes within a second.
    async fn hears(&self) -> bool {
        while self.0.recv(&mut [0; 64]).is_ok() {}
        self.comes_within(Duration::from_secs(1)).await
    }

    /// Whether anything has come, or comes within the time.
    async fn comes_within(&self, limit: Duration) -> bool {
        let end = tokio::time::Instant::now() + limit;
        while tokio::time::Instant::now() < end {
            if self.0.recv(&mut [0; 64]).is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }
}

/// Has a guest send every few milliseconds, from a new port each time, whatever becomes of it.
async fn make_noise(sandbox: &Sandbox) {
    let program = format!(
        "import socket, time\n\
         while True:\n\
         \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         \x20   try: s.sendto(b'noise', ('{OUTSIDE}', {NOISE}))\n\
         \x20   except OSError: pass\n\
         \x20   s.close(); time.sleep(0.005)\n"
    );
    sandbox.write("/tmp/noise.py", program).await;
    sandbox.sh("nohup python3 /tmp/noise.py >/dev/null 2>&1 &").await;
}

async fn network(sandbox: &Sandbox) -> Value {
    sandbox.get("/network").await.expect(200)
}

#[test]
fn a_policy_holds_from_the_first_packet_of_every_start_and_outlives_the_daemon() {
    in_a_lab(2, async |lab| {
        let world = World::connect();
        let mut daemon = lab.daemon().await;
        let mut noisy = daemon.create().await;
        let ear = Ear::open();
        make_noise(&noisy).await;
        assert!(ear.comes_within(Duration::from_secs(30)).await, "it is heard");

        // A copy that is made to be silent never is anything else, though it sends all the time.
        noisy.snapshot("noisy").await;
        noisy.pause().await;
        assert!(!ear.hears().await, "nobody sends");
        let wish = json!({ "template": "noisy", "network": { "default": "deny" } });
        let silent = daemon.create_with(wish).await;
        assert!(silent.sh("pgrep -f noise.py").await.lines().count() > 0);
        assert!(!ear.comes_within(Duration::from_secs(2)).await, "from its first packet");
        silent.destroy().await;
        let loud = daemon.create_with(json!({ "template": "noisy" })).await;
        assert!(ear.comes_within(Duration::from_secs(10)).await, "it sends indeed");
        loud.destroy().await;

        // Changed while it is paused, the policy is there when it goes on; children have it too.
        let off = lab.cli_ok(&["network", &noisy.id, "--no-network"]);
        assert_eq!(off, "default: deny\n");
        assert!(!ear.hears().await, "nobody sends");
        noisy.resume().await;
        assert!(!ear.comes_within(Duration::from_secs(2)).await, "after a resume");
        let children = noisy.fork(1).await;
        assert!(!ear.comes_within(Duration::from_secs(2)).await, "after a fork");
        let shown = json!({ "default": "deny", "allow": [], "deny": [] });
        assert_eq!(network(&children[0]).await, shown);
        children[0].destroy().await;

        daemon.kill9().await;
        assert!(!ear.comes_within(Duration::from_secs(1)).await, "without a daemon");
        daemon.start_again().await;
        noisy = noisy.through(daemon.api());
        assert!(!ear.comes_within(Duration::from_secs(2)).await, "with the next one");
        assert_eq!(network(&noisy).await, shown);
        lab.cli_ok(&["network", &noisy.id, "--on"]);
        assert!(ear.comes_within(Duration::from_secs(10)).await, "it is heard again");

        // A change reaches what runs.
        lab.cli_ok(&["network", &noisy.id, "--deny", "198.51.100.0/24"]);
        assert!(!ear.hears().await, "after a change");
        noisy.destroy().await;
        lab.cli_ok(&["snapshot", "rm", "noisy"]);
        daemon.stop().await;
        world.disconnect();
    });
}

fn zone(name: &str) -> Vec<(String, u32, RData)> {
    let address = OUTSIDE.parse().expect("an address");
    match name {
        "good.example." | "evil.example." => vec![(name.to_owned(), 30, RData::A(A(address)))],
        _ => Vec::new(),
    }
}

/// Has the host of the lab use the name server of the world.
fn use_name_server(file: &Path) {
    fs::write(file, format!("nameserver {OUTSIDE}\n")).expect("it is written");
    run(&format!("mount --bind {} /etc/resolv.conf", file.display()));
}

/// curl's exit code for a URL, from inside.
async fn curl(sandbox: &Sandbox, url: &str) -> i64 {
    let args = ["--silent", "--noproxy", "*", "--max-time", "10", "--output", "/dev/null", url];
    sandbox.exec(json!({ "cmd": "curl", "args": args })).await.exit_code
}

#[test]
fn names_are_reached_or_not_as_the_policy_says_also_after_a_crash_of_the_daemon() {
    const FETCHED: i64 = 0;
    const NO_SUCH_NAME: i64 = 6;
    const REFUSED: i64 = 7;
    in_a_lab(1, async |lab| {
        let world = World::connect();
        use_name_server(&lab.path("resolv.conf"));
        let asked = Arc::new(Mutex::new(Vec::new()));
        let questions = asked.clone();
        outside(move || serve_dns(zone, questions));
        let mut daemon = lab.daemon().await;
        let create = ["create", "--memory-mb", "256", "--allow", "good.example"];
        let id = lab.cli_ok(&create).trim().to_owned();
        let mut sandbox = daemon.sandbox(&id);
        let direct = format!("http://{OUTSIDE}:{WEB}/");
        let good = format!("http://good.example:{WEB}/");
        let evil = format!("http://evil.example:{WEB}/");

        assert_eq!(curl(&sandbox, &direct).await, REFUSED);
        assert_eq!(curl(&sandbox, &evil).await, NO_SUCH_NAME);
        assert_eq!(curl(&sandbox, &good).await, FETCHED);
        let of_evil = |name: &String| name.contains("evil");
        assert!(!asked.lock().expect("no panic").iter().any(of_evil), "nobody asked for it");

        daemon.kill9().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        assert_eq!(curl(&sandbox, &evil).await, NO_SUCH_NAME);
        assert_eq!(curl(&sandbox, &good).await, FETCHED);

        // A paused one has neither slot nor resolver; both are there again when it runs.
        sandbox.pause().await;
        sandbox.resume().await;
        assert_eq!(curl(&sandbox, &direct).await, REFUSED);
        assert_eq!(curl(&sandbox, &evil).await, NO_SUCH_NAME);
        eventually("the name is reached", || async { curl(&sandbox, &good).await == FETCHED })
            .await;
        sandbox.destroy().await;
        daemon.stop().await;
        run("umount /etc/resolv.conf");
        world.disconnect();
    });
}
