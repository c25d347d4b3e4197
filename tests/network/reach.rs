//! Who reaches whom.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use nestbox::vmm::network::{NetworkConfig, Slot, SlotPool};
use tempfile::TempDir;

use crate::lab::{
    Guest, Outside, config, echo, greeting, inside, on_own_machine, run, serve_tcp, serve_udp,
};

pub const TCP: u16 = 8000;
pub const UDP: u16 = 5353;
pub const ANY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

pub struct Bench {
    pub pool: SlotPool,
    pub outside: Outside,
    data: TempDir,
}

impl Bench {
    /// A machine with services on all its addresses, one of them on a second network, and an
    /// internet with the same services.
    pub async fn new() -> Self {
        Self::with(|settings| settings).await
    }

    /// Such a machine, whose daemon has other settings.
    pub async fn with(change: impl FnOnce(NetworkConfig) -> NetworkConfig) -> Self {
        let outside = Outside::new();
        run("ip link add lan0 type veth peer name lan1");
        run("ip addr add 10.99.0.1/24 dev lan0");
        run("ip link set lan0 up");
        run("ip link set lan1 up");
        let data = TempDir::new().expect("a data directory");
        let pool = SlotPool::start(change(config(data.path(), 2)), &[]).await;
        let pool = pool.expect("the pool");
        serve_tcp((ANY, TCP));
        serve_udp((ANY, UDP));
        inside(outside.namespace(), || {
            serve_tcp((ANY, TCP));
            serve_udp((ANY, UDP));
        });
        Self { pool, outside, data }
    }

    /// Where the daemon keeps its things.
    pub fn data(&self) -> std::path::PathBuf {
        self.data.path().to_owned()
    }

    /// A guest with the same services.
    pub async fn guest(&self) -> (Slot, Guest) {
        let slot = self.pool.acquire().await.expect("a slot");
        let guest = Guest::attach(&slot).await;
        guest.run(|| {
            serve_tcp((ANY, TCP));
            serve_udp((ANY, UDP));
        });
        (slot, guest)
    }
}

/// Asserts that neither TCP nor UDP gets through from a guest, and that the guest is told so.
pub fn assert_refused(guest: &Guest, address: Ipv4Addr) {
    for (name, attempt) in [
        ("TCP", guest.run(move || greeting((address, TCP)).map(|_| ()))),
        ("UDP", guest.run(move || echo((address, UDP)))),
    ] {
        // Who is left to wait gives up after two seconds, with another error.
        let error = attempt.expect_err(&format!("{name} to {address} got through"));
        let refusals = [ErrorKind::ConnectionRefused, ErrorKind::HostUnreachable];
        assert!(refusals.contains(&error.kind()), "{name} to {address}: {error:?}");
    }
}

#[test]
fn the_host_reaches_a_guest_by_its_address() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, _guest) = bench.guest().await;
        let hello = greeting((slot.address(), TCP)).expect("the guest answers");
        assert_eq!(hello, format!("hello {}", slot.index().host_address()));
        echo((slot.address(), UDP)).expect("the guest echoes");
    });
}

#[test]
fn the_first_packet_to_a_guest_that_never_sent_one_gets_through() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let slot = bench.pool.acquire().await.expect("a slot");
        let guest = Guest::attach(&slot).await;
        let address = SocketAddr::from((slot.address(), 9));
        let received = guest.run(move || {
            let socket = UdpSocket::bind((ANY, 9)).expect("a free port");
            socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            socket
        });
        // A guest that does not know who asks for its address, and would not answer.
        guest.ip("link set eth0 arp off");
        UdpSocket::bind((ANY, 0)).and_then(|s| s.send_to(b"first", address)).expect("sent");
        let mut buffer = [0; 16];
        let length = received.recv(&mut buffer).expect("the first packet");
        assert_eq!(&buffer[..length], b"first");
    });
}

#[test]
fn a_guest_reaches_the_world_in_the_hosts_name() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (_slot, guest) = bench.guest().await;
        let hello = guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("the world answers");
        assert_eq!(hello, format!("hello {}", Outside::HOST));
        guest.run(|| echo((Outside::ADDRESS, UDP))).expect("the world echoes");
    });
}

#[test]
fn a_guest_reaches_no_other_guest() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (_slot, guest) = bench.guest().await;
        let (other, _other_guest) = bench.guest().await;
        greeting((other.address(), TCP)).expect("the other guest is there");
        assert_refused(&guest, other.address());
        assert_refused(&guest, other.index().uplink_address());
    });
}

#[test]
fn a_guest_reaches_no_service_of_the_host_on_any_of_its_addresses() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let (other, _other_guest) = bench.guest().await;
        for address in [
            Outside::HOST,
            Ipv4Addr::new(10, 99, 0, 1),
            slot.index().host_address(),
            slot.index().uplink_address(),
            slot.address(),
            other.index().host_address(),
        ] {
            assert_refused(&guest, address);
        }
    });
}

#[test]
fn a_guest_reaches_no_port_that_the_host_publishes_for_others() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (_slot, guest) = bench.guest().await;
        run("nft add table ip publish");
        run("nft add chain ip publish in { type nat hook prerouting priority -100 ; }");
        run("nft add rule ip publish in ip daddr 10.99.0.1 dnat to 198.51.100.2");
        assert_refused(&guest, Ipv4Addr::new(10, 99, 0, 1));
    });
}

