//! `GET /v1/sandboxes/{id}/exec/stream`: a command that is followed and talked to, over a WebSocket.

mod message;
mod session;

use actix_web::{HttpRequest, HttpResponse, get, web};

use self::session::Session;
use super::auth::Caller;
use super::error::{ApiError, only};
use super::websocket::{Sockets, frames, handshake, upgraded};
use crate::actors::control_plane::ControlPlane;
use crate::domain::id::SandboxId;

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
    let (handle, events) = control.follow_exec(&id).await?;
    let body = Session::begin(handle, events, &sockets, &request, frames(payload));
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(config: &mut web::ServiceConfig) {
    config.service(exec_stream).service(only("/sandboxes/{id}/exec/stream", "GET"));
}
