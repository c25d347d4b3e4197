//! The images of one directory: finding, building, checking and removing them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use chrono::Utc;

use super::error::{ImageError, io_at};
use super::kernel;
use super::manifest::{self, FORMAT, ImageManifest, KernelManifest, Part};
use super::module_tree;
use super::rootfs::{self, Contents, RootfsSource};
use super::session::{Session, make_dir, remove_tree};
use super::{Image, Progress, checksum, envd, initramfs};
use crate::domain::name::TemplateName;

/// What names of files that are not finished start with.
pub const TEMPORARY: &str = ".part-";

const MANIFEST: &str = "image.json";
/// Directories that are no images. No template can have the name of the hidden ones.
const KERNELS: &str = "kernels";
const INITRAMFS: &str = "initramfs";

/// What to do with an image that is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rebuild {
    /// Leave it.
    IfMissing,
    /// Build it again.
    Always,
}

/// What a build did.
#[derive(Debug, Clone)]
pub enum Built {
    /// The image was made.
    New(Image),
    /// The image was there.
    Present(Image),
}

/// The images under one directory.
#[derive(Debug, Clone)]
pub struct ImageStore {
    dir: PathBuf,
}

impl ImageStore {
    /// Names the directory that holds the images. It is made when the first image is.
    pub fn open(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Lists the images that are whole, by name. Damaged ones are left out; [`ImageStore::verify`]
    /// tells about them.
    ///
    /// # Errors
    /// [`ImageError::Io`] if the directory cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let names = self.names()?;
        Ok(names.iter().filter_map(|name| self.get(name).ok()).collect())
    }

    /// Returns the image called `name`, with an initramfs of this program's agent.
    ///
    /// Checks that the files are there and have the right size, not their sums.
    ///
    /// # Errors
    /// [`ImageError::NotFound`], [`ImageError::Damaged`], [`ImageError::Format`], [`ImageError::Io`].
    pub fn get(&self, name: &TemplateName) -> Result<Image, ImageError> {
        let (image, kernel) = self.manifests(name)?;
        let kernel_dir = self.dir.join(KERNELS).join(&image.kernel);
        let rootfs = self.dir.join(name.as_str()).join(&image.rootfs.file);
        let vmlinux = kernel_dir.join(&kernel.vmlinux.file);
        let mut damaged = Vec::new();
        for (path, part) in [(&rootfs, &image.rootfs), (&vmlinux, &kernel.vmlinux)] {
            if fs::metadata(path).map(|meta| meta.len()).ok() != Some(part.bytes) {
                damaged.push(path.clone());
            }
        }
        if !damaged.is_empty() {
            return Err(ImageError::Damaged { name: name.clone(), files: damaged });
        }
        Ok(Image {
            name: name.clone(),
            initramfs: self.ensure_initramfs(name, &kernel_dir, &kernel)?,
            kernel: vmlinux,
            rootfs,
            kernel_version: kernel.version,
            created_at: image.created_at,
            source: image.source,
            rootfs_bytes: image.rootfs.bytes,
            rootfs_sha256: image.rootfs.sha256,
            kernel_sha256: kernel.vmlinux.sha256,
        })
    }

    /// Builds an image of Debian with `contents` and Debian's kernel.
    ///
    /// Waits while another build runs in this directory. Takes about half a minute and needs root.
    ///
    /// # Errors
    /// [`ImageError::Kernel`], [`ImageError::Rootfs`], [`ImageError::Io`], [`ImageError::Reserved`];
    /// an image of that name that was there before still is.
    pub fn build_debian(
        &self,
        name: &TemplateName,
        contents: Contents,
        rebuild: Rebuild,
        progress: &dyn Progress,
    ) -> Result<Built, ImageError> {
        let session = self.session(name, progress)?;
        if rebuild == Rebuild::IfMissing
            && let Ok(image) = self.get(name)
        {
            return Ok(Built::Present(image));
        }
        let kernel = kernel::from_debian(&self.dir.join(KERNELS), session.work(), progress)
            .map_err(|source| ImageError::Kernel { name: name.clone(), source })?;
        let disk = session.work().join("rootfs.ext4");
        rootfs::build_debian(contents, session.work(), &disk, progress)
            .map_err(|source| ImageError::Rootfs { name: name.clone(), source })?;
        self.add_modules(name, &kernel, &disk, session.work(), progress)?;
        self.publish(name, kernel, &disk, contents.source(), progress).map(Built::New)
    }

