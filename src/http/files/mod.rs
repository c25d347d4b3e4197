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

use actix_web::web;
use serde::Deserialize;

use super::error::ApiError;

/// The longest path that Linux takes, and thus the longest value of a text field.
const MAX_PATH: usize = 4096;

/// The routes of this folder.
pub fn routes(config: &mut web::ServiceConfig) {
    config.configure(archive::routes).configure(contents::routes);
    config.configure(tree::routes).configure(watch::routes);
}

/// Which file, and for whom.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileQuery {
    path: String,
    user: Option<String>,
}

fn check_path(path: &str) -> Result<(), ApiError> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err(ApiError::invalid(format!("a path is 1 to {MAX_PATH} bytes without NUL")));
    }
    Ok(())
}
