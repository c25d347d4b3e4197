//! Ports of servers in a sandbox.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Where the guest agent listens inside every guest. It is the daemon's alone.
pub const AGENT_PORT: u16 = 49983;

/// A TCP port in a sandbox that others than the daemon may be connected with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u16")]
pub struct GuestPort(u16);

/// The number is no port of a server in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPort {
    /// TCP has no such port.
    #[error("a port is a number from 1 to 65535")]
    NoPort,
    /// The agent listens there.
    #[error("port {AGENT_PORT} is the guest agent's: use another one")]
    Agent,
}

impl GuestPort {
    /// The number.
    pub fn get(self) -> u16 {
        self.0
    }
}

impl TryFrom<u32> for GuestPort {
    type Error = InvalidPort;

    fn try_from(number: u32) -> Result<Self, InvalidPort> {
        match u16::try_from(number) {
            Ok(0) | Err(_) => Err(InvalidPort::NoPort),
            Ok(AGENT_PORT) => Err(InvalidPort::Agent),
            Ok(port) => Ok(Self(port)),
        }
    }
}

impl FromStr for GuestPort {
    type Err = InvalidPort;

    fn from_str(text: &str) -> Result<Self, InvalidPort> {
        // Digits only, and no zero before them: each port has one name.
        let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && !text.starts_with('0');
        let number: Option<u32> = text.parse().ok().filter(|_| plain);
        number.ok_or(InvalidPort::NoPort)?.try_into()
    }
}

impl From<GuestPort> for u16 {
    fn from(port: GuestPort) -> u16 {
        port.0
    }
}

impl fmt::Display for GuestPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_what_tcp_has_but_for_the_agents() {
        for text in ["1", "80", "8000", "65535"] {
            assert_eq!(text.parse::<GuestPort>().map(|port| port.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "0", "65536", "99999999999", "http", "+80", "-1", "080", "8 0", "80.0"] {
            assert_eq!(text.parse::<GuestPort>(), Err(InvalidPort::NoPort), "{text:?}");
        }
        assert_eq!("49983".parse::<GuestPort>(), Err(InvalidPort::Agent));
        assert!(serde_json::from_str::<GuestPort>("65536").is_err());
    }
}
