//! Parameters of lists that are given page by page.

use std::num::NonZeroU32;
use std::str::FromStr;

use utoipa::IntoParams;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};

use super::error::ApiError;
use crate::entity::Cursor;

/// How many entries a page has unless the request says otherwise.
pub const DEFAULT: NonZeroU32 = NonZeroU32::new(100).expect("not zero");

const LARGEST: u32 = 1000;

/// `limit` and `cursor`, as the document describes them.
pub struct Window;

impl IntoParams for Window {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let parameter = |name, schema: ObjectBuilder, text| {
            let parameter = ParameterBuilder::new().name(name).parameter_in(ParameterIn::Query);
            parameter.schema(Some(schema)).description(Some(text)).build()
        };
        let limit = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1));
        let limit = limit.maximum(Some(LARGEST)).default(Some(DEFAULT.get().into()));
        let cursor = ObjectBuilder::new().schema_type(Type::String);
        vec![
            parameter("limit", limit, "The most entries of a page."),
            parameter("cursor", cursor, "`next_cursor` of the page before."),
        ]
    }
}

/// Reads `limit`.
pub fn limit(text: &str) -> Result<NonZeroU32, ApiError> {
    let limit = text.parse().ok().filter(|limit: &NonZeroU32| limit.get() <= LARGEST);
    limit.ok_or_else(|| ApiError::invalid(format!("limit is from 1 to {LARGEST}")))
}

/// Reads `cursor`.
pub fn cursor<Id: FromStr>(text: &str) -> Result<Cursor<Id>, ApiError> {
    text.parse().map_err(|_| ApiError::invalid("unknown cursor"))
}
