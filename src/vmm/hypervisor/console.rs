//! The serial console of a guest: kept in a bounded log, watched for the agent's first word and the
//! kernel's last.
//!
//! The hypervisor writes to a socket or a pipe that the daemon reads. While no daemon runs the output is
//! dropped, so a guest can never fill the host's disk through its console. What could drive a terminal is
//! escaped in the log: root is who reads it, and a guest who writes it.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::vmm::hypervisor::vmm_log::BoundedLog;

/// Name of the console's socket in a sandbox's directory.
pub const SOCKET: &str = "console.sock";
/// Name of the log in a sandbox's directory; its predecessor has `.1` appended.
pub const LOG: &str = "console.log";

/// What the agent says once it listens.
const READY: &[u8] = b"envd: ready";

/// What Linux says, however quiet it is told to be, when it has shut down and did not restart:
/// kernel/reboot.c, `kernel_power_off` and `kernel_halt`.
const STOPPED: [&[u8]; 2] = [b"reboot: Power down", b"reboot: System halted"];

/// The longest of those words.
const LONGEST: usize = STOPPED[1].len();

/// What went wrong with a console.
#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    /// Its socket could not be made or reached.
    #[error("cannot {verb} the socket {path}")]
    Socket { verb: &'static str, path: PathBuf, source: io::Error },
}

/// Follows one console; stops when dropped.
pub struct Console {
    heard: watch::Receiver<Heard>,
    reader: JoinHandle<()>,
}

/// What was said so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Heard {
    ready: bool,
    stopped: bool,
}

impl Console {
    /// Follows the console whose socket is in `dir`, which must listen already.
    ///
    /// # Errors
    ///
    /// [`ConsoleError::Socket`] if nobody listens there.
    pub async fn follow(dir: &Path) -> Result<Self, ConsoleError> {
        Ok(Self::read(connect(dir, SOCKET).await?, dir))
    }

    /// Follows a console that comes out of `stream`, and keeps its log in `dir`.
    pub fn read(stream: impl AsyncRead + Send + Unpin + 'static, dir: &Path) -> Self {
        let (announce, heard) = watch::channel(Heard::default());
        let log = BoundedLog::new(dir.join(LOG));
        let reader = tokio::spawn(read(stream, log, announce));
        Self { heard, reader }
    }

    /// Waits until the agent has said that it listens.
    pub async fn agent_started(&self) {
        self.hear(|heard| heard.ready).await;
    }

    /// Waits until the guest's kernel has said that it has shut down.
    pub async fn guest_stopped(&self) {
        self.hear(|heard| heard.stopped).await;
    }

    async fn hear(&self, what: impl Fn(&Heard) -> bool) {
        let mut heard = self.heard.clone();
        if heard.wait_for(what).await.is_err() {
            // The console closed without the word: the VM's end is seen elsewhere.
            std::future::pending().await
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn read(
    mut stream: impl AsyncRead + Unpin,
    mut log: BoundedLog,
    announce: watch::Sender<Heard>,
) {
    let mut buffer = vec![0; 4096];
    let mut tail: Vec<u8> = Vec::new();
    loop {
        let count = match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => count,
        };
        log.append(&buffer[..count]);
        tail.extend_from_slice(&buffer[..count]);
        announce.send_if_modified(|heard| {
            let before = *heard;
            heard.ready |= contains(&tail, READY);
            heard.stopped |= STOPPED.iter().any(|word| contains(&tail, word));
            *heard != before
        });
        // A word may come in two pieces.
        tail.drain(..tail.len().saturating_sub(LONGEST));
    }
}

fn contains(text: &[u8], word: &[u8]) -> bool {
    text.windows(word.len()).any(|window| window == word)
}

/// Makes a listening Unix socket `name` in `dir`, to be inherited by a hypervisor.
///
/// # Errors
///
/// [`ConsoleError::Socket`] if it cannot be made.
pub fn listen(dir: &Path, name: &str) -> Result<OwnedFd, ConsoleError> {
    let path = dir.join(name);
    short_path(dir, name, |short| {
        match std::fs::remove_file(short) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        Ok(OwnedFd::from(std::os::unix::net::UnixListener::bind(short)?))
    })
    .map_err(|source| ConsoleError::Socket { verb: "make", path, source })
}

/// Connects to the Unix socket `name` in `dir`.
///
/// # Errors
///
/// [`ConsoleError::Socket`] if nobody listens there.
pub async fn connect(dir: &Path, name: &str) -> Result<UnixStream, ConsoleError> {
    let path = dir.join(name);
    // Connecting to a Unix socket does not wait unless its queue is full.
    short_path(dir, name, |short| {
        let stream = std::os::unix::net::UnixStream::connect(short)?;
        stream.set_nonblocking(true)?;
        UnixStream::from_std(stream)
    })
    .map_err(|source| ConsoleError::Socket { verb: "reach", path, source })
}

/// Calls `f` with a path to `dir/name` that fits into the 108 bytes of a Unix socket's address
/// (unix(7)), however deep `dir` is.
fn short_path<T>(dir: &Path, name: &str, f: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let dir = File::open(dir)?;
    f(Path::new(&format!("/proc/self/fd/{}/{name}", dir.as_raw_fd())))
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::vmm::hypervisor::vmm_log::LOG_LIMIT;

    #[tokio::test]
    async fn the_agents_word_is_seen_and_the_log_stays_small() {
        let root = tempfile::tempdir().expect("a directory");
        let deep = root.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("a deep directory");
        let listener =
            std::os::unix::net::UnixListener::from(listen(&deep, SOCKET).expect("listens"));
        let console = Console::follow(&deep).await.expect("connects");
        let (stream, _) = listener.accept().expect("accepts");
        stream.set_nonblocking(true).expect("non-blocking");
        let mut stream = UnixStream::from_std(stream).expect("registers");

        stream.write_all(b"boot noise\nenvd: re").await.expect("writes");
        stream.write_all(b"ady\n").await.expect("writes");
        console.agent_started().await;
        assert!(!console.heard.borrow().stopped);
        stream.write_all(b"[    9.1] reboot: Power").await.expect("writes");
        stream.write_all(b" down\n").await.expect("writes");
        console.guest_stopped().await;

        for _ in 0..1000 {
            stream.write_all(&[b'x'; 1024]).await.expect("writes");
        }
        drop(stream);
        while !console.reader.is_finished() {
            tokio::task::yield_now().await;
        }
        let size =
            |name: &str| std::fs::metadata(deep.join(name)).expect("is there").len() as usize;
        assert!(size(LOG) + size("console.log.1") <= 2 * (LOG_LIMIT + 4096));
    }
}
