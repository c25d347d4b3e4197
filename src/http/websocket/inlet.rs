//! What a client sends: frames from the bytes of a request, and messages from frames.

use std::io;
use std::pin::Pin;

use actix_http::ws::{Codec, Item};
use actix_web::web;
use actix_web_actors::ws::{CloseCode, Frame, ProtocolError};
use bytes::{Bytes, BytesMut};
use futures::{Stream, TryStreamExt};
use tokio_util::codec::FramedRead;
use tokio_util::io::StreamReader;

use super::{CloseReason, MESSAGE_LIMIT};

/// The frames of a client; none after an error.
pub type Frames = Pin<Box<dyn Stream<Item = Result<Frame, ProtocolError>>>>;

/// Reads frames. While nobody takes them, nothing is read from the connection.
pub fn frames(payload: web::Payload) -> Frames {
    let bytes = StreamReader::new(payload.map_err(io::Error::other));
    Box::pin(FramedRead::new(bytes, Codec::new().max_size(MESSAGE_LIMIT)))
}

/// Something a client says.
#[derive(Debug, PartialEq, Eq)]
pub enum Message {
    /// Text, which need not be UTF-8 yet.
    Text(Bytes),
    /// Asks for a pong with the same payload.
    Ping(Bytes),
    /// Is alive.
    Pong,
    /// Leaves, or has been told that it should.
    Close,
}

/// Puts messages together that come in several frames.
#[derive(Debug, Default)]
pub struct Messages {
    part: BytesMut,
}

impl Messages {
    /// Takes a frame; gives the message that it completes.
    ///
    /// # Errors
    ///
    /// How the session ends: a message is binary, or too big.
    pub fn take(&mut self, frame: Frame) -> Result<Option<Message>, CloseReason> {
        match frame {
            Frame::Text(text) => Ok(Some(Message::Text(text))),
            Frame::Ping(payload) => Ok(Some(Message::Ping(payload))),
            Frame::Pong(_) => Ok(Some(Message::Pong)),
            Frame::Close(_) => Ok(Some(Message::Close)),
            Frame::Binary(_) | Frame::Continuation(Item::FirstBinary(_)) => Err(
                CloseReason::policy("a message is JSON in a text frame: encode binary data in it"),
            ),
            Frame::Continuation(Item::FirstText(piece)) => {
                self.part.clear();
                self.add(&piece).map(|()| None)
            }
            Frame::Continuation(Item::Continue(piece)) => self.add(&piece).map(|()| None),
            Frame::Continuation(Item::Last(piece)) => {
                self.add(&piece)?;
                Ok(Some(Message::Text(std::mem::take(&mut self.part).freeze())))
            }
        }
    }

    fn add(&mut self, piece: &[u8]) -> Result<(), CloseReason> {
        if self.part.len() + piece.len() > MESSAGE_LIMIT {
            return Err(too_big());
        }
        self.part.extend_from_slice(piece);
        Ok(())
    }
}

/// How a session ends after what is no frame; `None` if the client has just vanished.
pub fn broken(error: ProtocolError) -> Option<CloseReason> {
    match error {
        ProtocolError::Overflow => Some(too_big()),
        // The codec's own complaints are of the other kind.
        ProtocolError::Io(error) if error.kind() != io::ErrorKind::InvalidData => None,
        other => Some(CloseReason::new(CloseCode::Protocol, other.to_string())),
    }
}

fn too_big() -> CloseReason {
    let error = format!("a message is at most {MESSAGE_LIMIT} bytes: send more of them");
    CloseReason::new(CloseCode::Size, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(make: fn(Bytes) -> Item, length: usize) -> Frame {
        Frame::Continuation(make(Bytes::from(vec![b'x'; length])))
    }

    #[test]
    fn a_message_in_pieces_is_put_together_up_to_the_limit() {
        let mut messages = Messages::default();
        let half = MESSAGE_LIMIT / 2;
        assert_eq!(messages.take(piece(Item::FirstText, half)), Ok(None));
        assert_eq!(messages.take(Frame::Pong(Bytes::new())), Ok(Some(Message::Pong)));
        let Ok(Some(Message::Text(text))) = messages.take(piece(Item::Last, half)) else {
            panic!("it is whole");
        };
        assert_eq!(text.len(), MESSAGE_LIMIT);

        assert_eq!(messages.take(piece(Item::FirstText, half)), Ok(None));
        assert_eq!(messages.take(piece(Item::Continue, half)), Ok(None));
        let too_much = messages.take(piece(Item::Last, 1)).unwrap_err();
        assert_eq!(too_much.code, CloseCode::Size);
    }
}
