//! What rules about names let through: resolved by a resolver of ours, seen by a proxy of ours.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nestbox::domain::egress::Policy;
use nestbox::vmm::network::{Slot, SlotPool};
use serde_json::json;

use crate::dns::{read_message, serve_dns};
use crate::egress::{ELSEWHERE, UDP_ELSEWHERE, add_elsewhere, policy};
use crate::hello::client_hello;
use crate::lab::{Guest, Outside, config, echo, greeting, inside, on_own_machine, run};
use crate::reach::{ANY, Bench, TCP, assert_refused};

/// Somebody's name server, which guests ask; nobody listens there.
pub const ANY_SERVER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 53);

/// A network near the host, with a server in it.
const NEAR: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 1);

pub const PATIENCE: Duration = Duration::from_secs(15);

/// An internet with names, web servers and a server near by; and the questions it was asked.
pub struct Internet {
    pub bench: Bench,
    asked: Arc<Mutex<Vec<String>>>,
}

/// Where the internet has servers that send back what they get.
pub const ECHOES: [u16; 4] = [22, 80, 443, 8443];

impl Internet {
    pub async fn new() -> Self {
        Self::around(Bench::new().await)
    }

    /// Makes it around a machine.
    pub fn around(bench: Bench) -> Self {
        add_elsewhere(&bench.outside);
        run("ip -n outside addr add 192.168.77.1/32 dev eth0");
        run("ip route add 192.168.77.0/24 via 198.51.100.2");
        let asked = Arc::new(Mutex::new(Vec::new()));
        let questions = asked.clone();
        inside(bench.outside.namespace(), move || {
            serve_dns(zone, questions);
            for port in ECHOES {
                serve_web(port);
            }
            crate::lab::serve_udp((ANY, 443));
        });
        Self { bench, asked }
    }

    pub async fn guest(&self, rules: serde_json::Value) -> (Slot, Guest) {
        let (slot, guest) = self.bench.guest().await;
        slot.limit(&policy(rules), None).await.expect("limited");
        (slot, guest)
    }

    pub fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

fn zone(name: &str) -> Vec<(String, u32, RData)> {
    let a = |owner: &str, ttl, address| (owner.to_owned(), ttl, RData::A(A(address)));
    match name {
        "good.example." | "evil.example." => vec![a(name, 30, Outside::ADDRESS)],
        "slow.example." => {
            // Longer than a name server may take before others are asked as well; there is no other.
            std::thread::sleep(Duration::from_secs(3));
            vec![a(name, 30, Outside::ADDRESS)]
        }
        "long.example." => vec![a(name, 7200, Outside::ADDRESS)],
        "other.example." => vec![a(name, 30, ELSEWHERE)],
        "near.example." => vec![a(name, 30, NEAR)],
        "alias.example." => {
            let target = "cdn.example.net.";
            let alias = RData::CNAME(CNAME(Name::from_ascii(target).expect("a name")));
            vec![(name.to_owned(), 30, alias), a(target, 30, ELSEWHERE)]
        }
        _ => Vec::new(),
    }
}

/// A server that sends back all it gets.
fn serve_web(port: u16) {
    let listener = TcpListener::bind((ANY, port)).expect("a free port");
    std::thread::spawn(move || {
        while let Ok((client, _)) = listener.accept() {
            std::thread::spawn(move || io::copy(&mut &client, &mut &client));
        }
    });
}

/// What a name server says to a guest, in whichever way it is asked.
pub fn look_up(
    guest: &Guest,
    name: &str,
    kind: RecordType,
    stream: bool,
) -> Result<Vec<Ipv4Addr>, ResponseCode> {
    let mut question = Message::new(7, MessageType::Query, OpCode::Query);
    question.metadata.recursion_desired = true;
    question.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    let question = question.to_vec().expect("a question");
    let bytes = guest.run(move || match stream {
        true => {
            let mut stream = TcpStream::connect((ANY_SERVER, 53)).expect("connected");
            stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            let length = (question.len() as u16).to_be_bytes();
            stream.write_all(&[&length, question.as_slice()].concat()).expect("sent");
            read_message(&mut stream).expect("an answer")
        }
        false => {
            let socket = UdpSocket::bind((ANY, 0)).expect("a free port");
            socket.connect((ANY_SERVER, 53)).expect("connected");
            socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
            socket.send(&question).expect("sent");
            let mut buffer = [0; 2048];
            let length = socket.recv(&mut buffer).expect("an answer");
            buffer[..length].to_vec()
        }
    });
    let answer = Message::from_vec(&bytes).expect("an answer");
    assert_eq!(answer.metadata.id, 7);
    let address = |record: &Record| match &record.data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    match answer.metadata.response_code {
        ResponseCode::NoError => Ok(answer.answers.iter().filter_map(address).collect()),
        code => Err(code),
    }
}

pub fn addresses(guest: &Guest, name: &str) -> Result<Vec<Ipv4Addr>, ResponseCode> {
    look_up(guest, name, RecordType::A, false)
}

/// Sends the first words of a client and gives back what the server has got of them.
pub fn speak(
    guest: &Guest,
    server: impl Into<SocketAddr>,
    words: Vec<u8>,
) -> io::Result<TcpStream> {
    let server = server.into();
    guest.run(move || {
        let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&words)?;
        let mut back = vec![0; words.len()];
        stream.read_exact(&mut back)?;
        assert_eq!(back, words);
        Ok(stream)
    })
}