#[test]
fn a_guest_reaches_neither_the_metadata_service_nor_its_gateway() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        run("ip addr add 169.254.169.254/32 dev lan0");
        let (_slot, guest) = bench.guest().await;
        assert_refused(&guest, Ipv4Addr::new(169, 254, 169, 254));
        assert_refused(&guest, Ipv4Addr::new(169, 254, 0, 22));
    });
}

#[test]
fn the_hosts_own_filter_holds_without_the_namespaces() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let (other, _other_guest) = bench.guest().await;
        let name = slot.index().namespace_name();
        run(&format!("ip netns exec {name} nft flush chain inet nestbox forward"));
        run(&format!("ip netns exec {name} nft chain inet nestbox forward {{ policy accept ; }}"));
        for address in [
            Outside::HOST,
            slot.index().host_address(),
            other.address(),
            other.index().uplink_address(),
            Ipv4Addr::new(169, 254, 169, 254),
        ] {
            assert_refused(&guest, address);
        }
        guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("the world is still there");
    });
}

#[test]
fn the_namespaces_filter_holds_without_the_hosts() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let (other, _other_guest) = bench.guest().await;
        run("nft flush ruleset");
        for address in [
            slot.index().host_address(),
            slot.index().uplink_address(),
            other.address(),
            other.index().uplink_address(),
            Ipv4Addr::new(169, 254, 169, 254),
            Ipv4Addr::new(169, 254, 0, 22),
        ] {
            assert_refused(&guest, address);
        }
    });
}

#[test]
fn many_refusals_in_a_row_are_all_at_once() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (_slot, guest) = bench.guest().await;
        for _ in 0..20 {
            assert_refused(&guest, Ipv4Addr::new(169, 254, 169, 254));
        }
    });
}

/// Sends datagrams with forged sources and an honest one; panics if a forged one gets out.
fn assert_only_honest_packets_get_out(bench: &Bench, guest: &Guest) {
    guest.ip("addr add 198.51.100.77/32 dev eth0");
    guest.ip("addr add 10.12.0.99/32 dev eth0");
    let world = inside(bench.outside.namespace(), || {
        let socket = UdpSocket::bind((ANY, 7777)).expect("a free port");
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        socket
    });
    guest.run(|| {
        for (source, text) in [
            (Ipv4Addr::new(198, 51, 100, 77), "forged"),
            (Ipv4Addr::new(10, 12, 0, 99), "forged"),
            (Ipv4Addr::new(169, 254, 0, 21), "honest"),
        ] {
            let socket = UdpSocket::bind((source, 0)).expect("an address of the guest");
            let _ = socket.send_to(text.as_bytes(), (Outside::ADDRESS, 7777));
        }
    });
    let mut buffer = [0; 16];
    let (length, _) = world.recv_from(&mut buffer).expect("the honest one");
    assert_eq!(&buffer[..length], b"honest");
}

#[test]
fn a_forged_source_is_dropped() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (_slot, guest) = bench.guest().await;
        assert_only_honest_packets_get_out(&bench, &guest);
    });
}

#[test]
fn the_namespaces_filter_alone_drops_a_forged_source() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        // Without it nothing is masqueraded on the host either, so the honest one needs a way back.
        run("nft flush ruleset");
        run("ip -n outside route add 10.12.0.0/16 via 198.51.100.1");
        let name = slot.index().namespace_name();
        run(&format!("ip netns exec {name} sysctl -q -w net.ipv4.conf.all.rp_filter=0"));
        assert_only_honest_packets_get_out(&bench, &guest);
    });
}

#[test]
fn the_world_does_not_reach_a_guest_through_the_host() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, _guest) = bench.guest().await;
        run("ip -n outside route add 10.0.0.0/8 via 198.51.100.1");
        let address = slot.address();
        let result = inside(bench.outside.namespace(), move || greeting((address, TCP)));
        assert!(result.is_err(), "the world got through: {result:?}");
    });
}

#[test]
fn two_guests_have_the_same_address_and_do_not_notice() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (one, first) = bench.guest().await;
        let (two, second) = bench.guest().await;
        for guest in [&first, &second] {
            guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("the world answers");
        }
        for slot in [&one, &two] {
            greeting((slot.address(), TCP)).expect("the guest answers");
        }
    });
}

#[test]
fn large_transfers_get_through_a_host_link_with_small_frames() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        run("ip link set wan0 mtu 1280");
        let (slot, guest) = bench.guest().await;
        // The message that a packet was too large gets lost, as it does on many a network.
        let deaf = format!("ip netns exec guest-{} nft", slot.index());
        run(&format!("{deaf} add table ip deaf"));
        run(&format!("{deaf} add chain ip deaf in {{ type filter hook input priority 0 ; }}"));
        run(&format!("{deaf} add rule ip deaf in icmp type destination-unreachable drop"));
        let sent = inside(bench.outside.namespace(), || {
            let listener = std::net::TcpListener::bind((ANY, 7000)).expect("a free port");
            std::thread::spawn(move || {
                let (mut client, _) = listener.accept().expect("the guest connects");
                io::copy(&mut client, &mut io::sink()).expect("the guest sends")
            })
        });
        guest.run(|| {
            let mut stream =
                std::net::TcpStream::connect((Outside::ADDRESS, 7000)).expect("connected");
            stream.set_write_timeout(Some(Duration::from_secs(2))).expect("a timeout");
            io::Write::write_all(&mut stream, &vec![7; 1 << 20]).expect("sent");
        });
        assert_eq!(sent.join().expect("received"), 1 << 20);
    });
}
