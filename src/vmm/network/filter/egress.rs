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
//! sends it; TCP to what the resolver has answered for allowed names, the set [`LEARNED`], leads to
//! our proxy, which looks for the name, and so do the web's ports where all is allowed by default; and
//! of such an address nothing else is open but the ports in [`LEARNED_PORTS`], which the policy names.

use std::net::Ipv4Addr;

use super::expressions::{
    Echo, Term, Transport, accept, comes_back, comes_from, destination_in, destination_in_set,
    destination_port_in_set, drop, exceeds, from_port, goes_forth, goes_not_to, goes_to, goto,
    is_echo, is_established, is_marked, is_reply, is_tcp, is_translated, mark, redirect_to, refuse,
    source_in, source_in_set, source_port_in_set, to_port,
};
use super::rules::FORBIDDEN;
use super::ruleset::Ruleset;
use crate::domain::egress::{Lan, NEAR, Policy, Target, Verdict};
use crate::domain::port::AGENT_PORT;
use crate::domain::slot::{Network, TAP_NAME, UPLINK_NAME};

/// Addresses that were answered for allowed names.
pub(in crate::vmm::network) const LEARNED: &str = "learned";

/// Such addresses, each with a port that a rule opens beside TLS and HTTP.
pub(in crate::vmm::network) const LEARNED_PORTS: &str = "learned_ports";

/// How much is learned at a time: addresses, and ports of them.
pub(in crate::vmm::network) const MOST_LEARNED: u32 = 4096;

/// Where our resolver and our proxy listen in the namespace.
pub(in crate::vmm::network) const DNS_PORT: u16 = 49_953;
pub(in crate::vmm::network) const PROXY_PORT: u16 = 49_954;

/// Where the web is: names are in what is sent there.
const WEB: [u16; 2] = [80, 443];
const DNS: [u16; 1] = [53];
/// HTTP/3 hides the name better than a proxy should have to look for it; without it, clients use TCP.
const QUIC: [u16; 1] = [443];

const TRANSPORTS: [Transport; 2] = [Transport::Udp, Transport::Tcp];

const EGRESS: &str = "egress";
const ANSWERS: &str = "answers";

/// All that decides what a guest reaches: its policy, and what holds for every guest of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::vmm::network) struct Reach {
    pub policy: Policy,
    pub lan: Lan,
    /// The name servers that guests are told of.
    pub servers: Vec<Ipv4Addr>,
    /// Bytes a second each way; as many as there can be if absent.
    pub rate: Option<u32>,
}

impl Reach {
    /// Whether a guest reaches everything that guests may reach.
    pub fn is_open(&self) -> bool {
        self.lan == Lan::Open && self.policy.is_open()
    }

    /// The name servers that a guest asks itself though somebody near has them: whoever may look for
    /// names at all could not without them.
    fn servers_near(&self) -> Vec<Network> {
        let open = |address: &Ipv4Addr| {
            let target = Target { address: Some(*address), ..Target::default() };
            self.policy.decide(target) == Verdict::Allow
        };
        let near = |address: &Ipv4Addr| NEAR.iter().any(|network| network.contains(*address));
        let servers = self.servers.iter().filter(|it| near(it) && open(it));
        servers.map(|address| Network { base: *address, prefix_len: 32 }).collect()
    }

    /// Adds what the rules of [`Reach::forward`] lead to.
    pub fn branches(&self, ruleset: Ruleset) -> Ruleset {
        if self.is_open() {
            return ruleset;
        }
        let mut ruleset = ruleset;
        if self.policy.has_names() {
            ruleset = ruleset.addresses(LEARNED, MOST_LEARNED);
        }
        if self.policy.has_ports() {
            ruleset = ruleset.ports(LEARNED_PORTS, MOST_LEARNED);
        }
        ruleset.branch(EGRESS, self.egress()).branch(ANSWERS, self.answers())
    }

