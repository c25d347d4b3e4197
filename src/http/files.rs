//! `/v1/sandboxes/{id}/files`: write and read files, streamed in flat memory.

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::{HttpResponse, post, web};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::auth::Caller;
use super::error::{ApiError, Code, only};
use crate::actors::control_plane::ControlPlane;
use crate::domain::id::SandboxId;

/// The longest path that Linux takes, and thus the longest value of a text field.
const MAX_PATH: usize = 4096;

/// Pieces of an upload under way between two connections.
const IN_FLIGHT: usize = 8;

/// Body of `files/read`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadBody {
    path: String,
    user: Option<String>,
}

#[derive(Serialize)]
struct Written {
    path: String,
    /// In bytes.
    size: u64,
}

#[post("/sandboxes/{id}/files/read")]
async fn read(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    body: web::Json<ReadBody>,
) -> Result<HttpResponse, ApiError> {
    check_path(&body.path)?;
    let file = control.read_file(&id, &body.path, body.user.as_deref()).await?;
    let mut response = HttpResponse::Ok();
    response.content_type("application/octet-stream");
    if let Some(size) = file.size {
        response.no_chunking(size);
    }
    Ok(response.streaming(file.stream))
}

#[post("/sandboxes/{id}/files/write")]
async fn write(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    mut form: Multipart,
) -> Result<HttpResponse, ApiError> {
    let (mut path, mut user) = (None, None);
    while let Some(field) = form.try_next().await.map_err(malformed)? {
        match field.name() {
            Some("path") => path = Some(text(field).await?),
            Some("user") => user = Some(text(field).await?),
            Some("file") => {
                let path = path.ok_or_else(|| {
                    ApiError::invalid("the field path comes before the field file")
                })?;
                check_path(&path)?;
                let size = upload(&control, &id, &path, user.as_deref(), field).await?;
                return Ok(HttpResponse::Ok().json(Written { path, size }));
            }
            other => {
                let name = other.unwrap_or_default();
                return Err(ApiError::invalid(format!("unknown field {name:?}")));
            }
        }
    }
    Err(ApiError::invalid("the fields path and file are needed"))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(read).service(write);
    config.service(only("/sandboxes/{id}/files/read", "POST"));
    config.service(only("/sandboxes/{id}/files/write", "POST"));
}

fn check_path(path: &str) -> Result<(), ApiError> {
    if path.is_empty() || path.len() > MAX_PATH || path.contains('\0') {
        return Err(ApiError::invalid(format!("a path is 1 to {MAX_PATH} bytes without NUL")));
    }
    Ok(())
}

fn malformed(error: MultipartError) -> ApiError {
    ApiError::invalid(format!("the body is no valid multipart form: {error}"))
}

async fn text(mut field: Field) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.try_next().await.map_err(malformed)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_PATH {
            let message = format!("a text field is at most {MAX_PATH} bytes");
            return Err(ApiError::new(Code::InvalidRequest, message));
        }
    }
    String::from_utf8(bytes).map_err(|_| ApiError::invalid("a text field is not UTF-8"))
}

/// Passes a field on to the guest. The field belongs to this connection's thread, so a short queue
/// lies in between; a guest that is slow slows the client.
async fn upload(
    control: &ControlPlane,
    id: &SandboxId,
    path: &str,
    user: Option<&str>,
    mut field: Field,
) -> Result<u64, ApiError> {
    let (pieces, queue) = mpsc::channel::<std::io::Result<Bytes>>(IN_FLIGHT);
    let content =
        stream::unfold(
            queue,
            |mut queue| async move { queue.recv().await.map(|piece| (piece, queue)) },
        );
    let pump = async move {
        let mut size = 0;
        while let Some(piece) = field.next().await {
            // A broken upload must reach the guest as an error, not as the file's end.
            let piece = piece.map_err(|error| std::io::Error::other(error.to_string()));
            let broken = piece.is_err();
            size += piece.as_ref().map_or(0, |bytes| bytes.len() as u64);
            if pieces.send(piece).await.is_err() || broken {
                break;
            }
        }
        size
    };
    let delivery = control.write_file(id, path, user, content);
    let (size, outcome) = futures::join!(pump, delivery);
    outcome?;
    Ok(size)
}
