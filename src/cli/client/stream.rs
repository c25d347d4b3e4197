//! WebSockets of the API: what the daemon says, message by message.

use futures::{SinkExt, StreamExt};
use reqwest::{Method, StatusCode};
use serde::de::DeserializeOwned;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::tungstenite::{Error, http::Response};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::transport::Line;
use super::{Client, ClientError, answered};
use crate::cli::url::UrlError;
use crate::domain::port::GuestPort;

/// A WebSocket as it is.
pub type Socket = WebSocketStream<Line>;

/// An open WebSocket.
pub struct Stream {
    socket: Socket,
    /// The daemon's URL, for messages.
    url: String,
}

impl Client {
    /// Opens the WebSocket at `path`.
    pub(super) async fn stream(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Stream, ClientError> {
        let socket = self.socket(path, query).await?;
        Ok(Stream { socket, url: self.url.clone() })
    }

    /// Connects to a server in a sandbox: binary messages are its bytes, an empty one the last.
    pub async fn tunnel(&self, id: &str, port: GuestPort) -> Result<Socket, ClientError> {
        self.socket(&["sandboxes", id, "tunnels", &port.to_string()], &[]).await
    }

    pub(super) async fn socket(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<Socket, ClientError> {
        let request = self.request(Method::GET, path).query(query).build();
        let mut url = request.map_err(|error| self.broken(error))?.url().clone();
        let bad = || UrlError::Bad { url: self.url.clone() };
        let scheme = if url.scheme() == "https" { "wss" } else { "ws" };
        url.set_scheme(scheme).map_err(|()| bad())?;
        let mut request = url.as_str().into_client_request().map_err(|_| bad())?;
        request.headers_mut().insert("x-api-key", self.key.clone());
        match client_async(request, self.line().await?).await {
            Ok((socket, _)) => Ok(socket),
            Err(Error::Http(response)) => Err(self.refusal(*response)),
            Err(source) => Err(self.no_stream(source)),
        }
    }

    pub(super) fn no_stream(&self, source: Error) -> ClientError {
        ClientError::NoStream { url: self.url.clone(), source }
    }

    /// Why there is no WebSocket, in the daemon's own words.
    fn refusal(&self, response: Response<Option<Vec<u8>>>) -> ClientError {
        let status = StatusCode::from_u16(response.status().as_u16());
        let status = status.unwrap_or(StatusCode::BAD_GATEWAY);
        answered(&self.url, status, response.body().as_deref().unwrap_or_default())
    }
}

impl Stream {
    /// Waits for a message; none when the daemon has closed the stream in order.
    pub async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(source)) => return Err(self.broken(source)),
                None => return Err(self.broken(Error::ConnectionClosed)),
            };
            match message {
                Message::Text(text) => {
                    return serde_json::from_str(&text).map(Some).map_err(ClientError::BadAnswer);
                }
                Message::Close(_) => {
                    // The answer to it is on its way; how the connection ends tells nothing more.
                    let _ = self.socket.flush().await;
                    return Ok(None);
                }
                // What is to be answered to a ping goes out with the next look for a message.
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    fn broken(&self, source: Error) -> ClientError {
        ClientError::NoStream { url: self.url.clone(), source }
    }
}
