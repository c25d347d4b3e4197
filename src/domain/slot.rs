//! Network slots: which addresses and names belong to slot number `n`. Pure arithmetic; nothing
//! here knows how an address gets onto a link.
//!
//! ```text
//! host                              namespace nestbox-{n}                     guest
//! nb{n} 10.12.0.0+2n/31  ---veth--- veth0 10.12.0.0+2n+1/31
//! route 10.11.0.1+n/32 via the peer   translated to 169.254.0.21
//!                                   tap0 169.254.0.22/30 --------- eth0 169.254.0.21/30
//! ```

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// How many slots a machine has: one /31 out of [`LINK_NETWORK`] for each.
pub const SLOT_COUNT: u32 = 1 << 15;

/// Addresses by which the host reaches guests, one for each slot.
pub const ACCESS_NETWORK: Network = Network { base: Ipv4Addr::new(10, 11, 0, 0), prefix_len: 16 };

/// Addresses of the links between the host and the slots' namespaces.
pub const LINK_NETWORK: Network = Network { base: Ipv4Addr::new(10, 12, 0, 0), prefix_len: 16 };

/// All that RFC 3927 calls link-local; cloud metadata services answer in it.
pub const LINK_LOCAL_NETWORK: Network =
    Network { base: Ipv4Addr::new(169, 254, 0, 0), prefix_len: 16 };

/// Prefix length of the link between the host and a namespace.
pub const LINK_PREFIX_LEN: u8 = 31;

/// What every guest's `eth0` has, so that a restored guest needs no new configuration.
pub const GUEST_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 21);

/// What `tap0` has in every namespace: the guest's gateway.
pub const GATEWAY_ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 0, 22);

/// Prefix length of the link between a namespace and its guest.
pub const GUEST_PREFIX_LEN: u8 = 30;

/// Hardware address of every guest's network card.
pub const GUEST_MAC: MacAddress = MacAddress([0x06, 0x00, 0xa9, 0xfe, 0x00, 0x15]);

/// Hardware address of `tap0` in every namespace.
pub const GATEWAY_MAC: MacAddress = MacAddress([0x02, 0x00, 0xa9, 0xfe, 0x00, 0x16]);

/// The guest's side of the machine, as seen in its namespace.
pub const TAP_NAME: &str = "tap0";

/// The namespace's end of the link to the host.
pub const UPLINK_NAME: &str = "veth0";

/// What the name of the host's end of each link starts with. Links of others may, too.
const HOST_LINK_PREFIX: &str = "nb";

/// The group of all links of the host to namespaces, by which its packet filter knows them: the kernel
/// keeps the number with a link, and nobody else's has this one.
pub const LINK_GROUP: u32 = u32::from_be_bytes(*b"nest");

const NAMESPACE_PREFIX: &str = "nestbox-";

/// The number of a slot, less than [`SLOT_COUNT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct SlotIndex(u16);

/// The number is not one of a slot.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a slot's number is less than {SLOT_COUNT}")]
pub struct InvalidSlot;

impl SlotIndex {
    /// The number itself.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// The slot after this one; the first one after the last.
    pub fn next(self) -> Self {
        Self(((self.get() + 1) % SLOT_COUNT) as u16)
    }

    /// The address by which the host reaches the guest.
    pub fn access_address(self) -> Ipv4Addr {
        // Plus one: no address of a slot is a network's own address.
        ACCESS_NETWORK.nth(self.get() + 1)
    }

    /// The host's address on the link to the namespace.
    pub fn host_address(self) -> Ipv4Addr {
        LINK_NETWORK.nth(2 * self.get())
    }

    /// The namespace's address on the link to the host.
    pub fn uplink_address(self) -> Ipv4Addr {
        LINK_NETWORK.nth(2 * self.get() + 1)
    }

    /// Hardware address of the host's end of the link.
    pub fn host_mac(self) -> MacAddress {
        MacAddress::from_ipv4(self.host_address())
    }

    /// Hardware address of the namespace's end of the link.
    pub fn uplink_mac(self) -> MacAddress {
        MacAddress::from_ipv4(self.uplink_address())
    }

    /// Name of the namespace, as `ip netns` shows it.
    pub fn namespace_name(self) -> String {
        format!("{NAMESPACE_PREFIX}{}", self.0)
    }

    /// Name of the host's end of the link.
    pub fn host_link_name(self) -> String {
        format!("{HOST_LINK_PREFIX}{}", self.0)
    }

    /// The slot whose link to the host has this name; nothing for all other names.
    pub fn of_host_link(name: &str) -> Option<Self> {
        let number: u32 = name.strip_prefix(HOST_LINK_PREFIX)?.parse().ok()?;
        // Numbers can be written in more ways than one; links of slots are not.
        Self::try_from(number).ok().filter(|slot| slot.host_link_name() == name)
    }
}

impl TryFrom<u32> for SlotIndex {
    type Error = InvalidSlot;

    fn try_from(number: u32) -> Result<Self, InvalidSlot> {
        if number < SLOT_COUNT { Ok(Self(number as u16)) } else { Err(InvalidSlot) }
    }
}

impl From<SlotIndex> for u32 {
    fn from(index: SlotIndex) -> u32 {
        index.get()
    }
}

