//! The tree of a sandbox's files: list, stat, mkdir, move, delete.

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::{FileQuery, check_path, path_of, shown};
use crate::actors::control::ControlPlane;
use crate::domain::file::{FileEntry, FileKind};
use crate::domain::id::SandboxId;
use crate::domain::path::GuestPath;
use crate::http::auth::Caller;
use crate::http::body::Json;
use crate::http::error::ApiError;
use crate::http::json_stream;
use crate::http::openapi::Routes;
use crate::http::openapi::failures::{Listing, Work};
use crate::http::query::Query;

/// The most levels that a list may go down.
const MAX_DEPTH: u32 = 64;

/// Query of `files/list`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    /// The directory. Its bytes are percent-encoded, also those that are not UTF-8.
    #[param(value_type = String, min_length = 1, max_length = 4096, example = "/tmp")]
    path: GuestPath,
    /// Who looks.
    user: Option<String>,
    /// Levels to go down.
    #[param(minimum = 1, maximum = 64)]
    #[serde(default = "one")]
    depth: u32,
}

fn one() -> u32 {
    1
}

/// Body of `files/mkdir`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MakeDirectory, examples(json!({"path": "/tmp/a/b"})))]
struct MkdirBody {
    /// From the root, or from the user's home.
    #[schema(min_length = 1, max_length = 4096)]
    path: Option<String>,
    /// In its place: the bytes of a path that is not UTF-8, in base64.
    path_base64: Option<String>,
    /// Who it belongs to.
    user: Option<String>,
}

/// Body of `files/move`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = MoveFile, examples(json!({"source": "/tmp/a.txt", "destination": "/tmp/b.txt"})))]
struct MoveBody {
    /// What is moved.
    #[schema(min_length = 1, max_length = 4096)]
    source: Option<String>,
    /// In its place: the bytes of a path that is not UTF-8, in base64.
    source_base64: Option<String>,
    /// Its new name; a file that is there is replaced.
    #[schema(min_length = 1, max_length = 4096)]
    destination: Option<String>,
    /// In its place: the bytes of a path that is not UTF-8, in base64.
    destination_base64: Option<String>,
    /// Who directories belong to that are made on the way.
    user: Option<String>,
}

/// What is in a directory.
#[derive(ToSchema)]
#[expect(dead_code, reason = "describes what is answered in pieces")]
#[schema(as = FileList)]
struct ListView {
    /// In the order of names.
    entries: Vec<EntryView>,
}

/// One file, directory or symbolic link.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Entry, examples(json!({
    "name": "a.txt",
    "path": "/tmp/a.txt",
    "type": "file",
    "size": 5,
    "mode": 420,
    "permissions": "-rw-r--r--",
    "owner": "user",
    "group": "user",
    "modified_at": "2026-11-25T22:46:45.120394Z",
})))]
pub(super) struct EntryView {
    /// The last part of its path; of one that is not UTF-8, what is similar.
    name: String,
    /// Its bytes in base64, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_base64: Option<String>,
    /// From the root; of one that is not UTF-8, what is similar.
    path: String,
    /// Its bytes in base64, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    /// Of a link, that of what it leads to.
    r#type: KindView,
    /// In bytes.
    size: u64,
    /// Permission bits, as a number.
    mode: u32,
    /// As `ls -l` shows them.
    permissions: String,
    /// By name, or by number if it has none.
    owner: String,
    /// By name, or by number if it has none.
    group: String,
    /// When it was last written.
    modified_at: DateTime<Utc>,
    /// Where a link leads.
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
    /// Its bytes in base64, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target_base64: Option<String>,
}

/// What something is.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = FileType)]
enum KindView {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A link that leads nowhere.
    Symlink,
    /// A device, a pipe or a socket.
    Other,
}

