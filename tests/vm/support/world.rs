//! The world beyond the host.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::run;

/// A network beyond the host with a web server in it, and a web server on every address of the host.
/// Both answer with the address of whoever asks.
pub struct World(());

impl World {
    /// A machine out there.
    pub const OUTSIDE: &'static str = "198.51.100.2";
    /// The host's address on the way there.
    pub const HOST: &'static str = "198.51.100.1";
    /// An address of the host on another network.
    pub const HOST_ELSEWHERE: &'static str = "10.99.0.1";
    /// Where the servers listen.
    pub const WEB: u16 = 8000;

    /// Connects the lab to it.
    pub fn connect() -> Self {
        run("ip netns add outside");
        run("ip link add wan0 type veth peer name eth0 netns outside");
        run(&format!("ip addr add {}/24 dev wan0", Self::HOST));
        run("ip link set wan0 up");
        run(&format!("ip -n outside addr add {}/24 dev eth0", Self::OUTSIDE));
        run("ip -n outside link set eth0 up");
        run("ip link add lan0 type veth peer name lan1");
        run(&format!("ip addr add {}/24 dev lan0", Self::HOST_ELSEWHERE));
        run("ip link set lan0 up");
        run("ip link set lan1 up");
        serve_http();
        thread::spawn(|| {
            let namespace = fs::File::open("/run/netns/outside").expect("the namespace");
            setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter the namespace");
            serve_http();
        })
        .join()
        .expect("it serves");
        Self(())
    }

    /// As before, so that the census agrees.
    pub fn disconnect(self) {
        run("ip link del wan0");
        run("ip link del lan0");
        run("ip netns del outside");
    }
}

/// Answers every request with the address of whoever asks, until the test ends.
fn serve_http() {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, World::WEB)).expect("a free port");
    thread::spawn(move || {
        while let Ok((mut client, peer)) = listener.accept() {
            let _ = client.read(&mut [0; 4096]);
            let body = peer.ip().to_string();
            let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let _ = client.write_all(format!("{head}{body}").as_bytes());
        }
    });
}
