//! Ids of things that Nestbox makes. They are safe in paths, in DNS labels and in URLs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Length of a sandbox's id in characters: 20 of 36 possible ones are 103 bits.
const SANDBOX_ID_LEN: usize = 20;

/// Names one sandbox for ever; never reused.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SandboxId(String);

/// The text is not an id that Nestbox could have made.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a sandbox id is {SANDBOX_ID_LEN} characters of a-z and 0-9, starting with a letter")]
pub struct InvalidId;

impl SandboxId {
    /// Makes a new id from the operating system's randomness.
    pub fn random() -> Self {
        use rand::Rng;
        const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
        let mut rng = rand::rng();
        // A DNS label and a host name may not start with a digit everywhere, so an id does not.
        let first = LETTERS[rng.random_range(0..26)];
        let rest = (1..SANDBOX_ID_LEN).map(|_| LETTERS[rng.random_range(0..LETTERS.len())]);
        Self(std::iter::once(first).chain(rest).map(char::from).collect())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SandboxId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let good = text.len() == SANDBOX_ID_LEN
            && text.starts_with(|c: char| c.is_ascii_lowercase())
            && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidId) }
    }
}

impl TryFrom<String> for SandboxId {
    type Error = InvalidId;

    fn try_from(text: String) -> Result<Self, InvalidId> {
        text.parse()
    }
}

impl From<SandboxId> for String {
    fn from(id: SandboxId) -> String {
        id.0
    }
}

impl fmt::Display for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SandboxId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_random_id_reads_back() {
        let id = SandboxId::random();
        assert_eq!(id.as_str().parse(), Ok(id));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in
            ["", "short", "../../../../etc/pass", "1bcdefghij0123456789", "Abcdefghij0123456789"]
        {
            assert_eq!(text.parse::<SandboxId>(), Err(InvalidId), "{text}");
        }
    }
}
