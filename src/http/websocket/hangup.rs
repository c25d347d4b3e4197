//! The way to end a connection whose client takes nothing: what is written waits for it for ever.

use std::any::Any;
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::rt::net;

/// Ends one connection.
#[derive(Debug, Clone)]
pub struct Hangup(Arc<Line>);

#[derive(Debug)]
enum Line {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Hangup {
    /// Keeps hold of a connection that was just made; none without a descriptor to spare.
    pub fn on(connection: &dyn Any) -> Option<Self> {
        Line::of(connection).map(|line| Self(Arc::new(line)))
    }

    /// The connection of a request.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        request.conn_data::<Self>().cloned()
    }

    #[cfg(test)]
    pub fn over(stream: TcpStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self(Arc::new(Line::Tcp(stream)))
    }

    /// Whether the client has sent something that has not been read yet.
    pub fn is_unheard(&self) -> bool {
        match &*self.0 {
            // It does not wait: the server's end, which this is, does not either.
            Line::Tcp(stream) => matches!(stream.peek(&mut [0]), Ok(1..)),
            Line::Unix(_) => false,
        }
    }

    /// Ends it in both directions; what waits to be sent is given up.
    pub fn now(&self) {
        // It may have ended by itself.
        let _ = match &*self.0 {
            Line::Tcp(stream) => stream.shutdown(Shutdown::Both),
            Line::Unix(stream) => stream.shutdown(Shutdown::Both),
        };
    }
}

impl Line {
    fn of(connection: &dyn Any) -> Option<Self> {
        let again =
            |stream: &dyn AsFd| -> Option<OwnedFd> { stream.as_fd().try_clone_to_owned().ok() };
        if let Some(stream) = connection.downcast_ref::<net::TcpStream>() {
            return again(stream).map(|fd| Self::Tcp(fd.into()));
        }
        let stream = connection.downcast_ref::<net::UnixStream>()?;
        again(stream).map(|fd| Self::Unix(fd.into()))
    }
}
