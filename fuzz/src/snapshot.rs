//! In place of what is around a manifest in `vmm/snapshot/mod.rs`.

use std::io;
use std::path::{Path, PathBuf};

use super::{FORMAT, Manifest};
use crate::vmm::storage::disk::LayerError;

#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    #[error("cannot {verb} {}", path.display())]
    Io { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{} is no snapshot manifest", path.display())]
    Manifest { path: PathBuf, source: serde_json::Error },
    #[error("{} has format {found}, and this version reads {FORMAT}", path.display())]
    Format { path: PathBuf, found: u32 },
    #[error("{} names {file:?}, which is no layer of a disk", path.display())]
    Layers { path: PathBuf, file: String },
}

impl SnapshotError {
    pub fn io(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { verb, path, source }
    }
}

/// Writes a manifest as the daemon does.
///
/// # Errors
///
/// [`SnapshotError::Io`].
pub fn write(manifest: &Manifest, dir: &Path) -> Result<(), SnapshotError> {
    manifest.write(dir)
}
