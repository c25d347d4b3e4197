//! Egress policy: what a sandbox may reach. Pure decisions; nothing here knows how they are enforced.
//!
//! ```text
//! a rule of `allow` matches  -> allowed       (allow wins over deny)
//! else one of `deny` matches -> denied        (deny wins over the default)
//! else                       -> the default
//! ```
//!
//! What no guest may reach, such as the host, is no part of any policy: nothing opens it. Networks of
//! somebody near are closed before all this, unless a rule is about just them or the host has them
//! open ([`Lan`]).

mod near;
mod rule;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use self::near::{Lan, NEAR};
use self::near::{is_near, lies_near};
pub use self::rule::{InvalidRule, Names, Rule};
use super::object::{Object, or_default};
use super::slot::Network;

/// How many rules a list has at most.
pub const MAX_RULES: usize = 128;

/// Whether something may be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may.
    #[default]
    Allow,
    /// It may not.
    Deny,
}

/// What a sandbox may reach. The default is everything.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Object<Wanted>")]
pub struct Policy {
    default: Verdict,
    allow: BTreeSet<Rule>,
    deny: BTreeSet<Rule>,
}

/// What holds for a sandbox, and how often that was changed: of two the greater one is the later one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PolicyRevision {
    /// What it may reach.
    pub policy: Policy,
    /// Number of the change.
    pub revision: i64,
}

/// A policy as somebody asks for it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    default: Option<Verdict>,
    #[serde(default, deserialize_with = "or_default")]
    allow: BTreeSet<Rule>,
    #[serde(default, deserialize_with = "or_default")]
    deny: BTreeSet<Rule>,
}

/// Where somebody wants to get, as far as it is known.
#[derive(Debug, Clone, Copy, Default)]
pub struct Target<'a> {
    /// The address.
    pub address: Option<Ipv4Addr>,
    /// The name that was said.
    pub name: Option<&'a str>,
    /// The port; every one, if it is not known.
    pub port: Option<u16>,
}

/// The lists do not make a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPolicy {
    /// A list is too long.
    #[error("a list has at most {MAX_RULES} rules: join networks, or use *. for names")]
    TooMany,
    /// It would allow what is allowed anyway.
    #[error(
        "everything is allowed by default, so `allow` changes nothing: give the default deny, or \
         deny something; private networks are what `allow` can add"
    )]
    Idle,
    /// A port is denied.
    #[error("`deny` has no ports: leave the port of {0} out, or deny by default and allow ports")]
    DeniedPort(Rule),
}

impl Policy {
    /// Makes a policy. Without a default everything is allowed, unless `allow` alone lists
    /// something: then nothing else is.
    ///
    /// # Errors
    ///
    /// [`InvalidPolicy`].
    pub fn new(
        default: Option<Verdict>,
        allow: BTreeSet<Rule>,
        mut deny: BTreeSet<Rule>,
    ) -> Result<Self, InvalidPolicy> {
        if allow.len() > MAX_RULES || deny.len() > MAX_RULES {
            return Err(InvalidPolicy::TooMany);
        }
        let mut default = default.unwrap_or(match allow.is_empty() || !deny.is_empty() {
            true => Verdict::Allow,
            false => Verdict::Deny,
        });
        // To deny every address is to deny by default; said so it also holds for names.
        if deny.remove(&Rule::Network(Network::ALL)) {
            default = Verdict::Deny;
        }
        if let Some(rule) = deny.iter().find(|rule| rule.port().is_some()) {
            return Err(InvalidPolicy::DeniedPort(rule.clone()));
        }
        let policy = Self { default, allow, deny };
        let adds = !policy.deny.is_empty() || !policy.allowed_near().is_empty();
        match policy.default == Verdict::Allow && !policy.allow.is_empty() && !adds {
            true => Err(InvalidPolicy::Idle),
            false => Ok(policy),
        }
    }

    /// The policy that allows nothing.
    pub fn off() -> Self {
        Self { default: Verdict::Deny, ..Self::default() }
    }

    /// What becomes of what no rule is about.
    pub fn by_default(&self) -> Verdict {
        self.default
    }

