//! Starts the real agent on a loopback port and speaks to it as the SDKs do: HTTP/1.1 by hand,
//! Connect's JSON codec by hand, so that the wire is tested and not a client of ours.

#![allow(dead_code, reason = "each test file uses its own part")]

#[path = "../../../tests/support/skip.rs"]
mod skip;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
pub use skip::skip;

/// No answer takes longer than this, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether the test can switch users; skips it if not.
pub fn is_root() -> bool {
    skip::is_root("another user")
}

/// Whether a file system that takes `user.*` attributes holds the directory; skips the test if not.
pub fn keeps_attributes(dir: &Path) -> bool {
    let kept = xattr::set(dir, "user.e2b-probe", b"x").is_ok();
    if !kept {
        skip(&format!("{} keeps no extended attributes: mount a disk there", dir.display()));
    }
    kept
}

/// Waits until something holds.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A running agent; ended when dropped.
pub struct Agent {
    child: Child,
    port: u16,
    headers: Vec<(String, String)>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// The token of agents that have been given one.
pub const TOKEN: &str = "token of the tests";

impl Agent {
    /// An agent that knows its host, which is the caller.
    pub fn start() -> Self {
        let mut agent = Self::fresh();
        assert_eq!(agent.init(json!({ "accessToken": TOKEN })).status, 204);
        agent.set_header("X-Access-Token", TOKEN);
        agent
    }

    /// An agent that nobody has called yet.
    pub fn fresh() -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_envd"))
            .args(["agent", "--port", "0"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().rsplit(':').next().unwrap().parse().unwrap();
        // Most tests run as root, so that they need no user of a certain name.
        let mut agent = Self { child, port, headers: Vec::new() };
        agent.set_user("root");
        agent
    }

    /// Acts as this user from now on.
    pub fn set_user(&mut self, user: &str) {
        self.headers.retain(|(name, _)| name != "Authorization");
        let value = format!("Basic {}", STANDARD.encode(format!("{user}:")));
        self.headers.push(("Authorization".to_owned(), value));
    }

    /// Sends this header from now on.
    pub fn set_header(&mut self, name: &str, value: &str) {
        self.headers.retain(|(known, _)| known != name);
        self.headers.push((name.to_owned(), value.to_owned()));
    }

    /// Sends no such header any more.
    pub fn remove_header(&mut self, name: &str) {
        self.headers.retain(|(known, _)| known != name);
    }

    /// A field of `/proc/PID/status`, in KiB.
    pub fn memory_kib(&self, field: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let value = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        value.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// Sends the head of a request; the caller sends the body.
    pub fn begin(&self, method: &str, target: &str, headers: &[(&str, &str)]) -> TcpStream {
        let mut stream = self.connect();
        let mut head = format!("{method} {target} HTTP/1.1\r\nHost: sandbox\r\n");
        let own = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in own.chain(headers.iter().copied()) {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// One request, and its whole answer.
    pub fn http(&self, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let length = body.len().to_string();
        let mut all = vec![("Content-Length", length.as_str())];
        all.extend_from_slice(headers);
        let mut stream = self.begin(method, target, &all);
        // An agent that refuses early may close before it has read everything.
        let _ = stream.write_all(body);
        Reply::read(stream)
    }

    pub fn get(&self, target: &str) -> Reply {
        self.http("GET", target, &[], b"")
    }

    pub fn init(&self, body: Value) -> Reply {
        let headers = [("Content-Type", "application/json")];
        self.http("POST", "/init", &headers, body.to_string().as_bytes())
    }

    /// A unary rpc; the error is Connect's code, and its message.
    pub fn call(&self, method: &str, request: Value) -> Result<Value, (String, String)> {
        let headers = [("Content-Type", "application/json"), ("Connect-Protocol-Version", "1")];
        let target = format!("/{method}");
        let reply = self.http("POST", &target, &headers, request.to_string().as_bytes());
        let body = reply.json();
        if reply.status == 200 { Ok(body) } else { Err(code_and_message(&body)) }
    }

    /// A server-streaming rpc.
    pub fn stream(&self, method: &str, request: Value) -> Events {
        self.stream_with(method, request, &[])
    }

    pub fn stream_with(&self, method: &str, request: Value, headers: &[(&str, &str)]) -> Events {
        let body = envelope(&request);
        let length = body.len().to_string();
        let mut all = vec![
            ("Content-Type", "application/connect+json"),
            ("Connect-Protocol-Version", "1"),
            ("Content-Length", &length),
        ];
        all.extend_from_slice(headers);
        let mut stream = self.begin("POST", &format!("/{method}"), &all);
        stream.write_all(&body).unwrap();
        Events(Body::read_head(stream).2)
    }

    /// Starts a process and returns its id and what follows.
    pub fn start_process(&self, request: Value) -> (u64, Events) {
        let mut events = self.stream("process.Process/Start", request);
        let first = events.next().expect("an event").expect("no error");
        let pid = first["event"]["start"]["pid"].as_u64().expect("a start event");
        (pid, events)
    }

    /// Runs a shell script to its end.
    pub fn shell(&self, script: &str) -> Finished {
        self.run(json!({ "process": { "cmd": "/bin/sh", "args": ["-c", script] } }))
    }

    /// Runs a process to its end.
    pub fn run(&self, request: Value) -> Finished {
        self.start_process(request).1.finish()
    }
}

pub fn code_and_message(error: &Value) -> (String, String) {
    let text = |name: &str| error[name].as_str().unwrap_or_default().to_owned();
    (text("code"), text("message"))
}

pub fn envelope(message: &Value) -> Vec<u8> {
    let text = message.to_string();
    let mut body = vec![0];
    body.extend((text.len() as u32).to_be_bytes());
    body.extend(text.as_bytes());
    body
}

/// The answer to one request.
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(stream: TcpStream) -> Self {
        let (status, headers, mut rest) = Body::read_head(stream);
        let mut body = Vec::new();
        rest.read_to_end(&mut body).unwrap();
        Self { status, headers, body }
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|_| panic!("not JSON: {:?}", String::from_utf8_lossy(&self.body)))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// Status and message of a refusal, whose body must repeat the status.
    pub fn refusal(&self) -> (u16, String) {
        let body = self.json();
        assert_eq!(body["code"], self.status, "{body}");
        (self.status, body["message"].as_str().unwrap().to_owned())
    }
}

enum Framing {
    Length(u64),
    Chunk(u64),
    Last,
}

/// A body as it comes in.
pub struct Body {
    reader: BufReader<TcpStream>,
    framing: Framing,
}

impl Body {
    pub fn read_head(stream: TcpStream) -> (u16, Vec<(String, String)>, Self) {
        let mut reader = BufReader::new(stream);
        let mut line = || {
            let mut line = String::new();
            reader.read_line(&mut line).expect("an answer in time");
            line.trim_end().to_owned()
        };
        let status = line().split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut headers = Vec::new();
        let mut framing = Framing::Length(0);
        loop {
            let line = line();
            let Some((name, value)) = line.split_once(':') else { break };
            let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
            if name == "content-length" {
                framing = Framing::Length(value.parse().unwrap());
            } else if name == "transfer-encoding" {
                framing = Framing::Chunk(0);
            }
            headers.push((name, value));
        }
        (status, headers, Self { reader, framing })
    }
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if let Framing::Chunk(0) = self.framing {
            let mut line = String::new();
            while line.trim().is_empty() {
                line.clear();
                if self.reader.read_line(&mut line)? == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
            }
            let size = u64::from_str_radix(line.trim(), 16).unwrap();
            self.framing = if size == 0 { Framing::Last } else { Framing::Chunk(size) };
        }
        match &mut self.framing {
            Framing::Last | Framing::Length(0) => Ok(0),
            Framing::Length(left) | Framing::Chunk(left) => {
                let want = buffer.len().min(usize::try_from(*left).unwrap());
                let read = self.reader.read(&mut buffer[..want])?;
                if read == 0 {
                    return Err(std::io::ErrorKind::UnexpectedEof.into());
                }
                *left -= read as u64;
                Ok(read)
            }
        }
    }
}

/// The messages of a streaming rpc; an error ends it.
pub struct Events(Body);

impl Iterator for Events {
    type Item = Result<Value, (String, String)>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut head = [0; 5];
        self.0.read_exact(&mut head).expect("a message in time");
        let length = u32::from_be_bytes(head[1..].try_into().unwrap()) as usize;
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).expect("a whole message");
        let message: Value = serde_json::from_slice(&body).unwrap();
        match head[0] {
            0 => Some(Ok(message)),
            2 => message.get("error").map(|error| Err(code_and_message(error))),
            flags => panic!("flags {flags}"),
        }
    }
}

/// What a process has said.
#[derive(Debug, Default)]
pub struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub terminal: Vec<u8>,
    pub keepalives: usize,
    pub end: Value,
}

