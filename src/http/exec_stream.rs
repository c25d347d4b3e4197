//! `GET /v1/sandboxes/{id}/exec/stream`: a command that is followed and talked to, over a WebSocket.

use std::collections::BTreeMap;

use actix_web::{HttpRequest, HttpResponse, get, web};
use serde::Deserialize;

use super::auth::Caller;
use super::error::{ApiError, only};
use super::exec::{Encoding, ExecBody, command};
use super::session::{Language, Opening, Session, Wish, speech};
use super::websocket::{Sockets, frames, handshake, upgraded};
use crate::actors::control_plane::ControlPlane;
use crate::domain::exec::{Exec, ExecControl};
use crate::domain::id::SandboxId;

static LANGUAGE: Language<Exec> = Language { hear, say: speech::event, first: "start" };

/// What a client may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ClientMessage {
    /// First of all, and once.
    Start {
        cmd: String,
        args: Option<Vec<String>>,
        #[serde(default)]
        envs: BTreeMap<String, String>,
        cwd: Option<String>,
        user: Option<String>,
    },
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
    let command = control.follow_exec(&id).await?;
    let (opening, frames) = (Opening::ByClient, frames(payload));
    let body = Session::begin(&LANGUAGE, opening, command, &sockets, &request, frames);
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(exec_stream).service(only("/sandboxes/{id}/exec/stream", "GET"));
}

fn hear(text: &[u8]) -> Result<Wish<Exec>, String> {
    match serde_json::from_slice(text).map_err(speech::nonsense)? {
        ClientMessage::Start { cmd, args, envs, cwd, user } => {
            let body = ExecBody { cmd, args, envs, cwd, user, ..ExecBody::default() };
            command(body).map(Wish::Begin).map_err(|error| error.to_string())
        }
        ClientMessage::Stdin { data, encoding, eof } => {
            speech::input(data, encoding, eof).map(Wish::Input)
        }
        ClientMessage::Signal { signal } => speech::signal(&signal).map(Wish::Control),
        ClientMessage::Stop {} => Ok(Wish::Control(ExecControl::Stop)),
    }
}
