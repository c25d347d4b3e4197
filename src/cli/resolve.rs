//! From what a person types to a sandbox's id: any beginning that only one sandbox has will do.

use std::collections::BTreeMap;

use anyhow::Result;

use super::client::{Client, ListQuery};
use crate::domain::id::SandboxId;
use crate::domain::lifecycle::SandboxState;

/// Ids shown in an error at most.
const SHOWN: usize = 5;

/// The text means no sandbox, or more than one.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum ResolveError {
    #[error("{0:?} is not the id of a sandbox nor the beginning of one")]
    NotAnId(String),
    #[error("no sandbox's id begins with {0:?}")]
    NotFound(String),
    #[error("{prefix:?} is not unique: {candidates}")]
    Ambiguous { prefix: String, candidates: String },
}

/// Finds the id that `text` means. A whole id is taken without asking the daemon. Among several,
/// those that are not `stopped` count first.
///
/// # Errors
///
/// [`ResolveError`], or why the daemon did not answer.
pub(super) async fn resolve(client: &Client, text: &str) -> Result<String> {
    if text.parse::<SandboxId>().is_ok() {
        return Ok(text.to_owned());
    }
    check(text)?;
    let live = ids(client, live_states()).await?;
    match unique(text, live) {
        Err(ResolveError::NotFound(_)) => {
            Ok(unique(text, ids(client, vec![SandboxState::Stopped]).await?)?)
        }
        other => Ok(other?),
    }
}

/// Finds the ids that all the texts mean, each once. All are looked up before anything is done to
/// the first: with a mistyped one nothing happens.
///
/// # Errors
///
/// As [`resolve`].
pub(super) async fn resolve_all(client: &Client, texts: &[String]) -> Result<Vec<String>> {
    let mut ids = Vec::new();
    for text in texts {
        let id = resolve(client, text).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}

/// Every state of a sandbox but `stopped`.
pub(super) fn live_states() -> Vec<SandboxState> {
    SandboxState::ALL.into_iter().filter(|state| *state != SandboxState::Stopped).collect()
}

async fn ids(client: &Client, states: Vec<SandboxState>) -> Result<Vec<String>> {
    let query = ListQuery { states, metadata: BTreeMap::new() };
    Ok(client.list(&query).await?.into_iter().map(|sandbox| sandbox.id).collect())
}

fn check(text: &str) -> Result<(), ResolveError> {
    let good = !text.is_empty()
        && text.len() < 20
        && text.starts_with(|c: char| c.is_ascii_lowercase())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if good { Ok(()) } else { Err(ResolveError::NotAnId(text.to_owned())) }
}

fn unique(prefix: &str, ids: Vec<String>) -> Result<String, ResolveError> {
    let mut matching: Vec<_> = ids.into_iter().filter(|id| id.starts_with(prefix)).collect();
    match matching.len() {
        0 => Err(ResolveError::NotFound(prefix.to_owned())),
        1 => Ok(matching.remove(0)),
        count => {
            matching.truncate(SHOWN);
            let more = if count > SHOWN { ", ..." } else { "" };
            let candidates = format!("{}{more}", matching.join(", "));
            Err(ResolveError::Ambiguous { prefix: prefix.to_owned(), candidates })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[&str]) -> Vec<String> {
        ids.iter().map(|id| (*id).to_owned()).collect()
    }

    #[test]
    fn a_prefix_that_one_id_has_is_enough() {
        assert_eq!(unique("ab", ids(&["abc", "b", "xab"])), Ok("abc".to_owned()));
    }

    #[test]
    fn a_prefix_of_several_ids_names_them() {
        let error = unique("a", ids(&["a1", "a2", "b"])).unwrap_err();
        assert_eq!(error.to_string(), r#""a" is not unique: a1, a2"#);
        let error = unique("a", ids(&["a1", "a2", "a3", "a4", "a5", "a6"])).unwrap_err();
        assert!(error.to_string().ends_with("a5, ..."), "{error}");
    }

    #[test]
    fn a_prefix_of_no_id_is_not_found() {
        assert_eq!(unique("z", ids(&["a"])), Err(ResolveError::NotFound("z".to_owned())));
    }

    #[test]
    fn what_no_id_begins_with_is_refused_without_asking() {
        for text in ["", "1abc", "Abc", "a/b", "..", "abcdefghij0123456789x"] {
            assert_eq!(check(text), Err(ResolveError::NotAnId(text.to_owned())));
        }
        assert_eq!(check("a"), Ok(()));
    }
}
