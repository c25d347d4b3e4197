//! Connections to servers in a guest.

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{Agent, AgentError};
use crate::domain::port::GuestPort;

impl Agent {
    /// Connects to a server in the same guest, past the agent. The connection is new and nobody
    /// else's, and so is never one to another guest that had the address before.
    ///
    /// # Errors
    ///
    /// [`AgentError::PortRefused`], [`AgentError::PortSilent`] after `limit`,
    /// [`AgentError::Unreachable`].
    pub async fn connect(&self, port: GuestPort, limit: Duration) -> Result<TcpStream, AgentError> {
        let connecting = TcpStream::connect((self.address().ip(), port.get()));
        match timeout(limit, connecting).await {
            Ok(Ok(stream)) => {
                // Both ends are here, and either decides what is worth a packet.
                stream.set_nodelay(true).map_err(|source| self.unreachable(source))?;
                Ok(stream)
            }
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                Err(AgentError::PortRefused { port })
            }
            Ok(Err(error)) => Err(self.unreachable(error)),
            Err(_) => Err(AgentError::PortSilent { port, waited: limit }),
        }
    }
}
