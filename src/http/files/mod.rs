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

use serde::Deserialize;
use utoipa::IntoParams;

use super::error::ApiError;
use super::openapi::{Routes, Section};

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
    /// From the root, or from the user's home.
    #[param(min_length = 1, max_length = 4096, example = "/tmp/a.txt")]
    path: String,
    /// Who it is for, and belongs to; `user` if absent, or `root` where there is none.
    user: Option<String>,
}

fn check_path(path: &str) -> Result<(), ApiError> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err(ApiError::invalid(format!("a path is 1 to {MAX_PATH} bytes without NUL")));
    }
    Ok(())
}
