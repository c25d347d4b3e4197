//! The walls of a host's network, attacked: by a local user, by whoever has a VMM, by what else the host
//! forwards for; and what is somebody else's stays so.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nestbox::domain::egress::{Lan, Policy};
use nestbox::vmm::network::{NetworkConfig, Slot, SlotPool};
use serde_json::json;
use tempfile::TempDir;

use crate::egress::{add_elsewhere, policy};
use crate::lab::{
    Guest, Outside, config, echo, eventually, greeting, inside, on_own_machine, run, serve_tcp,
    serve_udp,
};
use crate::neighbour::{NOBODY, as_user};
use crate::reach::{ANY, Bench, TCP, UDP, assert_refused};

/// The user of the first slot's VMM.
const FIRST_UID: u32 = 700_000;

/// A network near the host, and a server in it.
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

fn assert_unreachable(attempt: io::Result<()>, what: &str) {
    let error = attempt.expect_err(what);
    let at_once = [
        ErrorKind::ConnectionRefused,
        ErrorKind::PermissionDenied,
        ErrorKind::HostUnreachable,
        ErrorKind::NetworkUnreachable,
    ];
    assert!(at_once.contains(&error.kind()), "{what}: {error:?}");
}

#[test]
fn no_local_user_but_root_sends_anything_to_a_guest() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, _guest) = bench.guest().await;
        let (to, peer) = (slot.address(), slot.index().uplink_address());
        greeting((to, TCP)).expect("root does");
        echo((to, UDP)).expect("root does");
        for uid in [NOBODY, FIRST_UID + slot.index().get(), 1] {
            as_user(uid, move || {
                for address in [to, peer] {
                    let tcp = greeting((address, TCP)).map(drop);
                    assert_unreachable(tcp, &format!("TCP of {uid} to {address}"));
                    let udp = echo((address, UDP));
                    assert_unreachable(udp, &format!("UDP of {uid} to {address}"));
                }
            });
        }
        greeting((to, TCP)).expect("root still does");
    });
}

/// Sends a datagram from a port and waits for its echo.
fn echo_from(port: u16, to: SocketAddr) -> io::Result<()> {
    let socket = UdpSocket::bind((ANY, port))?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    socket.send(b"ping")?;
    socket.recv(&mut [0; 16]).map(drop)
}

#[test]
fn whoever_gets_the_port_of_a_connection_that_root_had_is_still_not_root() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, _guest) = bench.guest().await;
        let to = SocketAddr::from((slot.address(), UDP));
        // The kernel goes on to know it as a connection that was let through.
        echo_from(40_000, to).expect("root's");
        let attempt = as_user(NOBODY, move || echo_from(40_000, to));
        assert_unreachable(attempt, "the neighbour's from the same port");
    });
}

#[test]
fn nothing_that_the_host_forwards_for_others_reaches_a_guest() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, _guest) = bench.guest().await;
        // As containers have it: a bridge, and the host's name for all that goes out.
        run("ip netns add container");
        run("ip link add br0 type bridge");
        run("ip addr add 172.17.0.1/16 dev br0");
        run("ip link set br0 up");
        run("ip link add port0 type veth peer name eth0 netns container");
        run("ip link set port0 master br0 up");
        run("ip -n container addr add 172.17.0.2/16 dev eth0");
        run("ip -n container link set eth0 up");
        run("ip -n container route add default via 172.17.0.1");
        run("nft add table ip containers");
        run("nft add chain ip containers out { type nat hook postrouting priority 100 ; }");
        run("nft add rule ip containers out ip saddr 172.17.0.0/16 oifname != br0 masquerade");
        let address = slot.address();
        let from_container = |to: Ipv4Addr| {
            inside(Path::new("/run/netns/container"), move || greeting((to, TCP)).map(drop))
        };
        from_container(Outside::ADDRESS).expect("the container has a network");
        assert_unreachable(from_container(address), "the container's");

        // Nor is it the host's table alone that says so.
        run("nft delete table inet nestbox");
        run("nft delete table ip containers");
        run(&format!("ip netns exec {} true", slot.index().namespace_name()));
        let name = slot.index().namespace_name();
        run(&format!(
            "ip -n {name} route replace 172.17.0.0/16 via {}",
            slot.index().host_address()
        ));
        greeting((address, TCP)).expect("the host's own still do");
        assert_unreachable(from_container(address), "the container's, past the host's table");
    });
}

