//! A process in a sandbox that is followed and talked to: messages both ways over a WebSocket.

use std::collections::BTreeMap;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt, StreamExt};
use serde::{Deserialize, Serialize};
use tokio_tungstenite::tungstenite::Bytes;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::protocol::Message;

use super::body::{Encoding, ExecRequest};
use super::{Client, ClientError, Socket};

/// What to start, on a terminal or without.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct StartRequest {
    /// On a terminal a login shell if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub args: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub envs: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    #[serde(flatten)]
    pub size: Option<Size>,
}

impl From<ExecRequest> for StartRequest {
    fn from(request: ExecRequest) -> Self {
        Self {
            cmd: Some(request.cmd),
            args: Some(request.args),
            envs: request.envs,
            cwd: request.cwd,
            user: request.user,
            size: None,
        }
    }
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Size {
    pub cols: u16,
    pub rows: u16,
}

/// Something that is said to a process or about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionRequest {
    Start(StartRequest),
    /// Back to a terminal: one of `pid` and `tag`.
    Connect {
        #[serde(skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        tag: Option<String>,
        #[serde(flatten)]
        size: Option<Size>,
    },
    /// For standard input, which is closed after it if `eof` says so.
    Stdin {
        #[serde(flatten)]
        data: Data,
        eof: bool,
    },
    /// Is typed on a terminal.
    Input(Data),
    Resize(Size),
    Signal {
        signal: &'static str,
    },
}

/// Some bytes in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Data {
    /// Number of the last byte, if they are numbered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seq: Option<u64>,
    data: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    encoding: Option<Encoding>,
}

impl Data {
    pub fn of(bytes: &[u8]) -> Self {
        let (data, encoding) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.to_owned(), None),
            Err(_) => (BASE64_STANDARD.encode(bytes), Some(Encoding::Base64)),
        };
        Self { seq: None, data, encoding }
    }

    /// The bytes.
    ///
    /// # Errors
    ///
    /// [`ClientError::BadBase64`].
    pub fn bytes(&self) -> Result<Vec<u8>, ClientError> {
        self.encoding.unwrap_or(Encoding::Utf8).decode(&self.data)
    }
}

/// What is heard of a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum SessionMessage {
    /// It runs.
    Start {
        pid: u32,
    },
    Stdout(Data),
    Stderr(Data),
    /// What a terminal shows.
    Output(Data),
    /// So much of its output is not kept any more.
    Gap {
        lost_bytes: u64,
    },
    Exit {
        exit_code: i64,
    },
    Error {
        message: String,
    },
}

/// What comes from the daemon.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    Message(SessionMessage),
    /// It has closed the session.
    Closed(Closing),
}

/// How a session was closed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    pub code: u16,
    pub reason: String,
}

impl Closing {
    /// The code for a sandbox that is being paused.
    pub const PAUSED: u16 = 4001;
}

/// The end that speaks.
pub struct Speaker(SplitSink<Socket, Message>);

/// The end that hears.
pub struct Listener {
    socket: SplitStream<Socket>,
    /// The daemon's URL, for messages.
    url: String,
}

impl Client {
    /// Opens a session for a command, which is to be started in it.
    pub async fn command(&self, id: &str) -> Result<(Speaker, Listener), ClientError> {
        self.session(&["sandboxes", id, "exec", "stream"], &[]).await
    }

    /// Opens a session for a terminal, which is to be started or named in it.
    pub async fn terminal(&self, id: &str) -> Result<(Speaker, Listener), ClientError> {
        self.session(&["sandboxes", id, "pty"], &[]).await
    }

    /// Opens a session with a process in the background; what it wrote after the byte with this
    /// number comes first.
    pub async fn process(
        &self,
        id: &str,
        process: &str,
        after: u64,
    ) -> Result<(Speaker, Listener), ClientError> {
        let path = ["sandboxes", id, "processes", process, "stream"];
        self.session(&path, &[("after", after.to_string())]).await
    }

