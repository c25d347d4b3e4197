//! Builds and removes everything that belongs to one slot. Functions here block, and [`build`] moves
//! the calling thread between namespaces: they run on threads made for them.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::NetworkError;
use super::claim::Claims;
use super::filter::egress::Reach;
use super::filter::rules;
use super::host;
use super::link::{self, Netlink};
use super::namespace;
use super::tap;
use crate::domain::slot::{
    GATEWAY_ADDRESS, GATEWAY_MAC, GUEST_ADDRESS, GUEST_MAC, GUEST_PREFIX_LEN, LINK_PREFIX_LEN,
    SlotIndex, TAP_NAME, UPLINK_NAME,
};

/// A part of a slot that removal has to undo. Each is pushed before the step that makes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undo {
    Claim,
    Namespace,
    HostLink,
}

/// All parts of a slot, in the order in which they are made.
const WHOLE: [Undo; 3] = [Undo::Claim, Undo::Namespace, Undo::HostLink];

/// Settings of a namespace, written while there is no link in it but the loopback.
const SETTINGS: [(&str, &str); 6] = [
    ("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"),
    ("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1"),
    ("/proc/sys/net/ipv4/ip_forward", "1"),
    // Strict: a guest that asks for hardware addresses in others' names would otherwise fill the
    // neighbour table, which all namespaces of a machine share.
    ("/proc/sys/net/ipv4/conf/all/rp_filter", "1"),
    ("/proc/sys/net/ipv4/conf/all/send_redirects", "0"),
    // No limit on refusals: each is to reach the guest at once, and reaches nobody else.
    ("/proc/sys/net/ipv4/icmp_ratelimit", "0"),
];

/// Why a slot could not be built, and whether something of it is left.
#[derive(Debug)]
pub(super) enum BuildFailure {
    /// Everything was undone; the number is free again.
    Undone(NetworkError),
    /// Undoing failed, too; the number is still claimed by this daemon.
    Remains(NetworkError),
}

/// Builds a slot of which only the claim exists.
pub(super) fn build(claims: &Claims, slot: SlotIndex, reach: &Reach) -> Result<(), BuildFailure> {
    let mut undo = vec![Undo::Claim];
    let Err(error) = build_and_return(slot, reach, &mut undo) else { return Ok(()) };
    match undo_all(claims, slot, &undo) {
        Ok(()) => Err(BuildFailure::Undone(error)),
        Err(left) => {
            tracing::warn!(%slot, error = %left, "a slot that could not be built is left in parts");
            Err(BuildFailure::Remains(error))
        }
    }
}

/// Removes everything of a slot, the claim last and only if nothing else is left. What fails does
/// not keep the rest from being removed.
///
/// # Errors
///
/// [`NetworkError::Incomplete`] with every failure. Trying again is safe.
pub(super) fn remove(claims: &Claims, slot: SlotIndex) -> Result<(), NetworkError> {
    // Whatever the caller believes: nothing is touched that another daemon owns.
    claims.ensure(slot)?;
    undo_all(claims, slot, &WHOLE)
}

/// Checks that a slot of a VM that outlived its daemon is whole, claims it if need be, and loads the
/// namespace's packet filter anew, because the daemon may be newer than the slot.
pub(super) fn adopt(claims: &Claims, slot: SlotIndex, reach: &Reach) -> Result<(), NetworkError> {
    let missing = |missing| move |source| NetworkError::NotAdoptable { slot, missing, source };
    claims.ensure(slot)?;
    link::index_of(&slot.host_link_name()).map_err(missing("link to the host"))?;
    namespace::enter_slot(slot).map_err(missing("namespace"))?;
    link::index_of(UPLINK_NAME).map_err(missing("uplink"))?;
    link::index_of(TAP_NAME).map_err(missing("tap device"))?;
    rules::of_slot(slot, reach).replace(&place(slot))
}

/// Replaces the packet filter of a slot's namespace by one for another reach, in one step.
pub(super) fn limit(slot: SlotIndex, reach: &Reach) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Namespace { slot, action: "enter", source };
    namespace::enter_slot(slot).map_err(failed)?;
    rules::of_slot(slot, reach).replace(&place(slot))
}

fn place(slot: SlotIndex) -> String {
    format!("slot {slot}")
}

/// A namespace or link of an unclaimed number is somebody's whose claim got lost, perhaps with a VM
/// in it: it is left alone.
fn refuse_occupied(slot: SlotIndex) -> Result<(), NetworkError> {
    let occupied = |what| Err(NetworkError::Occupied { slot, what });
    if namespace::path(slot).exists() {
        return occupied("namespace");
    }
    match link::exists(&slot.host_link_name()) {
        Ok(false) => Ok(()),
        Ok(true) => occupied("link"),
        Err(source) => Err(NetworkError::Link { slot, action: "look up the link", source }),
    }
}

