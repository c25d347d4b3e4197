//! A sandbox's egress policy as rules of its namespace.
//!
//! Each connection that the policy allows is marked with the policy's number, and marked ones pass.
//! When the policy changes, so does the number, and every connection is decided about anew with its
//! next packet, in either direction. So nothing has to be sought and cut, and a daemon that starts
//! again with the same policies disturbs nobody.
//!
//! ```text
//! from the guest, its own connection   forbidden? -> refuse   marked? -> pass   else -> `egress`
//! to the guest, answers to one                                marked? -> pass   else -> `answers`
//! ```
//!
//! With rules about names, three things change: DNS is answered by our resolver, wherever the guest
//! sends it; the web's ports lead to our proxy, which looks for the name; and what the resolver has
//! answered for allowed names is in the set [`LEARNED`].

use super::rules::FORBIDDEN;
use super::ruleset::Ruleset;
use super::vocabulary::{
    Term, Transport, accept, comes_back, comes_from, destination_in, destination_in_set, drop,
    from_port, goes_forth, goes_not_to, goes_to, goto, is_established, is_marked, is_reply,
    is_translated, mark, redirect_to, refuse, source_in, source_in_set, to_port,
};
use crate::domain::egress::{Policy, Verdict};
use crate::domain::slot::{Network, TAP_NAME, UPLINK_NAME};

/// Addresses that were answered for allowed names.
pub(super) const LEARNED: &str = "learned";

/// How many addresses are learned at a time.
pub(super) const MOST_LEARNED: u32 = 4096;

/// Where our resolver and our proxy listen in the namespace.
pub(super) const DNS_PORT: u16 = 49_953;
pub(super) const WEB_PORT: u16 = 49_954;

/// Where the web is: names are in what is sent there.
const WEB: [u16; 2] = [80, 443];
const DNS: [u16; 1] = [53];
/// HTTP/3 hides the name better than a proxy should have to look for it; without it, clients use TCP.
const QUIC: [u16; 1] = [443];

const EGRESS: &str = "egress";
const ANSWERS: &str = "answers";

/// Adds what the rules of [`forward`] lead to.
pub(super) fn branches(ruleset: Ruleset, policy: &Policy) -> Ruleset {
    if policy.is_open() {
        return ruleset;
    }
    let ruleset = match policy.has_names() {
        true => ruleset.addresses(LEARNED, MOST_LEARNED),
        false => ruleset,
    };
    ruleset.branch(EGRESS, egress(policy)).branch(ANSWERS, answers(policy))
}

/// The rules about a guest's own connections, for the beginning of the chain `forward`.
pub(super) fn forward(policy: &Policy) -> Vec<Vec<Term>> {
    if policy.is_open() {
        return Vec::new();
    }
    let outward = || [comes_from(TAP_NAME), goes_forth()];
    let inward = || [goes_to(TAP_NAME), comes_back()];
    let with = |first: [Term; 2], last: &[Term]| [first.as_slice(), last].concat();
    let mut rules: Vec<_> = refuse(&with(outward(), &[destination_in(&FORBIDDEN)])).into();
    let passes = [is_marked(policy.mark()), accept()];
    rules.extend([
        with(outward(), &passes),
        with(outward(), &[goto(EGRESS)]),
        with(inward(), &passes),
        // Not errors about a connection: they come from whoever is on the way.
        with(inward(), &[is_established(), goto(ANSWERS)]),
    ]);
    rules
}