pub fn request(host: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes()
}

pub fn assert_cut(result: io::Result<TcpStream>, what: &str) {
    let error = result.map(drop).expect_err(what);
    assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{what}: {error:?}");
}

#[test]
fn an_allowed_name_is_answered_and_its_address_is_reached_from_then_on() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) =
            net.guest(json!({ "allow": ["good.example", "*.good.example"] })).await;
        assert_refused(&guest, Outside::ADDRESS);
        for stream in [false, true] {
            let found = look_up(&guest, "Good.example.", RecordType::A, stream);
            assert_eq!(found, Ok(vec![Outside::ADDRESS]));
        }
        for port in [443, 8443] {
            let words = client_hello(Some("good.example"));
            speak(&guest, (Outside::ADDRESS, port), words).expect("TLS");
        }
        speak(&guest, (Outside::ADDRESS, 80), request("www.good.example")).expect("HTTP");
        assert_refused(&guest, ELSEWHERE);
        for (name, kind) in
            [("good.example.", RecordType::AAAA), ("good.example.", RecordType::HTTPS)]
        {
            assert_eq!(look_up(&guest, name, kind, false), Ok(Vec::new()), "{kind}");
        }
    });
}

#[test]
fn a_slow_name_server_is_waited_for_as_the_guest_itself_would() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["slow.example"] })).await;
        for stream in [false, true] {
            let found = look_up(&guest, "slow.example.", RecordType::A, stream);
            assert_eq!(found, Ok(vec![Outside::ADDRESS]));
        }
        speak(&guest, (Outside::ADDRESS, 443), client_hello(Some("slow.example"))).expect("TLS");
    });
}

#[test]
fn the_addresses_of_an_alias_are_those_of_the_name() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["alias.example"] })).await;
        assert_eq!(addresses(&guest, "alias.example."), Ok(vec![ELSEWHERE]));
        speak(&guest, (ELSEWHERE, 443), client_hello(Some("alias.example"))).expect("TLS");
        let hidden = client_hello(Some("cdn.example.net"));
        assert_cut(speak(&guest, (ELSEWHERE, 443), hidden), "the alias's own name");
    });
}

#[test]
fn a_name_that_is_not_allowed_is_not_even_asked_for() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["good.example"] })).await;
        for name in ["other.example.", "secret.of.the.guest.evil.example."] {
            for stream in [false, true] {
                let found = look_up(&guest, name, RecordType::A, stream);
                assert_eq!(found, Err(ResponseCode::NXDomain), "{name}");
            }
        }
        assert_eq!(net.asked(), Vec::<String>::new());
        assert_refused(&guest, ELSEWHERE);
    });
}

