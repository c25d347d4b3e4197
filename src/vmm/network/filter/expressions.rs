//! A small vocabulary to write packet filters in, over the `nftables` crate: conditions and verdicts
//! that read like a rule.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    Prefix, RT, RTKey, SetItem, TcpOption,
};
use nftables::stmt::{
    Accept, Drop, JumpTarget, Limit, Mangle, Match, NAT, NATFamily, Operator, Reject, RejectType,
    Statement,
};
use nftables::types::RejectCode;

use crate::domain::slot::Network;

/// Bytes of two packets as long as segmentation offload makes them: a lower limit would let none of
/// them through, ever.
const LONGEST_PACKETS: u32 = 128 << 10;

/// A condition or a verdict.
pub(in crate::vmm::network) type Term = Statement<'static>;

/// The packet came in through the link of this name.
pub(in crate::vmm::network) fn comes_from(link: &'static str) -> Term {
    compare(meta(MetaKey::Iifname), Operator::EQ, text(link))
}

/// The packet leaves through the link of this name.
pub(in crate::vmm::network) fn goes_to(link: &'static str) -> Term {
    compare(meta(MetaKey::Oifname), Operator::EQ, text(link))
}

/// The packet leaves through a link of another name.
pub(in crate::vmm::network) fn goes_not_to(link: &'static str) -> Term {
    compare(meta(MetaKey::Oifname), Operator::NEQ, text(link))
}

/// The packet came in through a link of this group.
pub(in crate::vmm::network) fn comes_from_group(group: u32) -> Term {
    compare(meta(MetaKey::Iifgroup), Operator::EQ, Expression::Number(group))
}

/// The packet leaves through a link of this group.
pub(in crate::vmm::network) fn goes_to_group(group: u32) -> Term {
    compare(meta(MetaKey::Oifgroup), Operator::EQ, Expression::Number(group))
}

/// The packet leaves through a link of another group.
pub(in crate::vmm::network) fn goes_not_to_group(group: u32) -> Term {
    compare(meta(MetaKey::Oifgroup), Operator::NEQ, Expression::Number(group))
}

/// Root made the socket that the packet is sent by.
pub(in crate::vmm::network) fn is_sent_by_root() -> Term {
    compare(meta(MetaKey::Skuid), Operator::EQ, Expression::Number(0))
}

/// Somebody else made the socket that the packet is sent by. Not so of what the kernel sends by
/// itself, such as resets and errors, nor of sockets that nobody has open any more.
pub(in crate::vmm::network) fn is_sent_by_others() -> Term {
    compare(meta(MetaKey::Skuid), Operator::NEQ, Expression::Number(0))
}

/// The packet belongs to a connection that was let through, or is an error message about one.
pub(in crate::vmm::network) fn is_reply() -> Term {
    ct_state(&["established", "related"])
}

/// Connection tracking cannot say which connection the packet belongs to.
pub(in crate::vmm::network) fn is_invalid() -> Term {
    ct_state(&["invalid"])
}

/// The connection's destination was translated.
pub(in crate::vmm::network) fn is_translated() -> Term {
    compare(ct("status"), Operator::IN, text("dnat"))
}

/// The packet is IPv6.
pub(in crate::vmm::network) fn is_ipv6() -> Term {
    compare(meta(MetaKey::Nfproto), Operator::EQ, text("ipv6"))
}

/// The packet is TCP.
pub(in crate::vmm::network) fn is_tcp() -> Term {
    compare(meta(MetaKey::L4proto), Operator::EQ, text("tcp"))
}

/// What a program called ping sends, and gets back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vmm::network) enum Echo {
    Request,
    Reply,
}

/// The packet is the one or the other.
pub(in crate::vmm::network) fn is_echo(echo: Echo) -> Term {
    let kind = match echo {
        Echo::Request => "echo-request",
        Echo::Reply => "echo-reply",
    };
    compare(field("icmp", "type"), Operator::EQ, text(kind))
}

/// The packet is TCP's first of a connection, in either direction.
pub(in crate::vmm::network) fn is_tcp_syn() -> Term {
    compare(field("tcp", "flags"), Operator::IN, text("syn"))
}

/// The packet is for an address of this machine.
pub(in crate::vmm::network) fn is_for_this_machine() -> Term {
    let flags = HashSet::from([FibFlag::Daddr]);
    let destination = NamedExpression::Fib(Fib { result: FibResult::Type, flags });
    compare(Expression::Named(destination), Operator::EQ, text("local"))
}