impl fmt::Display for SlotIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An IPv4 network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Network {
    /// First address, with all host bits zero.
    pub base: Ipv4Addr,
    /// How many leading bits all addresses share.
    pub prefix_len: u8,
}

impl Network {
    /// All there is.
    pub const ALL: Network = Network { base: Ipv4Addr::UNSPECIFIED, prefix_len: 0 };

    /// The network with that prefix, of at most 32 bits, in which an address lies.
    pub fn around(address: Ipv4Addr, prefix_len: u8) -> Self {
        let host_bits = 32 - u32::from(prefix_len);
        let mask = u32::MAX.checked_shl(host_bits).unwrap_or(0);
        Self { base: Ipv4Addr::from_bits(address.to_bits() & mask), prefix_len }
    }

    /// The address at an offset from the first one. The offset is less than the network's size.
    const fn nth(self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits() + offset)
    }

    /// Whether an address lies in this network.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        let host_bits = 32 - u32::from(self.prefix_len);
        let network_of = |a: Ipv4Addr| a.to_bits().checked_shr(host_bits).unwrap_or(0);
        network_of(address) == network_of(self.base)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix_len)
    }
}

/// A hardware address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// A locally administered address that differs wherever the IPv4 address does.
    fn from_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x00, a, b, c, d])
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn slot(number: u32) -> SlotIndex {
        number.try_into().expect("a good number")
    }

    fn every_slot() -> impl Iterator<Item = SlotIndex> {
        (0..SLOT_COUNT).map(slot)
    }

    #[test]
    fn the_first_and_the_last_slot_have_the_documented_addresses() {
        assert_eq!(slot(0).host_address(), Ipv4Addr::new(10, 12, 0, 0));
        assert_eq!(slot(0).uplink_address(), Ipv4Addr::new(10, 12, 0, 1));
        assert_eq!(slot(0).access_address(), Ipv4Addr::new(10, 11, 0, 1));
        let last = slot(SLOT_COUNT - 1);
        assert_eq!(last.host_address(), Ipv4Addr::new(10, 12, 255, 254));
        assert_eq!(last.uplink_address(), Ipv4Addr::new(10, 12, 255, 255));
        assert_eq!(last.access_address(), Ipv4Addr::new(10, 11, 128, 0));
    }

    #[test]
    fn a_slot_is_known_by_the_name_of_its_link_and_by_no_other() {
        for slot in every_slot() {
            assert_eq!(SlotIndex::of_host_link(&slot.host_link_name()), Some(slot));
        }
        for other in ["nb", "nb-foo", "nb01", "nb+1", "nb32768", "nb99999999999", "nb1x", "xnb1"] {
            assert_eq!(SlotIndex::of_host_link(other), None, "{other}");
        }
    }

    #[test]
    fn no_two_slots_share_an_address_and_all_stay_in_their_networks() {
        let mut seen = HashSet::new();
        for slot in every_slot() {
            for address in [slot.host_address(), slot.uplink_address()] {
                assert!(LINK_NETWORK.contains(address), "{address}");
                assert!(seen.insert(address), "{address}");
            }
            assert!(ACCESS_NETWORK.contains(slot.access_address()));
            assert!(seen.insert(slot.access_address()));
        }
    }

    #[test]
    fn both_ends_of_a_link_are_in_one_31_bit_network() {
        for slot in every_slot() {
            let network = Network { base: slot.host_address(), prefix_len: LINK_PREFIX_LEN };
            assert!(network.contains(slot.uplink_address()));
            assert_eq!(network.nth(1), slot.uplink_address());
        }
    }

    #[test]
    fn the_guest_and_its_gateway_are_in_one_30_bit_network() {
        let network =
            Network { base: Ipv4Addr::new(169, 254, 0, 20), prefix_len: GUEST_PREFIX_LEN };
        assert!(network.contains(GUEST_ADDRESS) && network.contains(GATEWAY_ADDRESS));
        assert!(LINK_LOCAL_NETWORK.contains(GUEST_ADDRESS));
    }

    #[test]
    fn link_names_fit_the_kernels_15_characters() {
        assert!(every_slot().all(|slot| slot.host_link_name().len() <= 15));
    }

    #[test]
    fn a_number_beyond_the_last_slot_is_refused() {
        assert_eq!(SlotIndex::try_from(SLOT_COUNT), Err(InvalidSlot));
        assert!(serde_json::from_str::<SlotIndex>("32768").is_err());
        assert_eq!(serde_json::from_str::<SlotIndex>("7").expect("reads"), slot(7));
    }

    #[test]
    fn after_the_last_slot_comes_the_first() {
        assert_eq!(slot(SLOT_COUNT - 1).next(), slot(0));
        assert_eq!(slot(41).next(), slot(42));
    }

    #[test]
    fn hardware_addresses_are_local_unicast_and_written_as_usual() {
        for slot in every_slot() {
            for mac in [slot.host_mac(), slot.uplink_mac(), GUEST_MAC, GATEWAY_MAC] {
                assert_eq!(mac.0[0] & 0b11, 0b10, "{mac}");
            }
            assert_ne!(slot.host_mac(), slot.uplink_mac());
        }
        assert_eq!(GUEST_MAC.to_string(), "06:00:a9:fe:00:15");
        assert_eq!(GATEWAY_MAC.to_string(), "02:00:a9:fe:00:16");
    }
}
