//! The way to end a connection whose client takes nothing: what is written waits for it for ever.

use std::any::Any;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;

use actix_web::HttpRequest;
use actix_web::dev::Extensions;
use actix_web::rt::net;

/// Ends one connection.
#[derive(Debug, Clone)]
pub struct Hangup(Arc<TcpStream>);

/// Keeps hold of a connection that was just made, for as long as that lasts.
pub fn remember(connection: &dyn Any, data: &mut Extensions) {
    let stream = connection.downcast_ref::<net::TcpStream>();
    // Without descriptors to spare, a client that takes nothing is waited for.
    if let Some(Ok(fd)) = stream.map(|stream| stream.as_fd().try_clone_to_owned()) {
        data.insert(Hangup(Arc::new(TcpStream::from(fd))));
    }
}

impl Hangup {
    /// The connection of a request.
    pub fn of(request: &HttpRequest) -> Option<Self> {
        request.conn_data::<Self>().cloned()
    }

    /// Ends it in both directions; what waits to be sent is given up.
    pub fn now(&self) {
        // It may have ended by itself.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}
