//! QEMU's control protocol, as far as it is needed: commands, their answers, one kind of event.
//!
//! Protocol: QEMU `docs/interop/qmp-spec.rst`. Each message is a line of JSON. QEMU talks to one
//! client at a time, which is the daemon that looks after the VM.
//!
//! A guest may have taken its QEMU over, so nothing is read from it without a limit in bytes and in
//! time, and nothing is kept of what nobody waits for. Descriptors that it sends go nowhere: who reads
//! a socket with read(2) gets none, and the kernel closes them (unix(7), `SCM_RIGHTS`).

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::time::Duration;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Interest};
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::time::timeout;

use crate::domain::printable;
use crate::vmm::hypervisor::console::{self, ConsoleError};
use crate::vmm::hypervisor::json;

/// Name of QEMU's control socket in a sandbox's directory.
pub const SOCKET: &str = "qmp.sock";

/// QEMU answers in milliseconds, unless the host's disk or memory is in trouble.
const PATIENCE: Duration = Duration::from_secs(30);

/// Longest line that is read, in bytes. The longest that QEMU says is about a disk, and grows with the
/// square of its layers.
const LINE_LIMIT: usize = 1 << 20;

/// The most events that wait to be asked for: a load is told of by three.
const EVENTS: usize = 8;

/// The only event that anybody asks for.
const MIGRATION: &str = "MIGRATION";

/// Longest reason that is passed on, in bytes.
const REASON_LIMIT: usize = 1 << 10;

/// What went wrong between the daemon and a QEMU.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Its control socket cannot be reached.
    #[error("cannot reach QEMU")]
    Connect(#[from] ConsoleError),
    /// The connection broke: most likely QEMU has ended.
    #[error("the connection to QEMU broke")]
    Broken(#[source] io::Error),
    /// It says what no QEMU says: nothing more is read from it.
    #[error("QEMU said what makes no sense: it may have been taken over, destroy its sandbox")]
    Senseless(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// It did not answer in time.
    #[error("QEMU did not answer {command} within {PATIENCE:?}")]
    Silent { command: String },
    /// It refused a command.
    #[error("QEMU refused {command}: {description}")]
    Refused { command: String, description: String },
    /// It could not load the state of the devices.
    #[error("QEMU could not load the state of the devices")]
    Load,
}

/// A connection to one QEMU. Commands are sent one at a time.
pub struct Qmp(Mutex<Connection>);

struct Connection {
    stream: BufReader<UnixStream>,
    line: Vec<u8>,
    last_id: u64,
    /// What happened to a load while an answer was waited for: the latest of it.
    events: VecDeque<Loading>,
    /// It has said what makes no sense, or did not end a line.
    lost: bool,
}

/// What an event says of a load. Nothing else of it is kept: it may be as long as any line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loading {
    /// It goes on.
    Ahead,
    /// All is there.
    Completed,
    /// It is over.
    Failed,
}

impl Loading {
    /// What a message says, if it is such an event.
    fn of(message: &Value) -> Option<Self> {
        (message["event"] == MIGRATION).then(|| match message["data"]["status"].as_str() {
            Some("completed") => Self::Completed,
            Some("failed") => Self::Failed,
            _ => Self::Ahead,
        })
    }
}

impl Qmp {
    /// Connects to the QEMU whose socket is in `dir`, and waits until it is ready for commands.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; a QEMU that talks to another client is [`QmpError::Silent`].
    pub async fn connect(dir: &Path) -> Result<Self, QmpError> {
        let mut connection = Connection::of(console::connect(dir, SOCKET).await?);
        patiently("its greeting", connection.read()).await?;
        connection.execute("qmp_capabilities", json!({})).await?;
        Ok(Self(Mutex::new(connection)))
    }

    /// Has QEMU execute a command and gives its answer. A caller that goes away does not call the
    /// command back.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn execute(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.0.lock().await.execute(command, arguments).await
    }

    /// Gives QEMU a descriptor, which it calls `/dev/fdset/N`. It is closed on
    /// [`Qmp::forget_fd`], but for what was opened under that name.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn add_fd(&self, fd: BorrowedFd<'_>) -> Result<u64, QmpError> {
        self.add_fd_with(fd, json!({})).await
    }

    /// Passes a descriptor with more to say of it.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn add_fd_with(&self, fd: BorrowedFd<'_>, about: Value) -> Result<u64, QmpError> {
        let mut connection = self.0.lock().await;
        let answer = connection.execute_with("add-fd", about, Some(fd)).await?;
        answer["fdset-id"].as_u64().ok_or_else(|| QmpError::Refused {
            command: "add-fd".to_owned(),
            description: unexpected(&answer),
        })
    }

    /// Takes the name of a descriptor away.
    ///
    /// # Errors
    ///
    /// [`QmpError`].
    pub async fn forget_fd(&self, set: u64) -> Result<(), QmpError> {
        self.execute("remove-fd", json!({"fdset-id": set})).await.map(drop)
    }

    /// Loads the state of the devices from a descriptor that QEMU inherited, and waits until that is
    /// done.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; QEMU may have ended.
    pub async fn load(&self, fd: i32) -> Result<(), QmpError> {
        let mut connection = self.0.lock().await;
        let events = json!({"capabilities": [{"capability": "events", "state": true}]});
        connection.execute("migrate-set-capabilities", events).await?;
        connection.execute("migrate-incoming", json!({"uri": format!("fd:{fd}")})).await?;
        // All together: other events, of which there may be any number, give it no more time.
        let loaded = async {
            loop {
                match connection.event().await? {
                    Loading::Completed => return Ok(()),
                    Loading::Failed => return Err(QmpError::Load),
                    Loading::Ahead => {}
                }
            }
        };
        patiently("the state of the devices", loaded).await
    }
}

