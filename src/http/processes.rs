//! `/v1/sandboxes/{id}/processes`: what runs in the background, or did: listed, ended, followed.

use std::convert::Infallible;

use actix_web::{HttpRequest, HttpResponse, delete, get, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::auth::Caller;
use super::error::{ApiError, only};
use super::exec::Encoding;
use super::session::{Language, Opening, Session, Wish, speech};
use super::websocket::{Sockets, frames, handshake, upgraded};
use crate::actors::control_plane::ControlPlane;
use crate::domain::exec::ExecControl;
use crate::domain::id::SandboxId;
use crate::domain::process::{ProcessInfo, ProcessRef, Tag};

static LANGUAGE: Language<Infallible> = Language { hear, say: speech::event, first: "any" };

/// What a client of a process's stream may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ClientMessage {
    Stdin {
        #[serde(default)]
        data: String,
        encoding: Option<Encoding>,
        /// Whether standard input is closed after `data`.
        #[serde(default)]
        eof: bool,
    },
    Signal {
        /// Such as `SIGINT`.
        signal: String,
    },
    Stop {},
}

/// The query of a process's stream.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StreamQuery {
    /// Number of the last byte that the client has.
    #[serde(default)]
    after: u64,
}

/// Where a process is in its life.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum ProcessState {
    Running,
    Exited,
}

/// A process, as the API shows it.
#[derive(Debug, Serialize)]
struct ProcessView {
    pid: u32,
    tag: Option<Tag>,
    cmd: String,
    args: Vec<String>,
    cwd: Option<String>,
    /// Whether it runs on a terminal.
    terminal: bool,
    state: ProcessState,
    exit_code: Option<i32>,
    started_at: DateTime<Utc>,
    first_seq: u64,
    next_seq: u64,
}

impl From<ProcessInfo> for ProcessView {
    fn from(info: ProcessInfo) -> Self {
        Self {
            pid: info.pid,
            tag: info.tag,
            cmd: info.cmd,
            args: info.args,
            cwd: info.cwd,
            terminal: info.terminal,
            state: match info.exit_code {
                Some(_) => ProcessState::Exited,
                None => ProcessState::Running,
            },
            exit_code: info.exit_code,
            started_at: info.started_at,
            first_seq: info.first_seq,
            next_seq: info.next_seq,
        }
    }
}

#[derive(Serialize)]
struct ListView {
    processes: Vec<ProcessView>,
}

#[get("/sandboxes/{id}/processes")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    let processes = control.processes(&id).await?.into_iter().map(ProcessView::from).collect();
    Ok(HttpResponse::Ok().json(ListView { processes }))
}

#[delete("/sandboxes/{id}/processes/{process}")]
async fn stop(
    _: Caller,
    control: web::Data<ControlPlane>,
    path: web::Path<(SandboxId, ProcessRef)>,
) -> Result<HttpResponse, ApiError> {
    let (id, process) = path.into_inner();
    control.stop_process(&id, process).await?;
    Ok(HttpResponse::NoContent().finish())
}

#[get("/sandboxes/{id}/processes/{process}/stream")]
async fn stream(
    _: Caller,
    control: web::Data<ControlPlane>,
    sockets: web::Data<Sockets>,
    path: web::Path<(SandboxId, ProcessRef)>,
    query: web::Query<StreamQuery>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answer = handshake(&request)?;
    let (id, process) = path.into_inner();
    // Before the upgrade, as everywhere: also whether there is such a process.
    let following = control.follow_process(&id, &process, query.after).await?;
    let (opening, frames) = (Opening::Done, frames(payload));
    let body = Session::begin(&LANGUAGE, opening, following, &sockets, &request, frames);
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(list).service(only("/sandboxes/{id}/processes", "GET"));
    config.service(stream).service(only("/sandboxes/{id}/processes/{process}/stream", "GET"));
    config.service(stop).service(only("/sandboxes/{id}/processes/{process}", "DELETE"));
}

fn hear(text: &[u8]) -> Result<Wish<Infallible>, String> {
    match serde_json::from_slice(text).map_err(speech::nonsense)? {
        ClientMessage::Stdin { data, encoding, eof } => {
            speech::input(data, encoding, eof).map(Wish::Input)
        }
        ClientMessage::Signal { signal } => speech::signal(&signal).map(Wish::Control),
        ClientMessage::Stop {} => Ok(Wish::Control(ExecControl::Stop)),
    }
}
