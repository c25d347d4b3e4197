//! How fast a sandbox may use its disk and its network.

use std::fmt;
use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::object::Object;

/// Upper limits of rates; what has none is as fast as the host lets it be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "Object<Wanted>")]
pub struct RateLimits {
    /// Bytes that are read from the disk and written to it, a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_bytes_per_sec: Option<u64>,
    /// Reads and writes of the disk, a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    disk_ops_per_sec: Option<u64>,
    /// Bytes that are sent, and as many that are received, a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    network_bytes_per_sec: Option<u64>,
}

/// Limits as somebody asks for them.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    disk_bytes_per_sec: Option<u64>,
    disk_ops_per_sec: Option<u64>,
    network_bytes_per_sec: Option<u64>,
}

/// Which rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rate {
    /// [`RateLimits::disk_bytes_per_sec`].
    DiskBytes,
    /// [`RateLimits::disk_ops_per_sec`].
    DiskOps,
    /// [`RateLimits::network_bytes_per_sec`].
    NetworkBytes,
}

impl Rate {
    const ALL: [Self; 3] = [Self::DiskBytes, Self::DiskOps, Self::NetworkBytes];

    /// What can be enforced, and what a guest can still work with.
    fn range(self) -> RangeInclusive<u64> {
        match self {
            Self::DiskBytes => 65_536..=1_000_000_000_000,
            Self::DiskOps => 10..=1_000_000_000,
            Self::NetworkBytes => 16_384..=u32::MAX as u64,
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DiskBytes => "disk_bytes_per_sec",
            Self::DiskOps => "disk_ops_per_sec",
            Self::NetworkBytes => "network_bytes_per_sec",
        })
    }
}

/// The limit cannot be kept to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRate {
    /// It is too low or too high for anybody.
    #[error("{rate} is {given}: it is {min} to {max}, or left out for no limit",
        min = rate.range().start(), max = rate.range().end())]
    OutOfRange { rate: Rate, given: u64 },
    /// It is higher than the host's own limit.
    #[error("{rate} is {given}: a sandbox has at most {most} on this host")]
    TooHigh { rate: Rate, given: u64, most: u64 },
}

impl RateLimits {
    /// Limits of the disk, in bytes and in operations, and of the network, in bytes; each a second.
    ///
    /// # Errors
    ///
    /// [`InvalidRate::OutOfRange`].
    pub fn new(
        disk_bytes_per_sec: Option<u64>,
        disk_ops_per_sec: Option<u64>,
        network_bytes_per_sec: Option<u64>,
    ) -> Result<Self, InvalidRate> {
        let limits = Self { disk_bytes_per_sec, disk_ops_per_sec, network_bytes_per_sec };
        for rate in Rate::ALL {
            if let Some(given) = limits.of(rate).filter(|it| !rate.range().contains(it)) {
                return Err(InvalidRate::OutOfRange { rate, given });
            }
        }
        Ok(limits)
    }

    /// One of the limits.
    pub fn of(&self, rate: Rate) -> Option<u64> {
        match rate {
            Rate::DiskBytes => self.disk_bytes_per_sec,
            Rate::DiskOps => self.disk_ops_per_sec,
            Rate::NetworkBytes => self.network_bytes_per_sec,
        }
    }

    /// The limit of the network, in bytes a second each way.
    pub fn network(&self) -> Option<u32> {
        self.network_bytes_per_sec.map(|it| it.try_into().expect("it is in range"))
    }

    /// Whether the disk has any limit.
    pub fn has_disk(&self) -> bool {
        self.disk_bytes_per_sec.is_some() || self.disk_ops_per_sec.is_some()
    }

    /// These limits, with the host's where there is none.
    ///
    /// # Errors
    ///
    /// [`InvalidRate::TooHigh`] if one is above the host's.
    pub fn within(self, host: &Self) -> Result<Self, InvalidRate> {
        for rate in Rate::ALL {
            if let (Some(given), Some(most)) = (self.of(rate), host.of(rate))
                && given > most
            {
                return Err(InvalidRate::TooHigh { rate, given, most });
            }
        }
        Ok(Self {
            disk_bytes_per_sec: self.disk_bytes_per_sec.or(host.disk_bytes_per_sec),
            disk_ops_per_sec: self.disk_ops_per_sec.or(host.disk_ops_per_sec),
            network_bytes_per_sec: self.network_bytes_per_sec.or(host.network_bytes_per_sec),
        })
    }
}

impl TryFrom<Object<Wanted>> for RateLimits {
    type Error = InvalidRate;

    fn try_from(Object(wanted): Object<Wanted>) -> Result<Self, InvalidRate> {
        Self::new(wanted.disk_bytes_per_sec, wanted.disk_ops_per_sec, wanted.network_bytes_per_sec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(disk: Option<u64>, ops: Option<u64>, network: Option<u64>) -> RateLimits {
        RateLimits::new(disk, ops, network).expect("in range")
    }

    #[test]
    fn a_rate_that_nobody_could_work_with_is_refused_by_name() {
        for (text, error) in [
            (
                r#"{"disk_ops_per_sec": 0}"#,
                "disk_ops_per_sec is 0: it is 10 to 1000000000, or left",
            ),
            (r#"{"disk_bytes_per_sec": 65535}"#, "disk_bytes_per_sec is 65535: it is 65536 to"),
            (r#"{"network_bytes_per_sec": 4294967296}"#, "network_bytes_per_sec is 4294967296"),
            (r#"{"network": 1}"#, "unknown field `network`"),
            ("[1, 2, 3]", "invalid type: sequence"),
        ] {
            let refused = serde_json::from_str::<RateLimits>(text).expect_err(text);
            assert!(refused.to_string().contains(error), "{refused}");
        }
    }

    #[test]
    fn the_hosts_limits_hold_for_those_who_ask_for_none_and_bound_the_others() {
        let host = limits(Some(1 << 20), None, Some(1 << 20));
        assert_eq!(RateLimits::default().within(&host), Ok(host));
        let lower = limits(Some(1 << 16), Some(100), None);
        let expected = limits(Some(1 << 16), Some(100), Some(1 << 20));
        assert_eq!(lower.within(&host), Ok(expected));
        let error = limits(None, None, Some(1 << 21)).within(&host).expect_err("too high");
        assert_eq!(
            error.to_string(),
            "network_bytes_per_sec is 2097152: a sandbox has at most 1048576 on this host"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        for limits in [RateLimits::default(), limits(Some(1 << 20), Some(100), Some(1 << 14))] {
            let text = serde_json::to_string(&limits).expect("plain data");
            assert_eq!(serde_json::from_str::<RateLimits>(&text).expect("reads"), limits);
        }
    }
}
