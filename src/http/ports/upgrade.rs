//! A connection that client and server have agreed to use otherwise: bytes both ways, until either
//! has enough.

use std::io;

use actix_web::{HttpResponse, web};
use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};

use super::forward::{Task, begin};
use crate::http::error::{ApiError, Code};
use crate::http::websocket::Sockets;

/// Bytes of the server's that wait for the client.
const PIECE: usize = 16 << 10;

type Server = TokioIo<Upgraded>;

/// The answer by which a server agrees to speak WebSocket, and all that it says from then on.
///
/// # Errors
///
/// 502 if it has closed the connection instead.
pub async fn pass_on(
    answer: http::Response<Incoming>,
    payload: web::Payload,
    connection: Task,
    sockets: &Sockets,
) -> Result<HttpResponse, ApiError> {
    let (parts, body) = answer.into_parts();
    let mut response = begin(&parts)?;
    let upgraded = hyper::upgrade::on(http::Response::from_parts(parts, body)).await;
    let upgraded = upgraded.map_err(|error| {
        ApiError::new(Code::AgentError, format!("the server did not switch protocols: {error}"))
    })?;
    // Its task has given the connection away.
    drop(connection);
    let (from_server, to_server) = split(TokioIo::new(upgraded));
    let inwards = Task::start(carry(payload, to_server));
    let ending = sockets.ending();
    let outwards = Box::pin(heard(from_server, inwards).take_until(ending));
    Ok(response.upgrade("websocket").streaming(outwards))
}

/// What the server says. While nobody takes it, nothing is read from the server.
fn heard(
    server: ReadHalf<Server>,
    inwards: Task,
) -> impl Stream<Item = io::Result<Bytes>> + 'static {
    stream::unfold((server, inwards), |(mut server, inwards)| async move {
        let mut piece = Vec::with_capacity(PIECE);
        match server.read_buf(&mut piece).await {
            Ok(0) => None,
            Ok(_) => Some((Ok(Bytes::from(piece)), (server, inwards))),
            Err(error) => Some((Err(error), (server, inwards))),
        }
    })
}

/// Says to the server what the client says, as fast as the server takes it.
async fn carry(mut payload: web::Payload, mut server: WriteHalf<Server>) {
    while let Some(Ok(piece)) = payload.next().await {
        if server.write_all(&piece).await.is_err() {
            break;
        }
    }
    // It may have ended by itself.
    let _ = server.shutdown().await;
}