    async fn session(
        &self,
        path: &[&str],
        query: &[(&str, String)],
    ) -> Result<(Speaker, Listener), ClientError> {
        let (to, from) = self.socket(path, query).await?.split();
        Ok((Speaker(to), Listener { socket: from, url: self.url.clone() }))
    }
}

impl Speaker {
    /// Says something, as fast as the daemon takes it. None if it takes nothing any more: why, the
    /// other end hears.
    pub async fn say(&mut self, request: &SessionRequest) -> Option<()> {
        let text = serde_json::to_string(request).expect("a request has only string keys");
        self.0.send(Message::text(text)).await.ok()
    }

    /// Says that we are still there, which a daemon wants to know that nothing is taken from.
    pub async fn give_sign_of_life(&mut self) -> Option<()> {
        self.0.send(Message::Pong(Bytes::new())).await.ok()
    }

    /// Says goodbye.
    pub async fn close(&mut self) -> Option<()> {
        self.0.send(Message::Close(None)).await.ok()
    }
}

impl Listener {
    /// Waits for what comes next.
    pub async fn next(&mut self) -> Result<Heard, ClientError> {
        loop {
            let message = match self.socket.next().await {
                Some(Ok(message)) => message,
                Some(Err(source)) => return Err(self.broken(source)),
                None => return Err(self.broken(Error::ConnectionClosed)),
            };
            match message {
                Message::Text(text) => {
                    let message = serde_json::from_str(&text).map_err(ClientError::BadAnswer)?;
                    return Ok(Heard::Message(message));
                }
                Message::Close(frame) => {
                    let (code, reason) = frame
                        .map(|frame| (frame.code.into(), frame.reason.as_str().to_owned()))
                        .unwrap_or((1005, String::new()));
                    return Ok(Heard::Closed(Closing { code, reason }));
                }
                // Pings are answered by the socket itself.
                Message::Ping(_) | Message::Pong(_) => {}
                Message::Binary(_) | Message::Frame(_) => {}
            }
        }
    }

    fn broken(&self, source: Error) -> ClientError {
        ClientError::NoStream { url: self.url.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(request: &SessionRequest) -> serde_json::Value {
        serde_json::to_value(request).unwrap()
    }

    #[test]
    fn requests_are_what_the_api_understands() {
        let size = Some(Size { cols: 80, rows: 24 });
        let shell = SessionRequest::Start(StartRequest { size, ..StartRequest::default() });
        assert_eq!(json(&shell), serde_json::json!({ "type": "start", "cols": 80, "rows": 24 }));
        let exec = ExecRequest { cmd: "ls".to_owned(), ..ExecRequest::default() };
        assert_eq!(
            json(&SessionRequest::Start(exec.into())),
            serde_json::json!({ "type": "start", "cmd": "ls", "args": [] })
        );
        let connect = SessionRequest::Connect { pid: Some(7), tag: None, size: None };
        assert_eq!(json(&connect), serde_json::json!({ "type": "connect", "pid": 7 }));
        assert_eq!(
            json(&SessionRequest::Stdin { data: Data::of(b"\xff"), eof: true }),
            serde_json::json!({ "type": "stdin", "data": "/w==", "encoding": "base64", "eof": true })
        );
        assert_eq!(
            json(&SessionRequest::Input(Data::of("ü".as_bytes()))),
            serde_json::json!({ "type": "input", "data": "ü" })
        );
    }

    #[test]
    fn messages_are_read_with_and_without_numbers() {
        let read = |text: &str| serde_json::from_str::<SessionMessage>(text).unwrap();
        let SessionMessage::Stdout(data) =
            read(r#"{"type":"stdout","seq":7,"data":"/w==","encoding":"base64"}"#)
        else {
            panic!("no output")
        };
        assert_eq!((data.seq, data.bytes().unwrap()), (Some(7), vec![0xff]));
        assert_eq!(
            read(r#"{"type":"start","pid":3,"tag":"web"}"#),
            SessionMessage::Start { pid: 3 }
        );
        assert_eq!(read(r#"{"type":"exit","exit_code":5}"#), SessionMessage::Exit { exit_code: 5 });
    }
}
