//! `POST /files`: writes one file from a plain body, or several from a multipart one.
//!
//! A file is put in place when it is whole (`pending`). If the caller vanishes halfway, what was there
//! before is still there.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use async_compression::tokio::bufread::GzipDecoder;
use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Multipart, Request, State};
use futures::{Stream, StreamExt, TryStreamExt};
use http::{HeaderMap, header};
use serde::Serialize;
use tokio_util::io::{ReaderStream, StreamReader};

use crate::agent::rights;
use crate::agent::settings::Context;
use crate::agent::users::User;
use crate::filesystem::METADATA_PREFIX;

use super::error::HttpError;
use super::pending::Pending;
use super::query::FileQuery;

/// Headers that become metadata begin with this.
const METADATA_HEADER: &str = "x-metadata-";
/// Bytes of all keys, with their prefix, and values together.
const METADATA_LIMIT: usize = 4096;
/// Bytes of one key: what the kernel allows for a name, less the prefix.
const KEY_LIMIT: usize = 255 - METADATA_PREFIX.len();
/// A refused body is read on for this long: a caller that is still sending would otherwise see a
/// broken connection instead of the reason.
const DRAIN: Duration = Duration::from_secs(20);
/// Bytes of memory that are held before they are written.
const CHUNK: usize = 256 * 1024;

/// One file that was written.
#[derive(Debug, Serialize)]
pub struct Written {
    path: String,
    name: String,
    r#type: &'static str,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    metadata: BTreeMap<String, String>,
}

type Chunks<'a> = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send + 'a>>;

/// `POST /files`.
///
/// # Errors
///
/// 400 for a body or path that makes no sense, 401 for an unknown user, 507 when the disk is full.
pub async fn upload(
    State(context): State<Arc<Context>>,
    query: FileQuery,
    request: Request,
) -> Result<Json<Vec<Written>>, HttpError> {
    let user = context.user(query.username.as_deref())?;
    let target = Target { user, metadata: metadata(request.headers())?, context };
    let path = query.path.as_deref().filter(|path| !path.is_empty());
    let request = decoded(request)?;
    if is_multipart(request.headers()) {
        let form = Multipart::from_request(request, &())
            .await
            .map_err(|error| HttpError::invalid(error.body_text()))?;
        return Ok(Json(target.write_form(form, path).await?));
    }
    let path = path.ok_or_else(|| HttpError::invalid("path is missing"))?;
    let body = request.into_body().into_data_stream().map_err(io::Error::other);
    Ok(Json(vec![target.write(path, Box::pin(body)).await?]))
}

fn is_multipart(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    kind.is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("multipart/"))
}

/// Undoes the compression of a body.
fn decoded(request: Request) -> Result<Request, HttpError> {
    match request.headers().get(header::CONTENT_ENCODING).map(|value| value.as_bytes()) {
        None | Some(b"" | b"identity") => Ok(request),
        Some(b"gzip") => {
            let (parts, body) = request.into_parts();
            let reader = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
            let decoder = ReaderStream::with_capacity(GzipDecoder::new(reader), CHUNK);
            Ok(Request::from_parts(parts, Body::from_stream(decoder)))
        }
        Some(other) => {
            let name = String::from_utf8_lossy(other);
            Err(HttpError::invalid(format!("content encoding '{name}' is not supported")))
        }
    }
}

/// Collects `X-Metadata-*` headers.
fn metadata(headers: &HeaderMap) -> Result<BTreeMap<String, String>, HttpError> {
    let mut metadata = BTreeMap::new();
    let mut size = 0;
    for name in headers.keys() {
        let Some(key) = name.as_str().strip_prefix(METADATA_HEADER) else { continue };
        let value = headers.get(name).map(|value| value.as_bytes()).unwrap_or_default();
        let printable = value.iter().all(|byte| (0x20..=0x7E).contains(byte));
        if key.is_empty() || key.len() > KEY_LIMIT || !printable {
            return Err(HttpError::invalid(format!("metadata '{key}' is not printable ASCII")));
        }
        size += METADATA_PREFIX.len() + key.len() + value.len();
        metadata.insert(key.to_owned(), String::from_utf8_lossy(value).into_owned());
    }
    if size > METADATA_LIMIT {
        return Err(HttpError::invalid(format!("metadata exceeds {METADATA_LIMIT} bytes")));
    }
    Ok(metadata)
}