impl From<FileEntry> for EntryView {
    fn from(entry: FileEntry) -> Self {
        let (name, name_base64) = shown(&entry.name);
        let (path, path_base64) = shown(&entry.path);
        let (symlink_target, symlink_target_base64) = match &entry.symlink_target {
            Some(target) => {
                let (text, base64) = shown(target);
                (Some(text), base64)
            }
            None => (None, None),
        };
        Self {
            name,
            name_base64,
            path,
            path_base64,
            r#type: match entry.kind {
                FileKind::File => KindView::File,
                FileKind::Directory => KindView::Directory,
                FileKind::Symlink => KindView::Symlink,
                FileKind::Other => KindView::Other,
            },
            size: entry.size,
            mode: entry.mode,
            permissions: entry.permissions,
            owner: entry.owner,
            group: entry.group,
            modified_at: entry.modified_at,
            symlink_target,
            symlink_target_base64,
        }
    }
}

/// Lists a directory.
#[utoipa::path(
    operation_id = "listFiles",
    params(SandboxId, ListQuery),
    responses((status = 200, description = "All entries.", body = ListView), Listing),
)]
#[get("/sandboxes/{id}/files/list")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<ListQuery>,
) -> Result<HttpResponse, ApiError> {
    let query = query.0;
    check_path(&query.path)?;
    if !(1..=MAX_DEPTH).contains(&query.depth) {
        return Err(ApiError::invalid(format!("depth is from 1 to {MAX_DEPTH}")));
    }
    let user = query.user.as_deref();
    let entries = control.workplace(&id).await?.list_files(&query.path, query.depth, user).await?;
    Ok(json_stream::list("entries", entries.into_iter().map(EntryView::from)))
}

/// Looks at a file, a directory or a link.
#[utoipa::path(
    operation_id = "statFile",
    params(SandboxId, FileQuery),
    responses((status = 200, description = "It is there.", body = EntryView), Work),
)]
#[get("/sandboxes/{id}/files/stat")]
async fn stat(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<FileQuery>,
) -> Result<HttpResponse, ApiError> {
    let query = query.0;
    check_path(&query.path)?;
    let entry = control.workplace(&id).await?.stat(&query.path, query.user.as_deref()).await?;
    Ok(HttpResponse::Ok().json(EntryView::from(entry)))
}

/// Makes a directory, and those above it.
#[utoipa::path(
    operation_id = "makeDirectory",
    params(SandboxId),
    responses((status = 201, description = "It is there.", body = EntryView), Work),
)]
#[post("/sandboxes/{id}/files/mkdir")]
async fn mkdir(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: Json<MkdirBody>,
) -> Result<HttpResponse, ApiError> {
    let MkdirBody { path, path_base64, user } = body.0;
    let path = path_of("path", path, path_base64)?;
    let entry = control.workplace(&id).await?.make_dir(path, user).await?;
    Ok(HttpResponse::Created().json(EntryView::from(entry)))
}

/// Moves a file or a directory.
#[utoipa::path(
    operation_id = "moveFile",
    params(SandboxId),
    responses((status = 200, description = "It has its new name.", body = EntryView), Work),
)]
#[post("/sandboxes/{id}/files/move")]
async fn rename(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: Json<MoveBody>,
) -> Result<HttpResponse, ApiError> {
    let MoveBody { source, source_base64, destination, destination_base64, user } = body.0;
    let source = path_of("source", source, source_base64)?;
    let destination = path_of("destination", destination, destination_base64)?;
    let entry = control.workplace(&id).await?.move_file(source, destination, user).await?;
    Ok(HttpResponse::Ok().json(EntryView::from(entry)))
}

/// Deletes a file, or a directory with all in it.
#[utoipa::path(
    operation_id = "deleteFile",
    params(SandboxId, FileQuery),
    responses((status = 204, description = "It is not there."), Work),
)]
#[delete("/sandboxes/{id}/files")]
async fn remove(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<FileQuery>,
) -> Result<HttpResponse, ApiError> {
    let FileQuery { path, user } = query.0;
    check_path(&path)?;
    control.workplace(&id).await?.remove_file(path, user).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.add(list).add(stat).add(mkdir).add(rename).add(remove);
}