impl Connection {
    fn of(stream: UnixStream) -> Self {
        let (line, events) = (Vec::new(), VecDeque::new());
        Self { stream: BufReader::new(stream), line, last_id: 0, events, lost: false }
    }

    async fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.execute_with(command, arguments, None).await
    }

    async fn execute_with(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        // An earlier command may have been given up: its answer is still to come, under its own id.
        self.last_id += 1;
        let id = self.last_id;
        let request = json!({"execute": command, "arguments": arguments, "id": id});
        let line = format!("{request}\n");
        let asked = async {
            match fd {
                Some(fd) => self.send_with(line.as_bytes(), fd).await,
                None => self.stream.get_mut().write_all(line.as_bytes()).await,
            }
            .map_err(QmpError::Broken)?;
            self.answer(id).await
        };
        let mut answer = patiently(command, asked).await?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(QmpError::Refused {
                command: command.to_owned(),
                description: printable::line(
                    answer["error"]["desc"].as_str().unwrap_or("no reason"),
                    REASON_LIMIT,
                ),
            }),
        }
    }

    /// A descriptor travels beside the first byte: unix(7), `SCM_RIGHTS`.
    async fn send_with(&mut self, line: &[u8], fd: BorrowedFd<'_>) -> io::Result<()> {
        let stream = self.stream.get_mut();
        let fds = [fd.as_raw_fd()];
        let sent = stream
            .async_io(Interest::WRITABLE, || {
                let rights = [ControlMessage::ScmRights(&fds)];
                let data = [IoSlice::new(line)];
                let flags = MsgFlags::empty();
                Ok(sendmsg::<()>(stream.as_raw_fd(), &data, &rights, flags, None)?)
            })
            .await?;
        stream.write_all(&line[sent..]).await
    }

    async fn answer(&mut self, id: u64) -> Result<Value, QmpError> {
        loop {
            let message = self.read().await?;
            if let Some(event) = Loading::of(&message) {
                self.events.push_back(event);
                // What comes later says more.
                if self.events.len() > EVENTS {
                    self.events.pop_front();
                }
            } else if message.get("event").is_none() && message["id"] == id {
                return Ok(message);
            }
        }
    }

    async fn event(&mut self) -> Result<Loading, QmpError> {
        if let Some(event) = self.events.pop_front() {
            return Ok(event);
        }
        loop {
            if let Some(event) = Loading::of(&self.read().await?) {
                return Ok(event);
            }
        }
    }

    async fn read(&mut self) -> Result<Value, QmpError> {
        if self.lost {
            return Err(QmpError::Senseless("it has done so before".into()));
        }
        self.read_line().await?;
        let line = std::mem::take(&mut self.line);
        json::parse(&line).map_err(|error| self.give_up(error.into()))
    }

    /// Reads up to the end of a line. It is kept with the connection: being cancelled in the middle of
    /// one loses nothing.
    async fn read_line(&mut self) -> Result<(), QmpError> {
        loop {
            let piece = self.stream.fill_buf().await.map_err(QmpError::Broken)?;
            if piece.is_empty() {
                return Err(QmpError::Broken(io::ErrorKind::UnexpectedEof.into()));
            }
            let end = piece.iter().position(|&byte| byte == b'\n');
            let count = end.map_or(piece.len(), |end| end + 1);
            if self.line.len() + count > LINE_LIMIT {
                let reason = format!("a line of more than {LINE_LIMIT} bytes");
                return Err(self.give_up(reason.into()));
            }
            self.line.extend_from_slice(&piece[..count]);
            self.stream.consume(count);
            if end.is_some() {
                return Ok(());
            }
        }
    }

    /// Nothing more is read: where the next message would begin is not known.
    fn give_up(&mut self, reason: Box<dyn std::error::Error + Send + Sync>) -> QmpError {
        (self.lost, self.line) = (true, Vec::new());
        QmpError::Senseless(reason)
    }
}

/// An answer that a person may want to see, if it is short.
pub fn unexpected(answer: &Value) -> String {
    printable::shown(format_args!("unexpected answer {answer}"), REASON_LIMIT)
}

async fn patiently<T>(
    what: &str,
    work: impl Future<Output = Result<T, QmpError>>,
) -> Result<T, QmpError> {
    match timeout(PATIENCE, work).await {
        Ok(outcome) => outcome,
        Err(_) => Err(QmpError::Silent { command: what.to_owned() }),
    }
}

#[cfg(test)]
#[path = "qmp_tests.rs"]
mod tests;
