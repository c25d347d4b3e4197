//! The files that say what an image and a kernel consist of. Written last, so that what has a
//! manifest is whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use chrono::{DateTime, Utc};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize};

use crate::domain::name::TemplateName;

/// Version of the manifests' layout; another one is refused.
pub const FORMAT: u32 = 1;

/// `image.json`: one image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Name of the image, the same as of its directory.
    pub name: TemplateName,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// What it was made from, for people.
    pub source: String,
    /// Directory of its kernel under `kernels/`.
    #[serde(deserialize_with = "plain_name")]
    pub kernel: String,
    /// The root filesystem; its sum is [`super::checksum::of_sparse_file`].
    pub rootfs: Part,
}

/// `kernel.json`: one kernel, shared by images.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct KernelManifest {
    /// [`FORMAT`].
    pub format: u32,
    /// What `uname -r` says in a guest.
    pub version: String,
    /// When it was unpacked.
    pub created_at: DateTime<Utc>,
    /// The ELF kernel.
    pub vmlinux: Part,
    /// Modules under `modules/`, in load order.
    pub modules: Vec<Part>,
    /// All modules, to be put into root filesystems; none of a kernel that has its drivers built in, or
    /// that a version stored which did not keep them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Part>,
}

/// One file with what it must contain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// File name, without directories.
    #[serde(deserialize_with = "plain_name")]
    pub file: String,
    /// Apparent size in bytes.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// Names in manifests become paths: each is one that a directory can have, and leads nowhere else.
fn plain_name<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let name = String::deserialize(deserializer)?;
    match name.is_empty() || name == "." || name == ".." || name.contains(['/', '\0']) {
        true => Err(D::Error::custom(format!("{name:?} is no name of a file"))),
        false => Ok(name),
    }
}

/// Reads a manifest.
///
/// # Errors
/// Those of reading the file; `InvalidData` if it is not a manifest.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

/// Writes a manifest under another name, brings it to disk, and renames it into place.
///
/// # Errors
/// Those of writing, syncing and renaming.
pub fn write<T: Serialize>(path: &Path, manifest: &T) -> io::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(manifest)?;
    bytes.push(b'\n');
    replace(path, &bytes)
}

/// Puts `bytes` at `path` so that a crash leaves either the old file or the new one.
///
/// # Errors
/// Those of writing, syncing and renaming.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new().prefix(super::store::TEMPORARY).tempfile_in(dir)?;
    file.write_all(bytes)?;
    publish_mode(file.as_file())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    sync_dir(dir)
}

/// Brings a directory's entries to disk.
///
/// # Errors
/// Those of opening and syncing it.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Lets everybody read a part and nobody write it: hypervisors run as other users.
///
/// # Errors
/// Those of changing the mode.
pub fn publish_mode(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o444))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_of_a_version_that_kept_no_modules_for_guests_is_read() {
        let part = serde_json::json!({ "file": "vmlinux", "bytes": 1, "sha256": "" });
        let old = serde_json::json!({
            "format": FORMAT, "version": "6.1", "created_at": Utc::now(), "vmlinux": part,
            "modules": [part],
        });
        let kernel: KernelManifest = serde_json::from_value(old).unwrap();
        assert_eq!((kernel.tree, kernel.modules.len()), (None, 1));
    }

    #[test]
    fn a_name_that_leads_elsewhere_is_refused_where_it_is_read() {
        let part = |file: &str| {
            let text = serde_json::json!({ "file": file, "bytes": 1, "sha256": "" }).to_string();
            serde_json::from_str::<Part>(&text)
        };
        part("rootfs-0123.ext4").unwrap();
        for file in ["", ".", "..", "/etc/shadow", "../rootfs", "a/b", "a\0b"] {
            let refused = part(file).unwrap_err().to_string();
            assert!(refused.contains("is no name of a file"), "{file:?}: {refused}");
        }
    }
}
