//! One request to a server in a sandbox, and its answer: over a connection of its own, streamed both
//! ways, never more of it here than the slower side makes wait.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use actix_web::body::{self, BodyStream, SizedStream};
use actix_web::http::{StatusCode, header as here};
use actix_web::{HttpRequest, HttpResponse, HttpResponseBuilder, rt, web};
use bytes::Bytes;
use futures::{Stream, StreamExt, TryStreamExt, stream};
use http::header;
use http_body_util::{BodyExt, Either, Empty, StreamBody};
use hyper::body::{Body, Frame, Incoming};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, sleep_until};

use super::access::Query;
use super::headers::{self, BodyLength};
use super::{Ports, Target, upgrade};
use crate::actors::control::{ControlPlane, PortStream, PortWatch};
use crate::http::error::{ApiError, Code};
use crate::http::expect::GoOn;
use crate::http::websocket::Sockets;

/// What one connection may hold of an answer that its client has not taken, and the longest head of
/// one, in bytes.
const BUFFER: usize = 128 << 10;

/// Lines of an answer's head at most.
const MAX_HEADERS: usize = 512;

/// Marks an answer that is not the daemon's own.
pub struct Proxied;

/// The way by which a client has come.
pub struct Door<'a> {
    pub target: &'a Target,
    /// What of the path is not the server's.
    pub prefix: Option<&'a str>,
}

/// Ends a task when it is dropped.
pub struct Task(rt::task::JoinHandle<()>);

