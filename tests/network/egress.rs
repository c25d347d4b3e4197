//! What egress policies let through, address by address.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use nestbox::domain::egress::Policy;
use nestbox::vmm::network::SlotPool;
use serde_json::{Value, json};

use crate::lab::{Guest, Outside, config, echo, greeting, inside, on_own_machine, run, serve_udp};
use crate::reach::{ANY, Bench, TCP, UDP, assert_refused};

/// A second server of the internet.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);

pub fn policy(json: Value) -> Policy {
    serde_json::from_value(json).expect("a policy")
}

/// Its port for datagrams: a server on all addresses would answer from the first one.
pub const UDP_ELSEWHERE: u16 = UDP + 1;

/// Gives the internet a second address.
pub fn add_elsewhere(outside: &Outside) {
    run("ip -n outside addr add 203.0.113.7/32 dev eth0");
    run("ip route add 203.0.113.0/24 via 198.51.100.2");
    inside(outside.namespace(), || serve_udp((ELSEWHERE, UDP_ELSEWHERE)));
}

fn assert_reached(guest: &Guest, address: Ipv4Addr) {
    guest.run(move || greeting((address, TCP))).unwrap_or_else(|e| panic!("TCP {address}: {e}"));
    let port = if address == ELSEWHERE { UDP_ELSEWHERE } else { UDP };
    guest.run(move || echo((address, port))).unwrap_or_else(|e| panic!("UDP {address}: {e}"));
}

#[test]
fn what_is_denied_is_refused_at_once_and_the_rest_is_reached() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        add_elsewhere(&bench.outside);
        let (slot, guest) = bench.guest().await;
        slot.limit(&policy(json!({ "deny": ["198.51.100.0/24", "198.51.100.9"] })), None)
            .await
            .unwrap();
        assert_refused(&guest, Outside::ADDRESS);
        assert_reached(&guest, ELSEWHERE);
        // What comes from the host is no business of the policy.
        greeting((slot.address(), TCP)).expect("the guest answers");
        echo((slot.address(), UDP)).expect("the guest echoes");
    });
}

#[test]
fn what_is_allowed_wins_over_what_is_denied() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        add_elsewhere(&bench.outside);
        let (slot, guest) = bench.guest().await;
        let rules = json!({ "deny": ["198.51.100.0/24"], "allow": ["198.51.100.2"] });
        slot.limit(&policy(rules), None).await.unwrap();
        assert_reached(&guest, Outside::ADDRESS);
        assert_reached(&guest, ELSEWHERE);
        assert_refused(&guest, Ipv4Addr::new(198, 51, 100, 3));
    });
}

#[test]
fn an_allow_list_alone_leaves_nothing_else() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        add_elsewhere(&bench.outside);
        let (slot, guest) = bench.guest().await;
        slot.limit(&policy(json!({ "allow": ["203.0.113.7"] })), None).await.unwrap();
        assert_reached(&guest, ELSEWHERE);
        assert_refused(&guest, Outside::ADDRESS);
    });
}

#[test]
fn switched_off_a_guest_reaches_nothing_and_is_still_reached() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        slot.limit(&Policy::off(), None).await.unwrap();
        assert_refused(&guest, Outside::ADDRESS);
        greeting((slot.address(), TCP)).expect("the guest answers");
        echo((slot.address(), UDP)).expect("the guest echoes");
        slot.limit(&Policy::default(), None).await.unwrap();
        assert_reached(&guest, Outside::ADDRESS);
    });
}

#[test]
fn no_policy_opens_the_host_other_guests_or_the_metadata_service() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        run("ip addr add 169.254.169.254/32 dev lan0");
        let (slot, guest) = bench.guest().await;
        let (other, _other_guest) = bench.guest().await;
        let all = json!({ "default": "allow", "deny": ["203.0.113.0/24"], "allow": ["0.0.0.0/0",
            "169.254.0.0/16", "10.0.0.0/8", "198.51.100.1"] });
        let names = json!({ "allow": ["0.0.0.0/0", "169.254.169.254", "example.com"] });
        for rules in [all, names] {
            slot.limit(&policy(rules), None).await.unwrap();
            for address in [
                Ipv4Addr::new(169, 254, 169, 254),
                Ipv4Addr::new(169, 254, 0, 22),
                Outside::HOST,
                Ipv4Addr::new(10, 99, 0, 1),
                slot.index().host_address(),
                slot.index().uplink_address(),
                other.address(),
                other.index().uplink_address(),
            ] {
                assert_refused(&guest, address);
            }
            assert_reached(&guest, Outside::ADDRESS);
        }
    });
}

