//! Parameters of lists that are given page by page.

use std::num::NonZeroU32;
use std::str::FromStr;

use super::error::ApiError;
use crate::entity::Cursor;

/// How many entries a page has unless the request says otherwise.
pub const DEFAULT: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

const LARGEST: u32 = 1000;

/// Reads `limit`.
pub fn limit(text: &str) -> Result<NonZeroU32, ApiError> {
    let limit = text.parse().ok().filter(|limit: &NonZeroU32| limit.get() <= LARGEST);
    limit.ok_or_else(|| ApiError::invalid(format!("limit is from 1 to {LARGEST}")))
}

/// Reads `cursor`.
pub fn cursor<Id: FromStr>(text: &str) -> Result<Cursor<Id>, ApiError> {
    text.parse().map_err(|_| ApiError::invalid("unknown cursor"))
}
