//! `GET /v1/sandboxes/{id}/tunnels/{port}`: one TCP connection to a server in a sandbox, over a
//! WebSocket. Binary messages are its bytes; an empty one says that no more follow in its direction.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;

use actix_http::ws::Item;
use actix_web::{HttpRequest, HttpResponse, get, rt, web};
use actix_web_actors::ws::{CloseCode, Frame};
use bytes::Bytes;
use futures::StreamExt;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use utoipa::IntoParams;

use super::Ports;
use crate::actors::control::{ControlPlane, PortStream, PortWatch};
use crate::domain::id::SandboxId;
use crate::domain::port::GuestPort;
use crate::http::auth::Caller;
use crate::http::error::ApiError;
use crate::http::openapi::Routes;
use crate::http::openapi::failures::Connecting;
use crate::http::websocket::{
    self, CloseReason, Frames, Hangup, Heartbeat, Lane, Life, Outlet, Sockets, frames, handshake,
    upgraded,
};

/// Bytes of the largest message to a client.
const PIECE: usize = 16 << 10;

/// Names a server in a sandbox.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct TunnelPath {
    /// The sandbox.
    #[param(inline)]
    id: SandboxId,
    /// The port of the server in it.
    #[param(inline)]
    port: GuestPort,
}

/// Connects to a server in a sandbox: a TCP connection over a WebSocket.
///
/// Binary messages are its bytes, in pieces of any size up to 1 MiB; an empty one says that no more
/// follow in its direction.
#[utoipa::path(
    operation_id = "openTunnel",
    params(TunnelPath),
    responses((status = 101, description = "A WebSocket."), Connecting),
)]
#[get("/sandboxes/{id}/tunnels/{port}")]
async fn tunnel(
    _: Caller,
    control: web::Data<ControlPlane>,
    ports: web::Data<Ports>,
    sockets: web::Data<Sockets>,
    path: web::Path<TunnelPath>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let answer = handshake(&request)?;
    let TunnelPath { id, port } = path.into_inner();
    // Before the upgrade: a server that is not there is told of by a status.
    let (stream, watch) =
        control.workplace(&id).await?.connect_port(port, ports.connect_limit).await?;
    let life = Life::new();
    let (outlet, lane, body) = websocket::open(life.clone());
    let heartbeat = sockets.heartbeat;
    let client = Client { lane, outlet, life, heartbeat, hangup: Hangup::of(&request) };
    let ending = sockets.ending();
    rt::spawn(client.serve(stream, watch, frames(payload), ending));
    Ok(upgraded(answer, body))
}

/// The routes of this file.
pub fn routes(routes: &mut Routes) {
    routes.add(tunnel);
}

/// The client's end.
struct Client {
    lane: Lane,
    outlet: Outlet,
    life: Life,
    heartbeat: Heartbeat,
    hangup: Option<Hangup>,
}

/// Why nothing more passes.
enum End {
    /// The client is gone; nobody needs to be told.
    Gone,
    /// The client has said goodbye, or what it says cannot be understood.
    Deaf(CloseReason),
    /// The client is still there.
    Over(CloseReason),
}

impl From<websocket::Gone> for End {
    fn from(_: websocket::Gone) -> Self {
        Self::Gone
    }
}

impl Client {
    async fn serve(
        self,
        stream: PortStream,
        watch: PortWatch,
        mut frames: Frames,
        ending: impl Future<Output = ()>,
    ) {
        let end = {
            let (from_server, to_server) = split(stream);
            let (waits, all_heard) = (Cell::new(false), Notify::new());
            tokio::select! {
                biased;
                () = ending => End::Over(CloseReason::away()),
                lost = watch.lost() => End::Over(lost.into()),
                () = self.lane.gone() => End::Gone,
                end = self.hear(&mut frames, to_server, &watch, &waits, &all_heard) => {
                    match end { Err(end) => end, Ok(never) => match never {} }
                }
                end = self.speak(from_server, &watch, &all_heard) => match end {
                    Ok(()) => End::Over(CloseReason::done()),
                    Err(end) => end,
                },
                () = self.silence(&waits) => End::Over(CloseReason::silent()),
            }
            // The connection to the server ends here.
        };
        self.part(end, &mut frames).await;
    }

