//! A snapshot: memory, devices and disk of a VM at one instant, as a directory.
//!
//! ```text
//! snapshot.json            what it is: image, layers of the disk, what its agent was told
//! memfile  memfile.{build}  memfile.header      guest memory: see `vmm::memory`
//! devices                  state of the devices, in the hypervisor's own format
//! rootfs  overlay.{build}.qcow2 ...             the disk's layers, the lowest first
//! ```
//!
//! A directory has all the files it needs, and none is ever changed. Snapshots that build on each
//! other share files by hard links: the file system counts the references, over any restart and
//! crash, and removing a directory never breaks another.

mod manifest;
mod merge;
mod store;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::machine::Storage;
use super::memory::{Durability, Lineage, MemoryError};

pub use manifest::{FORMAT, Manifest};
pub use merge::merge;
pub use store::{Named, SnapshotStore};

/// Name of the lowest layer, the image's root file system.
pub const ROOTFS: &str = "rootfs";
/// Name of the devices' state.
const DEVICES: &str = "devices";

/// What went wrong with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// A file or directory of it could not be used.
    #[error("cannot {verb} {}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    /// Its manifest is not what this version writes.
    #[error("{} is no snapshot manifest", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },
    /// It was written by another version of the daemon.
    #[error("{} has format {found}, and this version reads {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    /// Its memory failed.
    #[error("the snapshot's memory failed")]
    Memory(#[from] MemoryError),
}

impl SnapshotError {
    /// Makes an error of `path` that says what was tried.
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

/// A snapshot that was opened. It stays usable when its directory is moved.
#[derive(Debug)]
pub struct Snapshot {
    dir: PathBuf,
    manifest: Manifest,
    memory: Arc<Lineage>,
}

impl Snapshot {
    /// Opens the snapshot in `dir`. Blocks for some ten system calls.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; [`SnapshotError::Io`] with `NotFound` if there is none.
    pub fn open(dir: &Path) -> Result<Self, SnapshotError> {
        let manifest = Manifest::read(dir)?;
        let memory = Arc::new(Lineage::open(dir)?);
        Ok(Self { dir: dir.to_owned(), manifest, memory })
    }

    /// Makes a snapshot: `fill` puts memory and layers into a new directory, `devices` and manifest
    /// are added. It is there as a whole or not at all. Blocks.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`] or what `fill` says; nothing is left then.
    pub fn create<E: From<SnapshotError>>(
        dir: &Path,
        manifest: &Manifest,
        devices: &[u8],
        durability: Durability,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        Self::put(dir, durability, |new| {
            fill(new)?;
            let path = new.join(DEVICES);
            fs::write(&path, devices).map_err(SnapshotError::io("write", &path))?;
            Ok(manifest.write(new)?)
        })
    }

    /// Puts the same snapshot into a new directory of the same file system, by hard links.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; nothing is left then.
    pub fn link_into(&self, dir: &Path, durability: Durability) -> Result<Self, SnapshotError> {
        Self::put(dir, durability, |new| {
            self.memory.link_into(new, durability)?;
            self.link_layers(new)?;
            link(&self.dir.join(DEVICES), &new.join(DEVICES))?;
            self.manifest.write(new)
        })
    }

    /// Fills a directory under a temporary name, and gives it its own when all is there.
    fn put<E: From<SnapshotError>>(
        dir: &Path,
        durability: Durability,
        fill: impl FnOnce(&Path) -> Result<(), E>,
    ) -> Result<Self, E> {
        let new = dir.with_extension("new");
        let made = DirBuilder::new().mode(0o700).create(&new);
        made.map_err(SnapshotError::io("create", &new))?;
        let put = || {
            fill(&new)?;
            if durability == Durability::Synced {
                sync_all(&new)?;
            }
            fs::rename(&new, dir).map_err(SnapshotError::io("rename", &new))?;
            if let (Durability::Synced, Some(parent)) = (durability, dir.parent()) {
                sync(parent)?;
            }
            Ok(Self::open(dir)?)
        };
        let put: Result<Self, E> = put();
        if put.is_err() {
            // Only one of both is there. What cannot be removed is found at the next start.
            let _ = fs::remove_dir_all(&new);
            let _ = fs::remove_dir_all(dir);
        }
        put
    }

    /// Links the disk's layers into another directory.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn link_layers(&self, dir: &Path) -> Result<(), SnapshotError> {
        for layer in &self.manifest.layers {
            link(&self.dir.join(&layer.file), &dir.join(&layer.file))?;
        }
        Ok(())
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What it is.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Its memory.
    pub fn memory(&self) -> &Arc<Lineage> {
        &self.memory
    }

    /// Opens the state of its devices.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn open_devices(&self) -> Result<File, SnapshotError> {
        let path = self.dir.join(DEVICES);
        File::open(&path).map_err(SnapshotError::io("open", &path))
    }

    /// Measures it.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`].
    pub fn storage(&self) -> Result<Storage, SnapshotError> {
        let memory = self.memory.usage()?;
        let generations = self.memory.diffs() + 1;
        let (disk_bytes, shared_bytes) = self.disk_bytes()?;
        Ok(Storage {
            memory_bytes: memory.bytes,
            memory_generations: u32::try_from(generations).unwrap_or(u32::MAX),
            disk_bytes,
            shared_bytes: memory.shared_bytes + shared_bytes,
        })
    }

    /// Bytes in use by its disk, and how many of them it shares with others.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub fn disk_bytes(&self) -> Result<(u64, u64), SnapshotError> {
        let (mut all, mut shared) = (0, 0);
        for layer in &self.manifest.layers {
            let path = self.dir.join(&layer.file);
            let data = fs::metadata(&path).map_err(SnapshotError::io("measure", &path))?;
            // stat(2): a block of st_blocks is 512 bytes.
            let bytes = data.blocks() * 512;
            all += bytes;
            shared += if data.nlink() > 1 { bytes } else { 0 };
        }
        Ok((all, shared))
    }
}

/// Links a file that is never changed into a directory of another snapshot.
///
/// # Errors
///
/// [`SnapshotError::Io`].
pub fn link(from: &Path, to: &Path) -> Result<(), SnapshotError> {
    fs::hard_link(from, to).map_err(SnapshotError::io("link", from))
}

/// Removes the directory of a snapshot; one that is gone already is as good.
///
/// # Errors
///
/// [`SnapshotError::Io`].
pub fn remove(dir: &Path) -> Result<(), SnapshotError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SnapshotError::io("remove", dir)(error))
        }
        _ => Ok(()),
    }
}

/// Brings a directory with its files to disk; those that are there already cost nothing.
fn sync_all(dir: &Path) -> Result<(), SnapshotError> {
    for entry in fs::read_dir(dir).map_err(SnapshotError::io("list", dir))? {
        sync(&entry.map_err(SnapshotError::io("list", dir))?.path())?;
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), SnapshotError> {
    let synced = File::open(path).and_then(|file| file.sync_all());
    synced.map_err(SnapshotError::io("sync", path))
}
