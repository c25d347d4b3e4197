//! Contents of files: `PUT` and `GET /files`; and the same as `write` and `read`.

use actix_multipart::{Field, Multipart, MultipartError};
use actix_web::http::StatusCode;
use actix_web::http::header::{self, HeaderName};
use actix_web::{HttpRequest, HttpResponse, get, put, routes, web};
use futures::TryStreamExt;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, IntoResponses, ToSchema};

use super::{FileQuery, MAX_PATH, check_path, path_of, shown, upload};
use crate::actors::control::ControlPlane;
use crate::domain::file::FileRange;
use crate::domain::id::SandboxId;
use crate::domain::path::GuestPath;
use crate::http::auth::Caller;
use crate::http::body::Json;
use crate::http::error::{ApiError, Code};
use crate::http::openapi::Routes;
use crate::http::openapi::failures::{Reading, Work};
use crate::http::query::Query;

/// Body of `files/read`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = ReadFile, examples(json!({"path": "/tmp/a.txt"})))]
struct ReadBody {
    /// From the root, or from the user's home.
    #[schema(min_length = 1, max_length = 4096)]
    path: Option<String>,
    /// In its place: the bytes of a path that is not UTF-8, in base64.
    path_base64: Option<String>,
    /// Who reads it.
    user: Option<String>,
}

/// Headers of who wants a part of a file, as the document describes them.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "a description of headers")]
struct PartHeaders {
    /// One range of bytes, such as `bytes=0-1023`; what is none is ignored.
    #[param(rename = "Range")]
    range: Option<String>,
    /// The `ETag` of an earlier answer: the range counts for the same file only.
    #[param(rename = "If-Range")]
    condition: Option<String>,
}

/// A file on its way out, as the document describes it.
#[derive(IntoResponses)]
#[expect(dead_code, reason = "a description of answers")]
enum Sent {
    /// The file.
    #[response(status = 200, content_type = "application/octet-stream")]
    Whole(Vec<u8>),
    /// The range of it.
    #[response(status = 206, content_type = "application/octet-stream")]
    Part(Vec<u8>),
}

/// Body of `files/write`, as the document describes it: fields of a form, read one by one.
#[derive(ToSchema)]
#[schema(as = WriteFile)]
#[expect(dead_code, reason = "a description of a form")]
struct WriteForm {
    /// From the root, or from the user's home; before `file`.
    #[schema(min_length = 1, max_length = 4096, example = "/tmp/a.txt")]
    path: String,
    /// Who it belongs to; before `file`.
    #[schema(example = "root")]
    user: Option<String>,
    /// The file's bytes.
    #[schema(value_type = String, format = Binary, example = "hello")]
    file: Vec<u8>,
}

/// What was written.
#[derive(Serialize, ToSchema)]
#[schema(examples(json!({"path": "/tmp/a.txt", "size": 5})))]
struct Written {
    /// The file.
    path: String,
    /// Its bytes in base64, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_base64: Option<String>,
    /// In bytes.
    size: u64,
}

impl Written {
    fn new(path: &GuestPath, size: u64) -> Self {
        let (path, path_base64) = shown(path);
        Self { path, path_base64, size }
    }
}

/// Reads a file, or a range of it.
#[utoipa::path(
    operation_id = "readFile",
    params(SandboxId, FileQuery, PartHeaders),
    responses(Sent, Reading)
)]
#[get("/sandboxes/{id}/files")]
async fn get_file(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<FileQuery>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let FileQuery { path, user } = query.0;
    check_path(&path)?;
    send(&control, &id, &path, user.as_deref(), &request).await
}

/// Reads a file, or a range of it, whose path is in the body.
#[utoipa::path(
    operation_id = "readFileByBody",
    params(SandboxId, PartHeaders),
    responses(Sent, Reading)
)]
#[routes]
#[post("/sandboxes/{id}/files/read")]
#[post("/sandboxes/{id}/files/stream/read")]
async fn read(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    Json(body): Json<ReadBody>,
    request: HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let ReadBody { path, path_base64, user } = body;
    let path = path_of("path", path, path_base64)?;
    send(&control, &id, &path, user.as_deref(), &request).await
}

