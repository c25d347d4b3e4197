//! `GET /ports/{port}`: a connection to a server that listens on the guest's loopback only, where the
//! host cannot reach it. After `101 Switching Protocols` it is as if it were one to the server.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use axum::extract::{Path, Request};
use http::{HeaderValue, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use super::error::HttpError;

/// What both sides of the upgrade call it.
const PROTOCOL: HeaderValue = HeaderValue::from_static("tcp");

type Switching = (StatusCode, [(header::HeaderName, HeaderValue); 2]);

/// Connects the caller to a port of 127.0.0.1, or else of `::1`.
///
/// # Errors
///
/// [`HttpError::Invalid`] for a request that does not ask for it, [`HttpError::PortRefused`].
pub async fn connect(Path(port): Path<u16>, mut request: Request) -> Result<Switching, HttpError> {
    let asked = request.headers().get(header::UPGRADE) == Some(&PROTOCOL);
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>().filter(|_| asked) else {
        return Err(HttpError::invalid("a connection is asked for with `Upgrade: tcp`"));
    };
    let loopback: [SocketAddr; 2] =
        [(Ipv4Addr::LOCALHOST, port).into(), (Ipv6Addr::LOCALHOST, port).into()];
    let server = TcpStream::connect(loopback.as_slice()).await;
    let mut server = server.map_err(|source| HttpError::PortRefused { port, source })?;
    // The caller has decided what is worth a packet. Fails only on a connection that is gone.
    drop(server.set_nodelay(true));
    tokio::spawn(async move {
        if let Ok(caller) = upgrade.await {
            // An error of either side is the end of both, and there is nobody else to tell.
            drop(copy_bidirectional(&mut TokioIo::new(caller), &mut server).await);
        }
    });
    let upgrade = HeaderValue::from_static("upgrade");
    let headers = [(header::CONNECTION, upgrade), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers))
}
