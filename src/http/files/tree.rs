//! The tree of a sandbox's files: list, stat, mkdir, move, delete.

use actix_web::{HttpResponse, delete, get, post, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{FileQuery, check_path};
use crate::actors::control_plane::ControlPlane;
use crate::domain::file::{FileEntry, FileKind};
use crate::domain::id::SandboxId;
use crate::http::auth::Caller;
use crate::http::error::{ApiError, only};

/// The most levels that a list may go down.
const MAX_DEPTH: u32 = 64;

/// Query of `files/list`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    path: String,
    user: Option<String>,
    /// Levels to go down.
    #[serde(default = "one")]
    depth: u32,
}

fn one() -> u32 {
    1
}

/// Body of `files/mkdir`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MkdirBody {
    path: String,
    user: Option<String>,
}

/// Body of `files/move`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveBody {
    source: String,
    destination: String,
    user: Option<String>,
}

#[derive(Serialize)]
struct ListView {
    entries: Vec<EntryView>,
}

/// One file, directory or symbolic link.
#[derive(Debug, Serialize)]
pub(super) struct EntryView {
    name: String,
    path: String,
    /// Of a link, that of what it leads to.
    r#type: KindView,
    /// In bytes.
    size: u64,
    /// Permission bits, as a number.
    mode: u32,
    permissions: String,
    owner: String,
    group: String,
    modified_at: DateTime<Utc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    symlink_target: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum KindView {
    File,
    Directory,
    /// A link that leads nowhere.
    Symlink,
    Other,
}

impl From<FileEntry> for EntryView {
    fn from(entry: FileEntry) -> Self {
        Self {
            name: entry.name,
            path: entry.path,
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
            symlink_target: entry.symlink_target,
        }
    }
}

#[get("/sandboxes/{id}/files/list")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: web::Query<ListQuery>,
) -> Result<HttpResponse, ApiError> {
    check_path(&query.path)?;
    if !(1..=MAX_DEPTH).contains(&query.depth) {
        return Err(ApiError::invalid(format!("depth is from 1 to {MAX_DEPTH}")));
    }
    let user = query.user.as_deref();
    let entries = control.list_files(&id, &query.path, query.depth, user).await?;
    let entries = entries.into_iter().map(EntryView::from).collect();
    Ok(HttpResponse::Ok().json(ListView { entries }))
}

#[get("/sandboxes/{id}/files/stat")]
async fn stat(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: web::Query<FileQuery>,
) -> Result<HttpResponse, ApiError> {
    check_path(&query.path)?;
    let entry = control.stat(&id, &query.path, query.user.as_deref()).await?;
    Ok(HttpResponse::Ok().json(EntryView::from(entry)))
}

#[post("/sandboxes/{id}/files/mkdir")]
async fn mkdir(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: web::Json<MkdirBody>,
) -> Result<HttpResponse, ApiError> {
    let MkdirBody { path, user } = body.into_inner();
    check_path(&path)?;
    let entry = control.make_dir(&id, path, user).await?;
    Ok(HttpResponse::Created().json(EntryView::from(entry)))
}

#[post("/sandboxes/{id}/files/move")]
async fn rename(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: web::Json<MoveBody>,
) -> Result<HttpResponse, ApiError> {
    let MoveBody { source, destination, user } = body.into_inner();
    check_path(&source)?;
    check_path(&destination)?;
    let entry = control.move_file(&id, source, destination, user).await?;
    Ok(HttpResponse::Ok().json(EntryView::from(entry)))
}

#[delete("/sandboxes/{id}/files")]
async fn remove(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: web::Query<FileQuery>,
) -> Result<HttpResponse, ApiError> {
    let FileQuery { path, user } = query.into_inner();
    check_path(&path)?;
    control.remove_file(&id, path, user).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// The routes of this file, and the last word on `/files` itself.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(list).service(stat).service(mkdir).service(rename).service(remove);
    config.service(only("/sandboxes/{id}/files", "GET, PUT, DELETE"));
    for (path, method) in [("list", "GET"), ("stat", "GET"), ("mkdir", "POST"), ("move", "POST")] {
        config.service(only(&format!("/sandboxes/{{id}}/files/{path}"), method));
    }
}
