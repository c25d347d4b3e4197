//! The way of a request to the daemon, and who is let have the key at its end.

use std::io;
use std::net::SocketAddr;

use http::header::{ACCEPT, HOST, HeaderValue};
use hyper_util::rt::TokioIo;
use reqwest::{Body, Request, Response};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::tls::{self, TlsError};
use super::{CONNECT_LIMIT, Client, ClientError};
use crate::cli::discover::Way;
use crate::cli::peer::{self, PeerError};
use crate::cli::url::address;

impl Client {
    /// Sends a request where it belongs.
    pub(super) async fn transmit(&self, request: Request) -> Result<Response, ClientError> {
        let line = match (&self.way, &self.tls) {
            (Way::Socket(dir), _) => Line::Right(peer::connect(dir).await?),
            (_, Some(_)) => Line::Left(self.dial().await.map_err(|error| match error {
                Undialled::Tls(error) => error.into(),
                Undialled::Io(source) => {
                    ClientError::NoConnection { url: self.url.clone(), source }
                }
            })?),
            (way, None) => {
                if *way == Way::Found {
                    self.check_listener()?;
                }
                return self.http.execute(request).await.map_err(|error| self.broken(error));
            }
        };
        over(line, request).await.map_err(|lost| match lost {
            // It cannot be: the URL was built of parts that make one.
            Lost::Request(error) => self.broken(error),
            Lost::Connection(source) => ClientError::Lost { url: self.url.clone(), source },
        })
    }

    /// Connects for a WebSocket.
    pub(super) async fn line(&self) -> Result<Line, ClientError> {
        let failed = |error: io::Error| self.no_stream(error.into());
        match &self.way {
            Way::Given { .. } => {}
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
        self.dial().await.map(Line::Left).map_err(|error| match error {
            Undialled::Tls(error) => error.into(),
            Undialled::Io(error) => failed(error),
        })
    }

    /// Connects to the URL's host, with TLS where the URL asks for it.
    async fn dial(&self) -> Result<Remote, Undialled> {
        let host = self.base.host_str().expect("it was looked for when the URL was read");
        let host = host.trim_matches(['[', ']']);
        let port = self.base.port_or_known_default().unwrap_or(80);
        let connecting = async {
            let stream = TcpStream::connect((host, port)).await?;
            // Without Nagle's delay: a key that is pressed should not wait for another one.
            stream.set_nodelay(true)?;
            Ok(match self.tls.clone() {
                None => Remote::Left(stream),
                Some(tls) => Remote::Right(Box::new(tls::connect(tls, host, stream).await?)),
            })
        };
        let connected = timeout(CONNECT_LIMIT, connecting).await;
        connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map_err(|error| {
            match TlsError::in_chain(&error, &self.url) {
                Some(error) => Undialled::Tls(error),
                None => Undialled::Io(error),
            }
        })
    }

    fn check_listener(&self) -> Result<(), PeerError> {
        let host = self.base.host_str().unwrap_or_default();
        match (address(host), self.base.port_or_known_default()) {
            (Some(ip), Some(port)) => peer::check_listener(SocketAddr::new(ip, port)),
            _ => Err(PeerError::Unknown { at: self.url.clone(), source: None }),
        }
    }
}

/// Why there is no connection.
enum Undialled {
    Tls(TlsError),
    Io(io::Error),
}

/// Why there was no answer.
enum Lost {
    Request(reqwest::Error),
    Connection(hyper::Error),
}

/// Sends one request through a connection that ends with the answer.
async fn over(stream: Line, request: Request) -> Result<Response, Lost> {
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
pub type Line = Either<Remote, UnixStream>;

/// A connection to another machine, without TLS or with it.
pub type Remote = Either<TcpStream, Box<TlsStream<TcpStream>>>;