    /// The rules about a guest's own connections, for the beginning of the chain `forward`.
    pub fn forward(&self) -> Vec<Vec<Term>> {
        if self.is_open() {
            return Vec::new();
        }
        let outward = || [comes_from(TAP_NAME), goes_forth()];
        let inward = || [goes_to(TAP_NAME), comes_back()];
        let with = |first: [Term; 2], last: &[Term]| [first.as_slice(), last].concat();
        let mut rules: Vec<_> = refuse(&with(outward(), &[destination_in(&FORBIDDEN)])).into();
        let passes = [is_marked(self.policy.mark(self.lan)), accept()];
        rules.extend([
            with(outward(), &passes),
            with(outward(), &[goto(EGRESS)]),
            with(inward(), &passes),
            // Not errors about a connection: they come from whoever is on the way.
            with(inward(), &[is_established(), goto(ANSWERS)]),
        ]);
        rules
    }

    /// Lets the packet pass, and with it all of its connection.
    fn passes(&self) -> Vec<Term> {
        vec![mark(self.policy.mark(self.lan)), accept()]
    }

    /// What a guest sends in a connection that the policy has not allowed yet.
    fn egress(&self) -> Vec<Vec<Term>> {
        let names = self.policy.has_names();
        let passes = |conditions: &[Term]| [conditions, &self.passes()].concat();
        let mut rules: Vec<_> = refuse(&[goes_not_to(UPLINK_NAME)]).into();
        if names {
            // Begun before there were names in the policy: only our resolver is to be asked now.
            rules.extend(TRANSPORTS.into_iter().flat_map(|it| refuse(&[to_port(it, &DNS)])));
        }
        if self.lan == Lan::Closed {
            let near = among(&self.policy.allowed_near(), destination_in);
            rules.extend(near.map(|it| passes(&it)));
            if !names && let Some(servers) = among(&self.servers_near(), destination_in) {
                let asks = |it| passes(&[servers.as_slice(), &[to_port(it, &DNS)]].concat());
                rules.extend(TRANSPORTS.map(asks));
            }
            rules.extend(refuse(&[destination_in(&NEAR)]));
        }
        let allowed = among(&self.policy.allowed_networks(), destination_in);
        rules.extend(allowed.map(|it| passes(&it)));
        if names {
            // Only what the proxy has looked at may pass there.
            rules.extend(refuse(&[to_port(Transport::Tcp, &WEB)]));
            rules.extend(refuse(&[to_port(Transport::Udp, &QUIC)]));
            rules.extend(refuse(&[is_tcp(), destination_in_set(LEARNED)]));
            rules.push(passes(&[is_echo(Echo::Request), destination_in_set(LEARNED)]));
        }
        if self.policy.has_ports() {
            rules.push(passes(&[destination_port_in_set(Transport::Udp, LEARNED_PORTS)]));
        }
        if let Some(denied) = among(&self.policy.denied_networks(), destination_in) {
            rules.extend(refuse(&denied));
        }
        match self.policy.by_default() {
            Verdict::Allow => rules.push(self.passes()),
            Verdict::Deny => rules.extend(refuse(&[])),
        }
        rules
    }