#[test]
fn another_name_at_an_address_that_is_allowed_is_cut() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["good.example"] })).await;
        addresses(&guest, "good.example.").expect("found");
        for (words, what) in [
            (client_hello(Some("evil.example")), "another name"),
            (client_hello(None), "TLS without a name"),
            (b"\x16\x03\x01\x00\x04nope".to_vec(), "no TLS"),
            (b"SSH-2.0-x\r\n".to_vec(), "another protocol"),
        ] {
            assert_cut(speak(&guest, (Outside::ADDRESS, 443), words), what);
        }
        assert_cut(speak(&guest, (Outside::ADDRESS, 80), request("evil.example")), "another host");
        let address = Outside::ADDRESS.to_string();
        assert_cut(speak(&guest, (Outside::ADDRESS, 80), request(&address)), "the address");
        guest.run(|| echo((Outside::ADDRESS, 443))).expect_err("QUIC");
    });
}

#[test]
fn an_address_that_no_name_has_led_to_is_refused_whatever_name_is_said() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "allow": ["good.example"] })).await;
        for (port, words) in
            [(443, client_hello(Some("good.example"))), (80, request("good.example"))]
        {
            let error = speak(&guest, (ELSEWHERE, port), words).map(drop).expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        }
    });
}

#[test]
fn no_name_leads_to_somebody_near() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (slot, guest) = net.guest(json!({ "allow": ["near.example"] })).await;
        assert_eq!(addresses(&guest, "near.example."), Ok(vec![NEAR]));
        assert_refused(&guest, NEAR);
        // Who means that address says so.
        let rules = json!({ "allow": ["near.example", "192.168.77.0/24"] });
        slot.limit(&policy(rules), None).await.expect("limited");
        guest.run(|| greeting((NEAR, TCP))).expect("reached");
        speak(&guest, (NEAR, 443), client_hello(None)).expect("no name is needed");
    });
}

#[test]
fn a_denied_name_is_refused_where_it_shows_and_all_else_is_reached() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (_slot, guest) = net.guest(json!({ "deny": ["evil.example", "*.evil.example"] })).await;
        assert_eq!(addresses(&guest, "evil.example."), Err(ResponseCode::NXDomain));
        assert_eq!(addresses(&guest, "other.example."), Ok(vec![ELSEWHERE]));
        assert_cut(
            speak(&guest, (Outside::ADDRESS, 443), client_hello(Some("a.evil.example"))),
            "TLS",
        );
        assert_cut(speak(&guest, (Outside::ADDRESS, 80), request("evil.example:80")), "HTTP");
        speak(&guest, (Outside::ADDRESS, 443), client_hello(Some("good.example"))).expect("TLS");
        speak(&guest, (Outside::ADDRESS, 443), client_hello(None)).expect("no name");
        guest.run(|| echo((Outside::ADDRESS, 443))).expect_err("QUIC would hide the name");
        guest.run(|| greeting((ELSEWHERE, TCP))).expect("TCP, of another port");
        guest.run(|| echo((ELSEWHERE, UDP_ELSEWHERE))).expect("UDP");
    });
}

#[test]
fn a_change_cuts_what_goes_through_the_proxy_and_is_not_allowed_any_more() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (slot, guest) = net.guest(json!({ "allow": ["good.example", "other.example"] })).await;
        for name in ["good.example.", "other.example."] {
            addresses(&guest, name).expect("found");
        }
        let mut good = speak(&guest, (Outside::ADDRESS, 443), client_hello(Some("good.example")))
            .expect("connected");
        let mut other = speak(&guest, (ELSEWHERE, 443), client_hello(Some("other.example")))
            .expect("connected");
        slot.limit(&policy(json!({ "allow": ["other.example"] })), None).await.expect("limited");
        let error = good.read(&mut [0; 16]).expect_err("cut");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{error:?}");
        other.write_all(b"on").and_then(|()| other.read_exact(&mut [0; 2])).expect("goes on");
        // What was learned by the rules before is forgotten.
        assert_refused(&guest, Outside::ADDRESS);
        assert_eq!(addresses(&guest, "good.example."), Err(ResponseCode::NXDomain));
        slot.limit(&Policy::default(), None).await.expect("limited");
        guest.run(|| echo((Outside::ADDRESS, 443))).expect("all is open again");
    });
}

