//! Egress policy: what a sandbox may reach. Pure decisions; nothing here knows how they are enforced.
//!
//! ```text
//! a rule of `allow` matches  -> allowed       (allow wins over deny)
//! else one of `deny` matches -> denied        (deny wins over the default)
//! else                       -> the default
//! ```
//!
//! What no guest may reach, such as the host, is no part of any policy: nothing opens it.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::object::Object;
use super::slot::Network;

/// How many rules a list has at most.
pub const MAX_RULES: usize = 128;

/// The longest name that DNS knows, in characters.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// Where names do not lead: networks that belong to somebody near. An answer of DNS says whatever its
/// author likes, so only a rule that names such an address opens it.
const NEAR: [Network; 8] = [
    Network { base: Ipv4Addr::new(0, 0, 0, 0), prefix_len: 8 },
    Network { base: Ipv4Addr::new(10, 0, 0, 0), prefix_len: 8 },
    Network { base: Ipv4Addr::new(100, 64, 0, 0), prefix_len: 10 },
    Network { base: Ipv4Addr::new(127, 0, 0, 0), prefix_len: 8 },
    Network { base: Ipv4Addr::new(169, 254, 0, 0), prefix_len: 16 },
    Network { base: Ipv4Addr::new(172, 16, 0, 0), prefix_len: 12 },
    Network { base: Ipv4Addr::new(192, 168, 0, 0), prefix_len: 16 },
    // Multicast, reserved, broadcast.
    Network { base: Ipv4Addr::new(224, 0, 0, 0), prefix_len: 3 },
];

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

/// A policy as somebody asks for it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    default: Option<Verdict>,
    #[serde(default)]
    allow: BTreeSet<Rule>,
    #[serde(default)]
    deny: BTreeSet<Rule>,
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rule {
    /// All addresses of a network.
    Network(Network),
    /// One name, in lower case.
    Name(String),
    /// All names below one, at any depth, but not that one itself.
    Below(String),
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
         deny something"
    )]
    Idle,
}