    /// Makes an image of somebody's root filesystem, with their kernel or else Debian's: the newest
    /// one that is here already, or a fresh one. An image of that name that was there before is
    /// replaced.
    ///
    /// # Errors
    /// As [`ImageStore::build_debian`].
    pub fn import(
        &self,
        name: &TemplateName,
        source: &RootfsSource,
        kernel: Option<&Path>,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let session = self.session(name, progress)?;
        let disk = session.work().join("rootfs.ext4");
        rootfs::import(source, session.work(), &disk, progress)
            .map_err(|source| ImageError::Rootfs { name: name.clone(), source })?;
        let kernels = self.dir.join(KERNELS);
        let kernel = match kernel {
            Some(path) => kernel::from_file(&kernels, session.work(), path),
            None => match kernel::stored_debian(&kernels) {
                Some(stored) => Ok(stored),
                None => kernel::from_debian(&kernels, session.work(), progress),
            },
        };
        let kernel = kernel.map_err(|source| ImageError::Kernel { name: name.clone(), source })?;
        self.add_modules(name, &kernel, &disk, session.work(), progress)?;
        self.publish(name, kernel, &disk, source.path().display().to_string(), progress)
    }

    /// Removes an image, and kernels that no image needs any more. Sandboxes that run from it keep
    /// their open files; frozen ones lose their disk, so the caller asks whether there are any.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] or [`ImageError::Io`].
    pub fn remove(&self, name: &TemplateName) -> Result<(), ImageError> {
        let dir = self.dir.join(name.as_str());
        if !dir.join(MANIFEST).exists() {
            return Err(ImageError::NotFound { name: name.clone() });
        }
        let _session = self.session(name, &super::Silent)?;
        // Without its manifest the rest is a left-over, whatever happens next.
        match fs::remove_file(dir.join(MANIFEST)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(io_at(&dir)(e)),
            _ => self.remove_leftovers(),
        }
    }

    /// Reads every byte of an image and compares it with the manifest.
    ///
    /// # Errors
    /// [`ImageError::Damaged`] names the files; others as [`ImageStore::get`].
    pub fn verify(&self, name: &TemplateName) -> Result<(), ImageError> {
        let (image, _) = self.manifests(name)?;
        let kernel_dir = self.dir.join(KERNELS).join(&image.kernel);
        let mut damaged = kernel::verify(&kernel_dir).map_err(io_at(&kernel_dir))?;
        let rootfs = self.dir.join(name.as_str()).join(&image.rootfs.file);
        if checksum::of_sparse_file(&rootfs).ok().as_ref() != Some(&image.rootfs.sha256) {
            damaged.push(rootfs);
        }
        match damaged.is_empty() {
            true => Ok(()),
            false => Err(ImageError::Damaged { name: name.clone(), files: damaged }),
        }
    }

