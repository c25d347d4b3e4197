//! Addresses that are the same in every guest: the host translates, so that a restored or copied
//! guest needs no other.
//!
//! By `ioctl`, which is enough for one address and one route.
//!
//! The card speaks IPv4 only: nobody answers it in IPv6, yet the kernel would give it an address,
//! look for others with the same and ask for routers, in each clone again. Loopback keeps `::1`, and
//! interfaces made later are as usual.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use libc::{c_char, c_int, c_ulong, ifreq, in_addr, sockaddr, sockaddr_in};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::InitError;

const LOOPBACK: &str = "lo";
const ETHERNET: &str = "eth0";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);
const NETMASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);
/// Known beforehand, so that the first packet need not ask for it.
const GATEWAY_MAC: [u8; 6] = [0x02, 0x00, 0xa9, 0xfe, 0x00, 0x16];

/// Brings up the loopback interface; the kernel gives it its address.
pub fn loopback() -> Result<(), InitError> {
    Interface::new(LOOPBACK)?.up()
}

/// Gives the network card its address and a way out. Without a card there is nothing to do.
pub fn ethernet() -> Result<(), InitError> {
    let card = Interface::new(ETHERNET)?;
    match card.set_address(libc::SIOCSIFADDR, ADDRESS, "address") {
        Err(InitError::Network { source: Errno::ENODEV, .. }) => return Ok(()),
        other => other?,
    }
    card.set_address(libc::SIOCSIFNETMASK, NETMASK, "netmask")?;
    // A kernel without IPv6 has no such file.
    let _ = std::fs::write(format!("/proc/sys/net/ipv6/conf/{ETHERNET}/disable_ipv6"), "1");
    card.up()?;
    card.set_neighbour()?;
    card.set_gateway()
}

struct Interface {
    name: &'static str,
    socket: OwnedFd,
}

impl Interface {
    fn new(name: &'static str) -> Result<Self, InitError> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|source| InitError::Network { interface: name, step: "socket", source })?;
        Ok(Self { name, socket })
    }

    fn up(&self) -> Result<(), InitError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        self.ioctl(libc::SIOCSIFFLAGS, &request, "flags")
    }

    fn set_address(
        &self,
        call: c_ulong,
        address: Ipv4Addr,
        step: &'static str,
    ) -> Result<(), InitError> {
        let mut request = self.request();
        request.ifr_ifru.ifru_addr = inet(address);
        self.ioctl(call, &request, step)
    }

    fn set_neighbour(&self) -> Result<(), InitError> {
        /// `net/if_arp.h`: complete, and never to be asked for.
        const ATF_COM: c_int = 0x02;
        const ATF_PERM: c_int = 0x04;
        // SAFETY: a structure of plain numbers, for which zeros are valid.
        let mut request: libc::arpreq = unsafe { std::mem::zeroed() };
        request.arp_pa = inet(GATEWAY);
        request.arp_ha.sa_family = libc::ARPHRD_ETHER;
        for (byte, value) in request.arp_ha.sa_data.iter_mut().zip(GATEWAY_MAC) {
            *byte = value as c_char;
        }
        request.arp_flags = ATF_COM | ATF_PERM;
        copy_name(&mut request.arp_dev, self.name);
        self.ioctl(libc::SIOCSARP, &request, "neighbour")
    }

    fn set_gateway(&self) -> Result<(), InitError> {
        // SAFETY: a structure of plain numbers and a null pointer, for which zeros are valid.
        let mut request: libc::rtentry = unsafe { std::mem::zeroed() };
        request.rt_dst = inet(Ipv4Addr::UNSPECIFIED);
        request.rt_genmask = inet(Ipv4Addr::UNSPECIFIED);
        request.rt_gateway = inet(GATEWAY);
        request.rt_flags = (libc::RTF_UP | libc::RTF_GATEWAY) as libc::c_ushort;
        self.ioctl(libc::SIOCADDRT, &request, "route")
    }

    fn request(&self) -> ifreq {
        // SAFETY: a structure of plain numbers, for which zeros are valid.
        let mut request: ifreq = unsafe { std::mem::zeroed() };
        copy_name(&mut request.ifr_name, self.name);
        request
    }

    fn ioctl<T>(&self, call: c_ulong, request: &T, step: &'static str) -> Result<(), InitError> {
        // SAFETY: each caller passes the structure that its call reads.
        let result =
            unsafe { libc::ioctl(self.socket.as_raw_fd(), call, std::ptr::from_ref(request)) };
        match Errno::result(result) {
            // The route of a guest that was set up before.
            Ok(_) | Err(Errno::EEXIST) => Ok(()),
            Err(source) => Err(InitError::Network { interface: self.name, step, source }),
        }
    }
}

fn copy_name(target: &mut [c_char], name: &str) {
    for (byte, value) in target.iter_mut().zip(name.bytes()) {
        *byte = value as c_char;
    }
}

fn inet(address: Ipv4Addr) -> sockaddr {
    let address = sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: in_addr { s_addr: u32::from(address).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: the kernel's interface has one in the place of the other; both are 16 bytes.
    unsafe { std::mem::transmute::<sockaddr_in, sockaddr>(address) }
}
