//! A small vocabulary to write packet filters in, over the `nftables` crate: conditions and verdicts
//! that read like a rule.

use std::collections::HashSet;
use std::net::Ipv4Addr;

use nftables::batch::Batch;
use nftables::expr::{
    CT, Expression, Fib, FibFlag, FibResult, Meta, MetaKey, NamedExpression, Payload, PayloadField,
    Prefix, RT, RTKey, SetItem, TcpOption,
};
use nftables::helper::{self, NftablesError};
use nftables::schema::{Chain, NfListObject, NfObject, Nftables, Rule, Table};
use nftables::stmt::{
    Accept, Drop, Mangle, Match, NAT, NATFamily, Operator, Reject, RejectType, Statement,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook, RejectCode};

use super::NetworkError;
use crate::domain::slot::Network;

/// Name of our table, on the host and in each namespace.
pub(super) const TABLE: &str = "nestbox";

/// A condition or a verdict.
pub(super) type Term = Statement<'static>;

/// Where a chain hooks in, and what becomes of a packet that no rule decided about.
pub(super) struct Hook {
    pub(super) name: &'static str,
    pub(super) kind: NfChainType,
    pub(super) hook: NfHook,
    /// Netfilter's order among chains of the same hook: connection tracking is at -200, destination
    /// translation at -100, filters at 0, source translation at 100.
    pub(super) priority: i32,
    pub(super) policy: NfChainPolicy,
}

/// Our table as it should be.
pub(super) struct Ruleset(Batch<'static>);

impl Ruleset {
    pub(super) fn new() -> Self {
        let mut batch = Batch::new();
        batch.add(table());
        Self(batch)
    }

    /// Adds a chain with its rules.
    pub(super) fn chain(mut self, hook: Hook, rules: Vec<Vec<Term>>) -> Self {
        self.0.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: hook.name.into(),
            _type: Some(hook.kind),
            hook: Some(hook.hook),
            prio: Some(hook.priority),
            policy: Some(hook.policy),
            ..Chain::default()
        }));
        for terms in rules {
            self.0.add(NfListObject::Rule(Rule {
                family: NfFamily::INet,
                table: TABLE.into(),
                chain: hook.name.into(),
                expr: terms.into(),
                ..Rule::default()
            }));
        }
        self
    }

    /// Loads the table into the namespace of the calling thread, where there is none yet. Blocks
    /// while `nft` runs, a child of this thread and therefore in its namespace.
    pub(super) fn load(self, place: &str) -> Result<(), NetworkError> {
        helper::apply_ruleset(&self.0.to_nftables()).map_err(|e| filter_error("load", place, e))
    }

    /// Like [`Ruleset::load`], in the place of what may be there, in one step: no packet sees a state
    /// in between. Takes three times as long, because the kernel waits until no processor uses the
    /// old table.
    pub(super) fn replace(self, place: &str) -> Result<(), NetworkError> {
        let mut batch = removal();
        let Nftables { objects } = self.0.to_nftables();
        batch.add_all(objects.into_owned());
        helper::apply_ruleset(&batch.to_nftables()).map_err(|e| filter_error("load", place, e))
    }
}

/// Removes our table, whether it is there or not: deleting one that is missing is an error, adding
/// one that exists is none.
fn removal() -> Batch<'static> {
    let mut batch = Batch::new();
    batch.add(table());
    batch.delete(table());
    batch
}

/// Removes our table from the namespace of the calling thread; not there is done.
pub(super) fn unload(place: &str) -> Result<(), NetworkError> {
    helper::apply_ruleset(&removal().to_nftables()).map_err(|e| filter_error("remove", place, e))
}

/// Whether our table is in the namespace of the calling thread.
pub(super) fn is_loaded(place: &str) -> Result<bool, NetworkError> {
    let listing = helper::get_current_ruleset_with_args(
        helper::DEFAULT_NFT,
        ["list", "tables", "inet"].iter().copied(),
    )
    .map_err(|e| filter_error("list", place, e))?;
    let ours = |table: &Table<'_>| table.name == TABLE && table.family == NfFamily::INet;
    Ok(listing
        .objects
        .iter()
        .any(|object| matches!(object, NfObject::ListObject(NfListObject::Table(t)) if ours(t))))
}

fn table() -> NfListObject<'static> {
    NfListObject::Table(Table { family: NfFamily::INet, name: TABLE.into(), handle: None })
}

fn filter_error(action: &'static str, place: &str, source: NftablesError) -> NetworkError {
    let diagnosis = match &source {
        NftablesError::NftFailed { stderr, .. } => stderr.trim().replace('\n', " "),
        NftablesError::NftExecution { .. } => "is the package nftables installed?".to_owned(),
        NftablesError::NftOutputEncoding { .. } | NftablesError::NftInvalidJson(_) => {
            "nft gave an unknown answer".to_owned()
        }
    };
    NetworkError::Filter { action, place: place.to_owned(), diagnosis, source: Box::new(source) }
}

