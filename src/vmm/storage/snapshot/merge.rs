//! Merges what many captures have left, so that a chain does not grow for ever.

use std::fs::{self, File};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{Snapshot, SnapshotError, overlay};
use crate::vmm::storage::disk::cow::{self, CowError};
use crate::vmm::storage::disk::{DiskFormat, Layer, LayerError, qcow2};
use crate::vmm::storage::memory::{self, BuildId, Durability, MAX_DIFFS, MemoryError};

/// Overlays on the image's root disk, before they are merged to one.
const MAX_OVERLAYS: usize = 10;

/// Merges the memory's generations and the disk's overlays of the snapshot in `dir`, where there are
/// too many. Its content stays the same; a crash leaves what was, or what is to be. Blocks, and
/// nobody else may use the snapshot meanwhile; ends early when `cancelled` says so.
///
/// # Errors
///
/// [`SnapshotError`]; the snapshot is as it was then.
pub fn merge(dir: &Path, cancelled: &dyn Fn() -> bool) -> Result<(), SnapshotError> {
    let snapshot = Snapshot::open(dir)?;
    if snapshot.memory.diffs() > MAX_DIFFS {
        let build = BuildId::random();
        match memory::collapse(&snapshot.memory, dir, build, cancelled, Durability::Synced) {
            Err(MemoryError::Cancelled) => return Ok(()),
            collapsed => drop(collapsed?),
        }
    }
    if snapshot.manifest.layers.len() > 1 + MAX_OVERLAYS && !cancelled() {
        merge_overlays(dir, snapshot, cancelled)?;
    }
    Ok(())
}

/// What a merge has left.
enum Written {
    /// One overlay that has what all had.
    All,
    /// Nothing: nobody wants it any more.
    Nothing,
}

fn merge_overlays(
    dir: &Path,
    snapshot: Snapshot,
    cancelled: &dyn Fn() -> bool,
) -> Result<(), SnapshotError> {
    let (base, top) = match snapshot.manifest.layers.as_slice() {
        [base, .., top] => (base.clone(), top.clone()),
        _ => return Ok(()),
    };
    let merged = overlay(BuildId::random(), top.format);
    let to = dir.join(&merged.file);
    let written = match top.format {
        DiskFormat::Qcow2 => write_qcow2(&snapshot, &base, &merged, cancelled),
        DiskFormat::Cow => write_cow(dir, &snapshot.manifest.layers[1..], &to, cancelled),
        DiskFormat::Raw => return Ok(()),
    };
    match written {
        Ok(Written::All) => {}
        outcome => {
            let _ = fs::remove_file(&to);
            return outcome.map(drop);
        }
    }
    let mut manifest = snapshot.manifest;
    let former = std::mem::replace(&mut manifest.layers, vec![base, merged]);
    manifest.write(dir)?;
    super::sync(dir)?;
    for layer in &former[1..] {
        let path = dir.join(&layer.file);
        fs::remove_file(&path).map_err(SnapshotError::io("remove", &path))?;
    }
    Ok(())
}

/// What VMs wrote is read from files that are open and sealed, and every name in them is only
/// compared. Until the new overlay is whole, nothing is changed.
fn write_qcow2(
    snapshot: &Snapshot,
    base: &Layer,
    merged: &Layer,
    cancelled: &dyn Fn() -> bool,
) -> Result<Written, SnapshotError> {
    let written = snapshot.seal(Durability::Synced, cancelled).and_then(|()| {
        let open = snapshot.open_layers()?;
        let files = open.iter().map(|layer| &layer.file);
        let overlays: Vec<_> = snapshot.manifest.layers.iter().zip(files).skip(1).collect();
        let path = snapshot.dir.join(&merged.file);
        // Nobody else has a descriptor of it: it is sealed as soon as this one is closed.
        let mut options = File::options();
        let file = options.write(true).create_new(true).mode(0o400).open(&path);
        let file = file.map_err(SnapshotError::io("create", &path))?;
        let size = snapshot.manifest.disk_size;
        qcow2::flatten(&overlays, base, size, (merged, &file), cancelled)
            .map_err(snapshot.in_disk())
    });
    match written {
        Ok(()) => Ok(Written::All),
        Err(SnapshotError::Disk { source: LayerError::Cancelled, .. }) => Ok(Written::Nothing),
        Err(error) => Err(error),
    }
}

/// The kernel's own overlays know nothing of each other: what they have is copied together.
fn write_cow(
    dir: &Path,
    overlays: &[Layer],
    to: &Path,
    cancelled: &dyn Fn() -> bool,
) -> Result<Written, SnapshotError> {
    let paths: Vec<_> = overlays.iter().map(|layer| dir.join(&layer.file)).collect();
    let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
    match cow::flatten(&paths, to, cancelled) {
        Ok(()) => Ok(Written::All),
        Err(CowError::Cancelled) => Ok(Written::Nothing),
        Err(error) => Err(SnapshotError::io("merge", to)(std::io::Error::other(error))),
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
