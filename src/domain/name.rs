//! Names that users give to templates: images and named snapshots. They become paths, so they are
//! checked here, once, and every layer below takes the checked type.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The name of an image or of a named snapshot: `^[a-z0-9][a-z0-9._-]{0,62}$`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TemplateName(String);

/// The text cannot be the name of a template.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a template's name matches ^[a-z0-9][a-z0-9._-]{{0,62}}$")]
pub struct InvalidName;

impl TemplateName {
    /// The name as text, safe as one component of a path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TemplateName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
        let good = (1..=63).contains(&text.len())
            && !text.starts_with(['.', '_', '-'])
            && text.bytes().all(inner);
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidName) }
    }
}

impl TryFrom<String> for TemplateName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<Self, InvalidName> {
        text.parse()
    }
}

impl From<TemplateName> for String {
    fn from(name: TemplateName) -> String {
        name.0
    }
}

impl fmt::Display for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for TemplateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_names_are_taken() {
        for name in ["debian", "a", "0", "py3.12_slim-v2", &"x".repeat(63)] {
            assert!(name.parse::<TemplateName>().is_ok(), "{name}");
        }
    }

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        let long = "x".repeat(64);
        for name in
            ["", ".", "..", ".hidden", "../up", "a/b", "a\0b", "Debian", "-x", "é", long.as_str()]
        {
            assert_eq!(name.parse::<TemplateName>(), Err(InvalidName), "{name:?}");
        }
    }
}
