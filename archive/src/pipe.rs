//! Between a thread that packs or unpacks, and a connection that is not to wait for a disk: short
//! queues of pieces, so that the slower end slows the other.

use std::io::{self, Read, Write};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::CHUNK;

/// Pieces that wait in between.
const PIECES: usize = 2;

/// Where a thread writes to. Dropping it ends the pieces.
pub struct Outlet {
    pieces: mpsc::Sender<io::Result<Bytes>>,
    piece: Vec<u8>,
    /// Whether some have gone out.
    begun: bool,
}

/// The pieces that come out of an [`Outlet`].
pub type Pieces = mpsc::Receiver<io::Result<Bytes>>;

/// Where a thread reads from.
pub struct Inlet {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
    end: End,
}

/// The other end of an [`Inlet`]. Dropping it without [`Feed::end`] is an error to who reads.
pub struct Feed(mpsc::Sender<io::Result<Bytes>>);

/// Whether there is more to come.
#[derive(PartialEq, Eq)]
enum End {
    Ahead,
    Reached,
}

/// Makes a way out of a thread.
pub fn outlet() -> (Outlet, Pieces) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (Outlet { pieces: sender, piece: Vec::with_capacity(CHUNK), begun: false }, pieces)
}

/// Makes a way into a thread.
pub fn inlet() -> (Feed, Inlet) {
    let (sender, pieces) = mpsc::channel(PIECES);
    (Feed(sender), Inlet { pieces, piece: Bytes::new(), end: End::Ahead })
}

impl Outlet {
    /// Has the last piece be an error, so that it is not taken for the end. It is the only one if none
    /// has gone out yet.
    pub fn fail(mut self, error: impl std::error::Error) {
        if self.begun {
            let _ = self.flush();
        }
        let causes = std::iter::successors(error.source(), |cause| cause.source());
        let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
        // Fails if nobody takes pieces any more, which may be the error.
        let _ = self.pieces.blocking_send(Err(io::Error::other(text)));
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(CHUNK - self.piece.len());
        self.piece.extend_from_slice(&bytes[..taken]);
        if self.piece.len() == CHUNK {
            self.flush()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.begun = true;
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(CHUNK));
        let sent = self.pieces.blocking_send(Ok(piece.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

impl Feed {
    /// Hands over a piece once there is room for it; false if nobody reads any more.
    pub async fn send(&self, piece: io::Result<Bytes>) -> bool {
        let empty = piece.as_ref().is_ok_and(Bytes::is_empty);
        empty || self.0.send(piece).await.is_ok()
    }

    /// Says that the last piece was the last one.
    pub async fn end(self) {
        // An empty one; who reads has gone otherwise.
        let _ = self.0.send(Ok(Bytes::new())).await;
    }
}

impl Read for Inlet {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.end == End::Ahead {
            match self.pieces.blocking_recv() {
                Some(Ok(piece)) if piece.is_empty() => self.end = End::Reached,
                Some(Ok(piece)) => self.piece = piece,
                Some(Err(error)) => return Err(error),
                None => return Err(io::Error::other("whoever sent it has vanished")),
            }
        }
        let read = self.piece.len().min(buffer.len());
        buffer[..read].copy_from_slice(&self.piece.split_to(read));
        Ok(read)
    }
}