impl Task {
    pub fn start(work: impl Future<Output = ()> + 'static) -> Self {
        Self(rt::spawn(work))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

type Pieces = Pin<Box<dyn Stream<Item = Result<Frame<Bytes>, actix_web::error::PayloadError>>>>;
type Upload = Either<Empty<Bytes>, StreamBody<Pieces>>;

/// Passes a request on, and its answer back.
///
/// # Errors
///
/// That the sandbox cannot be worked in; 502 and 504 if its server does not answer as it should.
pub async fn forward(
    control: &ControlPlane,
    ports: &Ports,
    sockets: &Sockets,
    door: Door<'_>,
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let Target { id, port } = door.target;
    let websocket = headers::asks_for_websocket(request.headers());
    let length = match websocket {
        // What follows is for the server only if it agrees.
        true => BodyLength::None,
        false => BodyLength::of(request.headers()),
    };
    let outgoing = outgoing(request, &door, &length)?;
    let (stream, watch) =
        control.workplace(id).await?.connect_port(*port, ports.connect_limit).await?;

    let progress = Rc::new(Cell::new(Instant::now()));
    let (body, payload) = match length {
        BodyLength::None => (Either::Left(Empty::new()), Some(payload)),
        BodyLength::Known(_) | BodyLength::Unknown => {
            (Either::Right(upload(payload, progress.clone())), None)
        }
    };
    let (mut sender, connection) = connection(stream).await?;
    let asking = sender.send_request(outgoing.map(|()| body));
    let answer = tokio::select! {
        biased;
        lost = watch.lost() => return Err(lost.into()),
        answer = asking => match answer {
            Ok(answer) => answer,
            Err(error) => return Err(failed(&error, &watch, door.target).await),
        },
        () = idle(&progress, ports.answer_limit) => return Err(too_late(door.target, ports)),
    };
    if headers::has_other_coding(answer.headers()) {
        return Err(bad_answer(door.target, "used a transfer coding other than chunked"));
    }
    let mut response = match (answer.status(), payload) {
        (http::StatusCode::SWITCHING_PROTOCOLS, Some(payload)) if websocket => {
            upgrade::pass_on(answer, payload, connection, sockets).await?
        }
        (http::StatusCode::SWITCHING_PROTOCOLS, _) => {
            return Err(bad_answer(door.target, "switched protocols, which nobody asked for"));
        }
        _ => pass_on(answer, connection, sockets)?,
    };
    if door.prefix.is_some() {
        // To a browser this is a page of the daemon's: it must not run as one.
        let policy = here::HeaderValue::from_static("sandbox");
        response.headers_mut().append(here::CONTENT_SECURITY_POLICY, policy);
    }
    response.extensions_mut().insert(Proxied);
    Ok(response)
}

/// The request without its body.
fn outgoing(
    request: &HttpRequest,
    door: &Door<'_>,
    length: &BodyLength,
) -> Result<http::Request<()>, ApiError> {
    let path = request.uri().path();
    let path = match door.prefix {
        // Five names of ours, each after a slash: what follows is the server's, as it was written.
        Some(_) => path.match_indices('/').nth(5).map_or("/", |(at, _)| &path[at..]),
        None => path,
    };
    let unusable = |error: http::Error| ApiError::invalid(error.to_string());
    let mut outgoing = http::Request::builder()
        .method(request.method().as_str())
        .uri(Query::of(request.uri()).after(path))
        .body(())
        .map_err(unusable)?;
    *outgoing.headers_mut() = headers::inwards(request, length, door.prefix);
    if let Some(go_on) = GoOn::of(request) {
        hyper::ext::on_informational(&mut outgoing, move |interim| {
            if interim.status() == http::StatusCode::CONTINUE {
                go_on.say();
            }
        });
    }
    Ok(outgoing)
}

fn upload(payload: web::Payload, progress: Rc<Cell<Instant>>) -> StreamBody<Pieces> {
    // An error of it, such as a client that has left, ends the connection and not the body: half of
    // one must not look like a whole one.
    let pieces = payload.map_ok(move |piece| {
        progress.set(Instant::now());
        Frame::data(piece)
    });
    StreamBody::new(Box::pin(pieces))
}

async fn connection(stream: PortStream) -> Result<(http1::SendRequest<Upload>, Task), ApiError> {
    let mut builder = http1::Builder::new();
    builder.max_buf_size(BUFFER).max_headers(MAX_HEADERS);
    let handshake = builder.handshake(TokioIo::new(stream)).await;
    let (sender, connection) = handshake
        .map_err(|error| ApiError::new(Code::Internal, format!("no HTTP is spoken: {error}")))?;
    let task = Task::start(async move {
        // What went wrong is heard where the answer is waited for.
        let _ = connection.with_upgrades().await;
    });
    Ok((sender, task))
}

/// Waits until nothing has been passed on for so long.
async fn idle(progress: &Cell<Instant>, limit: Duration) {
    loop {
        let end = progress.get() + limit;
        if end <= Instant::now() {
            return;
        }
        sleep_until(end).await;
    }
}

fn too_late(target: &Target, ports: &Ports) -> ApiError {
    let (port, seconds) = (target.port, ports.answer_limit.as_secs());
    let message =
        format!("the server on port {port} of the sandbox has not answered in {seconds} s");
    ApiError::new(Code::Timeout, message)
}

fn bad_answer(target: &Target, what: &str) -> ApiError {
    let message = format!("the server on port {} of the sandbox {what}", target.port);
    ApiError::new(Code::AgentError, message)
}

async fn failed(error: &hyper::Error, watch: &PortWatch, target: &Target) -> ApiError {
    if error.is_user() {
        // Its body, which broke off.
        return ApiError::invalid("the request broke off");
    }
    // A VM that has just ended closes its connections before that is known.
    if let Some(lost) = watch.news().await {
        return lost.into();
    }
    match error.is_parse() || error.is_parse_too_large() {
        true => bad_answer(target, "answered, but not with HTTP that can be passed on"),
        false => bad_answer(target, "closed the connection without an answer"),
    }
}

/// The answer to the client.
fn pass_on(
    answer: http::Response<Incoming>,
    connection: Task,
    sockets: &Sockets,
) -> Result<HttpResponse, ApiError> {
    let (parts, body) = answer.into_parts();
    let mut response = begin(&parts)?;
    let length = parts.headers.get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if let Some(length) = length {
        response.insert_header((here::CONTENT_LENGTH, length));
    }
    if [http::StatusCode::NO_CONTENT, http::StatusCode::NOT_MODIFIED].contains(&parts.status) {
        return Ok(response.body(body::None::new()));
    }
    let pieces = download(body, connection, sockets);
    Ok(match length {
        Some(length) => response.body(SizedStream::new(length, Box::pin(pieces))),
        // Not as a stream of ours, which would say what it is where the server does not.
        None => response.body(BodyStream::new(Box::pin(pieces))),
    })
}

/// Status and headers of the answer to the client.
pub fn begin(parts: &http::response::Parts) -> Result<HttpResponseBuilder, ApiError> {
    let status = StatusCode::from_u16(parts.status.as_u16())
        .map_err(|error| ApiError::new(Code::AgentError, error.to_string()))?;
    let mut response = HttpResponse::build(status);
    for (name, value) in headers::outwards(&parts.headers) {
        response.append_header((name.as_str(), value.as_bytes()));
    }
    Ok(response)
}

/// The body of an answer. Breaks off if the connection to the server does, or the daemon ends.
fn download(
    body: Incoming,
    connection: Task,
    sockets: &Sockets,
) -> impl Stream<Item = std::io::Result<Bytes>> + 'static {
    let done = body.is_end_stream();
    let ending = Box::pin(sockets.ending());
    let pieces = body.into_data_stream();
    // The server's connection is there as long as the stream.
    let state = (!done).then_some((pieces, connection, ending));
    stream::unfold(state, |state| async move {
        let (mut pieces, connection, mut ending) = state?;
        let piece = tokio::select! {
            piece = pieces.next() => piece?.map_err(std::io::Error::other),
            () = &mut ending => Err(std::io::Error::other("the daemon is ending")),
        };
        let rest = piece.is_ok().then_some((pieces, connection, ending));
        Some((piece, rest))
    })
}
