//! Firecracker's standard output: its guest's console, and what it has to say itself.
//!
//! A pipe with a name, which Firecracker holds for reading too: so there is always a reader, whatever
//! becomes of the daemon. Without one the next write would end in SIGPIPE, whose handler writes to the
//! very same place (Firecracker 1.16 hangs in it, with the lock of its log held). When the pipe is full
//! what is written is lost, and nobody waits. A daemon that starts again goes on reading.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::net::unix::pipe;

/// Name of the pipe in a sandbox's directory.
const PIPE: &str = "console.pipe";

/// Makes the pipe and gives the end that Firecracker writes to.
///
/// # Errors
///
/// Those of making and opening it.
pub fn make(dir: &Path) -> io::Result<OwnedFd> {
    let path = dir.join(PIPE);
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

/// Opens the pipe for reading.
///
/// # Errors
///
/// Those of opening it.
pub fn follow(dir: &Path) -> io::Result<pipe::Receiver> {
    pipe::OpenOptions::new().open_receiver(dir.join(PIPE))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_writer_outlives_its_readers_and_never_waits() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = File::from(make(dir.path()).unwrap());
        drop(follow(dir.path()).unwrap());
        let mut written = 0;
        let full = loop {
            match writer.write(&[b'x'; 4096]) {
                Ok(count) => written += count,
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
        let mut reader = follow(dir.path()).unwrap();
        let mut read = vec![0; written];
        reader.read_exact(&mut read).await.unwrap();
        drop(writer);
        assert_eq!(reader.read(&mut read).await.unwrap(), 0, "the writer's end is seen");
    }
}