/// The packet's source is this address.
pub(in crate::vmm::network) fn source_is(address: Ipv4Addr) -> Term {
    compare(field("ip", "saddr"), Operator::EQ, text(address.to_string()))
}

/// The packet's source is another address.
pub(in crate::vmm::network) fn source_is_not(address: Ipv4Addr) -> Term {
    compare(field("ip", "saddr"), Operator::NEQ, text(address.to_string()))
}

/// The packet's source lies in one of the networks.
pub(in crate::vmm::network) fn source_in(networks: &[Network]) -> Term {
    compare(field("ip", "saddr"), Operator::EQ, set_of(networks))
}

/// The packet's source lies in none of the networks.
pub(in crate::vmm::network) fn source_not_in(networks: &[Network]) -> Term {
    compare(field("ip", "saddr"), Operator::NEQ, set_of(networks))
}

/// The packet's destination is this address.
pub(in crate::vmm::network) fn destination_is(address: Ipv4Addr) -> Term {
    compare(field("ip", "daddr"), Operator::EQ, text(address.to_string()))
}

/// The packet's destination lies in one of the networks.
pub(in crate::vmm::network) fn destination_in(networks: &[Network]) -> Term {
    compare(field("ip", "daddr"), Operator::EQ, set_of(networks))
}

/// The packet's source is in a set of [`super::ruleset::Ruleset::addresses`].
pub(in crate::vmm::network) fn source_in_set(name: &str) -> Term {
    compare(field("ip", "saddr"), Operator::EQ, text(format!("@{name}")))
}

/// The packet's destination is in a set of [`super::ruleset::Ruleset::addresses`].
pub(in crate::vmm::network) fn destination_in_set(name: &str) -> Term {
    compare(field("ip", "daddr"), Operator::EQ, text(format!("@{name}")))
}

/// The packet's source and its port are in a set of [`super::ruleset::Ruleset::ports`].
pub(in crate::vmm::network) fn source_port_in_set(transport: Transport, name: &str) -> Term {
    pair_in_set("saddr", (transport, "sport"), name)
}

/// The packet's destination and its port are in a set of [`super::ruleset::Ruleset::ports`].
pub(in crate::vmm::network) fn destination_port_in_set(transport: Transport, name: &str) -> Term {
    pair_in_set("daddr", (transport, "dport"), name)
}

fn pair_in_set(address: &'static str, port: (Transport, &'static str), name: &str) -> Term {
    let pair = vec![field("ip", address), field(port.0.as_str(), port.1)];
    let pair = Expression::Named(NamedExpression::Concat(pair));
    compare(pair, Operator::EQ, text(format!("@{name}")))
}

/// A protocol with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::vmm::network) enum Transport {
    Tcp,
    Udp,
}

