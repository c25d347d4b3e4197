//! A tap of the test's own, in a network namespace of its own.

use std::fs::File;
use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::skip::{is_root, skip};
use crate::vmm::process::{ProcessId, start_ticks};

const NAME: &[u8] = b"quiet0";

fn tap() -> File {
    let mut options = File::options();
    let tun = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun");
    let tun = tun.unwrap();
    // SAFETY: all zeroes is a valid `ifreq`: an empty name and no flags.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(NAME) {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open and `request` outlives the call.
    let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &request) };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    tun
}

fn ip(line: &str) {
    let status = Command::new("ip").args(line.split(' ')).status().unwrap();
    assert!(status.success(), "ip {line}");
}

/// Sends a packet that is for everybody, and says whether it came out of the tap.
fn comes_through(tap: &mut File) -> bool {
    const WORD: &[u8] = b"is anybody there";
    let mut buffer = [0; 2048];
    while tap.read(&mut buffer).is_ok() {}
    let socket = UdpSocket::bind("10.99.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    // It leaves at once: the link has no queue that could hold it.
    socket.send_to(WORD, "10.99.0.255:9").unwrap();
    while let Ok(length) = tap.read(&mut buffer) {
        if buffer[..length].ends_with(WORD) {
            return true;
        }
    }
    false
}

#[test]
fn a_guest_that_is_to_have_no_packets_gets_none_until_it_may() {
    if !is_root("a tap") {
        return;
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        skip("there is no /dev/net/tun: `modprobe tun`");
        return;
    }
    let test = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let mut tap = tap();
        ip("addr add 10.99.0.1/24 dev quiet0");
        ip("link set quiet0 up");
        let pid = std::process::id() as i32;
        let id = ProcessId { pid, start_ticks: start_ticks(pid).unwrap() };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        let process = VmProcess::watch(id).unwrap();

        assert!(comes_through(&mut tap));
        for _ in 0..2 {
            set(&process, Packets::Drop).unwrap();
            assert!(!comes_through(&mut tap));
        }
        for _ in 0..2 {
            set(&process, Packets::Pass).unwrap();
            assert!(comes_through(&mut tap));
        }
    });
    test.join().unwrap();
}
