//! What is asked for: where to begin, and which events.

use std::num::NonZeroU32;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};

use crate::entity::events::{EventFilter, EventId, Page};
use crate::http::error::ApiError;
use crate::http::page;

/// The parameters of a request.
#[derive(Debug, Default)]
pub struct Query {
    /// Which events.
    pub filter: EventFilter,
    after: Option<EventId>,
    cursor: Option<Page>,
    limit: Option<NonZeroU32>,
}

impl Query {
    /// Reads `after`, `cursor`, `limit`, `sandbox_id` and `type`.
    ///
    /// # Errors
    ///
    /// 400 with what is wrong.
    pub fn parse(pairs: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut query = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "after" => {
                    let id = value.parse();
                    let id = id.map_err(|_| ApiError::invalid("after is the id of an event"))?;
                    query.after = Some(id);
                }
                "cursor" => query.cursor = Some(read_cursor(&value)?),
                "limit" => query.limit = Some(page::limit(&value)?),
                "sandbox_id" => {
                    let id = value.parse();
                    let id = id.map_err(|error| ApiError::invalid(format!("{error}")))?;
                    query.filter.sandbox_id = Some(id);
                }
                "type" => {
                    let kind = value.parse();
                    let kind = kind.map_err(|error| ApiError::invalid(format!("{error}")))?;
                    query.filter.kind = Some(kind);
                }
                _ => return Err(ApiError::invalid(format!("unknown parameter {name:?}"))),
            }
        }
        if query.after.is_some() && query.cursor.is_some() {
            return Err(ApiError::invalid("a cursor says already after what it comes"));
        }
        Ok(query)
    }

    /// Which page of a list, and how long it is at most.
    pub fn page(&self) -> (Page, NonZeroU32) {
        let page = self.cursor.or(self.after.map(Page::After)).unwrap_or(Page::Newest);
        (page, self.limit.unwrap_or(page::DEFAULT))
    }

    /// After which event a stream begins; with the next one to come if absent.
    ///
    /// # Errors
    ///
    /// 400 if the request has parameters of lists.
    pub fn begins_after(&self) -> Result<Option<EventId>, ApiError> {
        match (self.cursor, self.limit) {
            (None, None) => Ok(self.after),
            _ => Err(ApiError::invalid("a stream has no pages: cursor and limit are for lists")),
        }
    }
}

/// A cursor goes on in the direction of its list.
pub fn cursor(page: Page) -> Option<String> {
    let text = match page {
        Page::Newest => return None,
        Page::Before(id) => format!("before.{id}"),
        Page::After(id) => format!("after.{id}"),
    };
    Some(BASE64_URL_SAFE_NO_PAD.encode(text))
}

fn read_cursor(text: &str) -> Result<Page, ApiError> {
    let read = || {
        let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
        match text.split_once('.')? {
            ("before", id) => Some(Page::Before(id.parse().ok()?)),
            ("after", id) => Some(Page::After(id.parse().ok()?)),
            (_, _) => None,
        }
    };
    read().ok_or_else(|| ApiError::invalid("unknown cursor"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_with_its_direction() {
        let id = "12".parse().unwrap();
        for page in [Page::Before(id), Page::After(id)] {
            assert_eq!(read_cursor(&cursor(page).unwrap()).unwrap(), page);
        }
        assert_eq!(cursor(Page::Newest), None);
        let encode = |text| BASE64_URL_SAFE_NO_PAD.encode(text);
        for text in ["", "12", "%", &encode("before.-1"), &encode("later.12"), &encode("after.")] {
            assert!(read_cursor(text).is_err(), "{text}");
        }
    }
}
