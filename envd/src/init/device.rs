//! Waits for a device by listening to the kernel's announcements.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};

use super::InitError;

/// Longer than any disk takes to appear, even in emulation on a busy host.
const PATIENCE: Duration = Duration::from_secs(30);

/// The kernel's multicast group for events of devices.
const GROUP: u32 = 1;

/// An ear for new devices. The kernel announces a device after it has made its file in `/dev`.
pub struct Announcements {
    socket: OwnedFd,
}

impl Announcements {
    /// Starts to listen.
    pub fn new() -> Result<Self, InitError> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )
        .map_err(InitError::Listen)?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP)).map_err(InitError::Listen)?;
        Ok(Self { socket })
    }

    /// Returns once `device` is there.
    pub fn wait_for(&self, device: &str) -> Result<(), InitError> {
        let end = Instant::now() + PATIENCE;
        let mut event = [0u8; 4096];
        while !Path::new(device).exists() {
            let left = end.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let count = poll(&mut ready, timeout).map_err(InitError::Listen)?;
            if count == 0 {
                return Err(InitError::NoDevice { device: device.to_owned() });
            }
            // What it says does not matter: the file is looked for again. An overrun is as good.
            let _ = recv(self.socket.as_raw_fd(), &mut event, MsgFlags::MSG_DONTWAIT);
        }
        Ok(())
    }
}
