//! What rules about names withstand: other names at the same address, on every port and in every way of
//! beginning; and more questions than anybody has.

use std::io::{Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use nestbox::vmm::network::NetworkConfig;
use serde_json::json;

use crate::egress::{ELSEWHERE, policy};
use crate::hello::client_hello;
use crate::lab::{Outside, echo, eventually, greeting, on_own_machine};
use crate::names::{ANY_SERVER, ECHOES, Internet, PATIENCE, addresses, assert_cut, request, speak};
use crate::reach::{ANY, Bench, TCP, UDP, assert_refused};

/// Ways to mean another name, and ways to mean none.
fn others() -> Vec<(Vec<u8>, &'static str)> {
    let blank_first = [b"\r\n\r\n".to_vec(), request("evil.example")].concat();
    vec![
        (client_hello(Some("evil.example")), "TLS with another name"),
        (client_hello(None), "TLS without a name"),
        (b"\x16\x03\x01\x00\x04nope".to_vec(), "what begins as TLS"),
        (request("evil.example"), "HTTP with another name"),
        (blank_first, "HTTP after empty lines"),
        (b"get / HTTP/1.1\r\nhost: evil.example\r\n\r\n".to_vec(), "HTTP in small letters"),
        (b"GET / HTTP/1.0\r\n\r\n".to_vec(), "HTTP without a name"),
    ]
}

#[test]
fn an_address_known_by_name_takes_that_name_alone_on_every_port() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["good.example"] })).await;
        addresses(&guest, "good.example.").expect("found");
        for port in ECHOES {
            let server = (Outside::ADDRESS, port);
            speak(&guest, server, client_hello(Some("good.example"))).expect("TLS");
            speak(&guest, server, request("good.example")).expect("HTTP");
            for (words, what) in others() {
                assert_cut(speak(&guest, server, words), &format!("{what}, port {port}"));
            }
            let ssh = b"SSH-2.0-guest\r\n".to_vec();
            assert_cut(speak(&guest, server, ssh), &format!("another protocol, port {port}"));
        }
        guest.run(|| greeting((Outside::ADDRESS, TCP))).expect_err("a server that speaks first");
        for port in [UDP, 443] {
            let error = guest.run(move || echo((Outside::ADDRESS, port))).expect_err("UDP");
            assert_eq!(error.kind(), std::io::ErrorKind::HostUnreachable, "{error:?}");
        }
    });
}

#[test]
fn a_rule_with_a_port_opens_it_to_other_protocols_and_to_no_other_name() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let rules = json!({ "allow":
            ["good.example:22", format!("*.example:{UDP}"), format!("good.example:{TCP}")] });
        let (slot, guest) = net.guest(rules).await;
        addresses(&guest, "good.example.").expect("found");
        let server = (Outside::ADDRESS, 22);
        let ssh = || b"SSH-2.0-guest\r\n".to_vec();
        let mut session = speak(&guest, server, ssh()).expect("another protocol");
        speak(&guest, server, client_hello(Some("good.example"))).expect("TLS");
        for (words, what) in others() {
            assert_cut(speak(&guest, server, words), what);
        }
        let start = Instant::now();
        guest.run(|| greeting((Outside::ADDRESS, TCP))).expect("a server that speaks first");
        assert!(start.elapsed() < Duration::from_secs(2), "nobody waits for the client to speak");
        guest.run(|| echo((Outside::ADDRESS, UDP))).expect("UDP");
        // Only these ports, and only of where the names lead.
        assert_cut(speak(&guest, (Outside::ADDRESS, 8443), ssh()), "another port");
        let hello = client_hello(Some("good.example"));
        assert_cut(speak(&guest, (Outside::ADDRESS, 443), hello), "TLS on another port");
        guest.run(|| echo((Outside::ADDRESS, 443))).expect_err("UDP on another port");
        assert_refused(&guest, ELSEWHERE);

        // What a rule opened goes on while that rule stands.
        let goes_on = |session: &mut TcpStream| {
            session.write_all(b"on").and_then(|()| session.read_exact(&mut [0; 2]))
        };
        let same = json!({ "allow": ["good.example:22", "other.example"] });
        slot.limit(&policy(same), None).await.expect("limited");
        goes_on(&mut session).expect("it is still allowed");
        slot.limit(&policy(json!({ "allow": ["good.example"] })), None).await.expect("limited");
        goes_on(&mut session).expect_err("cut");
    });
}

#[test]
fn silence_at_first_does_not_hide_another_name() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["good.example:22"] })).await;
        addresses(&guest, "good.example.").expect("found");
        let mut stream = guest
            .run(|| TcpStream::connect_timeout(&(Outside::ADDRESS, 22).into(), PATIENCE))
            .expect("connected");
        // Longer than a client may take for its name where it has to say one.
        tokio::time::sleep(Duration::from_millis(3500)).await;
        let words = client_hello(Some("evil.example"));
        let said = stream.write_all(&words).and_then(|()| stream.read_exact(&mut [0; 1]));
        said.expect_err("it was looked at all the same");
    });
}

#[test]
fn a_guest_asks_for_no_more_names_than_it_may_however_fast_it_asks() {
    const RATE: u32 = 20;
    on_own_machine(|| async {
        let dns_rate = RATE.try_into().expect("not zero");
        let bench = Bench::with(|settings| NetworkConfig { dns_rate, ..settings }).await;
        let net = Internet::around(bench);
        let (_slot, guest) = net.guest(json!({ "allow": ["*.example"] })).await;
        let start = Instant::now();
        guest.run(|| {
            let socket = UdpSocket::bind((ANY, 0)).expect("a free port");
            socket.connect((ANY_SERVER, 53)).expect("connected");
            for id in 0..2000 {
                let mut question = Message::new(id, MessageType::Query, OpCode::Query);
                let name = Name::from_ascii(format!("flood-{id}.example.")).expect("a name");
                question.add_query(Query::query(name, RecordType::A));
                // The kernel may refuse some, which is as good as losing them.
                let _ = socket.send(&question.to_vec().expect("a question"));
            }
        });
        let asked = || net.asked().len() as u32;
        eventually("a burst of them was asked", || asked() >= RATE).await;
        // As many again take a second, and what is asked for by then is no more than that.
        eventually("more were asked", || asked() >= 2 * RATE).await;
        let (asked, took) = (asked(), start.elapsed());
        let most = f64::from(RATE) * (1.0 + took.as_secs_f64()) + 2.0;
        assert!(f64::from(asked) <= most, "{asked} after {took:?}");
    });
}
