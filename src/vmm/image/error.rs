//! Why an image cannot be used or made.

use std::io;
use std::path::{Path, PathBuf};

use super::kernel::KernelError;
use super::manifest::FORMAT;
use super::module_tree::ModuleTreeError;
use super::rootfs::RootfsError;
use crate::domain::name::TemplateName;

/// Why an image cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image has this name.
    #[error("there is no image {name}; `{}` makes one", hint(name))]
    NotFound {
        /// What was asked for.
        name: TemplateName,
    },
    /// The name is one that the store needs itself.
    #[error("no image can be called {name}")]
    Reserved {
        /// What was asked for.
        name: TemplateName,
    },
    /// Files of the image are not what its manifest says.
    #[error("image {name} is damaged: {}; build it again with --force", list(files))]
    Damaged {
        /// The image.
        name: TemplateName,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// The image was made by a version of Nestbox with another layout.
    #[error("image {name} has format {found}, and this version reads {FORMAT}; build it again")]
    Format {
        /// The image.
        name: TemplateName,
        /// Its format.
        found: u32,
    },
    /// A file of the store could not be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel could not be made.
    #[error("cannot make the kernel of image {name}")]
    Kernel {
        /// The image.
        name: TemplateName,
        /// Why not.
        #[source]
        source: KernelError,
    },
    /// The root filesystem could not be made.
    #[error("cannot make the root filesystem of image {name}")]
    Rootfs {
        /// The image.
        name: TemplateName,
        /// Why not.
        #[source]
        source: RootfsError,
    },
    /// The kernel's modules could not be put into the root filesystem.
    #[error("cannot put the kernel's modules into image {name}")]
    Modules {
        /// The image.
        name: TemplateName,
        /// Why not.
        #[source]
        source: ModuleTreeError,
    },
}

fn hint(name: &TemplateName) -> String {
    match name.as_str() {
        "debian" | "dev" => format!("nestbox image build {name}"),
        other => format!("nestbox image build debian --name {other}"),
    }
}

fn list(files: &[PathBuf]) -> String {
    files.iter().map(|f| f.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// Makes an error of the store's own files.
pub(super) fn io_at(path: &Path) -> impl FnOnce(io::Error) -> ImageError {
    let path = path.to_owned();
    move |source| ImageError::Io { path, source }
}
