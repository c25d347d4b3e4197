//! A machine of its own for each test: a thread in new network and mount namespaces, with an empty
//! `/run`, so that a test sees only what it made and runs beside any other test or daemon.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nestbox::vmm::network::{NetworkConfig, Slot};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};

use crate::own_machine::separate;
use crate::skip::is_root;

/// Runs a test on a machine of its own. Without root it is skipped.
pub fn on_own_machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    if !is_root("a network namespace") {
        return;
    }
    let machine = thread::spawn(move || {
        separate();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(test());
    });
    if let Err(panic) = machine.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a command of single words on the test's machine; returns what it printed.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().expect("a program")).args(words).output();
    let output = output.unwrap_or_else(|e| panic!("{command}: {e}"));
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Settings for a daemon with a data directory and some ready slots.
pub fn config(data_dir: &Path, pool_size: usize) -> NetworkConfig {
    let name_servers = Some(vec![Outside::ADDRESS]);
    NetworkConfig { pool_size, name_servers, ..NetworkConfig::new(data_dir.to_owned()) }
}

/// All that a daemon's networks could leave behind on a machine.
#[derive(Debug, PartialEq, Eq)]
pub struct Traces(BTreeMap<&'static str, Vec<String>>);

impl Traces {
    pub fn now() -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let names = |dir: &str| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names: Vec<_> =
                entries.map(|e| e.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        let mut mounts = lines(fs::read_to_string("/proc/thread-self/mounts").expect("mounts"));
        // The directory itself stays mounted, as after anybody's first `ip netns add`.
        mounts.retain(|line| line.split(' ').nth(1) != Some("/run/netns"));
        Self(BTreeMap::from([
            ("namespaces", names("/run/netns")),
            ("claims", names("/run/nestbox/slots")),
            ("links", lines(run("ip -br link"))),
            ("routes", lines(run("ip route show table all"))),
            ("neighbours", lines(run("ip neigh show nud permanent"))),
            ("filters", lines(run("nft list ruleset"))),
            ("mounts", mounts),
        ]))
    }
}

/// Waits until a condition holds, looking often; panics after five seconds.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..500 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("five seconds later still not: {what}");
}

/// Runs something in a network namespace and waits for it.
pub fn inside<T: Send + 'static>(namespace: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let namespace = File::open(namespace).expect("the namespace");
    let worker = thread::spawn(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
        work()
    });
    worker.join().expect("no panic inside the namespace")
}

/// The internet: a namespace with 198.51.100.2, linked to the machine, without any route back to
/// what is behind the machine.
pub struct Outside(PathBuf);

impl Outside {
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 2);
    /// The machine's own address on that link.
    pub const HOST: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

    pub fn new() -> Self {
        run("ip netns add outside");
        run("ip link add wan0 type veth peer name eth0 netns outside");
        run("ip addr add 198.51.100.1/24 dev wan0");
        run("ip link set wan0 up");
        run("ip -n outside addr add 198.51.100.2/24 dev eth0");
        run("ip -n outside link set eth0 up");
        Self(PathBuf::from("/run/netns/outside"))
    }

    pub fn namespace(&self) -> &Path {
        &self.0
    }
}

/// A guest without a virtual machine: a namespace whose network card is fed from a slot's tap, frame
/// by frame, as a hypervisor would.
pub struct Guest {
    namespace: PathBuf,
    stop: Arc<AtomicBool>,
    pump: Option<JoinHandle<()>>,
}

impl Guest {
    pub async fn attach(slot: &Slot) -> Self {
        let tap = slot.tap().await.expect("the slot's tap");
        Self::with_tap(&format!("guest-{}", slot.index()), tap)
    }

    fn with_tap(name: &str, tap: OwnedFd) -> Self {
        run(&format!("ip netns add {name}"));
        let namespace = Path::new("/run/netns").join(name);
        let card = inside(&namespace, || open_tap("eth0").expect("the guest's card"));
        run(&format!("ip -n {name} link set lo up"));
        run(&format!("ip -n {name} link set eth0 address 06:00:a9:fe:00:15 up"));
        run(&format!("ip -n {name} addr add 169.254.0.21/30 dev eth0"));
        run(&format!("ip -n {name} route add default via 169.254.0.22"));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let pump = thread::spawn(move || pump(tap, card.into(), &stopped));
        Self { namespace, stop, pump: Some(pump) }
    }

    /// Runs something in the guest.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        inside(&self.namespace, work)
    }

    /// Changes the guest's network, as its root could.
    pub fn ip(&self, arguments: &str) {
        let name = self.namespace.file_name().expect("a name").to_str().expect("text");
        run(&format!("ip -n {name} {arguments}"));
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(pump) = self.pump.take() {
            let _ = pump.join();
        }
        let name = self.namespace.file_name().expect("a name").to_str().expect("text").to_owned();
        let _ = Command::new("ip").args(["netns", "del", &name]).status();
    }
}

/// Carries frames both ways until told to stop.
fn pump(left: OwnedFd, right: OwnedFd, stop: &AtomicBool) {
    let mut buffer = vec![0; 1 << 17];
    while !stop.load(Ordering::Relaxed) {
        let mut ready = [
            PollFd::new(left.as_fd(), PollFlags::POLLIN),
            PollFd::new(right.as_fd(), PollFlags::POLLIN),
        ];
        let Ok(_) = poll(&mut ready, PollTimeout::from(20_u8)) else { return };
        let readable = ready.map(|fd| fd.any().unwrap_or(false));
        for (readable, from, to) in [(readable[0], &left, &right), (readable[1], &right, &left)] {
            if readable {
                let Ok(length) = nix::unistd::read(from, &mut buffer) else { return };
                // A card that is down refuses frames; a wire does not care.
                let _ = nix::unistd::write(to, &buffer[..length]);
            }
        }
    }
}

nix::ioctl_write_ptr_bad!(tun_set_iff, nix::libc::TUNSETIFF, nix::libc::ifreq);

/// Makes a tap device that ends with its descriptor.
fn open_tap(name: &str) -> io::Result<File> {
    let tun = File::options().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: nix::libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as nix::libc::c_char;
    }
    let flags = nix::libc::IFF_TAP | nix::libc::IFF_NO_PI | nix::libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = flags as nix::libc::c_short;
    // SAFETY: the descriptor is open and the request is initialized.
    unsafe { tun_set_iff(tun.as_raw_fd(), &request) }?;
    Ok(tun)
}

/// Answers every TCP connection with a greeting and its peer's address, until the test ends.
pub fn serve_tcp(address: impl Into<SocketAddr>) {
    let listener = TcpListener::bind(address.into()).expect("a free port");
    thread::spawn(move || {
        while let Ok((mut client, peer)) = listener.accept() {
            let _ = write!(client, "hello {}", peer.ip());
        }
    });
}

/// Answers every datagram with itself, until the test ends.
pub fn serve_udp(address: impl Into<SocketAddr>) {
    let socket = UdpSocket::bind(address.into()).expect("a free port");
    thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    });
}

/// What a TCP server says, or why it cannot be reached within two seconds.
pub fn greeting(address: impl Into<SocketAddr>) -> io::Result<String> {
    let patience = Duration::from_secs(2);
    let mut stream = TcpStream::connect_timeout(&address.into(), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Sends a datagram and waits up to two seconds for its echo.
pub fn echo(address: impl Into<SocketAddr>) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(address.into())?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.send(b"ping")?;
    socket.recv(&mut [0; 16]).map(|_| ())
}
