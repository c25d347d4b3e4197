//! The snapshots of a host that belong to no sandbox: named ones, and those of forks under way.
//!
//! ```text
//! {dir}/named/{name}@{build}/    the newest of a name counts; an older one is on its way out
//! {dir}/forks/{build}/           while children are made from it
//! {dir}/**/*.new  *.gone         what a crash has left
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{Snapshot, SnapshotError, remove};
use crate::domain::name::TemplateName;
use crate::domain::snapshot::Existing;
use crate::domain::snapshot::ForkPoint;
use crate::vmm::storage::memory::{BuildId, Durability};

/// Between name and build; no name has it.
const SEPARATOR: char = '@';

/// A directory of snapshots. Everything here blocks.
#[derive(Debug)]
pub struct SnapshotStore {
    named: PathBuf,
    forks: PathBuf,
    /// Held while names change.
    names: Mutex<()>,
}

/// What came of naming a snapshot.
#[derive(Debug)]
pub enum Named {
    /// It has the name now.
    Done(Box<Snapshot>),
    /// Another one has it, and keeps it.
    Taken,
}

impl SnapshotStore {
    /// Opens the store, and removes what a crash has left in it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let store =
            Self { named: dir.join("named"), forks: dir.join("forks"), names: Mutex::new(()) };
        for dir in [&store.named, &store.forks] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
            made.map_err(SnapshotError::io("create", dir))?;
        }
        // The children of a fork that was under way are gone with its daemon, or have their own.
        for left in list(&store.forks)? {
            remove(&left)?;
        }
        let (whole, left): (Vec<_>, Vec<_>) =
            list(&store.named)?.into_iter().partition(|path| name_of(path).is_some());
        for left in left {
            remove(&left)?;
        }
        let mut newest = BTreeMap::new();
        for path in whole {
            let Some(name) = name_of(&path) else { continue };
            let created_at = match Snapshot::open(&path) {
                Ok(snapshot) => snapshot.manifest.created_at,
                Err(error) => {
                    tracing::warn!(path = %path.display(), error = %crate::chain(&error),
                        "a snapshot cannot be read");
                    continue;
                }
            };
            let older = match newest.get(&name) {
                Some((other, _)) if *other > created_at => Some(path),
                _ => newest.insert(name, (created_at, path)).map(|(_, path)| path),
            };
            if let Some(older) = older {
                discard(&older)?;
            }
        }
        Ok(store)
    }

    /// Gives a snapshot a name. Nothing is copied.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; the name stands for what it stood for before then.
    pub fn name(
        &self,
        snapshot: &Snapshot,
        name: &TemplateName,
        existing: Existing,
    ) -> Result<Named, SnapshotError> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let former = self.find(name)?;
        if former.is_some() && existing == Existing::Keep {
            return Ok(Named::Taken);
        }
        let build = snapshot.manifest.build;
        let dir = self.named.join(format!("{name}{SEPARATOR}{build}"));
        // The same snapshot under the same name once more.
        if former.as_ref() == Some(&dir) {
            return Ok(Named::Done(Box::new(Snapshot::open(&dir)?)));
        }
        let named = snapshot.link_into(&dir, Durability::Synced)?;
        if let Some(former) = former {
            discard(&former)?;
        }
        Ok(Named::Done(Box::new(named)))
    }

    /// The snapshot of that name.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`], if it is broken.
    pub fn get(&self, name: &TemplateName) -> Result<Option<Snapshot>, SnapshotError> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        self.find(name)?.map(|dir| Snapshot::open(&dir)).transpose()
    }

    /// All named snapshots; broken ones are left out.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn all(&self) -> Result<Vec<(TemplateName, Snapshot)>, SnapshotError> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = Vec::new();
        for path in list(&self.named)? {
            if let (Some(name), Ok(snapshot)) = (name_of(&path), Snapshot::open(&path)) {
                all.push((name, snapshot));
            }
        }
        Ok(all)
    }

    /// Removes the snapshot of that name; whether there was one.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn remove(&self, name: &TemplateName) -> Result<bool, SnapshotError> {
        let _names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        match self.find(name)? {
            Some(dir) => discard(&dir).map(|()| true),
            None => Ok(false),
        }
    }

    /// Keeps a snapshot for the children of a fork.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn keep_fork(&self, snapshot: &Snapshot) -> Result<ForkPoint, SnapshotError> {
        let point = ForkPoint(snapshot.manifest.build.to_string());
        snapshot.link_into(&self.fork_dir(&point)?, Durability::Cached)?;
        Ok(point)
    }

    /// What was kept for the children of a fork.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn fork(&self, point: &ForkPoint) -> Result<Snapshot, SnapshotError> {
        Snapshot::open(&self.fork_dir(point)?)
    }

    /// Forgets what was kept for the children of a fork.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn discard_fork(&self, point: &ForkPoint) -> Result<(), SnapshotError> {
        remove(&self.fork_dir(point)?)
    }

    /// A point is named by a build, whoever gives it back.
    fn fork_dir(&self, point: &ForkPoint) -> Result<PathBuf, SnapshotError> {
        match point.0.parse::<BuildId>() {
            Ok(build) => Ok(self.forks.join(build.to_string())),
            Err(error) => {
                let error = io::Error::new(io::ErrorKind::NotFound, error);
                Err(SnapshotError::io("find a fork in", &self.forks)(error))
            }
        }
    }

    fn find(&self, name: &TemplateName) -> Result<Option<PathBuf>, SnapshotError> {
        let found =
            list(&self.named)?.into_iter().find(|path| name_of(path).as_ref() == Some(name));
        Ok(found)
    }
}

/// Takes a snapshot's name away at once, then its files.
fn discard(dir: &Path) -> Result<(), SnapshotError> {
    let gone = dir.with_extension("gone");
    fs::rename(dir, &gone).map_err(SnapshotError::io("rename", dir))?;
    remove(&gone)
}

/// The name in `{name}@{build}`. A name may have dots, and a build has none.
fn name_of(path: &Path) -> Option<TemplateName> {
    let (name, build) = path.file_name()?.to_str()?.rsplit_once(SEPARATOR)?;
    (!build.contains('.')).then(|| name.parse().ok()).flatten()
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, SnapshotError> {
    let entries = fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
    let entries = entries.map_err(SnapshotError::io("list", dir))?;
    Ok(entries.into_iter().map(|entry| entry.path()).collect())
}