/// What a process in a slot's namespace tries: the world, the host, the guest and the daemon's own servers.
fn tries_in(slot: &Slot, uid: u32) -> Vec<String> {
    let (host, peer) = (slot.index().host_address(), slot.index().uplink_address());
    inside(slot.namespace(), move || {
        as_user(uid, move || {
            let mut reached = Vec::new();
            let gateway = Ipv4Addr::new(169, 254, 0, 22);
            let guest = Ipv4Addr::new(169, 254, 0, 21);
            for (address, port) in [(Outside::ADDRESS, TCP), (host, TCP), (guest, TCP)] {
                if greeting((address, port)).is_ok() {
                    reached.push(format!("TCP {address}"));
                }
            }
            // Whether it is answered or not: that it leaves is too much.
            for address in [Outside::ADDRESS, host, peer, guest, gateway] {
                let socket = UdpSocket::bind((ANY, 0)).expect("a port");
                if [UDP, 53, 49_953]
                    .iter()
                    .any(|port| socket.send_to(b"ping", (address, *port)).is_ok())
                {
                    reached.push(format!("UDP {address}"));
                }
            }
            reached
        })
    })
}

#[test]
fn whoever_has_taken_over_a_vmm_sends_nothing_of_his_own_whatever_his_guest_may() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let open = Policy::default();
        let rules = policy(json!({ "deny": ["203.0.113.0/24"] }));
        let names = policy(json!({ "default": "deny", "allow": ["good.example", "198.51.100.2"] }));
        for policy in [open, rules, names] {
            slot.limit(&policy, None).await.expect("limited");
            for uid in [FIRST_UID + slot.index().get(), NOBODY] {
                assert_eq!(tries_in(&slot, uid), [""; 0], "{policy:?}");
            }
            assert!(!tries_in(&slot, 0).is_empty(), "there is somebody to reach");
            guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("the guest reaches the world");
            greeting((slot.address(), TCP)).expect("and root the guest");
        }
        // The kernel's own answers still come: a guest learns at once that it is refused.
        assert_refused(&guest, slot.index().uplink_address());
    });
}

#[test]
fn links_of_others_are_theirs_whatever_they_are_called() {
    on_own_machine(|| async {
        let _bench = Bench::new().await;
        for (name, network) in [("nb-foo", "10.77.0"), ("nb7", "10.78.0"), ("nb99999", "10.79.0")] {
            run(&format!("ip netns add of-{name}"));
            run(&format!("ip link add {name} type veth peer name eth0 netns of-{name}"));
            run(&format!("ip addr add {network}.1/24 dev {name}"));
            run(&format!("ip link set {name} up"));
            run(&format!("ip -n of-{name} addr add {network}.2/24 dev eth0"));
            run(&format!("ip -n of-{name} link set eth0 up"));
            let host: Ipv4Addr = format!("{network}.1").parse().expect("an address");
            let place = PathBuf::from(format!("/run/netns/of-{name}"));
            inside(&place, || serve_tcp((ANY, TCP)));
            inside(&place, move || greeting((host, TCP))).expect("its owner's services");
            let peer: Ipv4Addr = format!("{network}.2").parse().expect("an address");
            as_user(NOBODY, move || greeting((peer, TCP))).expect("its owner's users");
        }
        // A claim on that number, of which nothing was made, removes nothing of theirs.
        let data = TempDir::new().expect("a data directory");
        std::os::unix::fs::symlink(data.path(), "/run/nestbox/slots/7").expect("a claim");
        let pool = SlotPool::start(config(data.path(), 0), &[]).await.expect("the pool");
        assert!(run("ip -br link").contains("nb7@"), "it is not ours");
        pool.shutdown().await.expect("shut down");
    });
}

#[test]
fn links_that_an_older_daemon_made_are_known_as_ours_from_the_start_and_later() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let link = slot.index().host_link_name();
        let forget = || run(&format!("ip link set {link} group default"));
        let guarded = |guest: &Guest| assert_refused(guest, Outside::HOST);
        let known = || run("ip link show group 1852142452").contains(&link);
        forget();
        let data = TempDir::new().expect("a data directory");
        let keep_period = Duration::from_millis(20);
        let keen = NetworkConfig { keep_period, ..config(data.path(), 0) };
        let pool = SlotPool::start(keen, &[]).await.expect("the pool");
        assert!(known(), "before the host's table knows links by nothing else");
        guarded(&guest);
        // And of one that still runs, and makes more.
        forget();
        eventually("it is known again", known).await;
        guarded(&guest);
        pool.shutdown().await.expect("shut down");
    });
}

