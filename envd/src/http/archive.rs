//! `GET` and `PUT /files/archive`: a directory with all in it, as a tar archive.
//!
//! Each has a thread of its own while it lasts: those for single files are few, and a caller that
//! takes its time would keep one of them.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::Response;
use futures::{StreamExt, stream};
use http::header;
use nestbox_archive::{
    ArchiveError, LinksOut, Options, Owner, Summary, pack_and_explain, pipe, unpack,
};
use serde::Serialize;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};

use crate::agent::settings::{Context, Place};
use crate::agent::users::User;
use crate::agent::{rights, stand_back};
use crate::filesystem::{UPLOAD_PREFIX, make_dirs};

use super::error::HttpError;
use super::query::FileQuery;
use super::upload::{blocking, drain};

/// Archives under way at a time; others wait.
const AT_ONCE: usize = 8;
static TURNS: Semaphore = Semaphore::const_new(AT_ONCE);

const STACK: usize = 256 * 1024;

/// What was unpacked.
#[derive(Debug, Serialize)]
pub struct Unpacked {
    path: String,
    entries: u64,
    bytes: u64,
}

/// `GET /files/archive`. An archive that breaks off does so without its end.
///
/// # Errors
///
/// 400 for what is no directory, 401 for an unknown user, 404.
pub async fn download(
    State(context): State<Arc<Context>>,
    query: FileQuery,
) -> Result<Response, HttpError> {
    let (path, user) = resolve(&context, &query)?;
    let root = path.clone();
    blocking(Arc::clone(&user), move || {
        let failed = |error| HttpError::from_io("cannot read", &root, error);
        std::fs::read_dir(&root).map(drop).map_err(|error| match error.kind() {
            io::ErrorKind::NotADirectory => {
                HttpError::invalid(format!("path '{}' is not a directory", root.display()))
            }
            _ => failed(error),
        })
    })
    .await?;
    let turn = turn().await;
    let (mut outlet, mut pieces) = pipe::outlet();
    thread(context.place, user, move || {
        if let Err(error) = pack_and_explain(&path, &mut outlet, UPLOAD_PREFIX, |_| ()) {
            outlet.fail(error);
        }
        drop(turn);
    })?;
    // What cannot be read at the beginning is told; later on the archive breaks off, and says why.
    let first = pieces.recv().await.transpose();
    let first = first.map_err(|error| HttpError::invalid(error.to_string()))?;
    let rest = stream::unfold(pieces, |mut pieces| async move {
        pieces.recv().await.map(|piece| (piece, pieces))
    });
    let body = stream::iter(first.map(Ok)).chain(rest);
    let response = Response::builder().header(header::CONTENT_TYPE, "application/x-tar");
    let response = response.body(Body::from_stream(body));
    response.map_err(|error| HttpError::invalid(error.to_string()))
}

/// `PUT /files/archive`: unpacks the body into the directory, which is made if it is not there.
///
/// # Errors
///
/// 400 for what is no archive and for entries that are not taken, 401 for an unknown user, 507 when
/// the disk is full.
pub async fn upload(
    State(context): State<Arc<Context>>,
    query: FileQuery,
    body: Body,
) -> Result<Json<Unpacked>, HttpError> {
    let (path, user) = resolve(&context, &query)?;
    let (uid, gid) = (user.uid, user.gid);
    let root = path.clone();
    blocking(Arc::clone(&user), move || {
        Ok(make_dirs(&root, crate::filesystem::Owner { uid, gid })?)
    })
    .await?;
    let turn = turn().await;
    let (feed, mut inlet) = pipe::inlet();
    let (tell, told) = oneshot::channel();
    let root = path.clone();
    thread(context.place, user, move || {
        let owner = Owner::Ids(uid, gid);
        // Here a link is only a link: whoever follows it lives here, too.
        let links_out = LinksOut::Keep;
        let options = Options { owner, mode: 0o777, hidden: UPLOAD_PREFIX, links_out };
        let unpacked = unpack(&mut inlet, &root, &options, |_| ());
        // The other end has to hear that nothing more is read.
        drop(inlet);
        let _ = tell.send(unpacked);
        drop(turn);
    })?;
    let mut body = body.into_data_stream();
    while let Some(piece) = body.next().await {
        let broken = piece.is_err();
        if !feed.send(piece.map_err(io::Error::other)).await || broken {
            break;
        }
    }
    feed.end().await;
    let summary = told.await.map_err(|_| HttpError::invalid("the archive was given up"))?;
    // What comes after an archive's end is of no interest, but sent all the same.
    drain(body).await;
    let Summary { entries, bytes, .. } = summary?;
    let path = path.to_string_lossy().into_owned();
    Ok(Json(Unpacked { path, entries, bytes }))
}

/// Where, and for whom.
fn resolve(context: &Context, query: &FileQuery) -> Result<(PathBuf, Arc<User>), HttpError> {
    let user = context.user(query.username.as_deref())?;
    let path = context.path(query.path.as_deref().unwrap_or_default(), &user)?;
    Ok((path, user))
}

async fn turn() -> SemaphorePermit<'static> {
    TURNS.acquire().await.expect("it is never closed")
}

/// Does something on a thread of its own, with the user's rights. If the kernel does not give them,
/// nobody hears of it but by what does not come.
fn thread(
    place: Place,
    user: Arc<User>,
    work: impl FnOnce() + Send + 'static,
) -> Result<(), HttpError> {
    let thread = std::thread::Builder::new().name("archive".to_owned()).stack_size(STACK);
    let started = thread.spawn(move || {
        stand_back(place);
        let _ = rights::with(&user, work);
    });
    started.map(drop).map_err(|error| HttpError::Io {
        verb: "cannot start a thread for",
        path: "an archive".into(),
        source: error,
    })
}

impl From<ArchiveError> for HttpError {
    fn from(error: ArchiveError) -> Self {
        match error {
            ArchiveError::Stream(error) => Self::invalid(format!("body ended early: {error}")),
            ArchiveError::Disk { verb, path, source } => Self::from_io(verb, &path, source),
            ArchiveError::Incomplete(_)
            | ArchiveError::Malformed(_)
            | ArchiveError::Refused { .. }
            | ArchiveError::Shrunk { .. } => Self::invalid(error.to_string()),
        }
    }
}
