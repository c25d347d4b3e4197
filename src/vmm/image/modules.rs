//! Chooses the kernel modules that a guest needs before it can see its disk, and their order.
//!
//! Dependencies come from the `.modinfo` section that every module carries, the same place depmod
//! reads them from, so a kernel package is enough and nothing has to be installed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::command::{CommandError, Tool};

/// What booting needs, and nothing else: each module costs the boot some milliseconds under
/// software emulation. What is built into the kernel (ext4 and crc32c in Debian's) has no file and
/// is left out. Modules that programs in a guest may want later, such as overlay or fuse, belong in
/// a root filesystem.
pub const WANTED: &[&str] =
    &["virtio_mmio", "virtio_blk", "ext4", "crc32c", "virtio_net", "virtio_rng"];

/// Modules among [`WANTED`] without which a guest cannot boot, unless built in.
const INDISPENSABLE: &[&str] = &["virtio_mmio", "virtio_blk", "ext4"];

/// Why the modules of a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    /// A directory or file of the kernel package could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file that should be a module is not an ELF object with a `.modinfo` section.
    #[error("{} is not a kernel module", path.display())]
    NotAModule {
        /// Which one.
        path: PathBuf,
    },
    /// A compressed module could not be unpacked.
    #[error("cannot unpack {}", path.display())]
    Unpack {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: CommandError,
    },
    /// The kernel has this module neither as a file nor built in.
    #[error("the kernel has no module {module}{}", needed_by.as_ref().map(|n| format!(", which {n} needs")).unwrap_or_default())]
    NoModule {
        /// Its name.
        module: String,
        /// The module that depends on it, if any does.
        needed_by: Option<String>,
    },
    /// Modules depend on one another in a circle.
    #[error("module {module} depends on itself")]
    Circle {
        /// One of them.
        module: String,
    },
}

/// One module, unpacked.
pub struct Module {
    /// File name in the initramfs, such as `virtio_blk.ko`.
    pub file_name: String,
    /// The ELF object, with its signature.
    pub object: Vec<u8>,
}

/// Returns the modules to load, dependencies first.
///
/// `dir` is the kernel's `lib/modules/{release}`.
///
/// # Errors
/// [`ModulesError::NoModule`] if the kernel lacks what a boot needs; others for unreadable files.
pub fn choose(dir: &Path) -> Result<Vec<Module>, ModulesError> {
    let mut tree = Tree { files: find_files(dir)?, builtin: read_builtin(dir)?, ..Tree::default() };
    for name in WANTED {
        if tree.files.contains_key(*name) {
            tree.add(name, None)?;
        } else if INDISPENSABLE.contains(name) && !tree.builtin.contains(*name) {
            return Err(ModulesError::NoModule { module: (*name).to_owned(), needed_by: None });
        }
    }
    Ok(tree.order)
}

#[derive(Default)]
struct Tree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
    entered: BTreeSet<String>,
    done: BTreeSet<String>,
    order: Vec<Module>,
}

impl Tree {
    fn add(&mut self, name: &str, needed_by: Option<&str>) -> Result<(), ModulesError> {
        if self.done.contains(name) || self.builtin.contains(name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name).cloned() else {
            let needed_by = needed_by.map(str::to_owned);
            return Err(ModulesError::NoModule { module: name.to_owned(), needed_by });
        };
        if !self.entered.insert(name.to_owned()) {
            return Err(ModulesError::Circle { module: name.to_owned() });
        }
        let object = read_module(&path)?;
        let info = modinfo(&object).ok_or(ModulesError::NotAModule { path: path.clone() })?;
        for dependency in dependencies(&info) {
            self.add(&dependency, Some(name))?;
        }
        for wish in soft_dependencies(&info) {
            // A wish may name an alias such as `crypto-crc32c`, or what this kernel lacks.
            if self.files.contains_key(&wish) {
                self.add(&wish, Some(name))?;
            }
        }
        self.done.insert(name.to_owned());
        let file = path.file_name().map(|f| f.to_string_lossy()).unwrap_or_default();
        let stem = file.split(".ko").next().unwrap_or_default();
        self.order.push(Module { file_name: format!("{stem}.ko"), object });
        Ok(())
    }
}

