//! The packet filters: what a guest may reach, and what may reach it. Two tables say it, because
//! each knows what the other cannot: the namespace's knows the guest, the host's knows the host.
//!
//! What is not allowed is refused with an error that the guest sees at once. Silently dropped is only
//! what must not have an answer: forged sources, IPv6, packets of no known connection.

use nftables::types::{NfChainPolicy, NfChainType, NfHook};

use super::egress;
use super::ruleset::{Hook, Ruleset};
use super::vocabulary::{
    accept, clamp_segment_size, comes_from, destination_in, destination_is, drop, goes_not_to,
    goes_to, is_for_this_machine, is_invalid, is_ipv6, is_reply, is_tcp_syn, is_translated,
    masquerade, refuse, source_in, source_is, source_is_not, source_not_in, translate_to,
};
use crate::domain::egress::Policy;
use crate::domain::slot::{
    ACCESS_NETWORK, GUEST_ADDRESS, LINK_LOCAL_NETWORK, LINK_NETWORK, Network, SlotIndex, TAP_NAME,
    UPLINK_NAME,
};

/// All links of the host to namespaces: [`crate::domain::slot::HOST_LINK_PREFIX`] and anything.
const SANDBOXES: &str = "nb*";

/// Where no guest may go: the metadata service of clouds, other guests, ends of links.
pub(super) const FORBIDDEN: [Network; 3] = [LINK_LOCAL_NETWORK, ACCESS_NETWORK, LINK_NETWORK];

const RAW: i32 = -300;
const MANGLE: i32 = -150;
const DESTINATION_NAT: i32 = -100;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;

/// The table of a slot's namespace, with what the policy of its guest allows of the world.
pub(super) fn of_slot(slot: SlotIndex, policy: &Policy) -> Ruleset {
    let from_guest = || comes_from(TAP_NAME);
    let from_host = || comes_from(UPLINK_NAME);

    let mut forward = vec![vec![is_invalid(), drop()]];
    forward.extend(egress::forward(policy));
    // Also the guest's answers to the host, which lies in a forbidden network.
    forward.push(vec![is_reply(), accept()]);
    forward.extend(refuse(&[from_guest(), destination_in(&FORBIDDEN)]));
    if policy.is_open() {
        forward.push(vec![from_guest(), goes_to(UPLINK_NAME), accept()]);
    }
    forward.push(vec![from_host(), goes_to(TAP_NAME), is_translated(), accept()]);
    forward.extend(refuse(&[]));

    let mut inwards =
        vec![vec![from_host(), destination_is(slot.access_address()), translate_to(GUEST_ADDRESS)]];
    inwards.extend(egress::redirections(policy));

    let mut input = egress::input(policy);
    // Nothing else in the namespace serves anybody, least of all the guest.
    input.extend(refuse(&[]));

    egress::branches(Ruleset::new(), policy)
        .chain(
            filter("spoofing", NfHook::Prerouting, RAW, NfChainPolicy::Accept),
            vec![vec![is_ipv6(), drop()], vec![from_guest(), source_is_not(GUEST_ADDRESS), drop()]],
        )
        .chain(nat("inwards", NfHook::Prerouting, DESTINATION_NAT), inwards)
        .chain(filter("input", NfHook::Input, FILTER, NfChainPolicy::Drop), input)
        .chain(filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Drop), forward)
        .chain(
            nat("outwards", NfHook::Postrouting, SOURCE_NAT),
            vec![vec![goes_to(UPLINK_NAME), source_is(GUEST_ADDRESS), masquerade()]],
        )
}

/// The table of the host, one for all daemons.
pub(super) fn of_host() -> Ruleset {
    let from_sandbox = || comes_from(SANDBOXES);

    // Before destination translation: a port that the host publishes for somebody else, say a
    // container, is a service of the host, too.
    let mut guard = vec![
        vec![from_sandbox(), is_ipv6(), drop()],
        vec![from_sandbox(), source_not_in(&[ACCESS_NETWORK, LINK_NETWORK]), drop()],
        vec![from_sandbox(), is_reply(), accept()],
    ];
    guard.extend(refuse(&[from_sandbox(), destination_in(&FORBIDDEN)]));
    guard.extend(refuse(&[from_sandbox(), is_for_this_machine()]));

    // The guard is enough for addresses; this is for what is no address of a link, such as a
    // broadcast, and for the day the guard has a hole.
    let mut input = vec![vec![from_sandbox(), is_reply(), accept()]];
    input.extend(refuse(&[from_sandbox()]));

    let mut forward: Vec<_> = refuse(&[from_sandbox(), goes_to(SANDBOXES)]).into();
    forward.extend([
        vec![from_sandbox(), is_invalid(), drop()],
        vec![goes_to(SANDBOXES), is_reply(), accept()],
    ]);
    // The host forwards now, but a neighbour of the host may not use that to reach a guest.
    forward.extend(refuse(&[goes_to(SANDBOXES)]));

    Ruleset::new()
        .chain(filter("guard", NfHook::Prerouting, MANGLE, NfChainPolicy::Accept), guard)
        .chain(filter("input", NfHook::Input, FILTER, NfChainPolicy::Accept), input)
        .chain(
            filter("segments", NfHook::Forward, MANGLE, NfChainPolicy::Accept),
            vec![
                vec![from_sandbox(), is_tcp_syn(), clamp_segment_size()],
                vec![goes_to(SANDBOXES), is_tcp_syn(), clamp_segment_size()],
            ],
        )
        .chain(filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Accept), forward)
        .chain(
            nat("outwards", NfHook::Postrouting, SOURCE_NAT),
            vec![vec![source_in(&[LINK_NETWORK]), goes_not_to(SANDBOXES), masquerade()]],
        )
}

fn filter(name: &'static str, hook: NfHook, priority: i32, policy: NfChainPolicy) -> Hook {
    Hook { name, kind: NfChainType::Filter, hook, priority, policy }
}

fn nat(name: &'static str, hook: NfHook, priority: i32) -> Hook {
    Hook { name, kind: NfChainType::NAT, hook, priority, policy: NfChainPolicy::Accept }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::slot::HOST_LINK_PREFIX;

    #[test]
    fn the_hosts_filter_matches_every_link_of_a_slot() {
        assert_eq!(SANDBOXES, format!("{HOST_LINK_PREFIX}*"));
    }
}
