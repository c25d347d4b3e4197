//! `/v1/sandboxes/{id}/processes`: what runs in the background, or did: listed, ended, followed.

use std::convert::Infallible;

use actix_web::{HttpRequest, HttpResponse, delete, get, web};
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::auth::Caller;
use super::error::ApiError;
use super::exec::Encoding;
use super::json_stream;
use super::openapi::failures::Work;
use super::openapi::{Messages, Routes, Section};
use super::session::{ClientCommand, Language, Opening, Session, speech};
use super::websocket::{Sockets, frames, handshake, upgraded};
use crate::actors::control::ControlPlane;
use crate::domain::exec::ExecControl;
use crate::domain::id::SandboxId;
use crate::domain::object::or_default;
use crate::domain::process::{ProcessInfo, ProcessRef, Tag};

static LANGUAGE: Language<Infallible> = Language { hear, say: speech::event, first: "any" };

/// What a client of a process's stream may say.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = ProcessClientMessage, examples(json!({"type": "stdin", "data": "42\n"})))]
enum ClientMessage {
    /// Is written to standard input.
    Stdin {
        /// What is written.
        #[serde(default, deserialize_with = "or_default")]
        #[schema(nullable)]
        data: String,
        /// How `data` is written here; as it is if absent.
        encoding: Option<Encoding>,
        /// Whether standard input is closed after `data`.
        #[serde(default, deserialize_with = "or_default")]
        #[schema(nullable)]
        eof: bool,
    },
    /// Sends a signal to the process.
    Signal {
        /// Such as `SIGINT`.
        signal: String,
    },
    /// Sends SIGTERM, and SIGKILL to all it has started if it has not ended 5 s later.
    Stop {},
}

/// Names a process.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ProcessPath {
    /// The sandbox.
    #[param(inline)]
    id: SandboxId,
    /// The process, by its pid or its tag.
    #[param(inline)]
    process: ProcessRef,
}

/// The query of a process's stream.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
struct StreamQuery {
    /// Number of the last byte that the client has.
    #[serde(default)]
    after: u64,
}

/// Where a process is in its life.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum ProcessState {
    /// It runs.
    Running,
    /// It has ended.
    Exited,
}

/// A process, as the API shows it.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Process, examples(json!({
    "pid": 217,
    "tag": "web",
    "cmd": "python3",
    "args": ["-m", "http.server"],
    "cwd": "/home/user",
    "terminal": false,
    "state": "running",
    "exit_code": null,
    "started_at": "2026-11-25T22:46:45.120394Z",
    "first_seq": 1,
    "next_seq": 120,
})))]
struct ProcessView {
    /// By which it is known.
    pid: u32,
    /// By which it is known too, if it has one.
    tag: Option<Tag>,
    /// What runs.
    cmd: String,
    /// With these arguments.
    args: Vec<String>,
    /// Where it was started.
    cwd: Option<String>,
    /// Whether it runs on a terminal.
    terminal: bool,
    /// Whether it still does.
    state: ProcessState,
    /// How it ended, if it has.
    exit_code: Option<i32>,
    /// When it was started.
    started_at: DateTime<Utc>,
    /// Number of the first byte of its output that is kept.
    first_seq: u64,
    /// Number of the byte that it writes next.
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

/// Processes in the background.
#[derive(Serialize, ToSchema)]
#[schema(as = ProcessList)]
struct ListView {
    /// Those that run, and the last that have ended.
    processes: Vec<ProcessView>,
}

/// Lists what runs in the background of a sandbox, or did.
#[utoipa::path(
    operation_id = "listProcesses",
    params(SandboxId),
    responses((status = 200, description = "All that is known of.", body = ListView), Work),
)]
#[get("/sandboxes/{id}/processes")]
async fn list(
    _: Caller,
    control: web::Data<ControlPlane>,
    id: web::Path<SandboxId>,
) -> Result<HttpResponse, ApiError> {
    let processes =
        control.workplace(&id).await?.processes().await?.into_iter().map(ProcessView::from);
    Ok(json_stream::list("processes", processes))
}

/// Ends a process in the background; what is known of it stays.
#[utoipa::path(
    operation_id = "stopProcess",
    params(ProcessPath),
    responses((status = 204, description = "It has ended."), Work),
)]
#[delete("/sandboxes/{id}/processes/{process}")]
async fn stop(
    _: Caller,
    control: web::Data<ControlPlane>,
    path: web::Path<ProcessPath>,
) -> Result<HttpResponse, ApiError> {
    let ProcessPath { id, process } = path.into_inner();
    control.workplace(&id).await?.stop_process(process).await?;
    Ok(HttpResponse::NoContent().finish())
}

/// Follows a process in the background, over a WebSocket.
///
/// What it has written and is kept comes first. A client that leaves ends nothing.
#[utoipa::path(
    operation_id = "streamProcess",
    params(ProcessPath, StreamQuery),
    responses((status = 101, description = "A WebSocket."), Work),
)]
#[get("/sandboxes/{id}/processes/{process}/stream")]
async fn stream(
    _: Caller,
    control: web::Data<ControlPlane>,
    sockets: web::Data<Sockets>,
    path: web::Path<ProcessPath>,
    query: web::Query<StreamQuery>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answer = handshake(&request)?;
    let ProcessPath { id, process } = path.into_inner();
    // Before the upgrade, as everywhere: also whether there is such a process.
    let following = control.workplace(&id).await?.follow_process(&process, query.after).await?;
    let (opening, frames) = (Opening::Done, frames(payload));
    let body = Session::begin(&LANGUAGE, opening, following, &sockets, &request, frames);
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    let messages = Messages::of::<ClientMessage, speech::ServerMessage<'_>>();
    routes.section(Section::Commands).add(list).add(stop).add_websocket(stream, messages);
}

fn hear(text: &[u8]) -> Result<ClientCommand<Infallible>, String> {
    match serde_json::from_slice(text).map_err(speech::nonsense)? {
        ClientMessage::Stdin { data, encoding, eof } => {
            speech::input(data, encoding, eof).map(ClientCommand::Input)
        }
        ClientMessage::Signal { signal } => speech::signal(&signal).map(ClientCommand::Control),
        ClientMessage::Stop {} => Ok(ClientCommand::Control(ExecControl::Stop)),
    }
}
