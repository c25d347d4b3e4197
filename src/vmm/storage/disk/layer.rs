//! The read-only files below a sandbox's overlay.

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

use serde::{Deserialize, Serialize};

use super::qcow2::Problem;

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

/// A layer cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// It is not what was written when it was made.
    #[error("layer {file} {problem}")]
    Refused {
        /// Its name.
        file: String,
        /// What is wrong with it.
        problem: Problem,
    },
    /// A VM may still have it open for writing.
    #[error("layer {file} is not sealed: whatever wrote it may still write to it")]
    NotSealed {
        /// Its name.
        file: String,
    },
    /// It could not be read or written.
    #[error("cannot {verb} layer {file}")]
    Io {
        /// What was tried.
        verb: &'static str,
        /// Its name.
        file: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody wants the result any more.
    #[error("work on a disk's layers was cancelled")]
    Cancelled,
}

impl LayerError {
    /// Makes an error of the layer called `file` that says what was tried.
    pub fn io(verb: &'static str, file: &str) -> impl FnOnce(io::Error) -> Self {
        let file = file.to_owned();
        move |source| Self::Io { verb, file, source }
    }
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
    /// Opens the layer, which is a file in `dir`, an overlay no link to one elsewhere.
    ///
    /// # Errors
    ///
    /// [`LayerError::Io`].
    pub fn open(&self, dir: &Path) -> Result<OpenLayer, LayerError> {
        let open = || {
            let mut options = File::options();
            options.read(true);
            if self.format != DiskFormat::Raw {
                // An image's own disk may be what a person has linked there.
                options.custom_flags(libc::O_NOFOLLOW);
            }
            let file = options.open(dir.join(&self.file))?;
            match file.metadata()?.is_file() {
                true => Ok(file),
                false => Err(io::Error::other("it is no regular file")),
            }
        };
        let file = open().map_err(LayerError::io("open", &self.file))?;
        Ok(OpenLayer { file, format: self.format })
    }
}
