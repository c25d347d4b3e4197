//! A client of the daemon's WebSockets, for tests of several programs.

#![allow(dead_code, reason = "each program of tests uses its own part")]

use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};
use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::protocol::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Nothing that a test waits for takes longer.
const PATIENCE: Duration = Duration::from_secs(240);

/// A WebSocket of the daemon's.
pub struct Socket(WebSocketStream<TcpStream>);

/// What the daemon said.
#[derive(Debug, PartialEq)]
pub enum Said {
    /// A message.
    Message(Value),
    /// A close frame, with its code and its reason.
    Closed(u16, String),
    /// Nothing any more: the connection has ended.
    Nothing,
}

/// All that was said from some moment on.
#[derive(Debug, Default)]
pub struct Rest {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What a terminal has shown.
    pub terminal: Vec<u8>,
    /// Bytes that were said to be lost.
    pub lost: u64,
    /// Number of the last byte.
    pub seq: Option<u64>,
    pub errors: Vec<String>,
    pub exit_code: Option<i64>,
    /// The code of the close frame, and its reason.
    pub closed: Option<(u16, String)>,
}

impl Rest {
    pub fn text(&self) -> String {
        String::from_utf8(self.stdout.clone()).expect("text")
    }

    pub fn terminal_text(&self) -> String {
        String::from_utf8_lossy(&self.terminal).into_owned()
    }

    fn add(&mut self, message: &Value) {
        assert_eq!(self.exit_code, None, "nothing comes after the exit: {message}");
        match message["type"].as_str().expect("a type") {
            "stdout" => self.stdout.extend(data(message)),
            "stderr" => self.stderr.extend(data(message)),
            "output" => self.terminal.extend(data(message)),
            "gap" => self.lost += message["lost_bytes"].as_u64().expect("a number"),
            "error" => self.errors.push(message["message"].as_str().expect("words").to_owned()),
            "exit" => self.exit_code = message["exit_code"].as_i64(),
            other => panic!("{other}: {message}"),
        }
        self.seq = message["seq"].as_u64().or(self.seq);
    }

    /// The code of the close frame.
    pub fn code(&self) -> Option<u16> {
        self.closed.as_ref().map(|(code, _)| *code)
    }
}

impl Socket {
    /// Opens one; `url` is that of the daemon. At most `window` bytes wait to be read here.
    pub async fn open(url: &str, path: &str, key: &str, window: Option<u32>) -> Self {
        Self::open_with(url, path, ("x-api-key", key), window).await
    }

    /// Opens one as a browser does, which can offer subprotocols but send no header.
    pub async fn open_as_browser(url: &str, path: &str, key: &str) -> Self {
        let offer = format!("nestbox, nestbox.key.{key}");
        Self::open_with(url, path, ("sec-websocket-protocol", &offer), None).await
    }

    async fn open_with(
        url: &str,
        path: &str,
        (name, value): (&'static str, &str),
        window: Option<u32>,
    ) -> Self {
        let address = url.strip_prefix("http://").expect("a URL").parse().expect("an address");
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(window) = window {
            socket.set_recv_buffer_size(window).expect("a size");
        }
        let stream = socket.connect(address).await.expect("a connection");
        let mut request = format!("ws://{address}{path}").into_client_request().expect("a request");
        request.headers_mut().insert(name, value.parse().expect("a header"));
        let (socket, answer) = client_async(request, stream).await.expect("a WebSocket");
        assert_eq!(answer.status(), 101);
        let chosen = answer.headers().get("sec-websocket-protocol");
        let expected = (name == "sec-websocket-protocol").then_some("nestbox");
        assert_eq!(chosen.map(|chosen| chosen.to_str().expect("text")), expected);
        assert!(answer.headers().contains_key("x-request-id"), "every answer has one");
        Self(socket)
    }

    /// Sends anything.
    pub async fn send_raw(&mut self, message: Message) {
        self.0.send(message).await.expect("it can be sent");
    }

    pub async fn send(&mut self, message: Value) {
        self.send_raw(Message::text(message.to_string())).await;
    }

    /// Starts a line of shell; gives its process id.
    pub async fn start(&mut self, line: &str) -> i32 {
        self.send(json!({"type": "start", "cmd": line})).await;
        self.started().await
    }

    /// Waits for the start of a command; gives its process id.
    pub async fn started(&mut self) -> i32 {
        match self.next().await {
            Said::Message(start) if start["type"] == "start" => {
                i32::try_from(start["pid"].as_i64().expect("a pid")).expect("a pid")
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits for something to be said. Pings are answered meanwhile.
    pub async fn next(&mut self) -> Said {
        loop {
            let said = timeout(PATIENCE, self.0.next()).await.expect("something is said");
            match said {
                Some(Ok(Message::Text(text))) => {
                    return Said::Message(serde_json::from_str(&text).expect("JSON"));
                }
                Some(Ok(Message::Close(Some(frame)))) => {
                    return Said::Closed(frame.code.into(), frame.reason.to_string());
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                Some(Ok(other)) => panic!("{other:?}"),
                Some(Err(_)) | None => return Said::Nothing,
            }
        }
    }

    /// Waits until so much has come on standard output.
    pub async fn stdout(&mut self, expected: &str) {
        let mut seen = Vec::new();
        while seen != expected.as_bytes() {
            match self.next().await {
                Said::Message(message) if message["type"] == "stdout" => {
                    seen.extend(data(&message))
                }
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&seen)),
            }
            assert!(expected.as_bytes().starts_with(&seen), "{:?}", String::from_utf8_lossy(&seen));
        }
    }

    /// Listens until something has been said that `enough` likes.
    pub async fn until(&mut self, enough: impl Fn(&Rest) -> bool) -> Rest {
        let mut rest = Rest::default();
        while !enough(&rest) {
            match self.next().await {
                Said::Message(message) => rest.add(&message),
                other => panic!("{other:?} after {rest:?}"),
            }
        }
        rest
    }

    /// Listens until a terminal shows this.
    pub async fn shows(&mut self, text: &str) -> String {
        self.until(|rest| rest.terminal_text().contains(text)).await.terminal_text()
    }

    /// Listens to the end.
    pub async fn rest(&mut self) -> Rest {
        let mut rest = Rest::default();
        loop {
            match self.next().await {
                Said::Message(message) => rest.add(&message),
                Said::Closed(code, reason) => rest.closed = Some((code, reason)),
                Said::Nothing => return rest,
            }
        }
    }

    /// Waits for the close frame, whatever comes before it; gives its code.
    pub async fn close_code(mut self) -> u16 {
        loop {
            match self.next().await {
                Said::Message(_) => {}
                Said::Closed(code, _) => return code,
                Said::Nothing => panic!("the connection ended without a word"),
            }
        }
    }

    /// Hangs up without a word.
    pub fn vanish(self) {
        drop(self);
    }

    /// Says goodbye, and listens to the end.
    pub async fn close(mut self) -> Rest {
        self.0.close(None).await.expect("it can be closed");
        self.rest().await
    }
}

/// The bytes of a message with output.
pub fn data(message: &Value) -> Vec<u8> {
    let data = message["data"].as_str().expect("data");
    match message["encoding"].as_str() {
        None => data.as_bytes().to_vec(),
        Some("base64") => BASE64_STANDARD.decode(data).expect("base64"),
        Some(other) => panic!("{other}"),
    }
}
