//! Images: a kernel, an initramfs and a read-only root filesystem to boot a microVM from.
//!
//! ```text
//! {dir}/kernels/{release}-{sum}/   vmlinux, modules/*.ko, order, kernel.json,   never changes
//!                                  modules.tar: all of them, for guests
//! {dir}/initramfs/{sum}.cpio       a kernel's modules with the embedded agent   made when asked for
//! {dir}/{name}/                    rootfs-{sum}.ext4, image.json, warm/ (of `vmm::host`)
//! {dir}/.lock  {dir}/.work/        one build at a time, and what it has not finished
//! ```
//!
//! Everything here blocks; it knows no sandbox, no hypervisor and no command line. A root
//! filesystem and a kernel are never changed once they have their final name. A rebuilt image gets new
//! files; a root filesystem that it replaces lives on where a snapshot has a link to it.

mod apt;
mod bzimage;
pub mod checksum;
mod command;
mod debugfs;
mod error;
mod initramfs;
mod kernel;
mod manifest;
mod module_tree;
mod modules;
mod registries;
mod rootfs;
mod session;
mod store;

use std::io::Read;
use std::path::PathBuf;

use chrono::{DateTime, Utc};
use flate2::read::GzDecoder;

use crate::domain::name::TemplateName;

pub use command::CommandError;
pub use error::ImageError;
pub use kernel::KernelError;
pub use manifest::Part;
pub use rootfs::{Contents, RootfsError, RootfsSource};
pub use store::{Built, ImageStore, Rebuild};

/// The guest agent, a static binary: `/init` of every initramfs. It is half of its size within this
/// program, and wanted when an image is made or looked for.
pub fn envd() -> Vec<u8> {
    let packed: &[u8] = include_bytes!(env!("NESTBOX_ENVD"));
    let mut agent = Vec::with_capacity(packed.len() * 3);
    GzDecoder::new(packed).read_to_end(&mut agent).expect("build.rs has compressed it");
    agent
}

/// An image that is ready to boot.
#[derive(Debug, Clone)]
pub struct Image {
    /// What it is asked for by.
    pub name: TemplateName,
    /// The ELF kernel.
    pub kernel: PathBuf,
    /// The modules and the guest agent.
    pub initramfs: PathBuf,
    /// The root filesystem, a raw ext4 disk that nobody may write.
    pub rootfs: PathBuf,
    /// What `uname -r` says in a guest.
    pub kernel_version: String,
    /// When the image was made.
    pub created_at: DateTime<Utc>,
    /// What the image was made from, for people.
    pub source: String,
    /// Apparent size of the root filesystem in bytes.
    pub rootfs_bytes: u64,
    /// Checksum of the root filesystem's content.
    pub rootfs_sha256: String,
    /// SHA-256 of the kernel.
    pub kernel_sha256: String,
}

/// One who wants to know how far a build is.
pub trait Progress: Send + Sync {
    /// A step begins; the one before is done.
    fn step(&self, text: &str);

    /// Something to know about the step at hand.
    fn detail(&self, text: &str);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _: &str) {}

    fn detail(&self, _: &str) {}
}