/// Builds everything but the claim and brings the calling thread back to the namespace it came from,
/// which is where the link to the host has to be undone.
fn build_and_return(
    slot: SlotIndex,
    reach: &Reach,
    undo: &mut Vec<Undo>,
) -> Result<(), NetworkError> {
    let failed = |source| NetworkError::Namespace { slot, action: "leave", source };
    refuse_occupied(slot)?;
    let home = namespace::current().map_err(failed)?;
    let built = build_parts(slot, reach, &home, undo);
    let returned = namespace::enter(&home).map_err(failed);
    built.and(returned)
}

fn build_parts(
    slot: SlotIndex,
    reach: &Reach,
    home: &File,
    undo: &mut Vec<Undo>,
) -> Result<(), NetworkError> {
    undo.push(Undo::Namespace);
    namespace::create_mount_point(slot)?;
    let inside = namespace::create(slot)?;

    // The rules are there before anything that they apply to.
    rules::of_slot(slot, reach).load(&place(slot))?;
    for (path, value) in SETTINGS {
        host::set(Path::new(path), value)?;
    }
    tap::create().map_err(|source| NetworkError::Tap { slot, source })?;

    undo.push(Undo::HostLink);
    let mut action = "start configuring the links";
    link::block_on(configure_links(slot, home, &inside, &mut action))
        .map_err(|source| NetworkError::Link { slot, action, source })
}

/// Makes the link to the host and configures both ends and the tap. The thread is in the slot's
/// namespace before and after. `action` says at every moment what is being done.
async fn configure_links(
    slot: SlotIndex,
    home: &File,
    inside: &File,
    action: &mut &'static str,
) -> io::Result<()> {
    let guest_side = Netlink::open()?;
    namespace::enter(home)?;
    let host_side = Netlink::open()?;

    *action = "make the link";
    host_side.add_slot_link(slot, inside.as_fd()).await?;
    let host_link = link::index_of(&slot.host_link_name())?;

    *action = "turn off IPv6 on the host's link";
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{}/disable_ipv6", slot.host_link_name());
    match std::fs::write(ipv6, "1") {
        // A host that was started without IPv6 has no such setting.
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }

    *action = "configure the host's link";
    host_side.add_address(host_link, slot.host_address(), LINK_PREFIX_LEN).await?;
    host_side.set_up(host_link).await?;
    host_side.add_neighbour(host_link, slot.uplink_address(), slot.uplink_mac()).await?;
    host_side.add_host_route(host_link, slot.access_address(), slot.uplink_address()).await?;

    namespace::enter(inside)?;
    *action = "configure the uplink";
    let uplink = link::index_of(UPLINK_NAME)?;
    guest_side.add_address(uplink, slot.uplink_address(), LINK_PREFIX_LEN).await?;
    guest_side.set_up(uplink).await?;
    guest_side.add_neighbour(uplink, slot.host_address(), slot.host_mac()).await?;
    guest_side.add_default_route(uplink, slot.host_address()).await?;

    *action = "configure the tap device";
    let tap = link::index_of(TAP_NAME)?;
    guest_side.add_address(tap, GATEWAY_ADDRESS, GUEST_PREFIX_LEN).await?;
    guest_side.set_up_with(tap, GATEWAY_MAC).await?;
    // A restored guest may not have heard of any change since its snapshot, and the namespace would
    // otherwise have to ask a guest that is not running yet.
    guest_side.add_neighbour(tap, GUEST_ADDRESS, GUEST_MAC).await
}

fn undo_all(claims: &Claims, slot: SlotIndex, parts: &[Undo]) -> Result<(), NetworkError> {
    let mut causes = Vec::new();
    for part in parts.iter().rev() {
        let undone = match part {
            Undo::HostLink => remove_host_link(slot),
            Undo::Namespace => namespace::remove(slot),
            // With parts left the number must not be given to anybody else.
            Undo::Claim if causes.is_empty() => claims.remove(slot),
            Undo::Claim => Ok(()),
        };
        causes.extend(undone.err());
    }
    if causes.is_empty() { Ok(()) } else { Err(NetworkError::Incomplete { slot, causes }) }
}

fn remove_host_link(slot: SlotIndex) -> Result<(), NetworkError> {
    link::block_on(async { Netlink::open()?.remove_slot_link(slot).await })
        .map_err(|source| NetworkError::Link { slot, action: "remove the link", source })
}
