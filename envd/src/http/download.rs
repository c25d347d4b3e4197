//! `GET /files`: streams a file or a part of it, compressed if the caller wants it so.
//!
//! The first piece is read before the answer begins: files of drivers can be opened and then not read, and
//! who asks is to hear why.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_compression::Level;
use async_compression::tokio::bufread::GzipEncoder;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::io::BufReader;
use tokio_util::io::ReaderStream;

use crate::agent::settings::Context;
use crate::agent::users::User;

use super::error::HttpError;
use super::query::FileQuery;
use super::range::{Part, Version, part};
use super::upload::blocking;

/// Read at once; what is in memory of a file at any time is a few of these. With less, threads take
/// turns more often, which costs a guest in software as much as the reading.
const CHUNK: usize = 256 * 1024;

/// `GET /files`.
///
/// # Errors
///
/// 400 for what is no file, 401 for an unknown user, 404, 416 for a range without a byte in it.
pub async fn download(
    State(context): State<Arc<Context>>,
    query: FileQuery,
    headers: HeaderMap,
) -> Result<Response, HttpError> {
    let user = context.user(query.username.as_deref())?;
    let path = context.path(query.path.as_deref().unwrap_or_default(), &user)?;
    let (mut file, length, version) = open(Arc::clone(&user), path.clone()).await?;

    let mut response = Response::builder()
        .header(header::CONTENT_TYPE, "application/octet-stream")
        .header(header::CONTENT_DISPOSITION, disposition(&path))
        .header(header::VARY, "Accept-Encoding");
    let body = if wants_gzip(&headers) {
        response = response.header(header::CONTENT_ENCODING, "gzip");
        let reader = BufReader::with_capacity(CHUNK, tokio::fs::File::from_std(file));
        let encoder = GzipEncoder::with_quality(reader, Level::Fastest);
        begun(&path, ReaderStream::with_capacity(encoder, CHUNK)).await?
    } else if length == 0 {
        // Also the files of /proc, whose length nobody knows.
        begun(&path, pieces(file, u64::MAX)).await?
    } else {
        let range = match part(&headers, length, &version) {
            Part::Whole => 0..length,
            Part::Of(range) => {
                let sent = format!("bytes {}-{}/{length}", range.start, range.end - 1);
                response = response
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(header::CONTENT_RANGE, sent);
                range
            }
            Part::Outside => return Err(HttpError::OutOfRange { length }),
        };
        response = response
            .header(header::CONTENT_LENGTH, range.end - range.start)
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, version.tag)
            .header(header::LAST_MODIFIED, version.modified);
        // Seeking waits for no disk.
        file.seek(SeekFrom::Start(range.start))
            .map_err(|error| HttpError::from_io("cannot read", &path, error))?;
        // No more than was promised, should the file be growing.
        begun(&path, pieces(file, range.end - range.start)).await?
    };
    response.body(body).map_err(|error| HttpError::invalid(error.to_string()))
}

/// Opens a regular file; tells its length and which version it is.
async fn open(user: Arc<User>, path: PathBuf) -> Result<(File, u64, Version), HttpError> {
    blocking(user, move || {
        let failed = |error| HttpError::from_io("cannot open", &path, error);
        // Looked at first: opening a device can do things.
        let kind = std::fs::metadata(&path).map_err(failed)?;
        if kind.is_dir() {
            return Err(HttpError::Directory { path });
        }
        if !kind.is_file() {
            return Err(HttpError::NotRegular { path });
        }
        // In case it has become a pipe since: opening one would wait for a writer.
        let mut options = File::options();
        let options = options.read(true).custom_flags(libc::O_NONBLOCK);
        let file = options.open(&path).map_err(failed)?;
        let meta = file.metadata().map_err(failed)?;
        Ok((file, meta.len(), Version::of(&meta)))
    })
    .await
}

/// A file in pieces, at most `most` bytes of it: whether it may be read was decided when it was opened. Each is read into the memory that it is sent from: one
/// copy more is a good part of a download's time in a guest that runs in software.
fn pieces(file: File, most: u64) -> impl Stream<Item = io::Result<Bytes>> {
    stream::try_unfold((Arc::new(file), most), async |(file, most)| {
        let reading = Arc::clone(&file);
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; usize::try_from(most).unwrap_or(CHUNK).min(CHUNK)];
            let length = (&*reading).read(&mut piece)?;
            piece.truncate(length);
            Ok::<_, io::Error>(piece)
        });
        let piece = read.await??;
        let left = most - piece.len() as u64;
        Ok((!piece.is_empty()).then(|| (Bytes::from(piece), (file, left))))
    })
}

/// A body whose first piece is there, or why it is not. Whoever waits for a later one that does not
/// come sees the answer break off.
async fn begun(
    path: &Path,
    pieces: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Result<Body, HttpError> {
    let mut pieces = Box::pin(pieces);
    let first = pieces.try_next().await;
    let first = first.map_err(|error| HttpError::from_io("cannot read", path, error))?;
    Ok(Body::from_stream(stream::iter(first.map(Ok)).chain(pieces)))
}

/// The file's name in ASCII; others are left out rather than misread.
fn disposition(path: &Path) -> HeaderValue {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: &char| c.is_ascii_graphic() && !matches!(c, '"' | '\\') || *c == ' ';
    let name: String = name.chars().filter(plain).collect();
    HeaderValue::from_str(&format!("inline; filename=\"{name}\""))
        .unwrap_or(HeaderValue::from_static("inline"))
}

/// Whether `gzip` is among the encodings the caller takes, and not at quality zero.
fn wants_gzip(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|v| v.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|encoding| {
        let mut parts = encoding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok());
        name.eq_ignore_ascii_case("gzip") && quality != Some(0.0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_used_only_if_it_is_taken() {
        let wants = |value: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            wants_gzip(&headers)
        };
        assert!(wants("gzip"));
        assert!(wants("br, GZIP;q=0.5"));
        assert!(!wants("gzip;q=0, identity"));
        assert!(!wants("identity"));
        assert!(!wants_gzip(&HeaderMap::new()));
    }

    #[test]
    fn a_name_never_breaks_the_header() {
        assert_eq!(disposition(Path::new("/a/b c.txt")), "inline; filename=\"b c.txt\"");
        assert_eq!(disposition(Path::new("/a/x\"\r\n\u{e4}.txt")), "inline; filename=\"x.txt\"");
    }
}