impl Transport {
    fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// The packet is sent to one of the ports.
pub(in crate::vmm::network) fn to_port(transport: Transport, ports: &[u16]) -> Term {
    compare(field(transport.as_str(), "dport"), Operator::EQ, ports_of(ports))
}

/// The packet is sent from one of the ports.
pub(in crate::vmm::network) fn from_port(transport: Transport, ports: &[u16]) -> Term {
    compare(field(transport.as_str(), "sport"), Operator::EQ, ports_of(ports))
}

/// The packet goes the way of the one that began the connection.
pub(in crate::vmm::network) fn goes_forth() -> Term {
    compare(ct("direction"), Operator::EQ, text("original"))
}

/// The packet goes against the one that began the connection.
pub(in crate::vmm::network) fn comes_back() -> Term {
    compare(ct("direction"), Operator::EQ, text("reply"))
}

/// The packet belongs to a connection that was let through.
pub(in crate::vmm::network) fn is_established() -> Term {
    ct_state(&["established"])
}

/// The packet's connection was marked with that number.
pub(in crate::vmm::network) fn is_marked(mark: u32) -> Term {
    compare(ct("mark"), Operator::EQ, Expression::Number(mark))
}

/// Marks the packet's connection.
pub(in crate::vmm::network) fn mark(mark: u32) -> Term {
    Statement::Mangle(Mangle { key: ct("mark"), value: Expression::Number(mark) })
}

/// Has the rules of a [`super::ruleset::Ruleset::branch`] decide, and no others.
pub(in crate::vmm::network) fn goto(branch: &'static str) -> Term {
    Statement::Goto(JumpTarget { target: branch.into() })
}

/// Has the packet's connection end at a port of this machine.
pub(in crate::vmm::network) fn redirect_to(port: u16) -> Term {
    let port = Some(Expression::Number(port.into()));
    Statement::Redirect(Some(NAT { addr: None, family: None, port, flags: None }))
}

/// Lets the packet through.
pub(in crate::vmm::network) fn accept() -> Term {
    Statement::Accept(Some(Accept {}))
}

/// Drops the packet silently.
pub(in crate::vmm::network) fn drop() -> Term {
    Statement::Drop(Some(Drop {}))
}

/// More bytes than so many a second have come here. A second's worth, and the longest packets that there
/// are, may come at once.
pub(in crate::vmm::network) fn exceeds(bytes_per_sec: u32) -> Term {
    Statement::Limit(Limit {
        rate: bytes_per_sec,
        rate_unit: Some("bytes".into()),
        per: Some("second".into()),
        burst: Some(LONGEST_PACKETS),
        burst_unit: Some("bytes".into()),
        inv: Some(true),
    })
}

/// Translates the source to the address of the link that the packet leaves through.
pub(in crate::vmm::network) fn masquerade() -> Term {
    Statement::Masquerade(None)
}

/// Translates the destination.
pub(in crate::vmm::network) fn translate_to(address: Ipv4Addr) -> Term {
    Statement::DNAT(Some(NAT {
        addr: Some(text(address.to_string())),
        family: Some(NATFamily::IP),
        port: None,
        flags: None,
    }))
}

/// Lowers the maximum segment size that a TCP peer announces to what the route can carry, because
/// on many networks the messages that would say so get lost.
pub(in crate::vmm::network) fn clamp_segment_size() -> Term {
    let option = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
    Statement::Mangle(Mangle {
        key: Expression::Named(NamedExpression::TcpOption(option)),
        value: Expression::Named(NamedExpression::RT(RT { key: RTKey::MTU, family: None })),
    })
}

/// The rules that answer with an error at once: a reset for TCP, which no rate limit holds back, and
/// "administratively prohibited" for everything else.
pub(in crate::vmm::network) fn refuse(conditions: &[Term]) -> [Vec<Term>; 2] {
    let reset = Reject::new(Some(RejectType::TCPReset), None);
    let prohibited = Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited));
    let with = |last: &[Term]| [conditions, last].concat();
    [
        with(&[is_tcp(), Statement::Reject(Some(reset))]),
        with(&[Statement::Reject(Some(prohibited))]),
    ]
}

fn compare(left: Expression<'static>, op: Operator, right: Expression<'static>) -> Term {
    Statement::Match(Match { left, right, op })
}

fn text(value: impl Into<std::borrow::Cow<'static, str>>) -> Expression<'static> {
    Expression::String(value.into())
}

fn meta(key: MetaKey) -> Expression<'static> {
    Expression::Named(NamedExpression::Meta(Meta { key }))
}

fn ct(key: &'static str) -> Expression<'static> {
    Expression::Named(NamedExpression::CT(CT { key: key.into(), family: None, dir: None }))
}

fn ct_state(states: &[&'static str]) -> Term {
    let states = states.iter().map(|state| text(*state)).collect();
    compare(ct("state"), Operator::IN, Expression::List(states))
}

fn field(protocol: &'static str, field: &'static str) -> Expression<'static> {
    let field = PayloadField { protocol: protocol.into(), field: field.into() };
    Expression::Named(NamedExpression::Payload(Payload::PayloadField(field)))
}

fn set_of(networks: &[Network]) -> Expression<'static> {
    let prefix = |network: &Network| {
        if network.prefix_len == 32 {
            return SetItem::Element(text(network.base.to_string()));
        }
        let addr = Box::new(text(network.base.to_string()));
        let prefix = Prefix { addr, len: u32::from(network.prefix_len) };
        SetItem::Element(Expression::Named(NamedExpression::Prefix(prefix)))
    };
    Expression::Named(NamedExpression::Set(networks.iter().map(prefix).collect()))
}

fn ports_of(ports: &[u16]) -> Expression<'static> {
    let port = |port: &u16| SetItem::Element(Expression::Number((*port).into()));
    Expression::Named(NamedExpression::Set(ports.iter().map(port).collect()))
}
