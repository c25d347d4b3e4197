//! Turns columns into the values of `domain` and back, the same way for every table.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sea_orm::prelude::Json;
use serde::de::DeserializeOwned;

use super::error::StoreError;

/// Cuts a time to whole microseconds, which is what PostgreSQL keeps: a row reads back as it was
/// written, and in both databases times compare as they should. (SQLite keeps them as text, UTC,
/// with 0, 3 or 6 digits after the point; `+` sorts before the digits, so shorter is earlier.)
pub(super) fn micros(time: DateTime<Utc>) -> DateTime<Utc> {
    DateTime::from_timestamp_micros(time.timestamp_micros())
        .expect("a time that was one is still one without its nanoseconds")
}

/// Says where a bad column was found.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub table: &'static str,
    pub id: &'a str,
}

impl Row<'_> {
    pub(super) fn corrupt(&self, column: &'static str) -> StoreError {
        StoreError::CorruptRow { table: self.table, id: self.id.to_owned(), column }
    }

    pub(super) fn parse<T: std::str::FromStr>(
        &self,
        column: &'static str,
        text: &str,
    ) -> Result<T, StoreError> {
        text.parse().map_err(|_| self.corrupt(column))
    }

    pub(super) fn unsigned<T: TryFrom<i64>>(
        &self,
        column: &'static str,
        value: i64,
    ) -> Result<T, StoreError> {
        T::try_from(value).map_err(|_| self.corrupt(column))
    }

    pub(super) fn text_map(
        &self,
        column: &'static str,
        value: Json,
    ) -> Result<BTreeMap<String, String>, StoreError> {
        self.json(column, value)
    }

    pub(super) fn json<T: DeserializeOwned>(
        &self,
        column: &'static str,
        value: Json,
    ) -> Result<T, StoreError> {
        serde_json::from_value(value).map_err(|_| self.corrupt(column))
    }
}

/// A map of texts as a JSON column.
///
/// # Errors
///
/// [`StoreError::NulCharacter`], see there.
pub(super) fn json_map(
    column: &'static str,
    map: &BTreeMap<String, String>,
) -> Result<Json, StoreError> {
    for (key, value) in map {
        no_nul(column, key)?;
        no_nul(column, value)?;
    }
    Ok(map.iter().map(|(key, value)| (key.clone(), Json::from(value.as_str()))).collect())
}

/// Refuses a text that PostgreSQL could not keep.
///
/// # Errors
///
/// [`StoreError::NulCharacter`].
pub(super) fn no_nul(column: &'static str, text: &str) -> Result<(), StoreError> {
    if text.contains('\0') { Err(StoreError::NulCharacter { column }) } else { Ok(()) }
}