impl Finished {
    pub fn code(&self) -> i64 {
        self.end["exitCode"].as_i64().unwrap_or(0)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn terminal_text(&self) -> String {
        String::from_utf8_lossy(&self.terminal).into_owned()
    }
}

impl Events {
    /// Adds one event.
    pub fn add_next(&mut self, finished: &mut Finished) -> bool {
        let message = self.next().expect("an end event").expect("no error");
        let event = &message["event"];
        let bytes =
            |name: &str| STANDARD.decode(event["data"][name].as_str().unwrap_or("")).unwrap();
        finished.stdout.extend(bytes("stdout"));
        finished.stderr.extend(bytes("stderr"));
        finished.terminal.extend(bytes("pty"));
        finished.keepalives += usize::from(event.get("keepalive").is_some());
        finished.end = event.get("end").cloned().unwrap_or_default();
        finished.end.is_null()
    }

    /// Follows a process to its end.
    pub fn finish(mut self) -> Finished {
        let mut finished = Finished::default();
        while self.add_next(&mut finished) {}
        assert!(self.next().is_none(), "nothing comes after the end");
        finished
    }

    /// Follows until this much output has come.
    pub fn until_output(&mut self, bytes: usize) -> Finished {
        let mut finished = Finished::default();
        while finished.stdout.len() + finished.terminal.len() < bytes
            && self.add_next(&mut finished)
        {}
        finished
    }
}
