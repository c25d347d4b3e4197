//! `/v1/sandboxes/{id}/files`: files of a sandbox, streamed in flat memory.
//!
//! - `archive`: directories
//! - `contents`: writing and reading one file
//! - `tree`: list, stat, mkdir, move, delete
//! - `upload`: bytes on their way from a client to a guest
//! - `watch`: what happens in a directory

mod archive;
mod contents;
mod tree;
mod upload;
mod watch;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::openapi::{Routes, Section};
use crate::domain::path::GuestPath;

/// The longest path that Linux takes, and thus the longest value of a text field.
const MAX_PATH: usize = 4096;

/// The routes of this folder.
pub fn routes(routes: &mut Routes) {
    routes.section(Section::Files);
    contents::routes(routes);
    tree::routes(routes);
    archive::routes(routes);
    watch::routes(routes);
}

/// Which file, and for whom.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct FileQuery {
    /// From the root, or from the user's home. Its bytes are percent-encoded, also those that are not UTF-8.
    #[param(value_type = String, min_length = 1, max_length = 4096, example = "/tmp/a.txt")]
    path: GuestPath,
    /// Who it is for, and belongs to; `user` if absent, or `root` where there is none.
    user: Option<String>,
}

fn check_path(path: &GuestPath) -> Result<(), ApiError> {
    let bytes = path.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_PATH || bytes.contains(&0) {
        return Err(ApiError::invalid(format!("a path is 1 to {MAX_PATH} bytes without NUL")));
    }
    Ok(())
}

/// The path that a body names, by its text or by its bytes.
fn path_of(
    field: &str,
    text: Option<String>,
    base64: Option<String>,
) -> Result<GuestPath, ApiError> {
    let path = match (text, base64) {
        (Some(text), None) => text.into(),
        (None, Some(base64)) => GuestPath::from(
            BASE64_STANDARD
                .decode(base64)
                .map_err(|_| ApiError::invalid(format!("{field}_base64 is no base64")))?,
        ),
        (None, None) => return Err(ApiError::invalid(format!("missing field `{field}`"))),
        (Some(_), Some(_)) => {
            let message = format!("{field} and {field}_base64 are two ways to say one thing");
            return Err(ApiError::invalid(message));
        }
    };
    check_path(&path)?;
    Ok(path)
}

/// A path as answers have it: its text, and in base64 its bytes if they are more than that.
fn shown(path: &GuestPath) -> (String, Option<String>) {
    (path.to_string(), path.raw().map(|bytes| BASE64_STANDARD.encode(bytes)))
}
