//! Networks of somebody near: addresses that mean something else, or somebody else, on each host.
//!
//! They are what IANA's registry of special-purpose IPv4 addresses keeps from the internet, and
//! multicast. Not in the list are the networks for documentation, which nobody has anywhere, and
//! the few addresses of the registry that are the same for the whole internet.

use std::net::Ipv4Addr;

use crate::domain::slot::Network;

/// Where neither names lead, because an answer of DNS says whatever its author likes, nor guests
/// get without a rule about just these addresses, unless [`Lan::Open`].
pub const NEAR: [Network; 11] = [
    // "This network" (RFC 791).
    Network { base: Ipv4Addr::new(0, 0, 0, 0), prefix_len: 8 },
    // Private (RFC 1918), with the two below.
    Network { base: Ipv4Addr::new(10, 0, 0, 0), prefix_len: 8 },
    // Shared by the customers of a carrier (RFC 6598); overlay networks use it, too.
    Network { base: Ipv4Addr::new(100, 64, 0, 0), prefix_len: 10 },
    Network { base: Ipv4Addr::new(127, 0, 0, 0), prefix_len: 8 },
    Network { base: Ipv4Addr::new(169, 254, 0, 0), prefix_len: 16 },
    Network { base: Ipv4Addr::new(172, 16, 0, 0), prefix_len: 12 },
    // Protocol assignments (RFC 6890), such as the inner side of a DS-Lite tunnel.
    Network { base: Ipv4Addr::new(192, 0, 0, 0), prefix_len: 24 },
    // The nearest relay of 6to4 (RFC 7526: not to be used any more).
    Network { base: Ipv4Addr::new(192, 88, 99, 0), prefix_len: 24 },
    Network { base: Ipv4Addr::new(192, 168, 0, 0), prefix_len: 16 },
    // Measuring of devices (RFC 2544).
    Network { base: Ipv4Addr::new(198, 18, 0, 0), prefix_len: 15 },
    // Multicast, reserved, broadcast.
    Network { base: Ipv4Addr::new(224, 0, 0, 0), prefix_len: 3 },
];

/// Whether guests of a host reach [`NEAR`] without a rule about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Lan {
    /// They do not.
    #[default]
    Closed,
    /// Their policies alone decide.
    Open,
}

/// Whether an address is somebody's near the host.
pub(super) fn is_near(address: Ipv4Addr) -> bool {
    NEAR.iter().any(|network| network.contains(address))
}

/// Whether a network has addresses of somebody near and no others.
pub(super) fn lies_near(network: &Network) -> bool {
    NEAR.iter().any(|near| near.prefix_len <= network.prefix_len && near.contains(network.base))
}
