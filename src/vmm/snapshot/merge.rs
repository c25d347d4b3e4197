//! Merges what many captures have left, so that a chain does not grow for ever.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::{Snapshot, SnapshotError};
use crate::vmm::disk::cow::{self, CowError};
use crate::vmm::disk::{DiskFormat, Layer};
use crate::vmm::memory::{self, BuildId, Durability, MAX_DIFFS, MemoryError};

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
    let mut manifest = snapshot.manifest;
    let (base, top) = match manifest.layers.as_slice() {
        [base, .., top] => (base.clone(), top.clone()),
        _ => return Ok(()),
    };
    let merged = Layer { file: layer_name(BuildId::random(), top.format), format: top.format };
    let to = dir.join(&merged.file);
    let written = match top.format {
        DiskFormat::Qcow2 => write_qcow2(dir, &top, &merged, &base),
        DiskFormat::Cow => write_cow(dir, &manifest.layers[1..], &to, cancelled),
        DiskFormat::Raw => return Ok(()),
    };
    match written {
        Ok(Written::All) => {}
        Ok(Written::Nothing) => return Ok(()),
        Err(error) => {
            let _ = fs::remove_file(&to);
            return Err(error);
        }
    }
    let former = std::mem::replace(&mut manifest.layers, vec![base, merged]);
    manifest.write(dir)?;
    super::sync(dir)?;
    for layer in &former[1..] {
        let path = dir.join(&layer.file);
        fs::remove_file(&path).map_err(SnapshotError::io("remove", &path))?;
    }
    Ok(())
}

fn layer_name(build: BuildId, format: DiskFormat) -> String {
    format!("overlay.{build}.{}", format.as_str())
}

/// A copy of the topmost overlay takes in what the ones below it have. It must not be a link: others
/// may have the same file.
fn write_qcow2(
    dir: &Path,
    top: &Layer,
    merged: &Layer,
    base: &Layer,
) -> Result<Written, SnapshotError> {
    let (from, to) = (dir.join(&top.file), dir.join(&merged.file));
    fs::copy(&from, &to).map_err(SnapshotError::io("copy", &from))?;
    rebase(dir, &merged.file, base)?;
    super::sync(&to)?;
    Ok(Written::All)
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

/// Has an overlay lie on `base` alone. `qemu-img` finds the layers in between by their names in the
/// overlays' headers, which are relative to their directory.
fn rebase(dir: &Path, overlay: &str, base: &Layer) -> Result<(), SnapshotError> {
    let path = dir.join(overlay);
    let failed = SnapshotError::io("merge", &path);
    let output = Command::new("qemu-img")
        .args(["rebase", "-f", "qcow2", "-F", base.format.as_str(), "-b", &base.file, overlay])
        .current_dir(dir)
        .output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(failed(std::io::Error::other(said)))
        }
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
#[path = "merge_tests.rs"]
mod tests;
