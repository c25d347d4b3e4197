//! Names of generations.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Names one generation for ever: 16 hexadecimal digits in the name of its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct BuildId(u64);

/// The text is not 16 lower-case hexadecimal digits.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a build is named by 16 digits of 0-9 and a-f")]
pub struct InvalidBuildId;

impl BuildId {
    /// Makes a new id from the operating system's randomness.
    pub fn random() -> Self {
        Self(rand::random())
    }

    pub(super) fn from_u64(number: u64) -> Self {
        Self(number)
    }

    pub(super) fn as_u64(self) -> u64 {
        self.0
    }
}

impl FromStr for BuildId {
    type Err = InvalidBuildId;

    fn from_str(text: &str) -> Result<Self, InvalidBuildId> {
        let digits = text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        match u64::from_str_radix(text, 16) {
            Ok(number) if digits && text.len() == 16 => Ok(Self(number)),
            _ => Err(InvalidBuildId),
        }
    }
}

impl From<BuildId> for String {
    fn from(build: BuildId) -> Self {
        build.to_string()
    }
}

impl TryFrom<String> for BuildId {
    type Error = InvalidBuildId;

    fn try_from(text: String) -> Result<Self, InvalidBuildId> {
        text.parse()
    }
}

impl fmt::Display for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for BuildId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_reads_back() {
        let build = BuildId::random();
        assert_eq!(build.to_string().parse(), Ok(build));
        assert_eq!(BuildId::from_u64(0xab).to_string(), "00000000000000ab");
    }

    #[test]
    fn what_is_no_build_is_refused() {
        for text in
            ["", "ab", "00000000000000AB", "+0000000000000ab", "00000000000000abc", "header"]
        {
            assert_eq!(text.parse::<BuildId>(), Err(InvalidBuildId), "{text}");
        }
    }
}
