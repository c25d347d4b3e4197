//! `GET` and `PUT /files/archive`: a directory with all in it, as a tar archive.

use actix_web::{HttpResponse, get, put, web};
use serde::Serialize;
use utoipa::ToSchema;

use super::{FileQuery, check_path, shown, upload};
use crate::actors::control::ControlPlane;
use crate::domain::id::SandboxId;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::openapi::Routes;
use crate::http::openapi::failures::Work;
use crate::http::query::Query;

/// What was unpacked.
#[derive(Serialize, ToSchema)]
#[schema(as = Unpacked, examples(json!({"path": "/tmp/a", "entries": 12, "size": 40_960})))]
struct UnpackedView {
    /// The directory.
    path: String,
    /// Its bytes in base64, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    /// Files, directories and links.
    entries: u64,
    /// Bytes of all files together.
    size: u64,
}

/// Reads a directory with all in it, as a tar archive.
#[utoipa::path(
    operation_id = "readArchive",
    params(SandboxId, FileQuery),
    responses(
        (status = 200, description = "The archive; one that breaks off has no end.",
         body = Vec<u8>, content_type = "application/x-tar"),
        Work,
    ),
)]
#[get("/sandboxes/{id}/files/archive")]
async fn pack(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<FileQuery>,
) -> Result<HttpResponse, ApiError> {
    let query = query.0;
    check_path(&query.path)?;
    let archive =
        control.workplace(&id).await?.read_archive(&query.path, query.user.as_deref()).await?;
    Ok(HttpResponse::Ok().content_type("application/x-tar").streaming(archive))
}

/// Unpacks a tar archive into a directory.
#[utoipa::path(
    operation_id = "writeArchive",
    params(SandboxId, FileQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar",
        description = "The archive, neither compressed nor sparse."),
    responses((status = 200, description = "All is there.", body = UnpackedView), Work),
)]
#[put("/sandboxes/{id}/files/archive")]
async fn unpack(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<FileQuery>,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let FileQuery { path, user } = query.0;
    check_path(&path)?;
    let (_, unpacked) = upload::pass(body, async |pieces| {
        Ok(control.workplace(&id).await?.write_archive(&path, user.as_deref(), pieces).await?)
    })
    .await?;
    let (path, path_base64) = shown(&path);
    let (entries, size) = (unpacked.entries, unpacked.size);
    let view = UnpackedView { path, path_base64, entries, size };
    Ok(HttpResponse::Ok().json(view))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.add(pack).add(unpack);
}
