//! How fast a guest is, each way, and what is not held up.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nestbox::domain::egress::Policy;
use nestbox::domain::port::AGENT_PORT;
use nestbox::vmm::network::NetworkConfig;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
};
use serde_json::json;

use crate::egress::policy;
use crate::lab::{Outside, inside, on_own_machine};
use crate::reach::{ANY, Bench};

/// Bytes a second.
const RATE: u32 = 1 << 20;

/// Bytes of a transfer.
const AMOUNT: usize = 3 << 20;

/// What may come at once: a second's worth, two of the longest packets, and headers.
const AT_ONCE: usize = (1 << 20) + (128 << 10);

/// Where the other end sends [`AMOUNT`], and where it reads to the end and says one byte.
const SOURCE: u16 = 8101;
const SINK: u16 = 8102;

/// The least time that a transfer takes at [`RATE`].
fn least() -> Duration {
    Duration::from_secs_f64((AMOUNT - AT_ONCE) as f64 / f64::from(RATE))
}

fn serve(port: u16, talk: fn(TcpStream) -> io::Result<()>) {
    let listener = TcpListener::bind((ANY, port)).expect("a port");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || talk(stream));
        }
    });
}

fn serve_bytes(sink: u16, source: u16) {
    serve(source, |mut stream| stream.write_all(&vec![0; AMOUNT]));
    serve(sink, |mut stream| {
        io::copy(&mut stream, &mut io::sink())?;
        stream.write_all(b"!")
    });
}

fn receive(from: SocketAddr) -> Duration {
    let started = Instant::now();
    let mut stream = TcpStream::connect(from).expect("it answers");
    let received = io::copy(&mut stream, &mut io::sink()).expect("it goes on");
    assert_eq!(received, AMOUNT as u64);
    started.elapsed()
}

fn send(to: SocketAddr) -> Duration {
    send_over(TcpStream::connect(to).expect("it answers"))
}

fn send_over(mut stream: TcpStream) -> Duration {
    let started = Instant::now();
    stream.write_all(&vec![0; AMOUNT]).expect("it goes on");
    stream.shutdown(std::net::Shutdown::Write).expect("open");
    stream.read_exact(&mut [0]).expect("it has all");
    started.elapsed()
}

#[test]
fn a_guest_sends_and_receives_no_faster_than_it_may() {
    on_own_machine(|| async {
        let bench = Bench::new().await;
        inside(bench.outside.namespace(), || serve_bytes(SINK, SOURCE));
        let (slot, guest) = bench.guest().await;
        let unlimited = guest.run(|| receive((Outside::ADDRESS, SOURCE).into()));
        slot.limit(&Policy::default(), Some(RATE)).await.expect("limited");
        for (what, took) in [
            ("received", guest.run(|| receive((Outside::ADDRESS, SOURCE).into()))),
            ("sent", guest.run(|| send((Outside::ADDRESS, SINK).into()))),
        ] {
            assert!(took >= least(), "{what} in {took:?}, without a limit in {unlimited:?}");
        }
        // A change of the policy leaves the rate; and to take it away needs no other policy.
        slot.limit(&policy(json!({ "deny": ["203.0.113.0/24"] })), Some(RATE)).await.expect("so");
        let took = guest.run(|| receive((Outside::ADDRESS, SOURCE).into()));
        assert!(took >= least(), "{took:?}");
        slot.limit(&policy(json!({ "deny": ["203.0.113.0/24"] })), None).await.expect("so");
        let took = guest.run(|| receive((Outside::ADDRESS, SOURCE).into()));
        assert!(took < least(), "{took:?}");
    });
}

#[test]
fn the_daemon_reaches_an_agent_whatever_its_guest_sends() {
    on_own_machine(|| async {
        // What every guest of a host may have at most; nobody has to say it for a guest.
        let rate = Some(RATE);
        let bench = Bench::with(|settings| NetworkConfig { rate, ..settings }).await;
        inside(bench.outside.namespace(), || serve_bytes(AGENT_PORT, SOURCE));
        let (slot, guest) = bench.guest().await;
        // The guest cannot pass for its agent: neither by the port that it sends from, nor by the one
        // that it sends to.
        let took = guest.run(|| send((Outside::ADDRESS, AGENT_PORT).into()));
        assert!(took >= least(), "{took:?}");
        let took = guest.run(|| send_over(connect_from(AGENT_PORT)));
        assert!(took >= least(), "{took:?}");
        guest.run(|| serve_bytes(SINK, AGENT_PORT));
        let agent: SocketAddr = (slot.address(), AGENT_PORT).into();
        let took = receive(agent);
        assert!(took < least(), "an agent's answer took {took:?}");
        let took = send((slot.address(), SINK).into());
        assert!(took >= least(), "another port of the guest took {took:?}");
    });
}

/// A connection from a guest to the outside's sink, from a port of the guest's choice.
fn connect_from(port: u16) -> TcpStream {
    let kind = SockType::Stream;
    let socket = socket(AddressFamily::Inet, kind, SockFlag::empty(), None).expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("an option");
    let ours = SockaddrIn::from(SocketAddrV4::new(Ipv4Addr::new(169, 254, 0, 21), port));
    bind(socket.as_raw_fd(), &ours).expect("the port");
    let theirs = SockaddrIn::from(SocketAddrV4::new(Outside::ADDRESS, AGENT_PORT));
    connect(socket.as_raw_fd(), &theirs).expect("it answers");
    socket.into()
}