/// A connection whose other end sends back what it gets, and the other end.
fn connected(bench: &Bench, guest: &Guest, port: u16) -> (TcpStream, TcpStream) {
    let listener = inside(bench.outside.namespace(), move || {
        TcpListener::bind((ANY, port)).expect("a free port")
    });
    let near = guest.run(move || TcpStream::connect((Outside::ADDRESS, port)).expect("connected"));
    let (far, _) = listener.accept().expect("the guest connects");
    for stream in [&near, &far] {
        stream.set_read_timeout(Some(Duration::from_millis(700))).expect("a timeout");
    }
    (near, far)
}

fn passes(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
    from.write_all(b"word")?;
    to.read_exact(&mut [0; 4])
}

#[test]
fn a_change_cuts_connections_that_are_not_allowed_any_more_and_no_others() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let (mut near, mut far) = connected(&bench, &guest, 7001);
        let inwards = TcpStream::connect((slot.address(), TCP)).expect("the guest takes it");
        passes(&mut near, &mut far).expect("there");
        passes(&mut far, &mut near).expect("and back");

        // Allowed by both policies, it goes on, whichever end speaks first.
        for (rules, far_first) in [
            (json!({ "allow": ["198.51.100.0/24"] }), true),
            (json!({ "deny": ["203.0.113.0/24"] }), false),
            (json!({ "allow": ["198.51.100.2"] }), true),
        ] {
            slot.limit(&policy(rules.clone()), None).await.unwrap();
            if far_first {
                passes(&mut far, &mut near).unwrap_or_else(|e| panic!("{rules}: {e}"));
            }
            passes(&mut near, &mut far).unwrap_or_else(|e| panic!("{rules}: {e}"));
        }

        slot.limit(&policy(json!({ "deny": ["198.51.100.0/24"] })), None).await.unwrap();
        passes(&mut far, &mut near).expect_err("the world speaks into the dark");
        // With this word at the latest: it may have been told already, for an acknowledgement that it
        // sent a little late.
        let told = near.write_all(b"word").and_then(|()| near.read(&mut [0; 4]));
        let error = told.expect_err("the guest learns it at once");
        let refusals =
            [ErrorKind::ConnectionReset, ErrorKind::ConnectionRefused, ErrorKind::BrokenPipe];
        assert!(refusals.contains(&error.kind()), "{error:?}");
        let mut hello = String::new();
        { inwards }.read_to_string(&mut hello).expect("what the host began goes on");
        assert!(hello.starts_with("hello"), "{hello}");
    });
}

#[test]
fn a_change_also_cuts_off_who_sends_without_being_asked() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        let world = inside(bench.outside.namespace(), || {
            UdpSocket::bind((ANY, 7002)).expect("a free port")
        });
        let socket = guest.run(|| {
            let socket = UdpSocket::bind((ANY, 0)).expect("a free port");
            socket.set_read_timeout(Some(Duration::from_millis(700))).expect("a timeout");
            socket.send_to(b"hello", (Outside::ADDRESS, 7002)).expect("sent");
            socket
        });
        let (_, peer) = world.recv_from(&mut [0; 16]).expect("the guest's word");
        world.send_to(b"one", peer).expect("sent");
        socket.recv(&mut [0; 16]).expect("an answer");
        slot.limit(&Policy::off(), None).await.unwrap();
        world.send_to(b"two", peer).expect("sent");
        socket.recv(&mut [0; 16]).expect_err("nobody gets through any more");
    });
}

#[test]
fn a_slot_that_a_later_daemon_adopts_has_its_policy_and_its_connections() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        add_elsewhere(&bench.outside);
        let (slot, guest) = bench.guest().await;
        let rules = policy(json!({ "allow": ["198.51.100.0/24"] }));
        slot.limit(&rules, None).await.unwrap();
        let (mut near, mut far) = connected(&bench, &guest, 7001);
        let (index, data) = (slot.index(), bench.data());
        bench.pool.shutdown().await.expect("shut down");
        slot.detach();
        // With no daemon at all the rules hold.
        assert_refused(&guest, ELSEWHERE);

        let later = SlotPool::start(config(&data, 0), &[index]).await.expect("the pool");
        let slot = later.adopt(index, &rules, None).await.expect("the slot is whole");
        passes(&mut far, &mut near).expect("the connection is there");
        assert_refused(&guest, ELSEWHERE);
        assert_reached(&guest, Outside::ADDRESS);
        slot.limit(&Policy::default(), None).await.unwrap();
        assert_reached(&guest, ELSEWHERE);
        slot.release().await.expect("released");
        later.shutdown().await.expect("shut down");
    });
}

#[test]
fn a_ready_slot_knows_nothing_of_the_policy_of_the_one_before() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        let (slot, guest) = bench.guest().await;
        slot.limit(&Policy::off(), None).await.unwrap();
        assert_refused(&guest, Outside::ADDRESS);
        drop(guest);
        slot.release().await.expect("released");
        let (_slot, guest) = bench.guest().await;
        assert_reached(&guest, Outside::ADDRESS);
    });
}