/// Maps each module's name, as the kernel spells it, to its file.
fn find_files(dir: &Path) -> Result<BTreeMap<String, PathBuf>, ModulesError> {
    let mut found = BTreeMap::new();
    let mut pending = vec![dir.join("kernel")];
    while let Some(dir) = pending.pop() {
        let read = |source| ModulesError::Read { path: dir.clone(), source };
        for entry in fs::read_dir(&dir).map_err(read)? {
            let entry = entry.map_err(read)?;
            let path = entry.path();
            if entry.file_type().map_err(read)?.is_dir() {
                pending.push(path);
            } else if let Some(name) = module_name(&path) {
                found.insert(name, path);
            }
        }
    }
    Ok(found)
}

fn read_builtin(dir: &Path) -> Result<BTreeSet<String>, ModulesError> {
    let path = dir.join("modules.builtin");
    match fs::read_to_string(&path) {
        Ok(text) => Ok(text.lines().filter_map(|line| module_name(Path::new(line))).collect()),
        Err(source) => Err(ModulesError::Read { path, source }),
    }
}

/// The kernel spells every `-` of a file name as `_`.
fn module_name(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let stem = [".ko", ".ko.xz", ".ko.zst", ".ko.gz"].iter().find_map(|e| file.strip_suffix(e))?;
    Some(stem.replace('-', "_"))
}

fn read_module(path: &Path) -> Result<Vec<u8>, ModulesError> {
    let tool = match path.extension().and_then(|e| e.to_str()) {
        Some("xz") => Tool::new("xz", "xz-utils"),
        Some("zst") => Tool::new("zstd", "zstd"),
        Some("gz") => Tool::new("gzip", "gzip"),
        _ => {
            return fs::read(path)
                .map_err(|source| ModulesError::Read { path: path.to_owned(), source });
        }
    };
    tool.arg("-dc")
        .arg(path)
        .output()
        .map_err(|source| ModulesError::Unpack { path: path.to_owned(), source })
}

fn dependencies(info: &[(&str, &str)]) -> Vec<String> {
    let lists = info.iter().filter(|(key, _)| *key == "depends").map(|(_, list)| *list);
    lists
        .flat_map(|l| l.split(','))
        .filter(|n| !n.is_empty())
        .map(|n| n.replace('-', "_"))
        .collect()
}

/// Reads `softdep=pre: a b post: c`: the kernel asks user space for those before, by name.
fn soft_dependencies(info: &[(&str, &str)]) -> Vec<String> {
    let lists = info.iter().filter(|(key, _)| *key == "softdep").map(|(_, list)| *list);
    let before = lists.filter_map(|list| list.split("pre:").nth(1)?.split("post:").next());
    before.flat_map(str::split_whitespace).map(|name| name.replace('-', "_")).collect()
}

/// Returns the `key=value` pairs of a module's `.modinfo` section.
///
/// Offsets are those of a 64-bit little-endian ELF file, elf(5).
fn modinfo(object: &[u8]) -> Option<Vec<(&str, &str)>> {
    if object.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let table = number(object, 0x28, 8)?;
    let (entry, count, names) =
        (number(object, 0x3a, 2)?, number(object, 0x3c, 2)?, number(object, 0x3e, 2)?);
    let header = |index: usize| object.get(table + index * entry..table + (index + 1) * entry);
    let strings = number(header(names)?, 0x18, 8)?;
    let section = (0..count).filter_map(header).find(|section| {
        let name = number(section, 0, 4).and_then(|at| object.get(strings + at..));
        name.is_some_and(|name| name.starts_with(b".modinfo\0"))
    })?;
    let (start, length) = (number(section, 0x18, 8)?, number(section, 0x20, 8)?);
    let strings = object.get(start..start.checked_add(length)?)?.split(|b| *b == 0);
    Some(strings.filter_map(|s| std::str::from_utf8(s).ok()?.split_once('=')).collect())
}

fn number(bytes: &[u8], at: usize, width: usize) -> Option<usize> {
    let field = bytes.get(at..at + width)?;
    Some(field.iter().rev().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

#[cfg(test)]
#[path = "modules_tests.rs"]
mod tests;
