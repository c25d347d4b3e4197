//! The way of a request to the daemon, and who is let have the key at its end.

use std::io;
use std::net::{IpAddr, SocketAddr};

use http::header::{ACCEPT, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use reqwest::{Body, Request, Response, Url};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_util::either::Either;

use super::{CONNECT_LIMIT, Client, ClientError};
use crate::cli::discover::Way;
use crate::cli::peer::{self, PeerError};

/// Whether a URL leads to this machine: no proxy belongs in between then.
pub(super) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_end_matches('.');
    match address(host) {
        Some(ip) => ip.to_canonical().is_loopback() || ip.is_unspecified(),
        None => host == "localhost" || host.ends_with(".localhost"),
    }
}

fn address(host: &str) -> Option<IpAddr> {
    host.trim_matches(['[', ']']).parse().ok()
}

impl Client {
    /// Sends a request where it belongs.
    pub(super) async fn transmit(&self, request: Request) -> Result<Response, ClientError> {
        match &self.way {
            Way::Given => {}
            Way::Found => self.check_listener()?,
            Way::Socket(dir) => {
                let stream = peer::connect(dir).await?;
                return over(stream, request).await.map_err(|source| match source {
                    // It cannot be: the URL was built of parts that make one.
                    Lost::Request(error) => self.broken(error),
                    Lost::Connection(source) => ClientError::Lost { url: self.url.clone(), source },
                });
            }
        }
        self.http.execute(request).await.map_err(|error| self.broken(error))
    }

    /// Connects for a WebSocket.
    pub(super) async fn line(&self) -> Result<Line, ClientError> {
        let failed = |error: io::Error| self.no_stream(error.into());
        match &self.way {
            Way::Given => {}
            Way::Found => self.check_listener()?,
            Way::Socket(dir) => {
                return match peer::connect(dir).await {
                    Ok(stream) => Ok(Line::Right(stream)),
                    // Who follows something waits for the daemon to come back.
                    Err(PeerError::Unreachable { source, .. }) => Err(failed(source)),
                    Err(error) => Err(error.into()),
                };
            }
        }
        let host = self.base.host_str().expect("it was looked for when the URL was read");
        let port = self.base.port_or_known_default().unwrap_or(80);
        let connecting = TcpStream::connect((host.trim_matches(['[', ']']), port));
        let late = |_| failed(io::ErrorKind::TimedOut.into());
        let stream = timeout(CONNECT_LIMIT, connecting).await.map_err(late)?.map_err(failed)?;
        // Without Nagle's delay: a key that is pressed should not wait for another one.
        stream.set_nodelay(true).map_err(failed)?;
        Ok(Line::Left(stream))
    }

    fn check_listener(&self) -> Result<(), PeerError> {
        let host = self.base.host_str().unwrap_or_default();
        match (address(host), self.base.port_or_known_default()) {
            (Some(ip), Some(port)) => peer::check_listener(SocketAddr::new(ip, port)),
            _ => Err(PeerError::Unknown { at: self.url.clone(), source: None }),
        }
    }
}

/// Why there was no answer.
enum Lost {
    Request(reqwest::Error),
    Connection(hyper::Error),
}

/// Sends one request through a connection that ends with the answer.
async fn over(stream: UnixStream, request: Request) -> Result<Response, Lost> {
    let host = request.url().authority().to_owned();
    let mut request = http::Request::<Body>::try_from(request).map_err(Lost::Request)?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    *request.uri_mut() = path.parse().expect("a part of a URI is one");
    let host = HeaderValue::from_str(&host).expect("what stands in a URL can stand in a header");
    request.headers_mut().insert(HOST, host);
    request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
    let made = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = made.map_err(Lost::Connection)?;
    // It is over when the answer is, or nobody waits for it any more; what went wrong, both are told.
    tokio::spawn(async move { drop(connection.await) });
    let answer = sender.send_request(request).await.map_err(Lost::Connection)?;
    Ok(answer.map(Body::wrap).into())
}

/// A connection to a daemon: by its address, or its socket.
pub type Line = Either<TcpStream, UnixStream>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_in_all_its_forms() {
        for (url, want) in [
            ("http://127.0.0.1:8080", true),
            ("http://127.9.9.9", true),
            ("http://127.1", true),
            ("http://[::1]:8080", true),
            ("http://[::ffff:127.0.0.1]", true),
            ("http://0.0.0.0:1", true),
            ("http://LOCALHOST", true),
            ("http://localhost.:1", true),
            ("http://nest.localhost", true),
            ("http://192.0.2.1", false),
            ("http://localhost.example", false),
            ("http://nest.example", false),
        ] {
            assert_eq!(is_loopback(&url.parse().unwrap()), want, "{url}");
        }
    }
}