    /// What comes back in such a connection. Nobody there is told anything.
    fn answers(&self) -> Vec<Vec<Term>> {
        let names = self.policy.has_names();
        let passes = |conditions: &[Term]| [conditions, &self.passes()].concat();
        let mut rules = Vec::new();
        if names {
            rules.extend(TRANSPORTS.map(|it| vec![from_port(it, &DNS), drop()]));
        }
        if self.lan == Lan::Closed {
            let near = among(&self.policy.allowed_near(), source_in);
            rules.extend(near.map(|it| passes(&it)));
            if !names && let Some(servers) = among(&self.servers_near(), source_in) {
                let says = |it| passes(&[servers.as_slice(), &[from_port(it, &DNS)]].concat());
                rules.extend(TRANSPORTS.map(says));
            }
            rules.push(vec![source_in(&NEAR), drop()]);
        }
        let allowed = among(&self.policy.allowed_networks(), source_in);
        rules.extend(allowed.map(|it| passes(&it)));
        if names {
            rules.push(vec![from_port(Transport::Tcp, &WEB), drop()]);
            rules.push(vec![from_port(Transport::Udp, &QUIC), drop()]);
            rules.push(vec![is_tcp(), source_in_set(LEARNED), drop()]);
            rules.push(passes(&[is_echo(Echo::Reply), source_in_set(LEARNED)]));
        }
        if self.policy.has_ports() {
            rules.push(passes(&[source_port_in_set(Transport::Udp, LEARNED_PORTS)]));
        }
        if let Some(denied) = among(&self.policy.denied_networks(), source_in) {
            rules.push([denied, vec![drop()]].concat());
        }
        match self.policy.by_default() {
            Verdict::Allow => rules.push(self.passes()),
            Verdict::Deny => rules.push(vec![drop()]),
        }
        rules
    }

    /// Where a guest's first packets of connections are led to, for the chain of destinations.
    pub fn redirections(&self) -> Vec<Vec<Term>> {
        if !self.policy.has_names() {
            return Vec::new();
        }
        let from_guest = |terms: &[Term]| [&[comes_from(TAP_NAME)], terms].concat();
        // What is left as it is goes on to the rules above.
        let left = |networks: &[Network]| {
            let within = among(networks, destination_in);
            within.map(|it| from_guest(&[it, vec![accept()]].concat()))
        };
        // What nobody may reach is refused where it always is.
        let mut rules: Vec<_> = left(&FORBIDDEN).into_iter().collect();
        for transport in TRANSPORTS {
            rules.push(from_guest(&[to_port(transport, &DNS), redirect_to(DNS_PORT)]));
        }
        if self.lan == Lan::Closed {
            rules.extend(left(&NEAR));
        }
        rules.extend(left(&self.policy.allowed_networks()));
        let learned = [destination_in_set(LEARNED), is_tcp(), redirect_to(PROXY_PORT)];
        rules.push(from_guest(&learned));
        rules.extend(left(&self.policy.denied_networks()));
        if self.policy.by_default() == Verdict::Allow {
            let to_web = to_port(Transport::Tcp, &WEB);
            rules.push(from_guest(&[to_web, redirect_to(PROXY_PORT)]));
        }
        rules
    }

    /// What of a guest's packets is too much, on their way in and on their way out of the namespace. The
    /// daemon's own connections to the agent do not count: what a guest sends does not keep it from
    /// being asked.
    pub fn rates(&self) -> Option<[Vec<Vec<Term>>; 2]> {
        let rate = self.rate?;
        let agent = [AGENT_PORT];
        let from_agent = [is_translated(), comes_back(), from_port(Transport::Tcp, &agent)];
        let to_agent = [is_translated(), goes_forth(), to_port(Transport::Tcp, &agent)];
        let rules = |guest: Term, by_daemon: [Term; 3]| {
            let with = |last: &[Term]| [std::slice::from_ref(&guest), last].concat();
            vec![
                with(&[by_daemon.as_slice(), &[accept()]].concat()),
                with(&[exceeds(rate), drop()]),
            ]
        };
        Some([rules(comes_from(TAP_NAME), from_agent), rules(goes_to(TAP_NAME), to_agent)])
    }

    /// What may come to our resolver and our proxy: what was led there, and answers to what they ask.
    pub fn input(&self) -> Vec<Vec<Term>> {
        if !self.policy.has_names() {
            return Vec::new();
        }
        let led = |transport, ports: &[u16]| {
            vec![comes_from(TAP_NAME), is_translated(), to_port(transport, ports), accept()]
        };
        vec![
            vec![comes_from(UPLINK_NAME), is_reply(), accept()],
            led(Transport::Udp, &[DNS_PORT]),
            led(Transport::Tcp, &[DNS_PORT, PROXY_PORT]),
        ]
    }
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