#[test]
fn without_a_daemon_nothing_more_is_reached_and_with_the_next_one_all_is_as_before() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let rules = policy(json!({ "allow": ["good.example"] }));
        let (slot, guest) = net.bench.guest().await;
        slot.limit(&rules, None).await.expect("limited");
        addresses(&guest, "good.example.").expect("found");
        let (index, data) = (slot.index(), net.bench.data());
        net.bench.pool.shutdown().await.expect("shut down");
        slot.detach();
        crate::lab::eventually("the proxy is gone", || {
            let words = client_hello(Some("good.example"));
            speak(&guest, (Outside::ADDRESS, 443), words).is_err()
        })
        .await;
        let error = guest.run(|| echo((ANY_SERVER, 53))).expect_err("no resolver");
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error:?}");
        assert_refused(&guest, ELSEWHERE);

        let later = SlotPool::start(config(&data, 0), &[index]).await.expect("the pool");
        let slot = later.adopt(index, &rules, None).await.expect("the slot is whole");
        assert_refused(&guest, ELSEWHERE);
        assert_eq!(addresses(&guest, "good.example."), Ok(vec![Outside::ADDRESS]));
        speak(&guest, (Outside::ADDRESS, 443), client_hello(Some("good.example"))).expect("TLS");
        slot.release().await.expect("released");
        later.shutdown().await.expect("shut down");
    });
}

#[test]
fn an_address_stays_known_for_as_long_as_its_latest_answer_says() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (slot, guest) = net.guest(json!({ "allow": ["*.example"] })).await;
        let name = slot.index().namespace_name();
        let known = || run(&format!("ip netns exec {name} nft list set inet nestbox learned"));
        addresses(&guest, "good.example.").expect("found");
        // Twice the shortest time, for an answer that is good for 30 s.
        assert!(known().contains("198.51.100.2 timeout 10m"), "{}", known());
        addresses(&guest, "long.example.").expect("found");
        assert!(known().contains("198.51.100.2 timeout 4h"), "{}", known());
        addresses(&guest, "good.example.").expect("found");
        assert!(known().contains("198.51.100.2 timeout 4h"), "{}", known());
    });
}

/// Inodes of the sockets in the caller's network namespace.
fn sockets_here() -> BTreeSet<String> {
    let inodes = |protocol| {
        let table = fs::read_to_string(format!("/proc/thread-self/net/{protocol}"));
        let table = table.expect("a table of sockets");
        let inode = |line: &str| line.split_whitespace().nth(9).map(str::to_owned);
        table.lines().skip(1).filter_map(inode).collect::<Vec<_>>()
    };
    // A connection that has ended has none.
    ["tcp", "udp"].into_iter().flat_map(inodes).filter(|inode| inode != "0").collect()
}

/// Inodes of the sockets that this process has open, those of tests beside this one among them.
fn open_sockets() -> BTreeSet<String> {
    let files = fs::read_dir("/proc/self/fd").expect("files").flatten();
    let links = files.filter_map(|file| fs::read_link(file.path()).ok());
    let inode = |link: PathBuf| {
        Some(link.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned())
    };
    links.filter_map(inode).collect()
}

#[test]
fn nothing_is_left_of_a_slot_with_names_and_an_open_connection() {
    on_own_machine(|| async {
        let net = Internet::new().await;
        let (slot, guest) = net.guest(json!({ "allow": ["good.example"] })).await;
        let namespace = slot.namespace().to_owned();
        addresses(&guest, "good.example.").expect("found");
        let connection = speak(&guest, (Outside::ADDRESS, 443), client_hello(Some("good.example")));
        let mut connection = connection.expect("connected");
        let sockets = inside(&namespace, sockets_here);
        // The resolver's and the relay's, of which one talks with the guest.
        assert!(open_sockets().intersection(&sockets).count() > 2, "{sockets:?}");
        slot.release().await.expect("released");
        connection.read(&mut [0; 16]).expect_err("nobody is there any more");
        drop((connection, guest));
        assert!(!namespace.exists(), "nobody is in the way of its end");
        let all_closed = || open_sockets().is_disjoint(&sockets);
        crate::lab::eventually("its sockets are closed", all_closed).await;
    });
}
