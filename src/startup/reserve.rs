//! Room that is kept back on the disk of the daemon's data, so that on a full disk the daemon can
//! start, and things can be taken away through it: for that something has to be written down.
//!
//! It is a file without meaning. What needs room gets a piece of it at a time; it grows back when the
//! disk has plenty.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::posix_fallocate;
use nix::sys::statvfs::statvfs;

use crate::entity::Spare;

/// Not a name that anything else may have: the file is cut short.
const FILE: &str = "nestbox.reserve";
/// What is kept back: some hundred changes in the database, and the index of its log, in bytes.
const SIZE: u64 = 4 << 20;
/// What is given at a time, in bytes.
const PIECE: u64 = 512 << 10;
/// It grows back only while the disk has so many bytes left.
const PLENTY: u64 = 8 * SIZE;
/// A disk with fewer bytes than this is full.
const NOTHING: u64 = 64 << 10;
/// How often it is looked whether it can grow back.
const PERIOD: Duration = Duration::from_secs(60);

/// The file.
pub struct Reserve {
    dir: PathBuf,
    /// Held while it changes.
    turn: Mutex<()>,
}

impl Reserve {
    /// That on the disk of `dir`.
    pub fn of(dir: &Path) -> Arc<Self> {
        Arc::new(Self { dir: dir.to_owned(), turn: Mutex::new(()) })
    }

    /// Lets it grow back, now and again and again.
    pub fn keep(self: &Arc<Self>) {
        let reserve = self.clone();
        tokio::spawn(async move {
            let mut period = tokio::time::interval(PERIOD);
            loop {
                period.tick().await;
                let reserve = reserve.clone();
                let filled = tokio::task::spawn_blocking(move || reserve.fill()).await;
                if let Ok(Err(error)) = filled {
                    tracing::warn!(%error, "no room is kept back for when the disk is full");
                }
            }
        });
    }

    /// Gives the disk a little if it is full.
    pub fn make_room(&self) {
        while self.is_full() && self.give() {}
    }

    /// Does what needs a little room, with what is kept back if there is no other.
    pub fn insist<T>(&self, mut work: impl FnMut() -> io::Result<T>) -> io::Result<T> {
        loop {
            match work() {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && self.give() => {}
                outcome => return outcome,
            }
        }
    }

    fn fill(&self) -> io::Result<()> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let disk = statvfs(&self.dir)?;
        if disk.blocks_available().saturating_mul(disk.fragment_size()) < PLENTY {
            return Ok(());
        }
        let mut options = File::options();
        let path = self.dir.join(FILE);
        let file = options.write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        let size = SIZE.try_into().expect("some MiB");
        posix_fallocate(&file, 0, size)?;
        Ok(())
    }
}

impl Spare for Reserve {
    fn give(&self) -> bool {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let shrink = || {
            let file = File::options().write(true).open(self.dir.join(FILE))?;
            let length = file.metadata()?.len();
            file.set_len(length.saturating_sub(PIECE))?;
            io::Result::Ok(length > 0)
        };
        shrink().unwrap_or(false)
    }

    fn is_full(&self) -> bool {
        statvfs(&self.dir).is_ok_and(|disk| {
            // Those for root included, who this is.
            let left = disk.blocks_free().saturating_mul(disk.fragment_size());
            left < NOTHING || (disk.files() > 0 && disk.files_free() == 0)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn it_is_really_there_and_is_given_away_piece_by_piece() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of(dir.path());
        assert!(!reserve.give(), "nothing is kept back yet");
        reserve.fill().unwrap();
        let taken = || dir.path().join(FILE).metadata().unwrap().blocks() * 512;
        assert!(taken() >= SIZE);
        let mut pieces = 0;
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let outcome = reserve.insist(|| {
            pieces += 1;
            if pieces == 3 { Ok(()) } else { Err(full()) }
        });
        outcome.unwrap();
        assert!((SIZE - 2 * PIECE..SIZE - PIECE).contains(&taken()), "{}", taken());
        assert_eq!(reserve.insist::<()>(|| Err(full())).unwrap_err().kind(), full().kind());
        assert_eq!(taken(), 0);
        reserve.fill().unwrap();
        assert!(taken() >= SIZE, "it grows back");
    }
}
