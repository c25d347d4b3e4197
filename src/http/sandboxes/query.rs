//! Which sandboxes are meant: the queries of `GET` and `DELETE /v1/sandboxes`.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use crate::domain::lifecycle::SandboxState;
use crate::entity::Cursor;
use crate::entity::sandboxes::Filter;
use crate::http::error::ApiError;
use crate::http::page;

/// A state to list, or all that are final.
#[derive(Serialize, ToSchema)]
#[schema(as = SandboxStateFilter)]
#[serde(rename_all = "snake_case", untagged)]
#[expect(dead_code, reason = "a description of a query's words")]
pub(super) enum StateFilter {
    /// One.
    One(#[schema(inline)] SandboxState),
    /// All in which a sandbox has ended.
    Group(#[schema(inline)] Ended),
}

/// All states in which a sandbox has ended: it is `stopped`, or in `error`.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = EndedStates)]
pub(super) enum Ended {
    /// The only one of these words.
    Ended,
}

/// Which sandboxes to forget. It has to be said: nothing that runs is meant.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct ClearQuery {
    /// Must be `ended`.
    #[param(inline)]
    pub state: Ended,
}

/// One page of which sandboxes.
pub(super) struct ListQuery {
    pub filter: Filter,
    pub limit: NonZeroU32,
    pub after: Option<Cursor>,
}

impl ListQuery {
    /// `state` (repeatable, or several separated by commas), `metadata` (`key=value`, repeatable),
    /// `limit`, `cursor`. Without `state`, those that have not ended.
    ///
    /// # Errors
    ///
    /// That a word means nothing.
    pub fn parse(pairs: Vec<(String, String)>) -> Result<Self, ApiError> {
        let mut query = Self { filter: Filter::default(), limit: page::DEFAULT, after: None };
        for (name, value) in pairs {
            match name.as_str() {
                "state" => {
                    for word in value.split(',') {
                        let states = SandboxState::group(word);
                        let states = states.map_err(|e| ApiError::invalid(e.to_string()))?;
                        query.filter.states.extend(states);
                    }
                }
                "metadata" => {
                    let (key, value) = value
                        .split_once('=')
                        .ok_or_else(|| ApiError::invalid("metadata is given as key=value"))?;
                    query.filter.metadata.insert(key.to_owned(), value.to_owned());
                }
                "limit" => query.limit = page::limit(&value)?,
                "cursor" => query.after = Some(page::cursor(&value)?),
                _ => return Err(ApiError::invalid(format!("unknown parameter {name:?}"))),
            }
        }
        if query.filter.states.is_empty() {
            query.filter.states = SandboxState::living();
        }
        Ok(query)
    }
}
