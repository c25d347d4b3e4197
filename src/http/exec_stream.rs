//! `GET /v1/sandboxes/{id}/exec/stream`: a command that is followed and talked to, over a WebSocket.

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
use crate::domain::exec::{Exec, ExecControl};
use crate::domain::id::SandboxId;
use crate::domain::object::or_default;

static LANGUAGE: Language<Exec> = Language { hear, say: speech::event, first: "start" };

/// What a client may say.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = CommandClientMessage, examples(json!({"type": "stdin", "data": "42\n"})))]
enum ClientMessage {
    /// First of all, and once.
    Start {
        /// With `args` a program, else a line for `/bin/sh -c`.
        cmd: String,
        /// Arguments of the program.
        args: Option<Vec<String>>,
        /// Variables beside those of the sandbox.
        #[serde(default, deserialize_with = "or_default")]
        #[schema(nullable)]
        envs: BTreeMap<String, String>,
        /// Where it runs; the user's home if absent.
        cwd: Option<String>,
        /// Who runs it.
        user: Option<String>,
    },
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

/// Runs a command that is followed and talked to, over a WebSocket.
///
/// The client says `start` first. The command ends with the connection.
#[utoipa::path(
    operation_id = "streamCommand",
    params(SandboxId),
    responses((status = 101, description = "A WebSocket."), Work),
)]
#[get("/sandboxes/{id}/exec/stream")]
async fn exec_stream(
    _: Caller,
    control: web::Data<ControlPlane>,
    sockets: web::Data<Sockets>,
    id: web::Path<SandboxId>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answer = handshake(&request)?;
    // Before the upgrade: who may not is told so by a status, as everywhere.
    let command = control.workplace(&id).await?.follow_exec().await?;
    let (opening, frames) = (Opening::ByClient, frames(payload));
    let body = Session::begin(&LANGUAGE, opening, command, &sockets, &request, frames);
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    let messages = Messages::of::<ClientMessage, speech::ServerMessage<'_>>();
    routes.section(Section::Commands).add_websocket(exec_stream, messages);
}

fn hear(text: &[u8]) -> Result<ClientCommand<Exec>, String> {
    match serde_json::from_slice(text).map_err(speech::nonsense)? {
        ClientMessage::Start { cmd, args, envs, cwd, user } => {
            let body = ExecBody { cmd, args, envs, cwd, user, ..ExecBody::default() };
            command(body).map(ClientCommand::Begin).map_err(|error| error.to_string())
        }
        ClientMessage::Stdin { data, encoding, eof } => {
            speech::input(data, encoding, eof).map(ClientCommand::Input)
        }
        ClientMessage::Signal { signal } => speech::signal(&signal).map(ClientCommand::Control),
        ClientMessage::Stop {} => Ok(ClientCommand::Control(ExecControl::Stop)),
    }
}
