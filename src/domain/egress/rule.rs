//! One entry of a policy's lists: how it is written, and what it is about.

use std::fmt;
use std::net::Ipv4Addr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Target;
use crate::domain::slot::Network;

/// The longest name that DNS knows, in characters.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;

/// The longest rule: `*.`, a name, a colon and a port.
const MAX_RULE: usize = 2 + MAX_NAME + 6;

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Rule {
    /// All addresses of a network.
    Network(Network),
    /// Names, at one port if there is one.
    Names(Names, Option<NonZeroU16>),
}

/// Which names a rule is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Names {
    /// One name, in lower case.
    One(String),
    /// All names below one, at any depth, but not that one itself.
    Below(String),
}

/// The text is no rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRule {
    /// It is neither an address nor a name.
    #[error(
        "{0:?} is no rule: give an IPv4 address, a network such as 10.0.0.0/8, a name such as \
         example.com, *.example.com for all names below it, or example.com:22 for one port"
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
    /// What stands behind the colon is no port.
    #[error("{0:?} has no port that there is: give a number from 1 to 65535 behind the name")]
    Port(String),
    /// Addresses have no ports in rules.
    #[error("{0:?} has a port, which only names can have: leave it out, for all ports")]
    AddressPort(String),
}

impl Rule {
    pub(super) fn is_name(&self) -> bool {
        match self {
            Self::Network(_) => false,
            Self::Names(..) => true,
        }
    }

    /// The port that the rule is limited to.
    pub fn port(&self) -> Option<u16> {
        match self {
            Self::Network(_) => None,
            Self::Names(_, port) => port.map(NonZeroU16::get),
        }
    }

    /// Whether the rule is about a target. What is not known of the port does not count against it.
    pub(super) fn matches(&self, target: Target<'_>) -> bool {
        match self {
            Self::Network(network) => target.address.is_some_and(|it| network.contains(it)),
            Self::Names(names, port) => {
                let here = |port: NonZeroU16| target.port.is_none_or(|it| it == port.get());
                port.is_none_or(here) && target.name.is_some_and(|name| names.contain(name))
            }
        }
    }
}

impl Names {
    fn contain(&self, name: &str) -> bool {
        let name = plain(name);
        match self {
            Self::One(wanted) => name == *wanted,
            Self::Below(parent) => {
                let below = name.strip_suffix(parent.as_str());
                below.is_some_and(|below| below.len() > 1 && below.ends_with('.'))
            }
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
        if text.len() > MAX_RULE {
            return Err(InvalidRule::Unknown(text.chars().take(MAX_NAME).collect()));
        }
        if let Some(network) = network(text) {
            return network.map(Self::Network);
        }
        if text.parse::<std::net::IpAddr>().is_ok() || text.contains("::") {
            return Err(InvalidRule::Ipv6(text.to_owned()));
        }
        if !text.is_ascii() {
            return Err(InvalidRule::NotAscii(text.to_owned()));
        }
        match text.split_once(':') {
            Some((host, _)) if network(host).is_some() => {
                Err(InvalidRule::AddressPort(text.to_owned()))
            }
            Some((host, port)) if is_number(port) => {
                let port = match port.starts_with('0') {
                    true => None,
                    false => port.parse().ok(),
                };
                let port = port.ok_or_else(|| InvalidRule::Port(text.to_owned()))?;
                Ok(Self::Names(names(host, text)?, Some(port)))
            }
            Some(_) | None => Ok(Self::Names(names(text, text)?, None)),
        }
    }
}

/// An address or a network, if it is meant to be one.
fn network(text: &str) -> Option<Result<Network, InvalidRule>> {
    if let Ok(address) = text.parse() {
        return Some(Ok(Network { base: address, prefix_len: 32 }));
    }
    let (base, len) = text.split_once('/')?;
    let (base, prefix_len) = (base.parse::<Ipv4Addr>().ok()?, prefix_length(len)?);
    let network = Network::around(base, prefix_len);
    Some(match network.base == base {
        true => Ok(network),
        false => Err(InvalidRule::HostBits { given: text.to_owned(), network }),
    })
}

/// The names that a rule of this whole text is about.
fn names(host: &str, text: &str) -> Result<Names, InvalidRule> {
    let (name, below) = match host.strip_prefix("*.") {
        Some(name) => (plain(name), true),
        None => (plain(host), false),
    };
    match (is_name(&name), below) {
        (true, true) => Ok(Names::Below(name)),
        (true, false) => Ok(Names::One(name)),
        (false, _) => Err(InvalidRule::Unknown(text.to_owned())),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// 0 to 32, in digits and without a zero before others.
fn prefix_length(text: &str) -> Option<u8> {
    let plain = is_number(text) && (text == "0" || !text.starts_with('0'));
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
    name.len() <= MAX_NAME && !is_number(last) && name.split('.').all(label)
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
            Self::Names(names, None) => write!(f, "{names}"),
            Self::Names(names, Some(port)) => write!(f, "{names}:{port}"),
        }
    }
}

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}