/// Writes a file of any size, as a whole or not at all.
#[utoipa::path(
    operation_id = "writeFile",
    params(SandboxId, FileQuery),
    request_body(content = Option<Vec<u8>>, content_type = "application/octet-stream",
        description = "The file's bytes; none make an empty file."),
    responses((status = 200, description = "It is there.", body = Written), Work),
)]
#[put("/sandboxes/{id}/files")]
async fn put_file(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    query: Query<FileQuery>,
    request: HttpRequest,
    body: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let FileQuery { path, user } = query.0;
    check_path(&path)?;
    if request.headers().contains_key(header::CONTENT_RANGE) {
        return Err(ApiError::invalid("a file is written as a whole: Content-Range is not taken"));
    }
    let length = header_text(&request, header::CONTENT_LENGTH).and_then(|text| text.parse().ok());
    let (size, ()) = upload::pass(body, async |pieces| {
        Ok(control.workplace(&id).await?.write_file(&path, user.as_deref(), length, pieces).await?)
    })
    .await?;
    Ok(HttpResponse::Ok().json(Written::new(&path, size)))
}

/// Writes a file of any size, from a form.
#[utoipa::path(
    operation_id = "writeFileByForm",
    params(SandboxId),
    request_body(content = WriteForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "It is there.", body = Written), Work),
)]
#[routes]
#[post("/sandboxes/{id}/files/write")]
#[post("/sandboxes/{id}/files/stream/write")]
async fn write(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
    mut form: Multipart,
) -> Result<HttpResponse, ApiError> {
    let (mut path, mut user) = (None, None);
    while let Some(field) = form.try_next().await.map_err(malformed)? {
        match field.name() {
            Some("path") => path = Some(GuestPath::from(short(field).await?)),
            Some("user") => user = Some(text(field).await?),
            Some("file") => {
                let path = path.ok_or_else(|| {
                    ApiError::invalid("the field path comes before the field file")
                })?;
                check_path(&path)?;
                let (size, ()) = upload::pass(field, async |pieces| {
                    Ok(control
                        .workplace(&id)
                        .await?
                        .write_file(&path, user.as_deref(), None, pieces)
                        .await?)
                })
                .await?;
                return Ok(HttpResponse::Ok().json(Written::new(&path, size)));
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
pub fn routes(routes: &mut Routes) {
    routes.add(get_file).add(put_file);
    routes.add(read).also::<read>("/sandboxes/{id}/files/stream/read", "streamReadFile");
    routes.add(write).also::<write>("/sandboxes/{id}/files/stream/write", "streamWriteFile");
}

/// Sends a file, or the part of it that the request asks for.
async fn send(
    control: &ControlPlane,
    id: &SandboxId,
    path: &GuestPath,
    user: Option<&str>,
    request: &HttpRequest,
) -> Result<HttpResponse, ApiError> {
    let part = FileRange {
        range: header_text(request, header::RANGE),
        condition: header_text(request, header::IF_RANGE),
    };
    let file = control.workplace(id).await?.read_file(path, user, &part).await?;
    let head = file.head;
    let status = if head.part.is_some() { StatusCode::PARTIAL_CONTENT } else { StatusCode::OK };
    let mut response = HttpResponse::build(status);
    response.content_type("application/octet-stream");
    if head.tag.is_some() {
        response.insert_header((header::ACCEPT_RANGES, "bytes"));
    }
    for (name, value) in [
        (header::CONTENT_RANGE, head.part),
        (header::ETAG, head.tag),
        (header::LAST_MODIFIED, head.modified),
    ] {
        if let Some(value) = value {
            response.insert_header((name, value));
        }
    }
    if let Some(length) = head.length {
        response.no_chunking(length);
    }
    Ok(response.streaming(file.stream))
}

/// A header that is there once, and is text.
fn header_text(request: &HttpRequest, name: HeaderName) -> Option<String> {
    let mut values = request.headers().get_all(name);
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    value.to_str().ok().map(str::to_owned)
}

fn malformed(error: MultipartError) -> ApiError {
    ApiError::invalid(format!("the body is no valid multipart form: {error}"))
}

async fn text(field: Field) -> Result<String, ApiError> {
    String::from_utf8(short(field).await?)
        .map_err(|_| ApiError::invalid("a text field is not UTF-8"))
}

async fn short(mut field: Field) -> Result<Vec<u8>, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.try_next().await.map_err(malformed)? {
        bytes.extend_from_slice(&piece);
        if bytes.len() > MAX_PATH {
            let message = format!("a text field is at most {MAX_PATH} bytes");
            return Err(ApiError::new(Code::InvalidRequest, message));
        }
    }
    Ok(bytes)
}
