//! The data directory: one daemon uses it, and root alone looks inside.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::actors::control::TokenSecret;
use crate::domain::token;
use crate::vmm::lock_file;

const LOCK_FILE: &str = "daemon.lock";
/// How long another daemon's hold on the data directory is taken for one that is just ending.
const LOCK_PATIENCE: Duration = Duration::from_millis(500);
const HOST_ID_FILE: &str = "host-id";
const TOKEN_SECRET_FILE: &str = "token-secret";

/// Makes the data directory and sees to it that nobody else uses it; nothing if somebody does.
pub fn claim(dir: &Path) -> Result<Option<Flock<File>>> {
    let advice = || format!("cannot use the data directory {}", dir.display());
    std::fs::create_dir_all(dir).with_context(advice)?;
    // Only root looks inside: it holds keys, and disks of sandboxes.
    std::fs::set_permissions(dir, Permissions::from_mode(0o700)).with_context(advice)?;
    let mut lock = lock_file::open(&dir.join(LOCK_FILE)).with_context(advice)?;
    // A daemon that was just killed may live on for a moment in a child that had yet to exec.
    let patience = Instant::now() + LOCK_PATIENCE;
    loop {
        lock = match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Some(lock)),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() > patience => return Ok(None),
            Err((lock, Errno::EWOULDBLOCK)) => lock,
            Err((_, errno)) => return Err(io::Error::from(errno)).with_context(advice),
        };
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The host's id: made once, kept in the data directory.
pub fn host_id(data_dir: &Path) -> Result<String> {
    let path = data_dir.join(HOST_ID_FILE);
    match std::fs::read_to_string(&path) {
        Ok(id) if !id.trim().is_empty() => Ok(id.trim().to_owned()),
        _ => {
            let id = crate::domain::id::SandboxId::random().to_string();
            write_named(&path, &format!("{id}\n"))?;
            Ok(id)
        }
    }
}

/// What tokens are made of: drawn once, kept in the data directory beside the first key.
///
/// # Errors
///
/// If it cannot be kept, or what is there is none.
pub fn token_secret(data_dir: &Path) -> Result<TokenSecret> {
    let path = data_dir.join(TOKEN_SECRET_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let text = token::random();
            write_named(&path, &format!("{text}\n"))?;
            text
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut bytes = [0; 32];
    hex::decode_to_slice(text.trim(), &mut bytes).with_context(|| {
        format!(
            "{} does not hold 64 hexadecimal digits: bring it back, or remove it, and sandboxes get \
             other tokens for their ports",
            path.display()
        )
    })?;
    Ok(TokenSecret::new(&bytes))
}

/// The same as [`write_private`], and an error names the file.
pub fn write_named(path: &Path, text: &str) -> Result<()> {
    write_private(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Writes a file for root alone, all of it or nothing.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let temporary = path.with_extension("new");
    // A left-over may have other permissions, which opening would keep.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = File::options();
    let mut file = options.write(true).create_new(true).mode(0o600).open(&temporary)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Half a file is of use to nobody.
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tokens_are_made_of_is_drawn_once_and_is_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(TOKEN_SECRET_FILE);
        token_secret(dir.path()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        token_secret(dir.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
        for broken in ["", "00", &text[..63], &text.replace(|c: char| c.is_ascii(), "x")] {
            std::fs::write(&path, broken).unwrap();
            let error = token_secret(dir.path()).err().expect("it is refused").to_string();
            assert!(error.contains("token-secret"), "{error}");
        }
    }
}
