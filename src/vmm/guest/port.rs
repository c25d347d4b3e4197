//! Connections to servers in a guest.

use std::io;
use std::time::Duration;

use http::{StatusCode, header};
use reqwest::Upgraded;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_util::either::Either;

use super::{Agent, AgentError};
use crate::domain::port::GuestPort;

/// A connection to a server in a guest: straight to it, or through the agent.
pub type ServerStream = Either<TcpStream, Upgraded>;

impl Agent {
    /// Connects to a server in the same guest: past the agent, or through it if the server listens
    /// on the guest's loopback only. The connection is new and nobody else's, and so is never one to
    /// another guest that had the address before.
    ///
    /// # Errors
    ///
    /// [`AgentError::PortRefused`], [`AgentError::PortSilent`] after `limit`,
    /// [`AgentError::Unreachable`].
    pub async fn connect(
        &self,
        port: GuestPort,
        limit: Duration,
    ) -> Result<ServerStream, AgentError> {
        let silent = |_| AgentError::PortSilent { port, waited: limit };
        timeout(limit, self.try_connect(port)).await.map_err(silent)?
    }

    async fn try_connect(&self, port: GuestPort) -> Result<ServerStream, AgentError> {
        match TcpStream::connect((self.address().ip(), port.get())).await {
            Ok(stream) => {
                // Both ends are here, and either decides what is worth a packet.
                stream.set_nodelay(true).map_err(|source| self.unreachable(source))?;
                Ok(Either::Left(stream))
            }
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                self.connect_within(port).await.map(Either::Right)
            }
            Err(error) => Err(self.unreachable(error)),
        }
    }

    async fn connect_within(&self, port: GuestPort) -> Result<Upgraded, AgentError> {
        let request = self.http.get(self.url(&format!("/ports/{port}")));
        let request = request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "tcp");
        let answer = self.send(request).await?;
        match answer.status() {
            StatusCode::SWITCHING_PROTOCOLS => {
                answer.upgrade().await.map_err(|source| self.unreachable(source))
            }
            // Nothing listens there either, or the agent is of a snapshot that is older than this route.
            status if status.is_client_error() || status.is_server_error() => {
                Err(AgentError::PortRefused { port })
            }
            status => Err(AgentError::Failed {
                status: status.to_string(),
                message: "no agent answers so".to_owned(),
            }),
        }
    }
}