/// What a guest sends in a connection that the policy has not allowed yet.
fn egress(policy: &Policy) -> Vec<Vec<Term>> {
    let passes = || vec![mark(policy.mark()), accept()];
    let mut rules: Vec<_> = refuse(&[goes_not_to(UPLINK_NAME)]).into();
    if policy.has_names() {
        // Begun before there were names in the policy: only our resolver is to be asked now.
        for transport in [Transport::Udp, Transport::Tcp] {
            rules.extend(refuse(&[to_port(transport, &DNS)]));
        }
    }
    rules.extend(
        among(&policy.allowed_networks(), destination_in).map(|it| [it, passes()].concat()),
    );
    if policy.has_names() {
        // Only what the proxy has looked at may pass there.
        rules.extend(refuse(&[to_port(Transport::Tcp, &WEB)]));
        rules.extend(refuse(&[to_port(Transport::Udp, &QUIC)]));
        rules.push([vec![destination_in_set(LEARNED)], passes()].concat());
    }
    if let Some(denied) = among(&policy.denied_networks(), destination_in) {
        rules.extend(refuse(&denied));
    }
    match policy.by_default() {
        Verdict::Allow => rules.push(passes()),
        Verdict::Deny => rules.extend(refuse(&[])),
    }
    rules
}

/// What comes back in such a connection. Nobody there is told anything.
fn answers(policy: &Policy) -> Vec<Vec<Term>> {
    let passes = || vec![mark(policy.mark()), accept()];
    let mut rules = Vec::new();
    if policy.has_names() {
        for transport in [Transport::Udp, Transport::Tcp] {
            rules.push(vec![from_port(transport, &DNS), drop()]);
        }
    }
    rules.extend(among(&policy.allowed_networks(), source_in).map(|it| [it, passes()].concat()));
    if policy.has_names() {
        rules.push(vec![from_port(Transport::Tcp, &WEB), drop()]);
        rules.push(vec![from_port(Transport::Udp, &QUIC), drop()]);
        rules.push([vec![source_in_set(LEARNED)], passes()].concat());
    }
    if let Some(denied) = among(&policy.denied_networks(), source_in) {
        rules.push([denied, vec![drop()]].concat());
    }
    match policy.by_default() {
        Verdict::Allow => rules.push(passes()),
        Verdict::Deny => rules.push(vec![drop()]),
    }
    rules
}

/// Where a guest's first packets of connections are led to, for the chain of destinations.
pub(super) fn redirections(policy: &Policy) -> Vec<Vec<Term>> {
    if !policy.has_names() {
        return Vec::new();
    }
    let from_guest = |terms: &[Term]| [&[comes_from(TAP_NAME)], terms].concat();
    let to_web = || to_port(Transport::Tcp, &WEB);
    // What nobody may reach is refused where it always is.
    let mut rules = vec![from_guest(&[destination_in(&FORBIDDEN), accept()])];
    for transport in [Transport::Udp, Transport::Tcp] {
        rules.push(from_guest(&[to_port(transport, &DNS), redirect_to(DNS_PORT)]));
    }
    if let Some(allowed) = among(&policy.allowed_networks(), destination_in) {
        rules.push(from_guest(&[allowed, vec![accept()]].concat()));
    }
    rules.push(from_guest(&[destination_in_set(LEARNED), to_web(), redirect_to(WEB_PORT)]));
    if let Some(denied) = among(&policy.denied_networks(), destination_in) {
        rules.push(from_guest(&[denied, vec![accept()]].concat()));
    }
    if policy.by_default() == Verdict::Allow {
        rules.push(from_guest(&[to_web(), redirect_to(WEB_PORT)]));
    }
    rules
}

/// What may come to our resolver and our proxy: what was led there, and answers to what they ask.
pub(super) fn input(policy: &Policy) -> Vec<Vec<Term>> {
    if !policy.has_names() {
        return Vec::new();
    }
    let led = |transport, ports: &[u16]| {
        vec![comes_from(TAP_NAME), is_translated(), to_port(transport, ports), accept()]
    };
    vec![
        vec![comes_from(UPLINK_NAME), is_reply(), accept()],
        led(Transport::Udp, &[DNS_PORT]),
        led(Transport::Tcp, &[DNS_PORT, WEB_PORT]),
    ]
}

/// The condition that an address is in one of the networks; none at all if every address is, and
/// no rule if none is.
fn among(networks: &[Network], within: fn(&[Network]) -> Term) -> Option<Vec<Term>> {
    match networks {
        [] => None,
        [Network::ALL] => Some(Vec::new()),
        _ => Some(vec![within(networks)]),
    }
}
