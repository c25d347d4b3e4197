//! Packet filters as wholes: our table, loaded into a namespace in one step, and what is asked of one
//! that is there.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use nftables::batch::Batch;
use nftables::expr::{Elem, Expression, NamedExpression};
use nftables::helper::{self, NftablesError};
use nftables::schema::{
    Chain, Element, NfListObject, NfObject, Nftables, Rule, Set, SetFlag, SetType, SetTypeValue,
    Table,
};
use nftables::types::{NfChainPolicy, NfChainType, NfFamily, NfHook};

use super::expressions::Term;
use crate::vmm::network::NetworkError;

/// Name of our table, on the host and in each namespace.
pub(in crate::vmm::network) const TABLE: &str = "nestbox";

/// Where a chain hooks in, and what becomes of a packet that no rule decided about.
pub(in crate::vmm::network) struct Hook {
    pub(in crate::vmm::network) name: &'static str,
    pub(in crate::vmm::network) kind: NfChainType,
    pub(in crate::vmm::network) hook: NfHook,
    /// Netfilter's order among chains of the same hook: connection tracking is at -200, destination
    /// translation at -100, filters at 0, source translation at 100.
    pub(in crate::vmm::network) priority: i32,
    pub(in crate::vmm::network) policy: NfChainPolicy,
}

/// Our table as it should be.
pub(in crate::vmm::network) struct Ruleset(Batch<'static>);

impl Ruleset {
    pub(in crate::vmm::network) fn new() -> Self {
        let mut batch = Batch::new();
        batch.add(table());
        Self(batch)
    }

    /// Adds a chain with its rules.
    pub(in crate::vmm::network) fn chain(mut self, hook: Hook, rules: Vec<Vec<Term>>) -> Self {
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
        self.rules(hook.name, rules)
    }

    /// Adds rules that others lead to; see [`super::expressions::goto`].
    pub(in crate::vmm::network) fn branch(
        mut self,
        name: &'static str,
        rules: Vec<Vec<Term>>,
    ) -> Self {
        self.0.add(NfListObject::Chain(Chain {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            ..Chain::default()
        }));
        self.rules(name, rules)
    }

    /// Adds a set of addresses, each of which is in it for a time; empty at first.
    pub(in crate::vmm::network) fn addresses(self, name: &'static str, size: u32) -> Self {
        self.set(name, SetTypeValue::Single(SetType::Ipv4Addr), size)
    }

    /// Adds a set of addresses with a port, each of which is in it for a time; empty at first.
    pub(in crate::vmm::network) fn ports(self, name: &'static str, size: u32) -> Self {
        const PAIR: [SetType; 2] = [SetType::Ipv4Addr, SetType::InetService];
        self.set(name, SetTypeValue::Concatenated(PAIR.as_slice().into()), size)
    }

    fn set(mut self, name: &'static str, of: SetTypeValue<'static>, size: u32) -> Self {
        self.0.add(NfListObject::Set(Box::new(Set {
            family: NfFamily::INet,
            table: TABLE.into(),
            name: name.into(),
            handle: None,
            set_type: of,
            policy: None,
            flags: Some(HashSet::from([SetFlag::Timeout])),
            elem: None,
            timeout: None,
            gc_interval: None,
            size: Some(size),
            comment: None,
        })));
        self
    }

    fn rules(mut self, chain: &'static str, rules: Vec<Vec<Term>>) -> Self {
        for terms in rules {
            self.0.add(NfListObject::Rule(Rule {
                family: NfFamily::INet,
                table: TABLE.into(),
                chain: chain.into(),
                expr: terms.into(),
                ..Rule::default()
            }));
        }
        self
    }

    /// Loads the table into the namespace of the calling thread, where there is none yet. Blocks
    /// while `nft` runs, a child of this thread and therefore in its namespace.
    pub(in crate::vmm::network) fn load(self, place: &str) -> Result<(), NetworkError> {
        helper::apply_ruleset(&self.0.to_nftables()).map_err(|e| filter_error("load", place, e))
    }

    /// Like [`Ruleset::load`], in the place of what may be there, in one step: no packet sees a state
    /// in between. Takes three times as long, because the kernel waits until no processor uses the
    /// old table.
    pub(in crate::vmm::network) fn replace(self, place: &str) -> Result<(), NetworkError> {
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
pub(in crate::vmm::network) fn unload(place: &str) -> Result<(), NetworkError> {
    helper::apply_ruleset(&removal().to_nftables()).map_err(|e| filter_error("remove", place, e))
}

/// Whether our table is in the namespace of the calling thread.
pub(in crate::vmm::network) fn is_loaded(place: &str) -> Result<bool, NetworkError> {
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

/// Something that is in a set for a time.
pub(in crate::vmm::network) trait Member {
    fn expression(&self) -> Expression<'static>;
}

impl Member for Ipv4Addr {
    fn expression(&self) -> Expression<'static> {
        Expression::String(self.to_string().into())
    }
}

impl Member for (Ipv4Addr, u16) {
    fn expression(&self) -> Expression<'static> {
        let pair = vec![self.0.expression(), Expression::Number(self.1.into())];
        Expression::Named(NamedExpression::Concat(pair))
    }
}

/// What is to be in sets for so long from now on, whether it is in them already or not.
pub(in crate::vmm::network) struct Renewal(Batch<'static>);

impl Renewal {
    pub(in crate::vmm::network) fn new() -> Self {
        Self(Batch::new())
    }

    /// Adds members of one set.
    pub(in crate::vmm::network) fn of<M: Member>(
        mut self,
        set: &'static str,
        members: &HashMap<M, Duration>,
    ) -> Self {
        if members.is_empty() {
            return self;
        }
        let element = |(member, valid): (&M, &Duration)| {
            Expression::Named(NamedExpression::Elem(Elem {
                val: Box::new(member.expression()),
                timeout: Some(valid.as_secs().try_into().unwrap_or(u32::MAX)),
                ..Elem::default()
            }))
        };
        let elements: Vec<_> = members.iter().map(element).collect();
        let all = || {
            NfListObject::Element(Element {
                family: NfFamily::INet,
                table: TABLE.into(),
                name: set.into(),
                elem: elements.clone().into(),
            })
        };
        // As for tables; and to add what is there would leave its time as it was.
        self.0.add(all());
        self.0.delete(all());
        self.0.add(all());
        self
    }

    /// Puts it into the sets of the calling thread's namespace, in one step.
    pub(in crate::vmm::network) fn apply(self, place: &str) -> Result<(), NetworkError> {
        helper::apply_ruleset(&self.0.to_nftables()).map_err(|e| filter_error("add to", place, e))
    }
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
