//! Links, addresses, routes and neighbours, by netlink.

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::pin;

use futures::TryStreamExt;
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::domain::slot::{LINK_GROUP, MacAddress, SlotIndex, UPLINK_NAME};

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
            // In the same step: no packet passes that the host's filter does not know as ours.
            .link_group(LINK_GROUP)
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

    /// Removes the host's link of a slot, and with it its peer, its addresses and its routes. Not found
    /// is done, and so is a link of somebody else that has the name.
    pub(super) async fn remove_slot_link(&self, slot: SlotIndex) -> io::Result<()> {
        let named = self.handle.link().get().match_name(slot.host_link_name()).execute();
        let found = match pin!(named).try_next().await.map_err(to_io) {
            Err(e) if is_gone(&e) => None,
            other => other?.as_ref().and_then(SlotLink::read),
        };
        let Some(link) = found else { return Ok(()) };
        match self.handle.link().del(link.index).execute().await.map_err(to_io) {
            Err(e) if is_gone(&e) => Ok(()),
            other => other,
        }
    }

    /// Puts all links of slots into their group, also those of daemons that knew of none.
    pub(super) async fn group_slot_links(&self) -> io::Result<()> {
        for link in self.slot_links().await?.into_iter().filter(|link| link.group != LINK_GROUP) {
            let group = LinkUnspec::new_with_index(link.index).link_group(LINK_GROUP).build();
            match self.change(group).await {
                Err(e) if !is_gone(&e) => return Err(e),
                _ => {}
            }
        }
        Ok(())
    }

    /// The links of slots in this namespace. Both name and hardware address have to be right: links
    /// of others may be called as they like.
    async fn slot_links(&self) -> io::Result<Vec<SlotLink>> {
        let mut found = Vec::new();
        let mut all = pin!(self.handle.link().get().execute());
        while let Some(link) = all.try_next().await.map_err(to_io)? {
            found.extend(SlotLink::read(&link));
        }
        Ok(found)
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

/// The host's link of a slot.
#[derive(Debug, Clone, Copy)]
struct SlotLink {
    index: u32,
    group: u32,
}

impl SlotLink {
    fn read(link: &LinkMessage) -> Option<Self> {
        let mut slot = None;
        let mut mac = None;
        let mut group = 0;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(name) => slot = SlotIndex::of_host_link(name),
                LinkAttribute::Address(address) => mac = Some(address),
                LinkAttribute::Group(number) => group = *number,
                _ => {}
            }
        }
        let slot = slot.filter(|slot| mac.is_some_and(|mac| *mac == slot.host_mac().0));
        slot.map(|_| Self { index: link.header.index, group })
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
