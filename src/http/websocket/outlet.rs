//! What a session says to its client, never more of it than the client takes.
//!
//! The connection asks the [`Body`] for more when less than 32 KiB wait to be written (actix-http's
//! `h1_write_buffer_size`). The lane behind it holds one frame, and who sends the next one waits.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_http::ws::Codec;
use actix_web_actors::ws::Message;
use bytes::{Bytes, BytesMut};
use futures::Stream;
use tokio::sync::mpsc;
use tokio_util::codec::Encoder;

use super::{CloseReason, Life};

/// Frames of output that wait for the connection.
const FRAMES: usize = 1;
/// Pings and pongs that wait for it. What is more is left out: the client has some to answer.
const SIGNS: usize = 4;

/// The way of what may have to wait. Whoever has it decides when nothing more will come.
#[derive(Debug, Clone)]
pub struct Lane(mpsc::Sender<Bytes>);

/// The way of pings and pongs, which overtake what waits.
#[derive(Debug, Clone)]
pub struct Outlet(mpsc::Sender<Bytes>);

/// The body of the answer. Ends when lane and outlet are both dropped.
pub struct Body {
    signs: mpsc::Receiver<Bytes>,
    frames: mpsc::Receiver<Bytes>,
    life: Life,
}

/// The client is gone.
#[derive(Debug, Clone, Copy)]
pub struct Gone;

/// Makes the way to a client.
pub fn open(life: Life) -> (Outlet, Lane, Body) {
    let (signs_in, signs) = mpsc::channel(SIGNS);
    let (frames_in, frames) = mpsc::channel(FRAMES);
    (Outlet(signs_in), Lane(frames_in), Body { signs, frames, life })
}

impl Lane {
    /// Says something; waits until the client has taken what was said before.
    pub async fn say(&self, text: String) -> Result<(), Gone> {
        self.0.send(frame(Message::Text(text.into()))).await.map_err(|_| Gone)
    }

    /// Says something that is no text.
    pub async fn bytes(&self, bytes: Bytes) -> Result<(), Gone> {
        self.0.send(frame(Message::Binary(bytes))).await.map_err(|_| Gone)
    }

    /// Closes the WebSocket; nothing may be said after it.
    pub async fn close(&self, farewell: &CloseReason) -> Result<(), Gone> {
        let close = frame(Message::Close(Some(farewell.reason())));
        self.0.send(close).await.map_err(|_| Gone)
    }

    /// Becomes ready when the client is gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

impl Outlet {
    /// Asks for a sign of life.
    pub fn ping(&self) {
        let _ = self.0.try_send(frame(Message::Ping(Bytes::new())));
    }

    /// Gives one, as asked for.
    pub fn pong(&self, payload: Bytes) {
        let _ = self.0.try_send(frame(Message::Pong(payload)));
    }

    /// Becomes ready when the client is gone.
    pub async fn gone(&self) {
        self.0.closed().await;
    }
}

impl Stream for Body {
    type Item = Result<Bytes, std::convert::Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let signs = self.signs.poll_recv(context);
        if let Poll::Ready(Some(sign)) = signs {
            return Poll::Ready(Some(Ok(sign)));
        }
        match (self.frames.poll_recv(context), signs) {
            (Poll::Ready(Some(frame)), _) => {
                // The one before it has reached the kernel.
                self.life.renew();
                Poll::Ready(Some(Ok(frame)))
            }
            (Poll::Ready(None), Poll::Ready(None)) => Poll::Ready(None),
            _ => Poll::Pending,
        }
    }
}

fn frame(message: Message) -> Bytes {
    let mut bytes = BytesMut::new();
    Codec::new().encode(message, &mut bytes).expect("whole messages are encoded in any order");
    bytes.freeze()
}
