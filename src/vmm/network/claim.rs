//! Claims on slot numbers, shared by all daemons of a machine: `/run/nestbox/slots/{n}` is a symbolic
//! link to the data directory of the owner.
//!
//! A symbolic link because making one is a single exclusive step that also says whose it is: no
//! claim is ever seen half-written. It dangles exactly when its owner's data directory is gone, and
//! then anyone may take it over.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::NetworkError;
use crate::domain::slot::{SLOT_COUNT, SlotIndex};

const RUN_DIR: &str = "/run/nestbox";

/// Claims of one daemon, and the view of all others'.
#[derive(Debug)]
pub(super) struct Claims {
    dir: PathBuf,
    owner: PathBuf,
}

/// Held by every running daemon, so that the last one can know that it is the last.
#[derive(Debug)]
pub(super) struct Presence {
    lock: Flock<File>,
    path: PathBuf,
}

impl Claims {
    /// Opens the claims on behalf of a data directory, which has to exist.
    pub(super) fn open(data_dir: &Path) -> Result<Self, NetworkError> {
        let owner = data_dir
            .canonicalize()
            .map_err(|source| NetworkError::DataDir { path: data_dir.to_owned(), source })?;
        let dir = Path::new(RUN_DIR).join("slots");
        fs::create_dir_all(&dir)
            .map_err(|source| NetworkError::Claims { path: dir.clone(), source })?;
        Ok(Self { dir, owner })
    }

    /// Claims a free number, trying `first` and then the ones after it.
    ///
    /// # Errors
    ///
    /// [`NetworkError::Exhausted`] when no number is free.
    pub(super) fn claim_free(&self, first: SlotIndex) -> Result<SlotIndex, NetworkError> {
        let mut slot = first;
        for _ in 0..SLOT_COUNT {
            if self.claim(slot)? {
                return Ok(slot);
            }
            slot = slot.next();
        }
        Err(NetworkError::Exhausted)
    }

    /// Claims a number; says whether it was free.
    fn claim(&self, slot: SlotIndex) -> Result<bool, NetworkError> {
        match symlink(&self.owner, self.path(slot)) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(self.error(slot, source)),
        }
    }

    /// Makes sure that a number is claimed by this daemon.
    ///
    /// # Errors
    ///
    /// [`NetworkError::ClaimedElsewhere`] when it is another's.
    pub(super) fn ensure(&self, slot: SlotIndex) -> Result<(), NetworkError> {
        if self.claim(slot)? {
            return Ok(());
        }
        let owner = fs::read_link(self.path(slot)).map_err(|e| self.error(slot, e))?;
        if owner == self.owner {
            Ok(())
        } else {
            Err(NetworkError::ClaimedElsewhere { slot, owner })
        }
    }

    /// Gives a number back. Only to be called when nothing of the slot is left.
    pub(super) fn remove(&self, slot: SlotIndex) -> Result<(), NetworkError> {
        match fs::remove_file(self.path(slot)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(self.error(slot, e)),
            _ => Ok(()),
        }
    }

    /// All numbers that this daemon has claimed.
    pub(super) fn own(&self) -> Result<Vec<SlotIndex>, NetworkError> {
        let all = self.all()?.into_iter();
        Ok(all.filter(|(_, owner)| *owner == self.owner).map(|(slot, _)| slot).collect())
    }

    /// Takes over the claims whose owner's data directory is gone. They are this daemon's then, and
    /// what is left of their slots is its to remove.
    pub(super) fn take_over_abandoned(&self) -> Result<Vec<SlotIndex>, NetworkError> {
        // Two daemons that both saw a claim dangle must not both take it: the slower one would
        // remove what the faster one has meanwhile built anew under the same number.
        let _lock = self.lock()?;
        let mut taken = Vec::new();
        for (slot, owner) in self.all()? {
            if matches!(fs::metadata(&owner), Err(e) if e.kind() == io::ErrorKind::NotFound) {
                self.replace(slot)?;
                taken.push(slot);
            }
        }
        Ok(taken)
    }

    /// Makes somebody else's claim this daemon's, in one step: the number is never free.
    fn replace(&self, slot: SlotIndex) -> Result<(), NetworkError> {
        let new = self.dir.join(format!("{slot}.new"));
        match fs::remove_file(&new) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.error(slot, e)),
            _ => {}
        }
        symlink(&self.owner, &new)
            .and_then(|()| fs::rename(&new, self.path(slot)))
            .map_err(|e| self.error(slot, e))
    }

    /// Whether any daemon has claimed any number.
    pub(super) fn any(&self) -> Result<bool, NetworkError> {
        Ok(!self.all()?.is_empty())
    }

    /// Registers this process among the running daemons, until the answer is dropped or the
    /// process ends. May wait for a daemon that is just removing what all of them share.
    pub(super) fn register(&self) -> Result<Presence, NetworkError> {
        let path = Path::new(RUN_DIR).join("daemons.lock");
        let claims = |source| NetworkError::Claims { path: path.clone(), source };
        let file = File::options().create(true).append(true).open(&path).map_err(claims)?;
        let lock = Flock::lock(file, FlockArg::LockShared).map_err(|(_, e)| claims(e.into()))?;
        Ok(Presence { lock, path })
    }

    fn all(&self) -> Result<Vec<(SlotIndex, PathBuf)>, NetworkError> {
        let broken = |source| NetworkError::Claims { path: self.dir.clone(), source };
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let number = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok());
            let Some(slot) = number.and_then(|number| SlotIndex::try_from(number).ok()) else {
                continue;
            };
            match fs::read_link(entry.path()) {
                Ok(owner) => all.push((slot, owner)),
                // Given back between the listing and now.
                Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                Err(e) => return Err(self.error(slot, e)),
            }
        }
        Ok(all)
    }

    /// Keeps all other daemons from taking claims over, until the answer is dropped. Waits for one
    /// that is doing so.
    pub(super) fn lock(&self) -> Result<Flock<File>, NetworkError> {
        let broken = |source| NetworkError::Claims { path: self.dir.clone(), source };
        let dir = File::open(&self.dir).map_err(broken)?;
        Flock::lock(dir, FlockArg::LockExclusive).map_err(|(_, e)| broken(e.into()))
    }

    fn path(&self, slot: SlotIndex) -> PathBuf {
        self.dir.join(slot.to_string())
    }

    fn error(&self, slot: SlotIndex, source: io::Error) -> NetworkError {
        NetworkError::Claims { path: self.path(slot), source }
    }
}

impl Presence {
    /// Runs something that no other daemon may be awake for; answers `None`, without running it,
    /// if one is. The process is not registered any more afterwards.
    pub(super) fn run_if_last<T>(
        self,
        work: impl FnOnce() -> Result<T, NetworkError>,
    ) -> Result<Option<T>, NetworkError> {
        let claims = |source| NetworkError::Claims { path: self.path.clone(), source };
        match self.lock.relock(FlockArg::LockExclusiveNonblock) {
            Ok(()) => work().map(Some),
            Err(nix::errno::Errno::EWOULDBLOCK) => Ok(None),
            Err(e) => Err(claims(e.into())),
        }
    }
}
