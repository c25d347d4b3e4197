//! What sessions say and understand, whatever they are about: JSON objects with a `type`.

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde::Serialize;
use utoipa::ToSchema;

use crate::domain::exec::{ExecControl, ExecEvent, ExecInput, OutputStream, Signal};
use crate::domain::process::Tag;
use crate::http::exec::Encoding;

/// Bytes that a client has sent as text.
///
/// # Errors
///
/// That it is no base64.
pub fn bytes(data: String, encoding: Option<Encoding>) -> Result<Bytes, String> {
    match encoding {
        Some(Encoding::Base64) => {
            let decoded = BASE64_STANDARD.decode(data);
            Ok(decoded.map_err(|error| format!("data is no base64: {error}"))?.into())
        }
        Some(Encoding::Utf8) | None => Ok(data.into()),
    }
}

/// Standard input that a client has sent; closed after it if `eof` says so.
///
/// # Errors
///
/// As [`bytes`].
pub fn input(
    data: String,
    encoding: Option<Encoding>,
    eof: bool,
) -> Result<Vec<ExecInput>, String> {
    let data = bytes(data, encoding)?;
    let data = (!data.is_empty()).then_some(ExecInput::Data(data));
    Ok(data.into_iter().chain(eof.then_some(ExecInput::End)).collect())
}

/// A signal, by its name.
///
/// # Errors
///
/// That it cannot be sent.
pub fn signal(name: &str) -> Result<ExecControl, String> {
    let signal: Signal = name.parse().map_err(|error| format!("{error}"))?;
    Ok(ExecControl::Signal(signal))
}

/// What is no message of the session's.
pub fn nonsense(error: serde_json::Error) -> String {
    format!("this is no message of a session: {error}")
}

/// What the daemon says.
#[derive(Debug, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[schema(as = SessionMessage, examples(json!({"type": "stdout", "data": "42\n"})))]
pub enum ServerMessage<'a> {
    /// It runs.
    Start {
        /// By which it is known.
        pid: u32,
        /// By which it is known too, if it has one.
        #[serde(skip_serializing_if = "Option::is_none")]
        tag: Option<&'a Tag>,
    },
    /// It has written to standard output.
    Stdout(Data),
    /// It has written to standard error.
    Stderr(Data),
    /// Of a terminal.
    Output(Data),
    /// Output is missing here.
    Gap {
        /// So many bytes.
        lost_bytes: u64,
    },
    /// The end, after all output.
    Exit {
        /// As shells give it: 128 and the number of a signal that has ended it.
        exit_code: i32,
    },
    /// What went wrong; the connection is closed then.
    Error {
        /// For people.
        message: &'a str,
    },
}

/// Some output.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Output)]
pub struct Data {
    /// Number of the last byte, where bytes are numbered.
    #[serde(skip_serializing_if = "Option::is_none")]
    seq: Option<u64>,
    /// The bytes.
    data: String,
    /// How they are written here; as they are if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
}

impl Data {
    /// Bytes as they are if they are text. A zero byte is text too, but JSON takes six bytes for it:
    /// who prints some prints many.
    fn of(bytes: &[u8], seq: Option<u64>) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) if !bytes.contains(&0) => Self { seq, data: text.to_owned(), encoding: None },
            _ => {
                Self { seq, data: BASE64_STANDARD.encode(bytes), encoding: Some(Encoding::Base64) }
            }
        }
    }
}

/// Says what is heard of a command.
pub fn event(event: &ExecEvent) -> String {
    text(&match event {
        ExecEvent::Started { pid, tag } => ServerMessage::Start { pid: *pid, tag: tag.as_ref() },
        ExecEvent::Output { stream, data, seq } => {
            let data = Data::of(data, *seq);
            match stream {
                OutputStream::Stdout => ServerMessage::Stdout(data),
                OutputStream::Stderr => ServerMessage::Stderr(data),
                OutputStream::Terminal => ServerMessage::Output(data),
            }
        }
        ExecEvent::Lost(lost_bytes) => ServerMessage::Gap { lost_bytes: *lost_bytes },
        ExecEvent::Unreached(message) => ServerMessage::Error { message },
        ExecEvent::Ended(exit_code) => ServerMessage::Exit { exit_code: *exit_code },
    })
}

/// Says what went wrong.
pub fn error(message: &str) -> String {
    text(&ServerMessage::Error { message })
}

fn text(message: &ServerMessage<'_>) -> String {
    serde_json::to_string(message).expect("a message has only string keys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_sent_as_it_is_and_other_bytes_in_base64() {
        let of = |bytes: &'static [u8], seq| {
            let (stream, data) = (OutputStream::Stdout, Bytes::from_static(bytes));
            event(&ExecEvent::Output { stream, data, seq })
        };
        assert_eq!(of(b"a\n", None), r#"{"type":"stdout","data":"a\n"}"#);
        assert_eq!(of(b"a", Some(7)), r#"{"type":"stdout","seq":7,"data":"a"}"#);
        assert_eq!(of(b"\xff", None), r#"{"type":"stdout","data":"/w==","encoding":"base64"}"#);
        assert_eq!(of(b"\0", None), r#"{"type":"stdout","data":"AA==","encoding":"base64"}"#);
    }

    #[test]
    fn input_is_decoded_and_closed_when_it_says_so() {
        let of = |text: &str, encoding, eof| input(text.to_owned(), encoding, eof);
        let data = |bytes: &'static [u8]| ExecInput::Data(Bytes::from_static(bytes));
        assert_eq!(of("a", None, false), Ok(vec![data(b"a")]));
        assert_eq!(of("", None, true), Ok(vec![ExecInput::End]));
        let both = Ok(vec![data(b"\xff"), ExecInput::End]);
        assert_eq!(of("/w==", Some(Encoding::Base64), true), both);
        assert!(of("?", Some(Encoding::Base64), false).is_err());
    }
}
