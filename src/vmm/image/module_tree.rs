//! All modules of a kernel, for programs in guests: packed once with the kernel, and put into each
//! root filesystem that is made for it, where `modprobe` and the kernel itself look for them.
//!
//! A second disk that all machines share would need no copy in each image, but costs each machine a
//! device and a mount, and everything that freezes or moves a machine another file to keep track of.
//! Compressed, a copy is some 24 MB once in an image, and sandboxes share it like the rest of that.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

use super::Progress;
use super::command::{CommandError, Tool};
use super::debugfs::{self, Place, WriteError};

/// Bytes that a filesystem is given beyond what modules need, when it has to grow for them.
const GROWTH: u64 = 128 << 20;
const BLOCK: u64 = 4096;

/// Why the modules of a kernel could not be packed, or not be put into a root filesystem.
#[derive(Debug, thiserror::Error)]
pub enum ModuleTreeError {
    /// A program failed that packs them or puts them into the filesystem.
    #[error("cannot pack or unpack the modules")]
    Tool(#[source] CommandError),
    /// A file or directory could not be read or written.
    #[error("cannot read or write {}", path.display())]
    Io {
        /// Which one.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The kernel is called something that cannot be the name of a directory in a guest.
    #[error("{version:?} is no name for a directory of modules")]
    Name {
        /// The kernel's release.
        version: String,
    },
    /// The filesystem could not be written to.
    #[error("cannot write modules into the root filesystem")]
    Write(#[source] WriteError),
    /// The filesystem is not sound with them.
    #[error("the root filesystem is damaged")]
    Damaged(#[source] CommandError),
    /// The filesystem did not take them.
    #[error("cannot write modules into the root filesystem: {said}")]
    Refused {
        /// What debugfs said first.
        said: String,
    },
}

fn io_at(path: &Path) -> impl FnOnce(io::Error) -> ModuleTreeError {
    let path = path.to_owned();
    move |source| ModuleTreeError::Io { path, source }
}

/// Packs `dir`, a kernel package's `lib/modules/{version}`, with the indexes that `modprobe` reads
/// and packages leave to be made. The modules are compressed, as later Debian kernels' are.
/// `work` is scratch space; `dir` is moved there.
///
/// # Errors
/// [`ModuleTreeError`].
pub fn pack(dir: &Path, version: &str, work: &Path) -> Result<Vec<u8>, ModuleTreeError> {
    let base = work.join("module-tree");
    let parent = base.join("lib/modules");
    let tree = parent.join(plain(version)?);
    fs::create_dir_all(&parent).map_err(io_at(&parent))?;
    // depmod looks in the one or the other.
    let usr = base.join("usr");
    fs::create_dir(&usr).and_then(|()| symlink("../lib", usr.join("lib"))).map_err(io_at(&usr))?;
    fs::rename(dir, &tree).map_err(io_at(dir))?;
    compress(&tree)?;
    Tool::new("depmod", "kmod")
        .arg("-b")
        .args([base.as_os_str(), version.as_ref()])
        .run()
        .map_err(ModuleTreeError::Tool)?;
    // The same modules give the same bytes.
    Tool::new("tar", "tar")
        .args(["--create", "--format=gnu", "--sort=name", "--mtime=@0", "--numeric-owner"])
        .args(["--owner=0", "--group=0", "--mode=u=rwX,go=rX", "--directory"])
        .args([tree.as_os_str(), ".".as_ref()])
        .output()
        .map_err(ModuleTreeError::Tool)
}

/// Compresses what is not compressed yet, on all CPUs. CRC32 is what kernels that unpack modules
/// themselves can check.
fn compress(tree: &Path) -> Result<(), ModuleTreeError> {
    let mut plain = find(tree)?.files;
    plain.retain(|path| path.extension().is_some_and(|extension| extension == "ko"));
    if plain.is_empty() {
        return Ok(());
    }
    let threads = thread::available_parallelism().map_or(1, |count| count.get());
    let share = plain.len().div_ceil(threads);
    let pack = |files: &[PathBuf]| {
        Tool::new("xz", "xz-utils")
            .args(["-1", "--check=crc32", "--"])
            .args(files.iter().map(|file| tree.join(file)))
            .run()
    };
    let results: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> =
            plain.chunks(share).map(|files| scope.spawn(move || pack(files))).collect();
        running.into_iter().map(thread::ScopedJoinHandle::join).collect()
    });
    for result in results {
        let result = result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        result.map_err(ModuleTreeError::Tool)?;
    }
    Ok(())
}

/// Puts a packed tree into the ext4 filesystem in `disk`, as `/lib/modules/{version}`. An image that
/// brings modules of that very release keeps its own. `work` is scratch space.
///
/// # Errors
/// [`ModuleTreeError`]; the filesystem may then hold a part of them.
pub fn install(
    packed: &Path,
    version: &str,
    disk: &Path,
    work: &Path,
    progress: &dyn Progress,
) -> Result<(), ModuleTreeError> {
    let place = format!("/lib/modules/{}", plain(version)?);
    let missing = match debugfs::resolve(disk, &place).map_err(ModuleTreeError::Tool)? {
        Place::Missing(missing) => missing,
        Place::There(_) => {
            progress.detail("the image brings modules of its own for this kernel");
            return Ok(());
        }
        Place::Blocked => {
            progress.detail("the image has no place for modules: /lib/modules is no directory");
            return Ok(());
        }
    };
    let tree = work.join("modules");
    fs::create_dir(&tree).map_err(io_at(&tree))?;
    Tool::new("tar", "tar")
        .arg("--extract")
        .args(["--no-same-owner".as_ref(), "--file".as_ref(), packed.as_os_str()])
        .args(["--directory".as_ref(), tree.as_os_str()])
        .run()
        .map_err(ModuleTreeError::Tool)?;
    let found = find(&tree)?;
    make_room(disk, &found)?;
    let said = debugfs::write(disk, &tree, work, &script(&missing, &found))
        .map_err(ModuleTreeError::Write)?;
    if let Some(said) = said.into_iter().next() {
        return Err(ModuleTreeError::Refused { said });
    }
    // What writes to a filesystem from outside is not believed.
    Tool::new("e2fsck", "e2fsprogs")
        .args(["-f", "-n"])
        .arg(disk)
        .output()
        .map_err(ModuleTreeError::Damaged)?;
    File::open(disk).and_then(|file| file.sync_all()).map_err(io_at(disk))
}

/// What debugfs is to do, in the tree's directory: make those that are `missing`, and put what was
/// `found` into the last of them.
fn script(missing: &[String], found: &Found) -> String {
    let place = missing.last().map_or("/", String::as_str);
    let mut script: String = missing.iter().map(|dir| format!("mkdir {dir}\n")).collect();
    for dir in &found.dirs {
        script += &format!("mkdir {place}/{}\n", dir.display());
    }
    let mut current = None;
    for file in &found.files {
        let dir = file.parent().unwrap_or(Path::new(""));
        if current != Some(dir) {
            script += &format!("cd {place}/{}\n", dir.display());
            current = Some(dir);
        }
        let name = file.file_name().unwrap_or_default();
        script += &format!("write {} {}\n", file.display(), name.display());
    }
    script
}

/// A tree's directories, each after the one it is in, and its files: relative to it, by name.
#[derive(Default)]
struct Found {
    dirs: Vec<PathBuf>,
    files: Vec<PathBuf>,
    /// What the files take in blocks, in bytes.
    bytes: u64,
}

fn find(tree: &Path) -> Result<Found, ModuleTreeError> {
    let mut found = Found::default();
    let mut pending = vec![PathBuf::new()];
    while let Some(dir) = pending.pop() {
        let path = tree.join(&dir);
        for entry in fs::read_dir(&path).map_err(io_at(&path))? {
            let entry = entry.map_err(io_at(&path))?;
            let meta = entry.metadata().map_err(io_at(&path))?;
            let name = dir.join(entry.file_name());
            if meta.is_dir() {
                pending.push(name.clone());
                found.dirs.push(name);
            } else if meta.is_file() {
                found.bytes += meta.len().next_multiple_of(BLOCK);
                found.files.push(name);
            }
        }
    }
    found.dirs.sort();
    // All of a directory in a row.
    found.files.sort_by(|a, b| (a.parent(), a).cmp(&(b.parent(), b)));
    Ok(found)
}

/// Makes the filesystem larger if it is too full for the modules.
fn make_room(disk: &Path, found: &Found) -> Result<(), ModuleTreeError> {
    let room = Room::of(disk).map_err(io_at(disk))?;
    let inodes = (found.files.len() + found.dirs.len()) as u64 + 16;
    let bytes = found.bytes + (found.dirs.len() as u64 + 256) * BLOCK;
    if room.bytes >= bytes && room.inodes >= inodes {
        return Ok(());
    }
    let length = fs::metadata(disk).map_err(io_at(disk))?.len();
    let file = File::options().write(true).open(disk).map_err(io_at(disk))?;
    file.set_len((length + bytes + GROWTH).next_multiple_of(1 << 20)).map_err(io_at(disk))?;
    Tool::new("resize2fs", "e2fsprogs").arg("-f").arg(disk).run().map_err(ModuleTreeError::Tool)
}

/// What a filesystem has free.
struct Room {
    bytes: u64,
    inodes: u64,
}

impl Room {
    /// Reads it from the superblock; the high half of the count of blocks is of no interest here.
    /// (Linux `Documentation/filesystems/ext4/super.rst`)
    fn of(disk: &Path) -> io::Result<Self> {
        let mut superblock = [0; 64];
        let mut file = File::open(disk)?;
        file.seek(SeekFrom::Start(1024))?;
        file.read_exact(&mut superblock)?;
        let field = |at: usize| {
            let bytes = [0, 1, 2, 3].map(|byte| superblock[at + byte]);
            u64::from(u32::from_le_bytes(bytes))
        };
        let block = 1024 << field(0x18).min(6);
        Ok(Self { bytes: field(0x0c) * block, inodes: field(0x10) })
    }
}

/// Refuses a release that would be more than one word to debugfs, or another directory.
fn plain(version: &str) -> Result<&str, ModuleTreeError> {
    match debugfs::is_plain(version) {
        true => Ok(version),
        false => Err(ModuleTreeError::Name { version: version.to_owned() }),
    }
}

#[cfg(test)]
#[path = "module_tree_tests.rs"]
mod tests;
