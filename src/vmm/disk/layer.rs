//! The read-only files below a sandbox's overlay.

use std::fs::File;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// How a disk's content is laid out in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Byte for byte.
    Raw,
    /// Only what differs from the layer below, as QEMU stores it.
    Qcow2,
    /// Only what differs from the layer below, as the kernel's device-mapper stores it.
    Cow,
}

impl DiskFormat {
    /// The format's name in manifests, and in headers and QEMU as far as QEMU knows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Cow => "cow",
        }
    }
}

/// One read-only file of a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Name of the file, in the directory of its snapshot.
    pub file: String,
    /// Format of the file.
    pub format: DiskFormat,
}

/// A layer that is open for reading.
#[derive(Debug)]
pub struct OpenLayer {
    /// The file; nothing can be written through it.
    pub file: File,
    /// Its format.
    pub format: DiskFormat,
}

impl Layer {
    /// Opens the layer, which is in `dir`.
    ///
    /// # Errors
    ///
    /// Those of opening it.
    pub fn open(&self, dir: &Path) -> io::Result<OpenLayer> {
        Ok(OpenLayer { file: File::open(dir.join(&self.file))?, format: self.format })
    }
}