    /// What is allowed.
    pub fn allow(&self) -> impl Iterator<Item = &Rule> {
        self.allow.iter()
    }

    /// What is denied.
    pub fn deny(&self) -> impl Iterator<Item = &Rule> {
        self.deny.iter()
    }

    /// Whether everything is allowed that is not closed.
    pub fn is_open(&self) -> bool {
        self.default == Verdict::Allow && self.deny.is_empty()
    }

    /// Whether any rule is about names.
    pub fn has_names(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(Rule::is_name)
    }

    /// The networks that are allowed, none within another.
    pub fn allowed_networks(&self) -> Vec<Network> {
        outermost(networks_of(&self.allow))
    }

    /// The networks that are denied, none within another.
    pub fn denied_networks(&self) -> Vec<Network> {
        outermost(networks_of(&self.deny))
    }

    /// The networks of somebody near that are allowed, none within another. A rule about more than
    /// such a network does not mean it.
    pub fn allowed_near(&self) -> Vec<Network> {
        let mut networks = networks_of(&self.allow);
        networks.retain(lies_near);
        outermost(networks)
    }

    /// Decides by the lists and the default.
    pub fn decide(&self, target: Target<'_>) -> Verdict {
        let matches = |rule: &Rule| rule.matches(target);
        if self.allow.iter().any(matches) {
            Verdict::Allow
        } else if self.deny.iter().any(matches) {
            Verdict::Deny
        } else {
            self.default
        }
    }

    /// Whether an address is closed because it is somebody's near, whatever else allows it.
    pub fn closes(&self, address: Ipv4Addr, lan: Lan) -> bool {
        match lan {
            Lan::Open => false,
            Lan::Closed => {
                let allowed = || self.allowed_near().iter().any(|it| it.contains(address));
                is_near(address) && !allowed()
            }
        }
    }

    /// Whether the address that DNS gives for a name may be reached because of the name.
    pub fn opens(&self, name: &str, address: Ipv4Addr) -> bool {
        let target = Target { name: Some(name), ..Target::default() };
        !is_near(address) && self.allow.iter().any(|rule| rule.matches(target))
    }

    /// The rules that open one port of a name's addresses to whatever is spoken there.
    pub fn ports_of(&self, name: &str) -> impl Iterator<Item = &Rule> {
        let target = Target { name: Some(name), ..Target::default() };
        self.allow.iter().filter(move |rule| rule.port().is_some() && rule.matches(target))
    }

    /// Whether any rule is about one port.
    pub fn has_ports(&self) -> bool {
        self.allow.iter().any(|rule| rule.port().is_some())
    }

    /// A number that other policies do not have, nor this one where `lan` differs, and not zero: the
    /// kernel keeps it with connections that were allowed.
    pub fn mark(&self, lan: Lan) -> u32 {
        let mut text = serde_json::to_vec(self).expect("a policy has only string keys");
        text.push(match lan {
            Lan::Closed => b'-',
            Lan::Open => b'+',
        });
        let digest = Sha256::digest(text);
        u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]).max(1)
    }
}

impl TryFrom<Object<Wanted>> for Policy {
    type Error = InvalidPolicy;

    fn try_from(Object(wanted): Object<Wanted>) -> Result<Self, InvalidPolicy> {
        let Wanted { default, allow, deny } = wanted;
        Self::new(default, allow, deny)
    }
}

fn networks_of(rules: &BTreeSet<Rule>) -> Vec<Network> {
    let network = |rule: &Rule| match rule {
        Rule::Network(network) => Some(*network),
        Rule::Names(..) => None,
    };
    rules.iter().filter_map(network).collect()
}

/// The networks that lie in no other one of the list. Two networks are apart or one lies in the other.
fn outermost(all: Vec<Network>) -> Vec<Network> {
    let within = |one: &Network| {
        all.iter().any(|other| other.prefix_len < one.prefix_len && other.contains(one.base))
    };
    let mut outermost: Vec<_> = all.iter().filter(|one| !within(one)).copied().collect();
    outermost.dedup();
    outermost
}

#[cfg(test)]
mod tests;
