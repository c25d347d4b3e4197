//! Links, addresses, routes and neighbours, by netlink.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::domain::slot::{MacAddress, SlotIndex, UPLINK_NAME};

/// The usual size of an Ethernet frame's payload, in bytes.
const MTU: u32 = 1500;

/// A netlink socket of the namespace in which it was opened, whichever one the thread enters later.
pub(super) struct Netlink {
    handle: Handle,
}

/// Runs netlink requests to their end on the calling thread, with an executor of its own.
pub(super) fn block_on<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_io().build()?.block_on(work)
}

impl Netlink {
    /// Opens a socket in the namespace of the calling thread, inside [`block_on`].
    pub(super) fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    /// Makes the pair of links between this namespace and another one; both ends are still down.
    pub(super) async fn add_slot_link(
        &self,
        slot: SlotIndex,
        inside: BorrowedFd<'_>,
    ) -> io::Result<()> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(UPLINK_NAME)
            .address(slot.uplink_mac().0.to_vec())
            .mtu(MTU)
            .setns_by_fd(inside.as_raw_fd())
            .build();
        let link = LinkVeth::new(&slot.host_link_name(), UPLINK_NAME)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .address(slot.host_mac().0.to_vec())
            .mtu(MTU)
            .build();
        self.handle.link().add(link).execute().await.map_err(to_io)
    }

    /// Brings a link up.
    pub(super) async fn set_up(&self, link: u32) -> io::Result<()> {
        self.change(LinkUnspec::new_with_index(link).up().build()).await
    }

    /// Gives a link its hardware address and brings it up.
    pub(super) async fn set_up_with(&self, link: u32, mac: MacAddress) -> io::Result<()> {
        let mac = mac.0.to_vec();
        self.change(LinkUnspec::new_with_index(link).address(mac).mtu(MTU).up().build()).await
    }

    async fn change(&self, message: LinkMessage) -> io::Result<()> {
        self.handle.link().change(message).execute().await.map_err(to_io)
    }

    /// Removes a link, and with it its peer, its addresses and its routes. Not found is done.
    pub(super) async fn remove(&self, name: &str) -> io::Result<()> {
        let by_name = LinkUnspec::new_with_name(name).build();
        match self.handle.link().del_with_message(by_name).execute().await.map_err(to_io) {
            Err(e) if is_gone(&e) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address.
    pub(super) async fn add_address(
        &self,
        link: u32,
        address: Ipv4Addr,
        prefix_len: u8,
    ) -> io::Result<()> {
        let request = self.handle.address().add(link, IpAddr::V4(address), prefix_len);
        request.execute().await.map_err(to_io)
    }

    /// Says for good which hardware address an address has, so that nobody ever asks for it.
    pub(super) async fn add_neighbour(
        &self,
        link: u32,
        address: Ipv4Addr,
        mac: MacAddress,
    ) -> io::Result<()> {
        let request = self.handle.neighbours().add(link, IpAddr::V4(address));
        request.link_layer_address(&mac.0).replace().execute().await.map_err(to_io)
    }

    /// Sends what is for one address through a gateway.
    pub(super) async fn add_host_route(
        &self,
        link: u32,
        destination: Ipv4Addr,
        gateway: Ipv4Addr,
    ) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(destination, 32);
        let route = route.gateway(gateway).output_interface(link).build();
        self.handle.route().add(route).execute().await.map_err(to_io)
    }

    /// Sends everything else through a gateway.
    pub(super) async fn add_default_route(&self, link: u32, gateway: Ipv4Addr) -> io::Result<()> {
        let route = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway);
        let route = route.output_interface(link).build();
        self.handle.route().add(route).execute().await.map_err(to_io)
    }
}

/// The kernel's number of a link in the namespace of the calling thread.
pub(super) fn index_of(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

/// Whether a link exists in the namespace of the calling thread.
pub(super) fn exists(name: &str) -> io::Result<bool> {
    match if_nametoindex(name) {
        Ok(_) => Ok(true),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENODEV as i32)
}

fn to_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}
