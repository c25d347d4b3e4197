//! `KEY=VALUE` arguments.

use std::collections::BTreeMap;
use std::env;

/// The argument is no pair.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(super) enum PairError {
    #[error("expected KEY=VALUE")]
    NoValue,
    #[error("the key is empty")]
    NoKey,
    #[error("{0} is not set here: give it a value with {0}=VALUE")]
    NotSet(String),
}

/// Reads `KEY=VALUE`; the value may be empty and may hold further `=`.
///
/// # Errors
///
/// [`PairError::NoValue`], [`PairError::NoKey`].
pub(super) fn pair(text: &str) -> Result<(String, String), PairError> {
    let (key, value) = text.split_once('=').ok_or(PairError::NoValue)?;
    if key.is_empty() { Err(PairError::NoKey) } else { Ok((key.to_owned(), value.to_owned())) }
}

/// Reads `KEY=VALUE`, or `KEY` for the value it has in our own environment.
///
/// # Errors
///
/// [`PairError::NoKey`], [`PairError::NotSet`].
pub(super) fn env_pair(text: &str) -> Result<(String, String), PairError> {
    match pair(text) {
        Err(PairError::NoValue) if text.is_empty() => Err(PairError::NoKey),
        Err(PairError::NoValue) => {
            let value = env::var(text).map_err(|_| PairError::NotSet(text.to_owned()))?;
            Ok((text.to_owned(), value))
        }
        other => other,
    }
}

/// The pairs as a map; of two with one key the later one counts.
pub(super) fn map(pairs: Vec<(String, String)>) -> BTreeMap<String, String> {
    pairs.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(key: &str, value: &str) -> Result<(String, String), PairError> {
        Ok((key.to_owned(), value.to_owned()))
    }

    #[test]
    fn a_value_may_be_empty_and_hold_equals_signs() {
        assert_eq!(pair("a=b"), owned("a", "b"));
        assert_eq!(pair("a="), owned("a", ""));
        assert_eq!(pair("a=b=c"), owned("a", "b=c"));
        assert_eq!(pair("=b"), Err(PairError::NoKey));
        assert_eq!(pair("a"), Err(PairError::NoValue));
    }

    #[test]
    fn a_bare_variable_takes_its_value_from_here() {
        assert_eq!(env_pair("PATH"), owned("PATH", &env::var("PATH").unwrap()));
        let unset = "NESTBOX_TEST_IS_NEVER_SET";
        assert_eq!(env_pair(unset), Err(PairError::NotSet(unset.to_owned())));
        assert_eq!(env_pair(""), Err(PairError::NoKey));
    }
}
