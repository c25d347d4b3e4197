//! `GET /v1/sandboxes/{id}/files/watch`: what happens to the files of a directory, over a WebSocket.

use actix_web::{HttpRequest, HttpResponse, get, web};
use actix_web_actors::ws::CloseCode;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::tree::EntryView;
use super::{check_path, shown};
use crate::actors::control::{ControlPlane, FileFeed};
use crate::domain::file::{ChangeKind, FileChange, Reach, WatchNews};
use crate::domain::id::SandboxId;
use crate::domain::path::GuestPath;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::openapi::failures::Work;
use crate::http::openapi::{Messages, Routes};
use crate::http::query::Query;
use crate::http::websocket::{
    CloseReason, Gone, Lane, Sockets, frames, handshake, listen, upgraded,
};

/// Query of `files/watch`.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct WatchQuery {
    /// The directory. Its bytes are percent-encoded, also those that are not UTF-8.
    #[param(value_type = String, min_length = 1, max_length = 4096, example = "/tmp")]
    path: GuestPath,
    /// Whose home a relative path starts at.
    user: Option<String>,
    /// Whether directories below are watched too, also those that are made later.
    #[serde(default)]
    recursive: bool,
}

/// What the daemon says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
#[schema(as = WatchMessage, examples(json!({"type": "remove", "name": "a.txt"})))]
enum ServerMessage {
    /// What happens from now on follows.
    Start,
    /// It is new here.
    Create(ChangeView),
    /// It was written to.
    Write(ChangeView),
    /// It is gone.
    Remove(ChangeView),
    /// It has had this name.
    Rename(ChangeView),
    /// It has other permissions, times or owners.
    Chmod(ChangeView),
}

/// What has changed.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Change)]
struct ChangeView {
    /// From the directory; `.` is the directory itself. Of one that is not UTF-8, what is similar.
    name: String,
    /// Its bytes in base64, if they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    name_base64: Option<String>,
    /// How it is now, if it is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    entry: Option<EntryView>,
}

impl From<FileChange> for ServerMessage {
    fn from(FileChange { kind, name, entry }: FileChange) -> Self {
        let (name, name_base64) = shown(&name);
        let view = ChangeView { name, name_base64, entry: entry.map(EntryView::from) };
        match kind {
            ChangeKind::Create => Self::Create(view),
            ChangeKind::Write => Self::Write(view),
            ChangeKind::Remove => Self::Remove(view),
            ChangeKind::Rename => Self::Rename(view),
            ChangeKind::Chmod => Self::Chmod(view),
        }
    }
}

/// Tells what happens to the files of a directory, over a WebSocket.
#[utoipa::path(
    operation_id = "watchFiles",
    params(SandboxId, WatchQuery),
    responses((status = 101, description = "A WebSocket."), Work),
)]
#[get("/sandboxes/{id}/files/watch")]
async fn watch(
    _: Caller,
    control: web::Data<ControlPlane>,
    sockets: web::Data<Sockets>,
    id: web::Path<SandboxId>,
    query: Query<WatchQuery>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answer = handshake(&request)?;
    let query = query.0;
    check_path(&query.path)?;
    let reach = if query.recursive { Reach::Below } else { Reach::Here };
    // Before the upgrade: who may not, and what is no directory, is told so by a status.
    let feed = control
        .workplace(&id)
        .await?
        .watch_files(&query.path, reach, query.user.as_deref())
        .await?;
    let body = listen(&sockets, &request, frames(payload), |lane| tell(feed, lane));
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.add_websocket(watch, Messages::from_server::<ServerMessage>());
}

/// Says what happens, as fast as the client takes it.
async fn tell(mut feed: FileFeed, lane: Lane) -> Result<CloseReason, Gone> {
    lane.say(text(&ServerMessage::Start)).await?;
    loop {
        let news = tokio::select! {
            news = feed.next() => news,
            () = lane.gone() => return Err(Gone),
        };
        match news {
            Ok(WatchNews::Change(change)) => lane.say(text(&(*change).into())).await?,
            Ok(WatchNews::Lost) => {
                let error = "changes came faster than they were taken, and some are lost: watch \
                             again, and then look what is there";
                return Ok(CloseReason::new(CloseCode::Again, error));
            }
            Err(error) => return Ok(error.into()),
        }
    }
}

fn text(message: &ServerMessage) -> String {
    serde_json::to_string(message).expect("a message has only string keys")
}