    /// Says to the server what the client says, as fast as the server takes it.
    async fn hear(
        &self,
        frames: &mut Frames,
        mut server: WriteHalf<PortStream>,
        watch: &PortWatch,
        waits: &Cell<bool>,
        all_heard: &Notify,
    ) -> Result<Infallible, End> {
        let mut open = true;
        while let Some(frame) = frames.next().await {
            self.life.renew();
            let piece = match frame.map(bytes_of) {
                Ok(Said::Bytes(piece)) if open => piece,
                Ok(Said::Bytes(_)) => {
                    return Err(End::Over(CloseReason::policy(
                        "bytes follow the end of the bytes",
                    )));
                }
                Ok(Said::Ping(payload)) => {
                    self.outlet.pong(payload);
                    continue;
                }
                Ok(Said::Nothing) => continue,
                Ok(Said::Goodbye) => return Err(End::Deaf(CloseReason::done())),
                Ok(Said::Text) => {
                    return Err(End::Over(CloseReason::policy(
                        "bytes are sent in binary messages",
                    )));
                }
                Err(error) => {
                    return Err(websocket::broken(error).map_or(End::Gone, End::Deaf));
                }
            };
            // Meanwhile nobody listens whether the client is alive.
            waits.set(true);
            let passed = match piece.is_empty() {
                true => {
                    open = false;
                    all_heard.notify_one();
                    server.shutdown().await
                }
                false => server.write_all(&piece).await,
            };
            waits.set(false);
            self.life.renew();
            if let Err(error) = passed {
                return Err(End::Over(broken(error, watch).await));
            }
        }
        Err(End::Gone)
    }

    /// Says to the client what the server says, as fast as the client takes it. Ends when either has
    /// said all it has to say.
    async fn speak(
        &self,
        mut server: ReadHalf<PortStream>,
        watch: &PortWatch,
        all_heard: &Notify,
    ) -> Result<(), End> {
        loop {
            let mut piece = Vec::with_capacity(PIECE);
            match server.read_buf(&mut piece).await {
                Ok(0) => break,
                Ok(_) => self.lane.bytes(piece.into()).await?,
                Err(error) => return Err(End::Over(broken(error, watch).await)),
            }
        }
        self.lane.bytes(Bytes::new()).await?;
        all_heard.notified().await;
        Ok(())
    }

    /// Pings the client; ends when it has given no sign of life for too long.
    async fn silence(&self, waits: &Cell<bool>) {
        loop {
            sleep(self.heartbeat.period).await;
            if !waits.get() && self.life.silence() > self.heartbeat.limit {
                return;
            }
            self.outlet.ping();
        }
    }

    /// Says why it is over, and waits until the client has heard all of it: a connection that is
    /// ended before loses what is on its way.
    async fn part(self, end: End, frames: &mut Frames) {
        let (farewell, listens) = match end {
            End::Gone => return,
            End::Deaf(farewell) => (farewell, false),
            End::Over(farewell) => (farewell, true),
        };
        let parting = async {
            if self.lane.close(&farewell).await.is_err() || !listens {
                return;
            }
            while let Some(Ok(frame)) = frames.next().await {
                if matches!(frame, Frame::Close(_)) {
                    return;
                }
            }
        };
        if let (Err(_), Some(hangup)) = (timeout(self.heartbeat.limit, parting).await, self.hangup)
        {
            hangup.now();
        }
    }
}

/// What a client's frame means here.
enum Said {
    Bytes(Bytes),
    Ping(Bytes),
    Nothing,
    Text,
    Goodbye,
}

/// Where a message ends does not matter, unless it is empty.
fn bytes_of(frame: Frame) -> Said {
    match frame {
        Frame::Binary(bytes) => Said::Bytes(bytes),
        Frame::Continuation(
            Item::FirstBinary(piece) | Item::Continue(piece) | Item::Last(piece),
        ) => match piece.is_empty() {
            true => Said::Nothing,
            false => Said::Bytes(piece),
        },
        Frame::Text(_) | Frame::Continuation(Item::FirstText(_)) => Said::Text,
        Frame::Ping(payload) => Said::Ping(payload),
        Frame::Pong(_) => Said::Nothing,
        Frame::Close(_) => Said::Goodbye,
    }
}

/// How a connection ends whose server has cut it, or is gone.
async fn broken(error: io::Error, watch: &PortWatch) -> CloseReason {
    match watch.news().await {
        Some(lost) => lost.into(),
        None => {
            CloseReason::new(CloseCode::Error, format!("the server cut the connection: {error}"))
        }
    }
}
