//! Changes in a directory, through inotify.
//!
//! An upload writes to a hidden file beside its target and then puts that in place. Changes of
//! such files are nobody's business and are left out; a target that is replaced by one was written.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};
use nix::sys::statfs::{self, statfs};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use nestbox_proto::filesystem::EventType;

use crate::agent::rights;
use crate::agent::users::User;

/// How names of files begin that are being uploaded and not yet in place.
pub const UPLOAD_PREFIX: &str = ".envd-upload-";

/// Changes kept for a caller that comes to ask for them.
const BACKLOG: usize = 16 * 1024;

/// Reads of the kernel's queue, of 4 KiB each, before somebody looks at what has come.
const READS: usize = 64;

/// What is in the kernel's queue after reading.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    Nothing,
    More,
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: EventType,
    /// Where.
    pub path: PathBuf,
}

/// Whether directories below are watched too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// Only the directory itself.
    Here,
    /// All below, also those made later.
    Below,
}

/// Whether a file system may be a network one, where changes made elsewhere go unseen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Network {
    /// It may.
    Allowed,
    /// It may not.
    Refused,
}

/// Why a directory cannot be watched, or no longer.
#[derive(Debug, Clone, Error)]
pub enum WatchError {
    /// There is nothing at that path.
    #[error("path not found: {}", .path.display())]
    NotFound {
        /// The path.
        path: PathBuf,
    },
    /// Only directories are watched.
    #[error("not a directory: {}", .path.display())]
    NotDirectory {
        /// The path.
        path: PathBuf,
    },
    /// It is on a network file system.
    #[error("on a network file system: {}", .path.display())]
    Network {
        /// The path.
        path: PathBuf,
    },
    /// Who watches may not look into it.
    #[error("cannot watch {}: {}", .path.display(), .source.desc())]
    Refused {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// The kernel allows no more of them.
    #[error("too many watches")]
    TooMany,
    /// They came faster than they were taken.
    #[error("changes were lost because too many were not fetched")]
    Lost,
    /// Anything else the kernel says.
    #[error("cannot watch {}: {}", .path.display(), .source.desc())]
    Other {
        /// The path.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
}

/// A watch on one directory; changes pile up until they are taken.
#[derive(Debug)]
pub struct Watch {
    /// Who watches, and with whose rights new directories are entered.
    user: Arc<User>,
    root: PathBuf,
    reach: Reach,
    inotify: AsyncFd<Handle>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Handle(Inotify);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[derive(Debug, Default)]
struct State {
    dirs: HashMap<WatchDescriptor, PathBuf>,
    changes: VecDeque<Change>,
    failed: Option<WatchError>,
    /// Cookie of a hidden file that was just renamed, until its new name is reported.
    upload: Option<u32>,
}

impl Watch {
    /// Watches `root` from now on. Blocks for as long as it takes to walk the tree, but must be
    /// called where a runtime is.
    ///
    /// # Errors
    ///
    /// [`WatchError`] when it is no directory, or one that may not be watched.
    pub fn new(
        user: Arc<User>,
        root: &Path,
        reach: Reach,
        network: Network,
    ) -> Result<Self, WatchError> {
        rights::with(&user, || Self::begin(Arc::clone(&user), root, reach, network))
            .map_err(|error| kernel(root, errno(&error)))?
    }

    fn begin(
        user: Arc<User>,
        root: &Path,
        reach: Reach,
        network: Network,
    ) -> Result<Self, WatchError> {
        let failed = |source| kernel(root, source);
        let meta = fs::metadata(root).map_err(|error| failed(errno(&error)))?;
        if !meta.is_dir() {
            return Err(WatchError::NotDirectory { path: root.to_owned() });
        }
        if network == Network::Refused && is_network(root).map_err(failed)? {
            return Err(WatchError::Network { path: root.to_owned() });
        }
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(failed)?;
        // SAFETY: the handle owns one inotify descriptor, open until it is dropped.
        let inotify =
            unsafe { AsyncFd::register_with_interest(Handle(inotify), Interest::READABLE) };
        let inotify = inotify.map_err(|error| failed(errno(&error.into())))?;
        let root = root.to_owned();
        let watch = Self { user, root, reach, inotify, state: Mutex::new(State::default()) };
        {
            let mut state = watch.state.lock().unwrap_or_else(PoisonError::into_inner);
            watch.add(&mut state, &watch.root)?;
            if reach == Reach::Below {
                watch.add_below(&mut state, &watch.root, Existing::Known);
            }
            if let Some(error) = state.failed.take() {
                return Err(error);
            }
        }
        Ok(watch)
    }

    /// The directory it was made for.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Waits until there are changes, and follows the tree meanwhile. Safe to drop.
    ///
    /// The tree is followed away from the runtime's thread: what is moved here may be large, and what
    /// many write to is never quiet.
    pub async fn ready(self: &Arc<Self>) {
        loop {
            let Ok(mut ready) = self.inotify.readable().await else { return };
            let watch = Arc::clone(self);
            // The lock as well is for other threads: who walks through a tree holds it.
            let collecting = tokio::task::spawn_blocking(move || {
                let left = watch.with_rights(|| watch.collect());
                let state = watch.state.lock().unwrap_or_else(PoisonError::into_inner);
                (left, !state.changes.is_empty() || state.failed.is_some())
            });
            let (left, something) = collecting.await.unwrap_or((Ok(Left::More), true));
            match left.unwrap_or(Left::More) {
                // What comes from now on makes it ready again.
                Left::Nothing => ready.clear_ready(),
                Left::More => ready.retain_ready(),
            }
            if something {
                return;
            }
        }
    }

    /// Takes the changes up to this moment, if there are not too many. Blocks.
    ///
    /// # Errors
    ///
    /// [`WatchError::Lost`], after which nothing more is reported.
    pub fn take(&self) -> Result<Vec<Change>, WatchError> {
        self.with_rights(|| self.collect())?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match &state.failed {
            Some(error) => Err(error.clone()),
            None => Ok(state.changes.drain(..).collect()),
        }
    }

    /// Does something with the rights of who watches. Blocks.
    ///
    /// # Errors
    ///
    /// [`WatchError::Other`] when the kernel does not give them.
    pub fn with_rights<T>(&self, work: impl FnOnce() -> T) -> Result<T, WatchError> {
        rights::with(&self.user, work).map_err(|error| kernel(&self.root, errno(&error)))
    }

    /// Reads what has happened, but not for ever.
    fn collect(&self) -> Left {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..READS {
            match self.inotify.get_ref().0.read_events() {
                Ok(events) => events.into_iter().for_each(|event| self.apply(&mut state, event)),
                Err(_) => return Left::Nothing,
            }
        }
        Left::More
    }

    fn apply(&self, state: &mut State, event: InotifyEvent) {
        let mask = event.mask;
        if mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            state.failed = Some(WatchError::Lost);
            return;
        }
        if mask.contains(AddWatchFlags::IN_IGNORED) {
            state.dirs.remove(&event.wd);
            return;
        }
        let Some(dir) = state.dirs.get(&event.wd).cloned() else { return };
        let Some(name) = event.name else {
            // About the directory itself. Those below the root are reported by their parents.
            if dir == self.root {
                for kind in kinds(mask) {
                    state.push(kind, self.root.clone());
                }
            }
            return;
        };
        let path = dir.join(&name);
        if name.as_encoded_bytes().starts_with(UPLOAD_PREFIX.as_bytes()) {
            if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
                state.upload = Some(event.cookie);
            }
            return;
        }
        let replaced =
            mask.contains(AddWatchFlags::IN_MOVED_TO) && state.upload.take() == Some(event.cookie);
        if replaced {
            state.push(EventType::EVENT_TYPE_WRITE, path.clone());
        } else {
            for kind in kinds(mask) {
                state.push(kind, path.clone());
            }
        }
        if self.reach == Reach::Below && mask.contains(AddWatchFlags::IN_ISDIR) {
            if mask.contains(AddWatchFlags::IN_MOVED_FROM) {
                self.forget_below(state, &path);
            } else if mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO)
                && self.add(state, &path).is_ok()
            {
                self.add_below(state, &path, Existing::New);
            }
        }
    }

