//! What a VMM prints: drained through a pipe into a log that has a limit, and read from its end.
//!
//! Whoever has taken a VMM over, and often its guest already, decides what it prints and how much. So it
//! gets no file but a pipe with a name, which it holds for reading too: there is always a reader, whatever
//! becomes of the daemon. Without one the next write would end in SIGPIPE, whose handler writes to the very
//! same place (Firecracker 1.16 hangs in it, with the lock of its log held). When the pipe is full what is
//! written is lost, and nobody waits. A daemon that starts again goes on reading.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::domain::printable;

/// The log starts anew beyond this; together with its predecessor twice this in bytes.
pub const LOG_LIMIT: usize = 128 << 10;

/// Bytes at the end of a log that are looked at for its last line.
const TAIL: u64 = 4 << 10;

/// Longest last line that is told, in characters.
const LONGEST_LINE: usize = 300;

/// How long what a VMM has printed at its end may take to reach the log.
const DRAIN_LIMIT: Duration = Duration::from_secs(1);

/// Makes a pipe called `name` in `dir`, and gives the end that a VMM writes to.
///
/// # Errors
///
/// Those of making and opening it.
pub fn make_pipe(dir: &Path, name: &str) -> io::Result<OwnedFd> {
    let path = dir.join(name);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
    // fifo(7): for both, which Linux allows, it opens without a partner.
    let mut options = File::options();
    let both = options.read(true).write(true).custom_flags(libc::O_NONBLOCK).open(&path)?;
    Ok(both.into())
}

/// Opens a pipe of [`make_pipe`] for reading.
///
/// # Errors
///
/// Those of opening it.
pub fn follow_pipe(dir: &Path, name: &str) -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver(dir.join(name))
}

/// The log of one VMM, kept up while this is there.
pub struct VmmLog {
    path: PathBuf,
    reader: JoinHandle<()>,
    drained: watch::Receiver<bool>,
}

impl VmmLog {
    /// Keeps the log `log` in `dir`, of what comes out of the pipe `pipe` there. A VMM of an older daemon
    /// writes to its log itself, and has no pipe.
    ///
    /// # Errors
    ///
    /// Those of opening the pipe.
    pub fn follow(dir: &Path, log: &str, pipe: &str) -> io::Result<Self> {
        let path = dir.join(log);
        let (done, drained) = watch::channel(false);
        let stream = match follow_pipe(dir, pipe) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            opened => Some(opened?),
        };
        let bounded = BoundedLog::new(path.clone());
        let drain = async move {
            if let Some(stream) = stream {
                drain(stream, bounded).await;
            }
            let _ = done.send(true);
        };
        Ok(Self { path, reader: tokio::spawn(drain), drained })
    }

    /// The last line of what a VMM that has ended said, if it said anything.
    pub async fn last_words(&self) -> Option<String> {
        let mut drained = self.drained.clone();
        let all = drained.wait_for(|drained| *drained);
        // If not, what is there has to do.
        let _ = tokio::time::timeout(DRAIN_LIMIT, all).await;
        let end = end_of(&self.path).ok()?;
        let text = String::from_utf8_lossy(&end);
        let line = text.lines().rfind(|line| !line.trim().is_empty())?;
        Some(printable::line(line, LONGEST_LINE))
    }
}

impl Drop for VmmLog {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn drain(mut stream: impl AsyncRead + Unpin, mut log: BoundedLog) {
    let mut buffer = vec![0; 4096];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(count) => log.append(&buffer[..count]),
        }
    }
}

/// The last bytes of a file, however long it is.
fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut end = Vec::new();
    file.take(TAIL).read_to_end(&mut end)?;
    Ok(end)
}

/// A file that starts anew when it is full and keeps one predecessor, which has `.1` appended. What could
/// drive a terminal is escaped in it: root is who reads it, and a guest who writes it.
pub struct BoundedLog {
    path: PathBuf,
    file: Option<File>,
    written: usize,
    /// The beginning of a character whose end has not come yet.
    rest: Vec<u8>,
}

impl BoundedLog {
    /// The log at `path`, which is made with the first line.
    pub fn new(path: PathBuf) -> Self {
        Self { path, file: None, written: 0, rest: Vec::new() }
    }

