//! QEMU's control protocol, as far as it is needed: commands, their answers, one kind of event.
//!
//! Protocol: QEMU `docs/interop/qmp-spec.rst`. Each message is a line of JSON. QEMU talks to one
//! client at a time, which is the daemon that looks after the VM.

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

use crate::vmm::console::{self, ConsoleError};

/// Name of QEMU's control socket in a sandbox's directory.
pub const SOCKET: &str = "qmp.sock";

/// QEMU answers in milliseconds, unless the host's disk or memory is in trouble.
const PATIENCE: Duration = Duration::from_secs(30);

/// What went wrong between the daemon and a QEMU.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// Its control socket cannot be reached.
    #[error("cannot reach QEMU")]
    Connect(#[from] ConsoleError),
    /// The connection broke: most likely QEMU has ended.
    #[error("the connection to QEMU broke")]
    Broken(#[source] io::Error),
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
    /// What happened while an answer was waited for.
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects to the QEMU whose socket is in `dir`, and waits until it is ready for commands.
    ///
    /// # Errors
    ///
    /// [`QmpError`]; a QEMU that talks to another client is [`QmpError::Silent`].
    pub async fn connect(dir: &Path) -> Result<Self, QmpError> {
        let stream = BufReader::new(console::connect(dir, SOCKET).await?);
        let mut connection =
            Connection { stream, line: Vec::new(), last_id: 0, events: VecDeque::new() };
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
            description: format!("unexpected answer {answer}"),
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
        loop {
            let event = patiently("the state of the devices", connection.event()).await?;
            match (event["event"].as_str(), event["data"]["status"].as_str()) {
                (Some("MIGRATION"), Some("completed")) => return Ok(()),
                (Some("MIGRATION"), Some("failed")) => return Err(QmpError::Load),
                _ => {}
            }
        }
    }
}

impl Connection {
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
        match fd {
            Some(fd) => self.send_with(line.as_bytes(), fd).await,
            None => self.stream.get_mut().write_all(line.as_bytes()).await,
        }
        .map_err(QmpError::Broken)?;
        let mut answer = patiently(command, self.answer(id)).await?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(QmpError::Refused {
                command: command.to_owned(),
                description: answer["error"]["desc"].as_str().unwrap_or("no reason").to_owned(),
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
            if message.get("event").is_some() {
                self.events.push_back(message);
            } else if message["id"] == id {
                return Ok(message);
            }
        }
    }

    async fn event(&mut self) -> Result<Value, QmpError> {
        match self.events.pop_front() {
            Some(event) => Ok(event),
            None => self.read().await,
        }
    }

    async fn read(&mut self) -> Result<Value, QmpError> {
        // Kept with the connection: being cancelled in the middle of a line loses nothing.
        let count = self.stream.read_until(b'\n', &mut self.line).await;
        if count.map_err(QmpError::Broken)? == 0 {
            return Err(QmpError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        let line = std::mem::take(&mut self.line);
        serde_json::from_slice(&line).map_err(|error| QmpError::Broken(error.into()))
    }
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
