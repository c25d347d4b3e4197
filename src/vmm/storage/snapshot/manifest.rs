//! `snapshot.json`: what a snapshot is, beside its memory.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{ROOTFS, SnapshotError};
use crate::domain::engine::Engine;
use crate::domain::id::SandboxId;
use crate::domain::name::TemplateName;
use crate::domain::rates::RateLimits;
use crate::domain::shape::Shape;
use crate::vmm::storage::disk::{DiskFormat, Layer};
use crate::vmm::storage::memory::BuildId;

/// Version of the manifest's layout; another one is refused.
pub const FORMAT: u32 = 1;

const FILE: &str = "snapshot.json";

/// What a snapshot is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Tells it from all others; the same as in the name of its topmost layer.
    pub build: BuildId,
    /// When it was taken.
    pub created_at: DateTime<Utc>,
    /// What it was taken from.
    pub sandbox_id: SandboxId,
    /// The image that it all began with.
    pub image: TemplateName,
    /// vCPUs and memory of the VM.
    pub shape: Shape,
    /// What can restore it.
    pub engine: Engine,
    /// The disk's layers in its directory, the lowest first.
    pub layers: Vec<Layer>,
    /// Size of the disk as the guest sees it, in bytes.
    pub disk_size: u64,
    /// What the guest's agent expects with every request, if it was told to expect anything.
    pub access_token: Option<String>,
    /// How fast its VM might use the disk and the network.
    #[serde(default)]
    pub rates: RateLimits,
    /// Environment that the guest's agent gives to processes.
    pub envs: BTreeMap<String, String>,
}

impl Manifest {
    /// Reads the manifest in `dir`.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`], [`SnapshotError::Manifest`], [`SnapshotError::Format`],
    /// [`SnapshotError::Layers`].
    pub fn read(dir: &Path) -> Result<Self, SnapshotError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        let path = dir.join(FILE);
        let text = fs::read(&path).map_err(SnapshotError::io("read", &path))?;
        let malformed = |source| SnapshotError::Manifest { path: path.clone(), source };
        let Format { format } = serde_json::from_slice(&text).map_err(malformed)?;
        if format != FORMAT {
            return Err(SnapshotError::Format { path, found: format });
        }
        let manifest: Self = serde_json::from_slice(&text).map_err(malformed)?;
        match manifest.wrong_layer() {
            None => Ok(manifest),
            Some(file) => Err(SnapshotError::Layers { path, file }),
        }
    }

    /// The first layer that is not one on the ones below it, or has a name that is not of this
    /// directory: names of layers become paths.
    fn wrong_layer(&self) -> Option<String> {
        let Some((base, above)) = self.layers.split_first() else { return Some(String::new()) };
        if base.file != ROOTFS || base.format != DiskFormat::Raw {
            return Some(base.file.clone());
        }
        let is_wrong = |(index, layer): (usize, &Layer)| {
            let fits = above[0].format == layer.format && layer.format != DiskFormat::Raw;
            let twice = above[..index].iter().any(|other| other.file == layer.file);
            let named = build_of(layer).is_some_and(|build| *layer == overlay(build, layer.format));
            (twice || !fits || !named).then(|| layer.file.clone())
        };
        above.iter().enumerate().find_map(is_wrong)
    }

    /// Writes it into `dir`, in place of an older one if there is one.
    ///
    /// # Errors
    ///
    /// [`SnapshotError::Io`].
    pub(super) fn write(&self, dir: &Path) -> Result<(), SnapshotError> {
        let path = dir.join(FILE);
        let text = serde_json::to_vec_pretty(self).expect("a manifest has only string keys");
        // It holds a secret, but its directory is root's alone.
        let new = path.with_extension("json.new");
        fs::write(&new, text)
            .and_then(|()| fs::rename(&new, &path))
            .map_err(SnapshotError::io("write", &path))
    }
}

/// The layer that an overlay becomes in the snapshot of that build.
pub fn overlay(build: BuildId, format: DiskFormat) -> Layer {
    Layer { file: format!("overlay.{build}.{}", format.as_str()), format }
}

fn build_of(layer: &Layer) -> Option<BuildId> {
    layer.file.split('.').nth(1)?.parse().ok()
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
