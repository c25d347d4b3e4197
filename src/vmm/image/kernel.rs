//! Makes kernel directories: an ELF kernel, the modules a boot needs, their order and a manifest.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use chrono::Utc;

use super::apt::{self, AptError};
use super::bzimage::{self, KernelFileError};
use super::manifest::{self, FORMAT, KernelManifest, Part};
use super::module_tree::{self, ModuleTreeError};
use super::modules::{self, Module, ModulesError};
use super::{Progress, checksum};

/// The package whose dependency is Debian's newest kernel for virtual machines.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const PACKAGE_PREFIX: &str = "linux-image-";
/// File with all modules.
const TREE: &str = "modules.tar";

/// Why no kernel could be made.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The package could not be had.
    #[error("cannot get a kernel from Debian")]
    Package(#[source] AptError),
    /// The kernel file is of no use.
    #[error("cannot use the kernel {}", path.display())]
    File {
        /// The kernel file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelFileError,
    },
    /// The package's modules are of no use.
    #[error("cannot use the kernel's modules")]
    Modules(#[source] ModulesError),
    /// The package's modules could not be packed for guests.
    #[error("cannot pack the kernel's modules for guests")]
    Tree(#[source] ModuleTreeError),
    /// A file could not be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// A kernel as it is about to be stored.
struct Parts {
    version: String,
    vmlinux: Vec<u8>,
    modules: Vec<Module>,
    tree: Option<Vec<u8>>,
}

/// Makes a kernel directory from Debian's package under `kernels` and returns its name.
///
/// # Errors
/// [`KernelError`]; nothing is left under `kernels` then.
pub fn from_debian(
    kernels: &Path,
    work: &Path,
    progress: &dyn Progress,
) -> Result<String, KernelError> {
    progress.step("finding Debian's kernel for virtual machines");
    let package = apt::dependency(META_PACKAGE, PACKAGE_PREFIX).map_err(KernelError::Package)?;
    let version = package.trim_start_matches(PACKAGE_PREFIX).to_owned();
    progress.step(&format!("downloading kernel {version}"));
    let tree = work.join("kernel");
    apt::unpack(&package, work, &tree).map_err(KernelError::Package)?;

    progress.step("unpacking the kernel and its modules");
    let vmlinux = read_kernel(&tree.join("boot").join(format!("vmlinuz-{version}")))?;
    // Debian 13 has /usr/lib where Debian 12 has /lib.
    let dirs = ["lib/modules", "usr/lib/modules"].map(|dir| tree.join(dir).join(&version));
    let dir = dirs.iter().find(|dir| dir.exists()).unwrap_or(&dirs[0]);
    let modules = modules::choose(dir).map_err(KernelError::Modules)?;
    progress.step("packing its modules for guests");
    let tree = module_tree::pack(dir, &version, work).map_err(KernelError::Tree)?;
    store(kernels, work, Parts { version, vmlinux, modules, tree: Some(tree) })
}

/// The name of the newest kernel from Debian's package that is stored already, whole and with all
/// modules, so that an image can be made without fetching one.
pub fn stored_debian(kernels: &Path) -> Option<String> {
    let newest = fs::read_dir(kernels)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            let manifest: KernelManifest =
                manifest::read(&entry.path().join("kernel.json")).ok()?;
            // One's own kernel has its drivers built in; Debian's always comes with modules.
            let usable = manifest.format == FORMAT && manifest.tree.is_some();
            usable.then(|| (manifest.created_at, entry.path()))
        })
        .filter(|(_, dir)| verify(dir).is_ok_and(|damaged| damaged.is_empty()))
        .max()?;
    Some(newest.1.file_name()?.to_str()?.to_owned())
}

/// Makes a kernel directory from one's own kernel, which must have its drivers built in.
///
/// # Errors
/// [`KernelError`]; nothing is left under `kernels` then.
pub fn from_file(kernels: &Path, work: &Path, path: &Path) -> Result<String, KernelError> {
    let vmlinux = read_kernel(path)?;
    let version = bzimage::release(&vmlinux).unwrap_or_else(|| "unknown".to_owned());
    store(kernels, work, Parts { version, vmlinux, modules: Vec::new(), tree: None })
}

fn read_kernel(path: &Path) -> Result<Vec<u8>, KernelError> {
    let bytes = fs::read(path).map_err(|e| KernelError::Io { path: path.to_owned(), source: e })?;
    bzimage::vmlinux(bytes).map_err(|e| KernelError::File { path: path.to_owned(), source: e })
}

/// Stores a kernel under a name that holds its content's sum. A stored kernel never changes, so
/// images can share one and a rebuilt image cannot disturb another.
fn store(kernels: &Path, work: &Path, parts: Parts) -> Result<String, KernelError> {
    let part = |file: &str, bytes: &[u8]| Part {
        file: file.to_owned(),
        bytes: bytes.len() as u64,
        sha256: checksum::of_bytes(bytes),
    };
    let manifest = KernelManifest {
        format: FORMAT,
        version: parts.version,
        created_at: Utc::now(),
        vmlinux: part("vmlinux", &parts.vmlinux),
        modules: parts.modules.iter().map(|m| part(&m.file_name, &m.object)).collect(),
        tree: parts.tree.as_deref().map(|tree| part(TREE, tree)),
    };
    let name = directory_name(&manifest);
    let place = kernels.join(&name);
    if verify(&place).is_ok_and(|damaged| damaged.is_empty()) {
        return Ok(name);
    }

    let fresh = work.join("kernel-fresh");
    let io = |path: &Path| {
        let path = path.to_owned();
        move |source| KernelError::Io { path, source }
    };
    let dir = fresh.join("modules");
    fs::create_dir_all(&dir).map_err(io(&dir))?;
    let order: String = parts.modules.iter().map(|m| format!("{}\n", m.file_name)).collect();
    write_part(&fresh.join("vmlinux"), &parts.vmlinux)?;
    write_part(&fresh.join("order"), order.as_bytes())?;
    for module in &parts.modules {
        write_part(&dir.join(&module.file_name), &module.object)?;
    }
    if let Some(tree) = &parts.tree {
        write_part(&fresh.join(TREE), tree)?;
    }
    manifest::sync_dir(&dir).map_err(io(&dir))?;
    let file = fresh.join("kernel.json");
    manifest::write(&file, &manifest).map_err(io(&file))?;
    fs::create_dir_all(kernels).map_err(io(kernels))?;
    // Only a damaged kernel is still in the way.
    match fs::rename(&place, work.join("kernel-damaged")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(&place)(error)),
        _ => {}
    }
    fs::rename(&fresh, &place).map_err(io(&place))?;
    manifest::sync_dir(kernels).map_err(io(kernels))?;
    Ok(name)
}