/// The packet came in through a link of this name; `*` at the end stands for anything.
pub(super) fn comes_from(link: &'static str) -> Term {
    compare(meta(MetaKey::Iifname), Operator::EQ, text(link))
}

/// The packet leaves through a link of this name; `*` at the end stands for anything.
pub(super) fn goes_to(link: &'static str) -> Term {
    compare(meta(MetaKey::Oifname), Operator::EQ, text(link))
}

/// The packet leaves through a link of another name.
pub(super) fn goes_not_to(link: &'static str) -> Term {
    compare(meta(MetaKey::Oifname), Operator::NEQ, text(link))
}

/// The packet belongs to a connection that was let through, or is an error message about one.
pub(super) fn is_reply() -> Term {
    ct_state(&["established", "related"])
}

/// Connection tracking cannot say which connection the packet belongs to.
pub(super) fn is_invalid() -> Term {
    ct_state(&["invalid"])
}

/// The connection's destination was translated.
pub(super) fn is_translated() -> Term {
    compare(ct("status"), Operator::IN, text("dnat"))
}

/// The packet is IPv6.
pub(super) fn is_ipv6() -> Term {
    compare(meta(MetaKey::Nfproto), Operator::EQ, text("ipv6"))
}

/// The packet is TCP's first of a connection, in either direction.
pub(super) fn is_tcp_syn() -> Term {
    compare(field("tcp", "flags"), Operator::IN, text("syn"))
}

/// The packet is for an address of this machine.
pub(super) fn is_for_this_machine() -> Term {
    let flags = HashSet::from([FibFlag::Daddr]);
    let destination = NamedExpression::Fib(Fib { result: FibResult::Type, flags });
    compare(Expression::Named(destination), Operator::EQ, text("local"))
}

/// The packet's source is this address.
pub(super) fn source_is(address: Ipv4Addr) -> Term {
    compare(field("ip", "saddr"), Operator::EQ, text(address.to_string()))
}

/// The packet's source is another address.
pub(super) fn source_is_not(address: Ipv4Addr) -> Term {
    compare(field("ip", "saddr"), Operator::NEQ, text(address.to_string()))
}

/// The packet's source lies in one of the networks.
pub(super) fn source_in(networks: &[Network]) -> Term {
    compare(field("ip", "saddr"), Operator::EQ, set_of(networks))
}

/// The packet's source lies in none of the networks.
pub(super) fn source_not_in(networks: &[Network]) -> Term {
    compare(field("ip", "saddr"), Operator::NEQ, set_of(networks))
}

/// The packet's destination is this address.
pub(super) fn destination_is(address: Ipv4Addr) -> Term {
    compare(field("ip", "daddr"), Operator::EQ, text(address.to_string()))
}

/// The packet's destination lies in one of the networks.
pub(super) fn destination_in(networks: &[Network]) -> Term {
    compare(field("ip", "daddr"), Operator::EQ, set_of(networks))
}

/// Lets the packet through.
pub(super) fn accept() -> Term {
    Statement::Accept(Some(Accept {}))
}

/// Drops the packet silently.
pub(super) fn drop() -> Term {
    Statement::Drop(Some(Drop {}))
}

/// Translates the source to the address of the link that the packet leaves through.
pub(super) fn masquerade() -> Term {
    Statement::Masquerade(None)
}

/// Translates the destination.
pub(super) fn translate_to(address: Ipv4Addr) -> Term {
    Statement::DNAT(Some(NAT {
        addr: Some(text(address.to_string())),
        family: Some(NATFamily::IP),
        port: None,
        flags: None,
    }))
}

/// Lowers the maximum segment size that a TCP peer announces to what the route can carry, because
/// on many networks the messages that would say so get lost.
pub(super) fn clamp_segment_size() -> Term {
    let option = TcpOption { name: "maxseg".into(), field: Some("size".into()) };
    Statement::Mangle(Mangle {
        key: Expression::Named(NamedExpression::TcpOption(option)),
        value: Expression::Named(NamedExpression::RT(RT { key: RTKey::MTU, family: None })),
    })
}

/// The rules that answer with an error at once: a reset for TCP, which no rate limit holds back, and
/// "administratively prohibited" for everything else.
pub(super) fn refuse(conditions: &[Term]) -> [Vec<Term>; 2] {
    let is_tcp = compare(meta(MetaKey::L4proto), Operator::EQ, text("tcp"));
    let reset = Reject::new(Some(RejectType::TCPReset), None);
    let prohibited = Reject::new(Some(RejectType::ICMPX), Some(RejectCode::AdminProhibited));
    let with = |last: &[Term]| [conditions, last].concat();
    [with(&[is_tcp, Statement::Reject(Some(reset))]), with(&[Statement::Reject(Some(prohibited))])]
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
        let addr = Box::new(text(network.base.to_string()));
        let prefix = Prefix { addr, len: u32::from(network.prefix_len) };
        SetItem::Element(Expression::Named(NamedExpression::Prefix(prefix)))
    };
    Expression::Named(NamedExpression::Set(networks.iter().map(prefix).collect()))
}
