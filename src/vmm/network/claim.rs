//! Claims on slot numbers, shared by all daemons of a machine: `/run/nestbox/slots/{n}` is a symbolic
//! link to the data directory of the owner.
//!
//! A symbolic link because making one is a single exclusive step that also says whose it is: no
//! claim is ever seen half-written. It dangles exactly when its owner's data directory is gone, and
//! then anyone may take it over.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::NetworkError;
use crate::domain::slot::{SLOT_COUNT, SlotIndex};
use crate::vmm::lock_file;

const RUN_DIR: &str = "/run/nestbox";

/// How long another daemon may take for what it does under a lock, such as taking slots over.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

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
        make_private(&dir).map_err(|source| NetworkError::Claims { path: dir.clone(), source })?;
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
        let file = lock_file::open(&path).map_err(claims)?;
        let lock = wait_for(file, FlockArg::LockSharedNonblock).map_err(claims)?;
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
        wait_for(dir, FlockArg::LockExclusiveNonblock).map_err(broken)
    }

    fn path(&self, slot: SlotIndex) -> PathBuf {
        self.dir.join(slot.to_string())
    }

    fn error(&self, slot: SlotIndex, source: io::Error) -> NetworkError {
        NetworkError::Claims { path: self.path(slot), source }
    }
}

/// Makes the directories of the claims, for root alone: whoever can open one, or a file in it, can
/// lock it, and daemons would wait for that. Older ones may be open to others.
fn make_private(dir: &Path) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    for dir in [Path::new(RUN_DIR), dir] {
        fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    }
    Ok(())
}

/// Takes a lock as soon as it can be had. Daemons hold it for moments; somebody who has opened the
/// file before it was root's alone may hold it for ever.
fn wait_for(mut file: File, how: FlockArg) -> io::Result<Flock<File>> {
    let end = Instant::now() + LOCK_LIMIT;
    loop {
        file = match Flock::lock(file, how) {
            Ok(lock) => return Ok(lock),
            Err((file, Errno::EWOULDBLOCK)) if Instant::now() < end => file,
            Err((_, Errno::EWOULDBLOCK)) => {
                let advice = "another process keeps it locked: find it with `lslocks`, and end it";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, advice));
            }
            Err((_, errno)) => return Err(errno.into()),
        };
        std::thread::sleep(LOCK_PAUSE);
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
            Err(Errno::EWOULDBLOCK) => Ok(None),
            Err(e) => Err(claims(e.into())),
        }
    }
}