/// A machine with somebody near, who also has a name server.
async fn near(lan: Lan) -> (Bench, SlotPool, TempDir) {
    let bench = Bench::new().await;
    add_elsewhere(&bench.outside);
    run("ip -n outside addr add 192.168.77.1/32 dev eth0");
    run("ip route add 192.168.77.0/24 via 198.51.100.2");
    inside(bench.outside.namespace(), || {
        serve_udp((NEAR, 53));
        serve_udp((NEAR, UDP + 2));
        serve_tcp((ANY, 53));
    });
    let data = TempDir::new().expect("a data directory");
    let settings = config(data.path(), 0);
    let settings = NetworkConfig { name_servers: Some(vec![NEAR]), lan, ..settings };
    let pool = SlotPool::start(settings, &[]).await.expect("the pool");
    (bench, pool, data)
}

fn reaches_near(guest: &Guest) -> bool {
    let tcp = guest.run(|| greeting((NEAR, TCP))).is_ok();
    let udp = guest.run(|| echo((NEAR, UDP + 2))).is_ok();
    assert_eq!(tcp, udp, "both or neither");
    tcp
}

#[test]
fn private_networks_are_closed_but_for_the_name_servers_until_a_policy_opens_them() {
    on_own_machine(|| async {
        let (_bench, pool, _data) = near(Lan::Closed).await;
        let slot = pool.acquire().await.expect("a slot");
        let guest = Guest::attach(&slot).await;
        for (rules, opens, asks) in [
            (json!({}), false, true),
            (json!({ "deny": ["203.0.113.0/24"] }), false, true),
            (json!({ "default": "deny" }), false, false),
            (json!({ "deny": ["192.168.77.1"] }), false, false),
            (json!({ "allow": ["0.0.0.0/0"] }), false, true),
            (json!({ "default": "allow", "allow": ["192.168.77.0/24"] }), true, true),
            (json!({ "allow": ["192.168.0.0/16"] }), true, true),
        ] {
            slot.limit(&policy(rules.clone()), None).await.expect("limited");
            assert_eq!(reaches_near(&guest), opens, "{rules}");
            if !opens {
                assert_refused(&guest, NEAR);
            }
            let asked = guest.run(|| echo((NEAR, 53))).is_ok();
            let by_stream = guest.run(|| greeting((NEAR, 53))).is_ok();
            assert_eq!((asked, by_stream), (asks, asks), "{rules}");
        }
        slot.limit(&Policy::default(), None).await.expect("limited");
        guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("the rest of the world");
        for closed in [[10, 1, 2, 3], [172, 16, 0, 1], [100, 64, 0, 1], [198, 18, 0, 1]] {
            assert_refused(&guest, closed.into());
        }
        // Rules about names change nothing about that, also where all ports of the web lead to the proxy.
        slot.limit(&policy(json!({ "deny": ["evil.example"] })), None).await.expect("limited");
        assert!(!reaches_near(&guest));
        for port in [80, 443] {
            let error = guest.run(move || greeting((NEAR, port))).expect_err("closed");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error:?}");
        }
        guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("the rest of the world");
    });
}

#[test]
fn a_host_can_open_its_private_networks_and_close_them_to_what_runs_already() {
    on_own_machine(|| async {
        let (bench, pool, data) = near(Lan::Open).await;
        let slot = pool.acquire().await.expect("a slot");
        let guest = Guest::attach(&slot).await;
        assert!(reaches_near(&guest));
        slot.limit(&policy(json!({ "deny": ["192.168.0.0/16"] })), None).await.expect("limited");
        assert!(!reaches_near(&guest), "a policy still decides");
        slot.limit(&Policy::default(), None).await.expect("limited");

        let listener = inside(bench.outside.namespace(), || TcpListener::bind((NEAR, 7001)));
        let listener = listener.expect("a free port");
        let mut held = guest.run(|| std::net::TcpStream::connect((NEAR, 7001))).expect("connected");
        held.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        let (_far, _) = listener.accept().expect("it is there");
        let index = slot.index();
        pool.shutdown().await.expect("shut down");
        slot.detach();

        let settings = NetworkConfig { lan: Lan::Closed, ..config(data.path(), 0) };
        let later = SlotPool::start(settings, &[index]).await.expect("the pool");
        let slot = later.adopt(index, &Policy::default(), None).await.expect("the slot is whole");
        assert!(!reaches_near(&guest));
        let spoken = io::Write::write_all(&mut held, b"word")
            .and_then(|()| io::Read::read(&mut held, &mut [0; 1]).map(drop));
        let error = spoken.expect_err("it was open before");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error:?}");
        slot.release().await.expect("released");
        later.shutdown().await.expect("shut down");
    });
}
