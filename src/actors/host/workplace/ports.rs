//! Servers in sandboxes: who may reach them, and connections to them.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Workplace;
use crate::actors::host::sandbox::{Lease, Watch};
use crate::domain::host::HostError;
use crate::domain::port::GuestPort;
use crate::vmm::guest::ServerStream;

impl Workplace {
    /// Connects to a server in a sandbox, which is not idle while the connection is there.
    ///
    /// # Errors
    ///
    /// [`HostError`]. A server that takes no connection is
    /// waited for as long as `limit`.
    pub async fn connect_port(
        &self,
        port: GuestPort,
        limit: Duration,
    ) -> Result<(PortStream, PortWatch), HostError> {
        let lease = self.begin_work().await?;
        let stream = lease.look(lease.agent().connect(port, limit)).await?;
        let watch = PortWatch(lease.watch());
        Ok((PortStream::new(stream, lease), watch))
    }
}

/// Sees the VM of a connection go.
#[derive(Clone)]
pub struct PortWatch(Watch);

impl PortWatch {
    /// Becomes ready when the VM is gone, with the reason.
    pub fn lost(&self) -> impl Future<Output = HostError> + Send + 'static {
        let watch = self.0.clone();
        async move {
            watch.gone().await;
            watch.lost().into()
        }
    }

    /// Why the VM is gone, after its end of the connection has failed; nothing if it is there.
    pub async fn news(&self) -> Option<HostError> {
        self.0.news().await.map(HostError::from)
    }
}

/// A connection to a server in a sandbox.
///
/// It belongs to one run of the sandbox's VM: when that is paused, or ends, nothing passes any more.
/// A VM that gets the same address later is never spoken to, because the news come before a slot is
/// given back. What the server sends counts as activity.
pub struct PortStream {
    stream: ServerStream,
    watch: Watch,
    /// One for each direction: they are waited for by different tasks.
    gone: [Gone; 2],
    lease: Lease,
}

type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

const READING: usize = 0;
const WRITING: usize = 1;

impl PortStream {
    fn new(stream: ServerStream, lease: Lease) -> Self {
        let watch = lease.watch();
        let gone = || -> Gone { Box::pin(watch.gone()) };
        let gone = [gone(), gone()];
        Self { stream, watch, gone, lease }
    }

    /// An error once the VM is gone; wakes the task when it goes.
    fn check(&mut self, direction: usize, context: &mut Context<'_>) -> io::Result<()> {
        if self.watch.is_gone() || self.gone[direction].as_mut().poll(context).is_ready() {
            let error = self.watch.lost().to_string();
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, error));
        }
        Ok(())
    }
}

impl AsyncRead for PortStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(READING, context)?;
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            this.lease.count();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for PortStream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(WRITING, context)?;
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(WRITING, context)?;
        Pin::new(&mut this.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}