/// For whom files are written, and with what.
struct Target {
    context: Arc<Context>,
    user: Arc<User>,
    metadata: BTreeMap<String, String>,
}

impl Target {
    async fn write_form(
        &self,
        mut form: Multipart,
        path: Option<&OsStr>,
    ) -> Result<Vec<Written>, HttpError> {
        let mut written = Vec::new();
        loop {
            let field = form.next_field().await;
            let field = field.map_err(|error| HttpError::invalid(error.body_text()))?;
            let Some(field) = field else { break };
            if field.name() != Some("file") {
                continue;
            }
            let result = match (path, field.file_name().map(str::to_owned), written.is_empty()) {
                (Some(_), _, false) => Err(HttpError::invalid("one path for several files")),
                (Some(path), _, true) => self.write(path, chunks(field)).await,
                (None, Some(name), _) if !name.is_empty() => {
                    self.write(name.as_ref(), chunks(field)).await
                }
                (None, _, _) => Err(HttpError::invalid("file has neither path nor file name")),
            };
            match result {
                Ok(one) => written.push(one),
                Err(error) => {
                    let rest = async {
                        while let Ok(Some(mut field)) = form.next_field().await {
                            while let Ok(Some(_)) = field.chunk().await {}
                        }
                    };
                    let _ = tokio::time::timeout(DRAIN, rest).await;
                    return Err(error);
                }
            }
        }
        Ok(written)
    }

    async fn write(&self, path: &OsStr, mut body: Chunks<'_>) -> Result<Written, HttpError> {
        let result = self.write_whole(path, &mut body).await;
        if result.is_err() {
            drain(body).await;
        }
        result
    }

    async fn blocking<T, F>(&self, work: F) -> Result<T, HttpError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, HttpError> + Send + 'static,
    {
        blocking(Arc::clone(&self.user), work).await
    }

    async fn write_whole(&self, path: &OsStr, body: &mut Chunks<'_>) -> Result<Written, HttpError> {
        let path = self.context.path(path, &self.user)?;
        let (user, preparing) = (Arc::clone(&self.user), path.clone());
        let mut pending = self.blocking(move || Pending::new(user, &preparing)).await?;
        let mut pieces = Vec::new();
        let mut held = 0;
        while let Some(piece) = body.next().await {
            let piece =
                piece.map_err(|error| HttpError::invalid(format!("body ended early: {error}")))?;
            // What it takes, not only what is in it: a caller may send single bytes.
            held += piece.len() + size_of_val(&piece);
            pieces.push(piece);
            if held >= CHUNK {
                let pieces = std::mem::take(&mut pieces);
                held = 0;
                pending = self.blocking(move || pending.append(&pieces)).await?;
            }
        }
        let pending = self.blocking(move || pending.append(&pieces)).await?;
        let metadata = self.metadata.clone();
        self.blocking(move || pending.put_in_place(&metadata)).await?;
        Ok(Written {
            name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            path: path.to_string_lossy().into_owned(),
            r#type: "file",
            metadata: self.metadata.clone(),
        })
    }
}

/// Reads the rest of a body that was refused, if it comes soon.
pub(super) async fn drain<T, E>(mut body: impl Stream<Item = Result<T, E>> + Unpin) {
    let rest = async { while let Some(Ok(_)) = body.next().await {} };
    let _ = tokio::time::timeout(DRAIN, rest).await;
}

fn chunks(field: axum::extract::multipart::Field<'_>) -> Chunks<'_> {
    Box::pin(field.map_err(io::Error::other))
}

/// Does what may wait for a disk, away from the runtime's thread and with the user's rights.
pub(super) async fn blocking<T, F>(user: Arc<User>, work: F) -> Result<T, HttpError>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, HttpError> + Send + 'static,
{
    let work = move || rights::with(&user, work).map_err(HttpError::Rights)?;
    tokio::task::spawn_blocking(work).await?
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    #[test]
    fn metadata_is_bounded_and_printable() {
        let found = metadata(&headers(&[("X-Metadata-Author", "me"), ("X-Other", "x")])).unwrap();
        assert_eq!(found, BTreeMap::from([("author".to_owned(), "me".to_owned())]));
        let long = "v".repeat(METADATA_LIMIT);
        assert!(metadata(&headers(&[("x-metadata-k", &long)])).is_err());
        assert!(metadata(&headers(&[("x-metadata-k", "tab\there")])).is_err());
        assert!(metadata(&headers(&[("x-metadata-", "v")])).is_err());
    }
}
