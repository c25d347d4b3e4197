//! The messages of a session, both ways: JSON objects with a `type`.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::domain::exec::{Exec, ExecControl, ExecEvent, ExecInput, OutputStream, Signal};
use crate::http::error::ApiError;
use crate::http::exec::{Encoding, ExecBody, command};

/// What a client may say.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
enum ClientMessage {
    /// First of all, and once.
    Start {
        cmd: String,
        args: Option<Vec<String>>,
        #[serde(default)]
        envs: BTreeMap<String, String>,
        cwd: Option<String>,
        user: Option<String>,
    },
    Stdin {
        #[serde(default)]
        data: String,
        encoding: Option<Encoding>,
        /// Whether standard input is closed after `data`.
        #[serde(default)]
        eof: bool,
    },
    Signal {
        /// Such as `SIGINT`.
        signal: String,
    },
    Stop {},
}

/// What a client wants.
#[derive(Debug)]
pub enum Wish {
    /// To have a command started.
    Start(Exec),
    /// To write this to the command.
    Input(Vec<ExecInput>),
    /// To do this to the command.
    Control(ExecControl),
}

/// Reads a message.
///
/// # Errors
///
/// What is wrong with it, in words.
pub fn wish(text: &[u8]) -> Result<Wish, String> {
    let message = serde_json::from_slice(text)
        .map_err(|error| format!("this is no message of a session: {error}"))?;
    match message {
        ClientMessage::Start { cmd, args, envs, cwd, user } => {
            let body = ExecBody { cmd, args, envs, cwd, user, timeout_sec: None };
            command(body).map(Wish::Start).map_err(|error: ApiError| error.to_string())
        }
        ClientMessage::Stdin { data, encoding, eof } => {
            let data: Bytes = match encoding {
                Some(Encoding::Base64) => {
                    let decoded = BASE64_STANDARD.decode(data);
                    decoded.map_err(|error| format!("data is no base64: {error}"))?.into()
                }
                Some(Encoding::Utf8) | None => data.into(),
            };
            let data = (!data.is_empty()).then_some(ExecInput::Data(data));
            Ok(Wish::Input(data.into_iter().chain(eof.then_some(ExecInput::End)).collect()))
        }
        ClientMessage::Signal { signal } => {
            let signal: Signal = signal.parse().map_err(|error| format!("{error}"))?;
            Ok(Wish::Control(ExecControl::Signal(signal)))
        }
        ClientMessage::Stop {} => Ok(Wish::Control(ExecControl::Stop)),
    }
}

/// What the daemon says.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum ServerMessage<'a> {
    Start { pid: u32 },
    Stdout(Data),
    Stderr(Data),
    Exit { exit_code: i32 },
    Error { message: &'a str },
}

/// Some output.
#[derive(Debug, Serialize)]
struct Data {
    data: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
}

impl Data {
    /// Bytes as they are if they are text. A zero byte is text too, but JSON takes six bytes for it:
    /// who prints some prints many.
    fn of(bytes: &[u8]) -> Self {
        match std::str::from_utf8(bytes) {
            Ok(text) if !bytes.contains(&0) => Self { data: text.to_owned(), encoding: None },
            _ => Self { data: BASE64_STANDARD.encode(bytes), encoding: Some(Encoding::Base64) },
        }
    }
}

/// Says what is heard of the command.
pub fn event(event: &ExecEvent) -> String {
    text(&match event {
        ExecEvent::Started(pid) => ServerMessage::Start { pid: *pid },
        ExecEvent::Output(OutputStream::Stdout, data) => ServerMessage::Stdout(Data::of(data)),
        ExecEvent::Output(OutputStream::Stderr, data) => ServerMessage::Stderr(Data::of(data)),
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
        let of = |bytes: &'static [u8]| {
            event(&ExecEvent::Output(OutputStream::Stdout, Bytes::from_static(bytes)))
        };
        assert_eq!(of(b"a\n"), r#"{"type":"stdout","data":"a\n"}"#);
        assert_eq!(of(b"\xff"), r#"{"type":"stdout","data":"/w==","encoding":"base64"}"#);
        assert_eq!(of(b"\0"), r#"{"type":"stdout","data":"AA==","encoding":"base64"}"#);
    }

    #[test]
    fn input_is_decoded_and_closed_when_it_says_so() {
        let input = |text: &str| match wish(text.as_bytes()) {
            Ok(Wish::Input(input)) => input,
            other => panic!("{other:?}"),
        };
        let data = |bytes: &'static [u8]| ExecInput::Data(Bytes::from_static(bytes));
        assert_eq!(input(r#"{"type":"stdin","data":"a"}"#), [data(b"a")]);
        assert_eq!(input(r#"{"type":"stdin","eof":true}"#), [ExecInput::End]);
        let both = r#"{"type":"stdin","data":"/w==","encoding":"base64","eof":true}"#;
        assert_eq!(input(both), [data(b"\xff"), ExecInput::End]);
        assert!(wish(br#"{"type":"stdin","data":"?","encoding":"base64"}"#).is_err());
    }
}
