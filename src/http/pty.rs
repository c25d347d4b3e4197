//! `GET /v1/sandboxes/{id}/pty`: a terminal, over a WebSocket. It stays when its client leaves.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::Deserialize;
use utoipa::ToSchema;

use super::auth::Caller;
use super::error::ApiError;
use super::exec::{Encoding, ExecBody, command};
use super::openapi::failures::Work;
use super::openapi::{Messages, Routes, Section};
use super::session::{ClientCommand, Language, Opening, Session, speech};
use super::websocket::{Sockets, frames, handshake, upgraded};
use crate::actors::control::ControlPlane;
use crate::domain::exec::{Exec, ExecControl, ExecEvent};
use crate::domain::id::SandboxId;
use crate::domain::object::or_default;
use crate::domain::process::{ProcessRef, Tag, TerminalSize, TerminalStart};

static LANGUAGE: Language<TerminalStart> = Language { hear, say, first: "start or connect" };

/// What a client may say.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = TerminalClientMessage, examples(json!({"type": "input", "data": "ls\r"})))]
enum ClientMessage {
    /// Starts something on a new terminal: first of all, or `connect` is.
    Start(Start),
    /// Comes back to a terminal: first of all, or `start` is.
    Connect {
        /// By its tag.
        tag: Option<Tag>,
        /// Or by its pid.
        pid: Option<u32>,
        /// Columns that the client has; as before if absent.
        cols: Option<u32>,
        /// Rows that the client has; as before if absent.
        rows: Option<u32>,
    },
    /// Is typed.
    Input {
        /// What is typed.
        data: String,
        /// How `data` is written here; as it is if absent.
        encoding: Option<Encoding>,
    },
    /// The client has another size now.
    Resize {
        /// From 1 to 4096.
        cols: u32,
        /// From 1 to 4096.
        rows: u32,
    },
    /// Hangs up: SIGHUP, and SIGKILL to all it has started if it has not ended 5 s later.
    Stop {},
}

/// What runs on a new terminal.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = TerminalStart)]
struct Start {
    /// A login shell of the user if absent.
    cmd: Option<String>,
    /// Arguments of `cmd`.
    args: Option<Vec<String>>,
    /// Variables beside those of the sandbox.
    #[serde(default, deserialize_with = "or_default")]
    #[schema(nullable)]
    envs: BTreeMap<String, String>,
    /// Where it runs; the user's home if absent.
    cwd: Option<String>,
    /// Who runs it.
    user: Option<String>,
    /// From 1 to 4096; 80 if absent.
    cols: Option<u32>,
    /// From 1 to 4096; 24 if absent.
    rows: Option<u32>,
    /// By which to come back.
    tag: Option<Tag>,
}

/// Opens a terminal in a sandbox, or comes back to one, over a WebSocket.
///
/// It stays when its client leaves.
#[utoipa::path(
    operation_id = "openTerminal",
    params(SandboxId),
    responses((status = 101, description = "A WebSocket."), Work),
)]
#[get("/sandboxes/{id}/pty")]
async fn pty(
    _: Caller,
    control: web::Data<ControlPlane>,
    sockets: web::Data<Sockets>,
    id: web::Path<SandboxId>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answer = handshake(&request)?;
    let terminal = control.workplace(&id).await?.follow_terminal().await?;
    let (opening, frames) = (Opening::ByClient, frames(payload));
    let body = Session::begin(&LANGUAGE, opening, terminal, &sockets, &request, frames);
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    let messages = Messages::of::<ClientMessage, speech::ServerMessage<'_>>();
    routes.section(Section::Commands).add_websocket(pty, messages);
}

fn hear(text: &[u8]) -> Result<ClientCommand<TerminalStart>, String> {
    match serde_json::from_slice(text).map_err(speech::nonsense)? {
        ClientMessage::Start(start) => {
            let size = size(start.cols, start.rows)?.unwrap_or(TerminalSize::USUAL);
            let tag = start.tag.clone();
            let exec = exec(start).map_err(|error| error.to_string())?;
            Ok(ClientCommand::Begin(TerminalStart::New { exec, size, tag }))
        }
        ClientMessage::Connect { tag, pid, cols, rows } => {
            let process = match (tag, pid) {
                (Some(tag), None) => ProcessRef::Tag(tag),
                (None, Some(pid)) => ProcessRef::Pid(pid),
                (None, None) | (Some(_), Some(_)) => {
                    return Err("a terminal is named by its tag or by its pid".to_owned());
                }
            };
            let size = size(cols, rows)?;
            Ok(ClientCommand::Begin(TerminalStart::Existing { process, size }))
        }
        ClientMessage::Input { data, encoding } => {
            speech::input(data, encoding, false).map(ClientCommand::Input)
        }
        ClientMessage::Resize { cols, rows } => {
            let size = TerminalSize::new(cols, rows).map_err(|error| error.to_string())?;
            Ok(ClientCommand::Control(ExecControl::Resize(size)))
        }
        ClientMessage::Stop {} => Ok(ClientCommand::Control(ExecControl::Stop)),
    }
}

/// What runs on a new terminal.
fn exec(start: Start) -> Result<Exec, ApiError> {
    let Start { cmd, args, envs, cwd, user, .. } = start;
    let shell = cmd.is_none();
    if shell && args.is_some() {
        return Err(ApiError::invalid("args are those of a cmd"));
    }
    // What is checked of a command is checked of a shell too, which has none yet.
    let cmd = cmd.unwrap_or_else(|| "shell".to_owned());
    let exec = command(ExecBody { cmd, args, envs, cwd, user, ..ExecBody::default() })?;
    Ok(if shell { Exec { cmd: String::new(), args: Vec::new(), ..exec } } else { exec })
}

/// The size that a client has, if it says so.
fn size(cols: Option<u32>, rows: Option<u32>) -> Result<Option<TerminalSize>, String> {
    if cols.is_none() && rows.is_none() {
        return Ok(None);
    }
    let usual = TerminalSize::USUAL;
    let cols = cols.unwrap_or_else(|| usual.cols().into());
    let rows = rows.unwrap_or_else(|| usual.rows().into());
    TerminalSize::new(cols, rows).map(Some).map_err(|error| error.to_string())
}

/// As in every session, but that a terminal has no numbers: what shows on it makes sense as a whole.
fn say(event: &ExecEvent) -> String {
    match event {
        ExecEvent::Output { stream, data, seq: _ } => {
            let (stream, data) = (*stream, data.clone());
            speech::event(&ExecEvent::Output { stream, data, seq: None })
        }
        ExecEvent::Lost(bytes) => speech::error(&format!("{bytes} bytes of output were lost")),
        ExecEvent::Started { .. } | ExecEvent::Unreached(_) | ExecEvent::Ended(_) => {
            speech::event(event)
        }
    }
}
