//! WebSockets: what sessions of every kind have in common.
//!
//! ```text
//! client --frames--> inlet --> session (an actor) --> work
//! client <--outlet's body <--- bounded lanes <------- work
//! ```
//!
//! Architecture invariant: nothing here is without bound. actix-web-actors' own context queues
//! what is written until the client takes it, and it stands still while the client does not; so a
//! session is an actor with a context of its own, and writes into the lanes of an [`outlet`],
//! which the connection empties only as fast as the client reads.

mod close_reason;
mod hangup;
mod inlet;
mod life;
mod listener;
mod outlet;
mod subprotocol;

use std::time::Duration;

use actix_web::http::header::SEC_WEBSOCKET_PROTOCOL;
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder};
use actix_web_actors::ws;
use tokio_util::sync::CancellationToken;

use super::error::ApiError;

pub use close_reason::CloseReason;
pub use hangup::Hangup;
pub use inlet::{Frames, Message, Messages, broken, frames};
pub use life::Life;
pub use listener::listen;
pub use outlet::{Body, Gone, Lane, Outlet, open};
pub use subprotocol::{KEY_PREFIX, offered_key};

/// Bytes of the largest message that a client may send.
pub const MESSAGE_LIMIT: usize = 1 << 20;

/// How the daemon finds out that a client is gone which has not said so.
#[derive(Debug, Clone, Copy)]
pub struct Heartbeat {
    /// Time between two pings.
    pub period: Duration,
    /// A client that has neither sent nor taken anything for this long is gone.
    pub limit: Duration,
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self { period: Duration::from_secs(15), limit: Duration::from_secs(60) }
    }
}

/// What all WebSockets of a server share.
#[derive(Debug, Clone, Default)]
pub struct Sockets {
    /// When clients are taken for gone.
    pub heartbeat: Heartbeat,
    ending: CancellationToken,
}

impl Sockets {
    /// Of a server that takes clients for gone as said.
    pub fn new(heartbeat: Heartbeat) -> Self {
        Self { heartbeat, ..Self::default() }
    }

    /// Ends all sessions, because the server is about to end.
    pub fn end_all(&self) {
        self.ending.cancel();
    }

    /// Becomes ready when sessions are to end.
    pub fn ending(&self) -> impl Future<Output = ()> + Send + 'static {
        self.ending.clone().cancelled_owned()
    }
}

/// Whether a request asks for a WebSocket, and the answer that makes it one.
///
/// # Errors
///
/// 400 with what is missing.
pub fn handshake(request: &HttpRequest) -> Result<HttpResponseBuilder, ApiError> {
    let mut answer = ws::handshake(request).map_err(|error| {
        ApiError::invalid(format!(
            "this path is for WebSockets, and this request asks for none: {error}"
        ))
    })?;
    if let Some(protocol) = subprotocol::chosen(request.headers())? {
        answer.insert_header((SEC_WEBSOCKET_PROTOCOL, protocol));
    }
    Ok(answer)
}

/// The answer to a handshake, whose body is all that the session says.
pub fn upgraded(mut answer: HttpResponseBuilder, body: Body) -> HttpResponse {
    answer.streaming(body)
}