    /// Appends, as well as it can: what cannot be logged harms nobody.
    pub fn append(&mut self, data: &[u8]) {
        if self.written > LOG_LIMIT {
            let previous = self.path.with_extension("log.1");
            if let Err(error) = fs::rename(&self.path, previous) {
                tracing::debug!(path = %self.path.display(), %error, "cannot rotate a VMM's log");
            }
            self.file = None;
            self.written = 0;
        }
        if self.file.is_none() {
            let mut options = File::options();
            self.file = options.create(true).append(true).mode(0o600).open(&self.path).ok();
            let length = self.file.as_ref().and_then(|file| file.metadata().ok());
            self.written = length.map_or(0, |metadata| metadata.len() as usize);
        }
        let text = self.text(data);
        if let Some(file) = &mut self.file {
            self.written += text.len();
            if let Err(error) = file.write_all(text.as_bytes()) {
                tracing::debug!(path = %self.path.display(), %error, "cannot write a VMM's log");
            }
        }
    }

    /// What was said, as it can be shown.
    fn text(&mut self, data: &[u8]) -> String {
        let mut said = std::mem::take(&mut self.rest);
        said.extend_from_slice(data);
        if let Some(whole) = said.utf8_chunks().last()
            && !whole.invalid().is_empty()
            && std::str::from_utf8(whole.invalid()).is_err_and(|error| error.error_len().is_none())
        {
            self.rest = said.split_off(said.len() - whole.invalid().len());
        }
        // As a terminal wants a line to end.
        printable::lines(&String::from_utf8_lossy(&said).replace("\r\n", "\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_writer_outlives_its_readers_and_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = File::from(make_pipe(dir.path(), "pipe").unwrap());
        drop(follow_pipe(dir.path(), "pipe").unwrap());
        let mut written = 0;
        let full = loop {
            match writer.write(&[b'x'; 4096]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut reader = follow_pipe(dir.path(), "pipe").unwrap();
        let mut read = vec![0; written];
        reader.read_exact(&mut read).await.unwrap();
        drop(writer);
        assert_eq!(reader.read(&mut read).await.unwrap(), 0, "the writer's end is seen");
    }

    #[tokio::test]
    async fn a_vmm_that_prints_without_end_fills_no_disk_and_its_last_line_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = File::from(make_pipe(dir.path(), "qemu.pipe").unwrap());
        let log = VmmLog::follow(dir.path(), "qemu.log", "qemu.pipe").unwrap();
        let flood = vec![b'x'; 64 << 10];
        let mut left = 4 << 20;
        while left > 0 {
            match writer.write(&flood) {
                Ok(count) => left -= count.min(left),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    tokio::task::yield_now().await;
                }
                Err(error) => panic!("{error}"),
            }
        }
        loop {
            tokio::task::yield_now().await;
            if writer.write(b"\nqemu: no such wonder\n\n").is_ok() {
                break;
            }
        }
        drop(writer);
        assert_eq!(log.last_words().await.as_deref(), Some("qemu: no such wonder"));
        let size = |name: &str| fs::metadata(dir.path().join(name)).unwrap().len() as usize;
        assert!(size("qemu.log") + size("qemu.log.1") <= 2 * (LOG_LIMIT + 4096));
    }

    #[tokio::test]
    async fn a_log_that_an_older_daemon_left_is_read_from_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("qemu.log");
        // Sparse: reading all of it would take minutes and 64 GiB of memory.
        let file = File::create(&path).unwrap();
        file.set_len(64 << 30).unwrap();
        drop(file);
        File::options().append(true).open(&path).unwrap().write_all(b"\nthe last line\n").unwrap();
        let log = VmmLog::follow(dir.path(), "qemu.log", "qemu.pipe").unwrap();
        assert_eq!(log.last_words().await.as_deref(), Some("the last line"));
    }

    #[test]
    fn what_could_drive_a_terminal_is_escaped_in_the_log() {
        let mut log = BoundedLog::new("nowhere".into());
        assert_eq!(
            log.text(b"\x1b]0;owned\x07 [ 1.0] boots\r\n"),
            "\\u{1b}]0;owned\\u{7} [ 1.0] boots\n"
        );
        // A character in two pieces, and one that is a control.
        assert_eq!(log.text(b"gr\xc3"), "gr");
        assert_eq!(log.text(b"\xbcn \xc2"), "\u{fc}n ");
        assert_eq!(log.text(b"\x9b31m \xff\xfe"), "\\u{9b}31m \u{fffd}\u{fffd}");
        assert!(log.rest.is_empty());
    }
}