/// Returns the files of a stored kernel that are not what its manifest says.
///
/// # Errors
/// Those of reading the manifest.
pub fn verify(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let manifest: KernelManifest = manifest::read(&dir.join("kernel.json"))?;
    let modules = manifest.modules.iter().map(|m| (dir.join("modules").join(&m.file), m));
    let tree = manifest.tree.iter().map(|tree| (dir.join(&tree.file), tree));
    let parts = modules.chain([(dir.join("vmlinux"), &manifest.vmlinux)]).chain(tree);
    let bad = |(path, part): &(PathBuf, &Part)| {
        checksum::of_file(path).ok().as_deref() != Some(part.sha256.as_str())
    };
    Ok(parts.filter(bad).map(|(path, _)| path).collect())
}

fn write_part(path: &Path, bytes: &[u8]) -> Result<(), KernelError> {
    let write = || {
        let mut file = File::create_new(path)?;
        file.write_all(bytes)?;
        manifest::publish_mode(&file)?;
        file.sync_all()
    };
    write().map_err(|source| KernelError::Io { path: path.to_owned(), source })
}

fn directory_name(manifest: &KernelManifest) -> String {
    let modules = manifest.modules.iter().chain(&manifest.tree);
    let modules = modules.map(|m| format!("{}={};", m.file, m.sha256));
    let content: String = modules.chain([manifest.vmlinux.sha256.clone()]).collect();
    let sum = checksum::of_bytes(content.as_bytes());
    // A kernel of unknown make may call itself anything; a path may not.
    let safe = |c: char| if c.is_ascii_alphanumeric() || "._-+".contains(c) { c } else { '_' };
    let version: String = manifest.version.chars().map(safe).collect();
    format!("{version}-{}", &sum[..12])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_kernel_is_stored_once_and_whole() {
        let dir = tempfile::tempdir().unwrap();
        let kernel = dir.path().join("mine");
        fs::write(&kernel, b"\x7fELF Linux version 6.9.1/../x (me)\0").unwrap();
        let kernels = dir.path().join("kernels");
        let mut names = Vec::new();
        for work in ["a", "b"] {
            let work = dir.path().join(work);
            fs::create_dir(&work).unwrap();
            names.push(from_file(&kernels, &work, &kernel).unwrap());
        }
        assert_eq!(names[0], names[1]);
        assert!(names[0].starts_with("6.9.1_.._x-"), "{}", names[0]);
        assert_eq!(fs::read_dir(&kernels).unwrap().count(), 1);
        let stored: KernelManifest =
            manifest::read(&kernels.join(&names[0]).join("kernel.json")).unwrap();
        assert_eq!(stored.version, "6.9.1/../x");
        assert_eq!(stored.vmlinux.sha256, checksum::of_file(&kernel).unwrap());
    }
}