    fn add(&self, state: &mut State, dir: &Path) -> Result<(), WatchError> {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.get_ref().0.add_watch(dir, flags) {
            Ok(wd) => {
                state.dirs.insert(wd, dir.to_owned());
                Ok(())
            }
            Err(source) => {
                let error = kernel(dir, source);
                if let WatchError::TooMany = error {
                    state.failed = Some(error.clone());
                }
                Err(error)
            }
        }
    }

    /// Watches what is below `dir`. In a directory that has just appeared, things may have been
    /// made before the watch was in place; they are reported as if seen.
    fn add_below(&self, state: &mut State, dir: &Path, existing: Existing) {
        // A list, because a tree may be deeper than a thread's stack.
        let mut dirs = vec![dir.to_owned()];
        while let Some(dir) = dirs.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                let path = entry.path();
                let Ok(meta) = fs::symlink_metadata(&path) else { continue };
                if existing == Existing::New {
                    state.push(EventType::EVENT_TYPE_CREATE, path.clone());
                    if meta.is_file() && meta.len() > 0 {
                        state.push(EventType::EVENT_TYPE_WRITE, path.clone());
                    }
                }
                if meta.is_dir() && self.add(state, &path).is_ok() {
                    dirs.push(path);
                }
            }
        }
    }

    /// Stops watching a directory that has left, and all below it.
    fn forget_below(&self, state: &mut State, dir: &Path) {
        let gone: Vec<_> = state
            .dirs
            .iter()
            .filter(|(_, path)| path.starts_with(dir))
            .map(|(wd, _)| *wd)
            .collect();
        for wd in gone {
            state.dirs.remove(&wd);
            // Fails if it was removed meanwhile.
            let _ = self.inotify.get_ref().0.rm_watch(wd);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Existing {
    Known,
    New,
}

impl State {
    fn push(&mut self, kind: EventType, path: PathBuf) {
        let change = Change { kind, path };
        // A big write is many small ones; the kernel merges only those it has not handed over.
        if self.changes.back() == Some(&change) {
            return;
        }
        if self.changes.len() == BACKLOG {
            self.changes.clear();
            self.failed = Some(WatchError::Lost);
        }
        if self.failed.is_none() {
            self.changes.push_back(change);
        }
    }
}

fn kinds(mask: AddWatchFlags) -> impl Iterator<Item = EventType> {
    [
        (AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO, EventType::EVENT_TYPE_CREATE),
        (AddWatchFlags::IN_MOVED_FROM | AddWatchFlags::IN_MOVE_SELF, EventType::EVENT_TYPE_RENAME),
        (AddWatchFlags::IN_ATTRIB, EventType::EVENT_TYPE_CHMOD),
        (AddWatchFlags::IN_MODIFY, EventType::EVENT_TYPE_WRITE),
        (AddWatchFlags::IN_DELETE | AddWatchFlags::IN_DELETE_SELF, EventType::EVENT_TYPE_REMOVE),
    ]
    .into_iter()
    .filter_map(move |(flags, kind)| mask.intersects(flags).then_some(kind))
}

fn is_network(path: &Path) -> nix::Result<bool> {
    // `linux/magic.h` and the kernel's `fs/smb/common/smbglob.h`.
    const CIFS: i64 = 0xFF53_4D42;
    const SMB2: i64 = 0xFE53_4D42;
    let kind = statfs(path)?.filesystem_type();
    let known = [statfs::NFS_SUPER_MAGIC, statfs::SMB_SUPER_MAGIC, statfs::FUSE_SUPER_MAGIC];
    Ok(known.contains(&kind) || [CIFS, SMB2].map(statfs::FsType).contains(&kind))
}

fn errno(error: &io::Error) -> Errno {
    error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw)
}

fn kernel(path: &Path, source: Errno) -> WatchError {
    let path = path.to_owned();
    match source {
        Errno::ENOENT => WatchError::NotFound { path },
        Errno::ENOTDIR => WatchError::NotDirectory { path },
        Errno::EACCES | Errno::EPERM => WatchError::Refused { path, source },
        Errno::ENOSPC | Errno::EMFILE | Errno::ENFILE => WatchError::TooMany,
        source => WatchError::Other { path, source },
    }
}
