//! The packet filters: what a guest may reach, and what may reach it. Two tables say it, because
//! each knows what the other cannot: the namespace's knows the guest, the host's knows the host.
//!
//! What is not allowed is refused with an error that the guest sees at once. Silently dropped is only
//! what must not have an answer: forged sources, IPv6, packets of no known connection.

use nftables::types::{NfChainPolicy, NfChainType, NfHook};

use super::egress::Reach;
use super::expressions::{
    Term, accept, clamp_segment_size, comes_from, comes_from_group, destination_in, destination_is,
    drop, goes_not_to_group, goes_to, goes_to_group, is_for_this_machine, is_invalid, is_ipv6,
    is_reply, is_sent_by_others, is_sent_by_root, is_tcp_syn, is_translated, masquerade, refuse,
    source_in, source_is, source_is_not, source_not_in, translate_to,
};
use super::ruleset::{Hook, Ruleset};
use crate::domain::slot::{
    ACCESS_NETWORK, GUEST_ADDRESS, LINK_GROUP, LINK_LOCAL_NETWORK, LINK_NETWORK, Network,
    SlotIndex, TAP_NAME, UPLINK_NAME,
};

/// Where no guest may go: the metadata service of clouds, other guests, ends of links.
pub(in crate::vmm::network) const FORBIDDEN: [Network; 3] =
    [LINK_LOCAL_NETWORK, ACCESS_NETWORK, LINK_NETWORK];

const RAW: i32 = -300;
const MANGLE: i32 = -150;
const DESTINATION_NAT: i32 = -100;
const FILTER: i32 = 0;
const SOURCE_NAT: i32 = 100;

/// The table of a slot's namespace, with what its guest may reach of the world.
pub(in crate::vmm::network) fn of_slot(slot: SlotIndex, reach: &Reach) -> Ruleset {
    let from_guest = || comes_from(TAP_NAME);
    let from_host = || comes_from(UPLINK_NAME);

    let mut forward = vec![vec![is_invalid(), drop()]];
    forward.extend(reach.forward());
    // Also the guest's answers to the host, which lies in a forbidden network.
    forward.push(vec![is_reply(), accept()]);
    forward.extend(refuse(&[from_guest(), destination_in(&FORBIDDEN)]));
    if reach.is_open() {
        forward.push(vec![from_guest(), goes_to(UPLINK_NAME), accept()]);
    }
    // From the host itself, not from somebody for whom it forwards.
    let from_root = [from_host(), source_is(slot.host_address()), goes_to(TAP_NAME)];
    forward.push([from_root.as_slice(), &[is_translated(), accept()]].concat());
    forward.extend(refuse(&[]));

    let mut inwards =
        vec![vec![from_host(), destination_is(slot.access_address()), translate_to(GUEST_ADDRESS)]];
    inwards.extend(reach.redirections());

    let mut input = reach.input();
    // Nothing else in the namespace serves anybody, least of all the guest.
    input.extend(refuse(&[]));

    reach
        .branches(rates(Ruleset::new(), reach))
        .chain(
            filter("spoofing", NfHook::Prerouting, RAW, NfChainPolicy::Accept),
            vec![vec![is_ipv6(), drop()], vec![from_guest(), source_is_not(GUEST_ADDRESS), drop()]],
        )
        .chain(nat("inwards", NfHook::Prerouting, DESTINATION_NAT), inwards)
        .chain(filter("input", NfHook::Input, FILTER, NfChainPolicy::Drop), input)
        .chain(filter("output", NfHook::Output, FILTER, NfChainPolicy::Drop), output(&[]))
        .chain(filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Drop), forward)
        .chain(
            nat("outwards", NfHook::Postrouting, SOURCE_NAT),
            vec![vec![goes_to(UPLINK_NAME), source_is(GUEST_ADDRESS), masquerade()]],
        )
}

fn rates(ruleset: Ruleset, reach: &Reach) -> Ruleset {
    let Some([from_guest, to_guest]) = reach.rates() else { return ruleset };
    let chain = |name, hook| filter(name, hook, MANGLE, NfChainPolicy::Accept);
    ruleset
        .chain(chain("rate-from-guest", NfHook::Prerouting), from_guest)
        .chain(chain("rate-to-guest", NfHook::Postrouting), to_guest)
}

/// The table of the host, one for all daemons.
pub(in crate::vmm::network) fn of_host() -> Ruleset {
    let to_sandbox = || goes_to_group(LINK_GROUP);
    let from_sandbox = || comes_from_group(LINK_GROUP);

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

    let mut forward: Vec<_> = refuse(&[from_sandbox(), to_sandbox()]).into();
    forward.extend([
        vec![from_sandbox(), is_invalid(), drop()],
        vec![to_sandbox(), is_reply(), accept()],
    ]);
    // The host forwards now, but a neighbour of the host may not use that to reach a guest.
    forward.extend(refuse(&[to_sandbox()]));

    Ruleset::new()
        .chain(filter("guard", NfHook::Prerouting, MANGLE, NfChainPolicy::Accept), guard)
        .chain(filter("input", NfHook::Input, FILTER, NfChainPolicy::Accept), input)
        .chain(
            filter("output", NfHook::Output, FILTER, NfChainPolicy::Accept),
            output(&[to_sandbox()]),
        )
        .chain(
            filter("segments", NfHook::Forward, MANGLE, NfChainPolicy::Accept),
            vec![
                vec![from_sandbox(), is_tcp_syn(), clamp_segment_size()],
                vec![to_sandbox(), is_tcp_syn(), clamp_segment_size()],
            ],
        )
        .chain(filter("forward", NfHook::Forward, FILTER, NfChainPolicy::Accept), forward)
        .chain(
            nat("outwards", NfHook::Postrouting, SOURCE_NAT),
            vec![vec![source_in(&[LINK_NETWORK]), goes_not_to_group(LINK_GROUP), masquerade()]],
        )
}

/// What this machine sends itself under the conditions: what root sends, and what the kernel says about
/// connections that were let through. Of these, no socket of somebody else counts as one: whoever gets
/// the ports of a connection that root had, and that is still known, is not root.
fn output(conditions: &[Term]) -> Vec<Vec<Term>> {
    let with = |last: &[Term]| [conditions, last].concat();
    let mut rules = vec![with(&[is_sent_by_root(), accept()])];
    rules.extend(refuse(&with(&[is_sent_by_others()])));
    rules.push(with(&[is_reply(), accept()]));
    rules.push(with(&[drop()]));
    rules
}

fn filter(name: &'static str, hook: NfHook, priority: i32, policy: NfChainPolicy) -> Hook {
    Hook { name, kind: NfChainType::Filter, hook, priority, policy }
}

fn nat(name: &'static str, hook: NfHook, priority: i32) -> Hook {
    Hook { name, kind: NfChainType::NAT, hook, priority, policy: NfChainPolicy::Accept }
}
