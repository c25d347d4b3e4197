//! Lists that are given page by page, newest first.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Utc};
use sea_orm::{ColumnTrait, Condition};

use crate::domain::id::SandboxId;

/// The last row of a page: the next page begins after it, whatever came or went meanwhile. Clients
/// get it as an opaque text.
///
/// `Id` is what the list's rows are known by. A text that holds none is refused, and with it the
/// NUL on which PostgreSQL would fail. A sandbox's id could also name a snapshot, so a cursor of
/// the one list may be read as one of the other: it is then the same place in time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor<Id = SandboxId> {
    pub(super) created_at: DateTime<Utc>,
    pub(super) id: Id,
}

/// The text is not a cursor that Nestbox gave out.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("not a cursor of this list")]
pub struct InvalidCursor;

impl<Id: fmt::Display> Cursor<Id> {
    /// The rows that come after it in a list, newest first.
    pub(super) fn rows_after<C: ColumnTrait>(&self, created_at: C, id: C) -> Condition {
        // Not a row value comparison: the two columns would have to be bound as one type.
        Condition::any().add(created_at.lt(self.created_at)).add(
            Condition::all().add(created_at.eq(self.created_at)).add(id.lt(self.id.to_string())),
        )
    }
}

/// How many rows to ask for: one more than shown tells whether there is a next page.
pub(super) fn rows_for(limit: NonZeroU32) -> u64 {
    u64::from(limit.get()) + 1
}

/// Cuts [`rows_for`] rows to a page; gives where the next one begins, if there is one.
pub(super) fn cut<T, Id>(
    rows: &mut Vec<T>,
    limit: NonZeroU32,
    cursor: impl FnOnce(&T) -> Cursor<Id>,
) -> Option<Cursor<Id>> {
    let more = rows.len() as u64 >= rows_for(limit);
    rows.truncate(usize::try_from(limit.get()).unwrap_or(usize::MAX));
    rows.last().filter(|_| more).map(cursor)
}

impl<Id: fmt::Display> fmt::Display for Cursor<Id> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{}", self.created_at.timestamp_micros(), self.id);
        f.write_str(&URL_SAFE_NO_PAD.encode(text))
    }
}

impl<Id: FromStr> FromStr for Cursor<Id> {
    type Err = InvalidCursor;

    fn from_str(text: &str) -> Result<Self, InvalidCursor> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| InvalidCursor)?;
        let text = String::from_utf8(bytes).map_err(|_| InvalidCursor)?;
        // The first point: a name may have more.
        let (micros, id) = text.split_once('.').ok_or(InvalidCursor)?;
        let micros = micros.parse().map_err(|_| InvalidCursor)?;
        let created_at = DateTime::from_timestamp_micros(micros).ok_or(InvalidCursor)?;
        let id = id.parse().map_err(|_| InvalidCursor)?;
        Ok(Self { created_at, id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::name::TemplateName;

    fn at<Id>(id: Id) -> Cursor<Id> {
        Cursor { created_at: DateTime::from_timestamp_micros(1_700_000_000_123_456).unwrap(), id }
    }

    #[test]
    fn a_cursor_reads_back() {
        let sandbox = at(SandboxId::random());
        assert_eq!(sandbox.to_string().parse(), Ok(sandbox));
        let snapshot = at("py3.12_slim-v2".parse::<TemplateName>().unwrap());
        assert_eq!(snapshot.to_string().parse(), Ok(snapshot));
    }

    #[test]
    fn what_is_no_cursor_is_refused() {
        let id = SandboxId::random();
        let far = URL_SAFE_NO_PAD.encode(format!("9223372036854775807.{id}"));
        let nul = URL_SAFE_NO_PAD.encode("1.a\0b");
        let nobody = URL_SAFE_NO_PAD.encode("1.");
        for text in ["", "%%%", "AAAA", "MTIz", &far, &nul, &nobody] {
            assert_eq!(text.parse::<Cursor>(), Err(InvalidCursor), "{text}");
            assert_eq!(text.parse::<Cursor<TemplateName>>(), Err(InvalidCursor), "{text}");
        }
        let name = at("debian".parse::<TemplateName>().unwrap()).to_string();
        assert_eq!(name.parse::<Cursor>(), Err(InvalidCursor), "a name is no sandbox's id");
    }
}
