//! Bytes on their way from a client to a guest.

use std::cell::Cell;
use std::fmt::Display;
use std::pin::pin;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use tokio::sync::mpsc;

use crate::http::error::ApiError;

/// Pieces under way between two connections.
const IN_FLIGHT: usize = 8;

/// What a guest takes: pieces, and an error in place of the end if the client does not come to it.
pub type Pieces = stream::BoxStream<'static, std::io::Result<Bytes>>;

/// Passes a body on to the guest; gives its size, and what `deliver` does. The body belongs to this connection's thread,
/// so a short queue lies in between; a guest that is slow slows the client.
///
/// # Errors
///
/// 400 if the body is broken, else what `deliver` says.
pub async fn pass<T, E, F>(
    mut body: impl Stream<Item = Result<Bytes, E>> + Unpin,
    deliver: impl FnOnce(Pieces) -> F,
) -> Result<(u64, T), ApiError>
where
    E: Display,
    F: Future<Output = Result<T, ApiError>>,
{
    let (pieces, queue) = mpsc::channel::<std::io::Result<Bytes>>(IN_FLIGHT);
    let content =
        stream::unfold(
            queue,
            |mut queue| async move { queue.recv().await.map(|piece| (piece, queue)) },
        );
    let size = Cell::new(0);
    let pump = async {
        // Dropped with the last piece, which ends the content.
        let pieces = pieces;
        while let Some(piece) = body.next().await {
            match piece {
                Ok(piece) => {
                    size.set(size.get() + piece.len() as u64);
                    if pieces.send(Ok(piece)).await.is_err() {
                        // The guest has given its answer already.
                        return Ok(());
                    }
                }
                Err(error) => {
                    // A broken upload must reach the guest as an error, not as the file's end.
                    let message = error.to_string();
                    let _ = pieces.send(Err(std::io::Error::other(message.clone()))).await;
                    return Err(message);
                }
            }
        }
        Ok(())
    };
    let (mut pump, mut delivery) = (pin!(pump), pin!(deliver(content.boxed())));
    let sent = tokio::select! {
        // First: a guest that was told of a broken body says less about it than the client's end.
        biased;
        sent = &mut pump => sent,
        // The guest has given its answer already: what the client still sends changes nothing, and it
        // may not be about to send anything.
        delivered = &mut delivery => return delivered.map(|told| (size.get(), told)),
    };
    let delivered = delivery.await;
    sent.map_err(|error| ApiError::invalid(format!("the body is broken: {error}")))?;
    delivered.map(|told| (size.get(), told))
}