/// The text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// It is neither an address nor a name.
    #[error(
        "{0:?} is no rule: give an IPv4 address, a network such as 10.0.0.0/8, a name such as \
         example.com, or *.example.com for all names below it"
    )]
    Unknown(String),
    /// The network's address has bits beyond its prefix.
    #[error("{given} is no network: the one that it lies in is {network}")]
    HostBits { given: String, network: Network },
    /// Guests have no IPv6.
    #[error("{0:?} looks like IPv6, which sandboxes do not have: leave it out")]
    Ipv6(String),
    /// The name is not written as DNS writes it.
    #[error("{0:?} has letters beyond ASCII: give the name in its xn-- form")]
    NotAscii(String),
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
        if default == Verdict::Allow && deny.is_empty() && !allow.is_empty() {
            return Err(InvalidPolicy::Idle);
        }
        Ok(Self { default, allow, deny })
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

    /// Whether everything is allowed.
    pub fn is_open(&self) -> bool {
        self.default == Verdict::Allow && self.deny.is_empty()
    }

    /// Whether any rule is about names.
    pub fn has_names(&self) -> bool {
        self.allow.iter().chain(&self.deny).any(Rule::is_name)
    }

    /// The networks that are allowed, none within another.
    pub fn allowed_networks(&self) -> Vec<Network> {
        outermost(&self.allow)
    }

    /// The networks that are denied, none within another.
    pub fn denied_networks(&self) -> Vec<Network> {
        outermost(&self.deny)
    }

    /// Decides about a connection to `address` by `name`; either may be unknown.
    pub fn decide(&self, address: Option<Ipv4Addr>, name: Option<&str>) -> Verdict {
        let matches = |rule: &Rule| rule.matches(address, name);
        if self.allow.iter().any(matches) {
            Verdict::Allow
        } else if self.deny.iter().any(matches) {
            Verdict::Deny
        } else {
            self.default
        }
    }

    /// Whether the address that DNS gives for a name may be reached because of the name.
    pub fn opens(&self, name: &str, address: Ipv4Addr) -> bool {
        let near = NEAR.iter().any(|network| network.contains(address));
        !near && self.allow.iter().any(|rule| rule.matches(None, Some(name)))
    }

    /// A number that other policies do not have, and not zero: the kernel keeps it with connections
    /// that were allowed.
    pub fn mark(&self) -> u32 {
        let text = serde_json::to_vec(self).expect("a policy has only string keys");
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

/// The networks of a list that lie in no other one of it. Two networks are apart or one lies in the
/// other.
fn outermost(rules: &BTreeSet<Rule>) -> Vec<Network> {
    let network = |rule: &Rule| match rule {
        Rule::Network(network) => Some(*network),
        Rule::Name(_) | Rule::Below(_) => None,
    };
    let all: Vec<Network> = rules.iter().filter_map(network).collect();
    let within = |one: &Network| {
        all.iter().any(|other| other.prefix_len < one.prefix_len && other.contains(one.base))
    };
    all.iter().filter(|one| !within(one)).copied().collect()
}

impl Rule {
    fn is_name(&self) -> bool {
        match self {
            Self::Network(_) => false,
            Self::Name(_) | Self::Below(_) => true,
        }
    }

    fn matches(&self, address: Option<Ipv4Addr>, name: Option<&str>) -> bool {
        match self {
            Self::Network(network) => address.is_some_and(|address| network.contains(address)),
            Self::Name(wanted) => name.is_some_and(|name| plain(name) == *wanted),
            Self::Below(parent) => name.is_some_and(|name| {
                let name = plain(name);
                let below = name.strip_suffix(parent.as_str());
                below.is_some_and(|below| below.len() > 1 && below.ends_with('.'))
            }),
        }
    }
}

/// A name as rules have it: in lower case, without the dot at its end.
fn plain(name: &str) -> String {
    name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase()
}

impl FromStr for Rule {
    type Err = InvalidRule;

    fn from_str(text: &str) -> Result<Self, InvalidRule> {
        let unknown = || InvalidRule::Unknown(text.chars().take(MAX_NAME).collect());
        if text.len() > MAX_NAME + 3 {
            return Err(unknown());
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::Network(Network { base: address, prefix_len: 32 }));
        }
        if let Some((base, len)) = text.split_once('/')
            && let (Ok(base), Some(prefix_len)) = (base.parse(), prefix_length(len))
        {
            let network = Network::around(base, prefix_len);
            return match network.base == base {
                true => Ok(Self::Network(network)),
                false => Err(InvalidRule::HostBits { given: text.to_owned(), network }),
            };
        }
        if text.parse::<std::net::IpAddr>().is_ok() || text.contains("::") {
            return Err(InvalidRule::Ipv6(text.to_owned()));
        }
        if !text.is_ascii() {
            return Err(InvalidRule::NotAscii(text.to_owned()));
        }
        let (name, below) = match text.strip_prefix("*.") {
            Some(name) => (plain(name), true),
            None => (plain(text), false),
        };
        match (is_name(&name), below) {
            (true, true) => Ok(Self::Below(name)),
            (true, false) => Ok(Self::Name(name)),
            (false, _) => Err(unknown()),
        }
    }
}

/// 0 to 32, in digits and without a zero before others.
fn prefix_length(text: &str) -> Option<u8> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    text.parse().ok().filter(|len| plain && *len <= 32)
}

fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(letter)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    // No name ends in a number, so that a mistyped address does not pass for one.
    let last = name.rsplit('.').next().unwrap_or_default();
    let number = last.bytes().all(|byte| byte.is_ascii_digit());
    name.len() <= MAX_NAME && !number && name.split('.').all(label)
}

impl TryFrom<String> for Rule {
    type Error = InvalidRule;

    fn try_from(text: String) -> Result<Self, InvalidRule> {
        text.parse()
    }
}

impl From<Rule> for String {
    fn from(rule: Rule) -> String {
        rule.to_string()
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Network(Network { base, prefix_len: 32 }) => write!(f, "{base}"),
            Self::Network(network) => write!(f, "{network}"),
            Self::Name(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

#[cfg(test)]
#[path = "egress_tests.rs"]
mod tests;
