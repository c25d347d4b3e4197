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
//!
//! Of a VM that goes on, the topmost layer is for a moment what its process may still have open for
//! writing. It is sealed ([`Snapshot::seal`]) when the VM runs again, and at the latest when somebody
//! else gets the snapshot: nothing is linked or opened for another VM that is not. What an older
//! version has made is sealed then, too.

mod manifest;
mod merge;
mod store;

use crate::domain::snapshot::Storage;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

use crate::vmm::storage::disk::{
    DiskFormat, Layer, LayerError, OpenLayer, Sealing, is_sealed, qcow2, seal as seal_layer,
};
use crate::vmm::storage::memory::{Durability, Lineage, MemoryError};

pub use manifest::{FORMAT, Manifest, overlay};
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
    /// Its manifest names a layer that it cannot have.
    #[error("{} names {file:?}, which is no layer of a disk", path.display())]
    Layers { path: PathBuf, file: String },
    /// A layer of its disk cannot be used.
    #[error("the disk in {} cannot be used", dir.display())]
    Disk { dir: PathBuf, source: LayerError },
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

    /// Gives the same snapshot to somebody else: puts it into a new directory of the same file
    /// system, by hard links. Layers that are not sealed yet are sealed first.
    ///
    /// # Errors
    ///
    /// [`SnapshotError`]; nothing is left then.
    pub fn link_into(&self, dir: &Path, durability: Durability) -> Result<Self, SnapshotError> {
        self.seal(Durability::Synced, &|| false)?;
        Self::put(dir, durability, |new| {
            self.memory.link_into(new, durability)?;
            for (layer, open) in self.manifest.layers.iter().zip(self.open_layers()?) {
                let to = new.join(&layer.file);
                match layer.format {
                    // The very file that was looked at.
                    DiskFormat::Qcow2 => link_open(&open.file, &to)?,
                    DiskFormat::Raw | DiskFormat::Cow => link(&self.dir.join(&layer.file), &to)?,
                }
            }
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

    /// Makes sure that nobody can write to a layer any more, also by copying it. Costs a look at each
    /// if that is so already. Blocks.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Disk`]; [`LayerError::Cancelled`] in it if `cancelled` says so. The snapshot is
    /// as good as it was then.
    pub fn seal(
        &self,
        durability: Durability,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), SnapshotError> {
        let how = Sealing {
            longest: qcow2::longest(self.manifest.disk_size),
            synced: durability == Durability::Synced,
            cancelled,
        };
        // The image is nobody's to write; what the kernel writes, no VM has open.
        let wanted = self.manifest.layers.iter().filter(|it| it.format == DiskFormat::Qcow2);
        for layer in wanted {
            seal_layer(layer, &self.dir, &how).map_err(self.in_disk())?;
        }
        Ok(())
    }

    /// Opens the disk's layers for a VM, the lowest first: those that VMs wrote are sealed, and what
    /// their headers say is what was written when they were made.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Disk`].
    pub fn open_layers(&self) -> Result<Vec<OpenLayer>, SnapshotError> {
        let mut open = Vec::with_capacity(self.manifest.layers.len());
        let mut below: Option<&Layer> = None;
        for layer in &self.manifest.layers {
            let found = self.open_layer(layer, below).map_err(self.in_disk())?;
            open.push(found);
            below = Some(layer);
        }
        Ok(open)
    }

    fn open_layer(&self, layer: &Layer, below: Option<&Layer>) -> Result<OpenLayer, LayerError> {
        let found = layer.open(&self.dir)?;
        if let (DiskFormat::Qcow2, Some(below)) = (layer.format, below) {
            match is_sealed(&found.file).map_err(LayerError::io("measure", &layer.file))? {
                true => drop(qcow2::check(layer, &found.file, below, self.manifest.disk_size)?),
                false => return Err(LayerError::NotSealed { file: layer.file.clone() }),
            }
        }
        Ok(found)
    }

    fn in_disk(&self) -> impl Fn(LayerError) -> SnapshotError {
        |source| SnapshotError::Disk { dir: self.dir.clone(), source }
    }

    /// Links the disk's layers into the directory of a snapshot that the same machine takes, whether
    /// they are sealed or not: nobody else has that yet.
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

/// Links a file that is open, whatever its name stands for by now.
fn link_open(file: &File, to: &Path) -> Result<(), SnapshotError> {
    let open = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let linked = linkat(AT_FDCWD, &open, AT_FDCWD, to, AtFlags::AT_SYMLINK_FOLLOW);
    linked.map_err(|errno| SnapshotError::io("link", to)(errno.into()))
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
