//! Processes in a sandbox that nobody need follow: how they are named, and what is known of them.

use std::fmt;
use std::str::FromStr;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::exec::Exec;

/// A user's name for a process: `^[A-Za-z][A-Za-z0-9._-]{0,62}$`. It begins with a letter, so that it
/// is never mistaken for a process id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(String);

/// The text cannot be a tag.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a tag matches ^[A-Za-z][A-Za-z0-9._-]{{0,62}}$")]
pub struct InvalidTag;

impl Tag {
    /// The tag as text, safe in a URL.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = InvalidTag;

    fn from_str(text: &str) -> Result<Self, InvalidTag> {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let good = (1..=63).contains(&text.len())
            && text.starts_with(|c: char| c.is_ascii_alphabetic())
            && text.bytes().all(inner);
        if good { Ok(Self(text.to_owned())) } else { Err(InvalidTag) }
    }
}

impl TryFrom<String> for Tag {
    type Error = InvalidTag;

    fn try_from(text: String) -> Result<Self, InvalidTag> {
        text.parse()
    }
}

impl From<Tag> for String {
    fn from(tag: Tag) -> String {
        tag.0
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Names a process.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub enum ProcessRef {
    /// By its id.
    Pid(u32),
    /// By its tag; of several that have had it, the last one.
    Tag(Tag),
}

/// The text names no process.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a process is named by its id, from 1 to {}, or by its tag: {InvalidTag}", u32::MAX)]
pub struct InvalidRef;

impl FromStr for ProcessRef {
    type Err = InvalidRef;

    fn from_str(text: &str) -> Result<Self, InvalidRef> {
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let pid = text.parse().ok().filter(|pid| *pid > 0);
            return pid.map(Self::Pid).ok_or(InvalidRef);
        }
        text.parse().map(Self::Tag).map_err(|InvalidTag| InvalidRef)
    }
}

impl TryFrom<String> for ProcessRef {
    type Error = InvalidRef;

    fn try_from(text: String) -> Result<Self, InvalidRef> {
        text.parse()
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    cols: u16,
    rows: u16,
}

/// No terminal is that small or that large.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("a terminal has 1 to {MOST} columns and rows, not {cols} and {rows}", MOST = TerminalSize::MOST)]
pub struct InvalidSize {
    cols: u32,
    rows: u32,
}

impl TerminalSize {
    /// The most columns, and rows.
    pub const MOST: u16 = 4096;
    /// What terminals have had for fifty years.
    pub const USUAL: Self = Self { cols: 80, rows: 24 };

    /// A size.
    ///
    /// # Errors
    ///
    /// [`InvalidSize`] for 0 and for more than [`Self::MOST`].
    pub fn new(cols: u32, rows: u32) -> Result<Self, InvalidSize> {
        let number = |number: u32| {
            u16::try_from(number).ok().filter(|number| (1..=Self::MOST).contains(number))
        };
        match (number(cols), number(rows)) {
            (Some(cols), Some(rows)) => Ok(Self { cols, rows }),
            _ => Err(InvalidSize { cols, rows }),
        }
    }

    /// Characters in a line.
    pub fn cols(self) -> u16 {
        self.cols
    }

    /// Lines.
    pub fn rows(self) -> u16 {
        self.rows
    }
}

/// How to come to a terminal.
#[derive(Debug, Clone)]
pub enum TerminalStart {
    /// By starting something on a new one.
    New {
        /// What; without a `cmd`, a login shell.
        exec: Exec,
        size: TerminalSize,
        tag: Option<Tag>,
    },
    /// By going back to one.
    Existing {
        process: ProcessRef,
        /// Its size from now on, if it changes.
        size: Option<TerminalSize>,
    },
}

/// What is known of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessInfo {
    pub pid: u32,
    pub tag: Option<Tag>,
    /// As it was asked for.
    pub cmd: String,
    pub args: Vec<String>,
    pub cwd: Option<String>,
    /// Whether it runs on a terminal.
    pub terminal: bool,
    pub started_at: DateTime<Utc>,
    /// Number of the oldest byte of its output that is kept.
    pub first_seq: u64,
    /// Number that the next byte gets.
    pub next_seq: u64,
    /// As a shell gives it; none while it runs.
    pub exit_code: Option<i32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_named_by_a_number_or_by_a_tag() {
        let tag = |text: &str| ProcessRef::Tag(text.parse().unwrap());
        assert_eq!("17".parse(), Ok(ProcessRef::Pid(17)));
        for text in ["a", "Web-1", "x._-", &"x".repeat(63)] {
            assert_eq!(text.parse(), Ok(tag(text)), "{text}");
        }
        let long = "x".repeat(64);
        for text in ["", "0", "4294967296", "-1", "1a", ".", "..", "a/b", "a b", "é", "a\0", &long]
        {
            assert_eq!(text.parse::<ProcessRef>(), Err(InvalidRef), "{text:?}");
            assert_eq!(text.parse::<Tag>(), Err(InvalidTag), "{text:?}");
        }
    }

    #[test]
    fn a_terminal_is_neither_empty_nor_immense() {
        assert_eq!(TerminalSize::new(80, 24), Ok(TerminalSize::USUAL));
        for (cols, rows) in [(0, 24), (80, 0), (100_000, 24), (80, 4097), (u32::MAX, 1)] {
            let error = TerminalSize::new(cols, rows).unwrap_err().to_string();
            assert!(error.contains(&cols.to_string()), "{error}");
        }
    }
}
