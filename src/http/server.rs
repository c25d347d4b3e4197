//! The HTTP server: where it listens, what it allows a connection, and which services answer on one.

use std::fmt::Debug;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::time::Duration;

use actix_http::{HttpService, Protocol};
use actix_service::{IntoServiceFactory, ServiceFactoryExt};
use actix_web::dev::{Server, ServiceFactory, fn_service};
use actix_web::rt::net::{TcpStream, UnixStream};
use tokio::io::{AsyncRead, AsyncWrite};

use super::expect::Application;
use super::{Front, create_app};
use crate::actors::control::ControlPlane;

/// Requests under way get this many seconds to end when the daemon does.
const SHUTDOWN_SECONDS: u64 = 5;

/// How long a client may take for the head of a request, and for its first one to begin.
const HEAD: Duration = Duration::from_secs(5);

/// How long a connection may be idle after a request.
const IDLE: Duration = Duration::from_secs(5);

/// How long a connection may take to end; what its client still sends is read meanwhile, or the answer
/// could be lost on its way.
const PARTING: Duration = Duration::from_secs(1);

/// Where a server listens.
pub struct Listeners {
    /// For everybody who can reach it.
    pub tcp: TcpListener,
    /// For who can open its file.
    pub unix: Option<UnixListener>,
}

/// Serves the application on `listeners` with so many threads, until it is stopped.
///
/// # Errors
///
/// If a listener cannot be used.
pub fn create_server(
    control: ControlPlane,
    listeners: Listeners,
    threads: usize,
    front: Front,
) -> io::Result<Server> {
    let server = Server::build()
        .workers(threads)
        .max_concurrent_connections(front.connections.accepted_at_most().div_ceil(threads))
        .shutdown_timeout(SHUTDOWN_SECONDS)
        .disable_signals();
    let stop = server.graceful_shutdown_signal();
    // Waits until connections are to end with the request that they are at.
    let stopped = move || {
        let stop = stop.clone();
        async move { stop.notified().await }
    };
    let (tcp, unix) =
        ((control.clone(), front.clone(), stopped.clone()), (control, front, stopped));
    let server = server.listen("tcp", listeners.tcp, move || {
        let (control, front, stopped) = tcp.clone();
        answers(control, front, stopped, |connection: &TcpStream| connection.peer_addr().ok())
    })?;
    let server = match listeners.unix {
        Some(listener) => server.listen_uds("unix", listener, move || {
            let (control, front, stopped) = unix.clone();
            answers(control, front, stopped, |_: &UnixStream| None)
        })?,
        None => server,
    };
    Ok(server.run())
}

/// What answers on connections of a kind. The usual server of the library has no place for an own service
/// that decides about expectations, so it is put together here.
fn answers<T, Stopped>(
    control: ControlPlane,
    front: Front,
    stopped: impl Fn() -> Stopped + 'static,
    peer: fn(&T) -> Option<SocketAddr>,
) -> impl ServiceFactory<T, Config = (), Response = (), Error = impl Debug, InitError = ()>
where
    T: AsyncRead + AsyncWrite + Unpin + 'static,
    Stopped: Future<Output = ()> + 'static,
{
    let (connections, domain) = (front.connections.clone(), front.ports.domain.clone());
    let app = Application::new(create_app(control, front).into_factory());
    let http = HttpService::build()
        .graceful_shutdown_signal(stopped)
        .client_request_timeout(HEAD)
        .keep_alive(IDLE)
        .client_disconnect_timeout(PARTING)
        // Else a client that hangs up looks like one that has sent all it has to send, and nobody
        // would end the command that it no longer waits for.
        .h1_allow_half_closed(false)
        .on_connect_ext(move |connection: &T, data| connections.begin(connection, data))
        .expect(app.first(&domain))
        .finish(app.then());
    fn_service(move |connection: T| async move {
        let peer = peer(&connection);
        Ok((connection, Protocol::Http1, peer))
    })
    .and_then(http)
}