    fn names(&self) -> Result<Vec<TemplateName>, ImageError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other.map_err(io_at(&self.dir))?,
        };
        let names = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok());
        let mut names: Vec<TemplateName> = names
            .filter(|name: &TemplateName| self.dir.join(name.as_str()).join(MANIFEST).exists())
            .collect();
        names.sort();
        Ok(names)
    }

    fn manifests(
        &self,
        name: &TemplateName,
    ) -> Result<(ImageManifest, KernelManifest), ImageError> {
        let path = self.dir.join(name.as_str()).join(MANIFEST);
        let image: ImageManifest = match manifest::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::NotFound { name: name.clone() });
            }
            other => other.map_err(io_at(&path))?,
        };
        let path = self.dir.join(KERNELS).join(&image.kernel).join("kernel.json");
        let kernel: KernelManifest = match manifest::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(ImageError::Damaged { name: name.clone(), files: vec![path] });
            }
            other => other.map_err(io_at(&path))?,
        };
        match [image.format, kernel.format].into_iter().find(|format| *format != FORMAT) {
            Some(found) => Err(ImageError::Format { name: name.clone(), found }),
            None => Ok((image, kernel)),
        }
    }

    /// Returns the initramfs of a kernel with this program's agent; makes it if it is not there.
    fn ensure_initramfs(
        &self,
        name: &TemplateName,
        kernel_dir: &Path,
        kernel: &KernelManifest,
    ) -> Result<PathBuf, ImageError> {
        static ENVD_SUM: OnceLock<String> = OnceLock::new();
        let agent = ENVD_SUM.get_or_init(|| checksum::of_bytes(&envd()));
        let modules = kernel.modules.iter().map(|m| format!("{}={};", m.file, m.sha256));
        let content: String = modules.chain([agent.clone()]).collect();
        let sum = checksum::of_bytes(content.as_bytes());
        let path = self.dir.join(INITRAMFS).join(format!("{sum}.cpio"));
        if path.exists() {
            return Ok(path);
        }

        let mut modules = Vec::with_capacity(kernel.modules.len());
        for part in &kernel.modules {
            let file = kernel_dir.join("modules").join(&part.file);
            match fs::read(&file) {
                Ok(object) if checksum::of_bytes(&object) == part.sha256 => {
                    modules.push((part.file.clone(), object));
                }
                _ => return Err(ImageError::Damaged { name: name.clone(), files: vec![file] }),
            }
        }
        let agent = envd();
        let mut archive = Vec::with_capacity(agent.len() + (1 << 20));
        initramfs::write(&mut archive, &agent, &modules)
            .and_then(|()| make_dir(&self.dir.join(INITRAMFS)))
            .and_then(|()| manifest::replace(&path, &archive))
            .map_err(io_at(&path))?;
        Ok(path)
    }

    /// Waits for its turn, and begins a build on an empty work directory.
    fn session(&self, name: &TemplateName, progress: &dyn Progress) -> Result<Session, ImageError> {
        if [KERNELS, INITRAMFS].contains(&name.as_str()) {
            return Err(ImageError::Reserved { name: name.clone() });
        }
        let session = Session::begin(&self.dir, progress)?;
        self.remove_leftovers()?;
        Ok(session)
    }

    /// Puts all modules of a stored kernel into a root filesystem.
    fn add_modules(
        &self,
        name: &TemplateName,
        kernel: &str,
        disk: &Path,
        work: &Path,
        progress: &dyn Progress,
    ) -> Result<(), ImageError> {
        let dir = self.dir.join(KERNELS).join(kernel);
        let path = dir.join("kernel.json");
        let kernel: KernelManifest = manifest::read(&path).map_err(io_at(&path))?;
        let Some(tree) = kernel.tree else { return Ok(()) };
        progress.step("adding the kernel's modules");
        module_tree::install(&dir.join(&tree.file), &kernel.version, disk, work, progress)
            .map_err(|source| ImageError::Modules { name: name.clone(), source })
    }

    /// Gives a finished disk its final name; the manifest, renamed last, makes it an image.
    fn publish(
        &self,
        name: &TemplateName,
        kernel: String,
        disk: &Path,
        source: String,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        progress.step("computing checksums");
        let sha256 = checksum::of_sparse_file(disk).map_err(io_at(disk))?;
        let bytes = fs::metadata(disk).map_err(io_at(disk))?.len();
        let dir = self.dir.join(name.as_str());
        make_dir(&dir).map_err(io_at(&dir))?;
        let file = format!("rootfs-{}.ext4", &sha256[..12]);
        fs::rename(disk, dir.join(&file)).map_err(io_at(&dir))?;
        manifest::sync_dir(&dir).map_err(io_at(&dir))?;
        let manifest = ImageManifest {
            format: FORMAT,
            name: name.clone(),
            created_at: Utc::now(),
            source,
            kernel,
            rootfs: Part { file, bytes, sha256 },
        };
        let path = dir.join(MANIFEST);
        manifest::write(&path, &manifest).map_err(io_at(&path))?;
        manifest::sync_dir(&self.dir).map_err(io_at(&self.dir))?;
        remove_replaced(&dir, &manifest.rootfs.file).map_err(io_at(&dir))?;
        self.get(name)
    }

    /// Removes what killed builds and removed images left behind. The caller holds the lock.
    fn remove_leftovers(&self) -> Result<(), ImageError> {
        let mut kernels = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io_at(&self.dir))?.flatten() {
            let (path, file_name) = (entry.path(), entry.file_name());
            let Some(name) = file_name.to_str().filter(|n| n.parse::<TemplateName>().is_ok())
            else {
                continue;
            };
            if [KERNELS, INITRAMFS].contains(&name) || !path.is_dir() {
                continue;
            }
            match manifest::read::<ImageManifest>(&path.join(MANIFEST)) {
                Ok(manifest) => kernels.push(manifest.kernel),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    remove_tree(&path).map_err(io_at(&path))?;
                }
                // What cannot be read may still be somebody's image.
                Err(error) => return Err(io_at(&path)(error)),
            }
        }
        self.remove_unused_kernels(&kernels)
    }

    fn remove_unused_kernels(&self, used: &[String]) -> Result<(), ImageError> {
        let dir = self.dir.join(KERNELS);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            if !used.iter().any(|kernel| entry.file_name() == kernel.as_str()) {
                remove_tree(&entry.path()).map_err(io_at(&entry.path()))?;
            }
        }
        Ok(())
    }
}

/// Removes root filesystems of former builds of an image. Sandboxes that need one have a link to it.
fn remove_replaced(dir: &Path, current: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("rootfs-") && name != current {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}
