//! The file system that a QEMU sees: its program, the libraries and firmware that this needs, and nothing
//! else of the host.
//!
//! It is a mount namespace with a root of its own, made once for each start of the daemon and entered by
//! every QEMU: all of it is read-only and the same for all, so nobody gains anything by having a copy. It
//! lives as long as a descriptor or a process refers to it; nothing of it lies on a disk.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, pivot_root};

use crate::vmm::hypervisor::elf::{self, Linking};

/// Where the new root is put together. It is in the way of nothing that a program is made of, and every
/// host has it.
const WORKSHOP: &str = "/sys";

/// Opened by QEMU where it is there; without it libraries outside of the usual directories are not found.
const LOADER_CACHE: &str = "/etc/ld.so.cache";

/// Why the file system cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The program's needs could not be found out.
    #[error("cannot find out what {} needs", program.display())]
    Needs { program: PathBuf, source: io::Error },
    /// The program is a script; what it would call cannot be known.
    #[error("{} is no ELF program for x86-64", program.display())]
    NoProgram { program: PathBuf },
    /// The kernel refuses a step.
    #[error("cannot {verb} {}", path.display())]
    Mount { verb: &'static str, path: PathBuf, source: io::Error },
}

/// What a QEMU needs of the host.
#[derive(Debug, Default)]
pub struct Contents {
    /// Files and directories, by the names under which they are looked for.
    paths: BTreeSet<PathBuf>,
}

impl Contents {
    /// Finds out what a QEMU needs, by asking its own dynamic loader, and itself for its firmware. Blocks
    /// for a few processes.
    ///
    /// # Errors
    ///
    /// [`RootError::Needs`] and [`RootError::NoProgram`].
    pub fn of(program: &Path, devices: &[&str]) -> Result<Self, RootError> {
        let needs = |source| RootError::Needs { program: program.to_owned(), source };
        let mut contents = Self::default();
        let loader = match elf::linking(program).map_err(needs)? {
            Linking::Dynamic(loader) => Some(loader),
            Linking::Static => None,
            Linking::Unknown => {
                return Err(RootError::NoProgram { program: program.to_owned() });
            }
        };
        contents.add(program);
        contents.add(Path::new(LOADER_CACHE));
        for device in devices {
            contents.add(Path::new(device));
        }
        if let Some(loader) = loader {
            contents.add(&loader);
            contents.add_libraries(&loader, program).map_err(needs)?;
            for module in accelerators(program) {
                contents.add_libraries(&loader, &module).map_err(needs)?;
                contents.add(&module);
            }
        }
        let said = Command::new(program).args(["-L", "help"]).output().map_err(needs)?;
        for line in said.stdout.split(|byte| *byte == b'\n') {
            let dir = Path::new(OsStr::from_bytes(line));
            if dir.is_absolute() && dir.is_dir() {
                contents.add(dir);
            }
        }
        Ok(contents)
    }

    fn add(&mut self, path: &Path) {
        if path.exists() {
            self.paths.insert(tidy(path));
        }
    }

    /// Adds what the loader would load with a program or library.
    fn add_libraries(&mut self, loader: &Path, file: &Path) -> io::Result<()> {
        let listed = Command::new(loader).arg("--list").arg(file).output()?;
        if !listed.status.success() {
            let said = String::from_utf8_lossy(&listed.stderr).trim().to_owned();
            return Err(io::Error::other(said));
        }
        // "	libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)", ld.so(8)
        for line in String::from_utf8_lossy(&listed.stdout).lines() {
            let path = line.split_once("=> ").map(|(_, rest)| rest).unwrap_or_default();
            if let Some((path, _)) = path.split_once(" (") {
                self.add(Path::new(path));
            }
        }
        Ok(())
    }
}

/// A path without `..`, which names the same file also where the directories above it are no links.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(tidy.pop()),
            Component::CurDir => {}
            other => tidy.push(other),
        }
    }
    tidy
}

/// The modules in which distributions pack the accelerators for this program, if they do: QEMU looks for
/// them in the directory `qemu` of the libraries beside it.
fn accelerators(program: &Path) -> Vec<PathBuf> {
    let target = program.file_name().unwrap_or_default().to_string_lossy();
    let target = target.rsplit_once("qemu-system-").map_or("x86_64", |(_, target)| target);
    let suffix = format!("-{target}.so");
    let above = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr"));
    let libraries = ["lib/x86_64-linux-gnu/qemu", "lib64/qemu", "lib/qemu"];
    let entries = libraries.into_iter().flat_map(|dir| fs::read_dir(above.join(dir))).flatten();
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("accel-") && name.ends_with(&suffix)
    };
    entries.flatten().map(|entry| entry.path()).filter(named).collect()
}

/// Makes the namespace and gives a descriptor of it, for setns(2). Blocks.
///
/// # Errors
///
/// [`RootError::Mount`]; nothing is left then.
pub fn make(contents: &Contents) -> Result<File, RootError> {
    // A thread of its own: it never comes back from the namespace.
    let make = || {
        enter_private_namespace()?;
        fill(contents)?;
        become_root()?;
        let path = Path::new("/proc/thread-self/ns/mnt");
        // The processes that are about to be started see themselves in it and nobody else; the
        // daemon's thread sees all, being root.
        File::open(path).map_err(failed("open", path))
    };
    std::thread::scope(|scope| scope.spawn(make).join()).expect("mounting does not panic")
}

fn failed<E: Into<io::Error>>(verb: &'static str, path: &Path) -> impl FnOnce(E) -> RootError {
    let path = path.to_owned();
    move |source| RootError::Mount { verb, path, source: source.into() }
}

const NOTHING: Option<&str> = None;

fn enter_private_namespace() -> Result<(), RootError> {
    let root = Path::new("/");
    unshare(CloneFlags::CLONE_NEWNS).map_err(failed("make a mount namespace below", root))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(NOTHING, root, NOTHING, private, NOTHING).map_err(failed("make private", root))?;
    let options = Some("size=1m,nr_inodes=4096,mode=0755");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), WORKSHOP, Some("tmpfs"), flags, options)
        .map_err(failed("mount a tmpfs at", Path::new(WORKSHOP)))
}

/// Puts everything in its place, read-only.
fn fill(contents: &Contents) -> Result<(), RootError> {
    for source in &contents.paths {
        let relative = source.strip_prefix("/").unwrap_or(source);
        let target = Path::new(WORKSHOP).join(relative);
        let make = || {
            fs::create_dir_all(target.parent().unwrap_or(&target))?;
            match source.is_dir() {
                true => fs::create_dir_all(&target),
                false => File::create(&target).map(drop),
            }
        };
        // Something above it may be there as a whole already.
        if target.exists() {
            continue;
        }
        make().map_err(failed("make", &target))?;
        bind(source, &target)?;
    }
    let proc = Path::new(WORKSHOP).join("proc");
    fs::create_dir(&proc).map_err(failed("make", &proc))?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    // Each process sees itself alone, and nothing but processes: proc(5), since Linux 5.8. Before, the
    // option would change how everybody on the host sees them, so there is no way without it.
    let options = Some("hidepid=ptraceable,subset=pid");
    mount(Some("proc"), &proc, Some("proc"), flags, options).map_err(failed("mount", &proc))
}

fn bind(source: &Path, target: &Path) -> Result<(), RootError> {
    use std::os::unix::fs::FileTypeExt;
    mount(Some(source), target, NOTHING, MsFlags::MS_BIND, NOTHING)
        .map_err(failed("bind", source))?;
    let device = fs::metadata(source).is_ok_and(|data| data.file_type().is_char_device());
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID;
    // The device's own rights say who may use it.
    flags |= if device { MsFlags::MS_NOEXEC } else { MsFlags::MS_RDONLY | MsFlags::MS_NODEV };
    mount(NOTHING, target, NOTHING, flags, NOTHING).map_err(failed("make read-only", target))
}

/// Makes the workshop the root and lets go of the host's.
fn become_root() -> Result<(), RootError> {
    let workshop = Path::new(WORKSHOP);
    chdir(workshop).map_err(failed("enter", workshop))?;
    // Both at one place: the old root comes to lie on the new one, pivot_root(2).
    pivot_root(".", ".").map_err(failed("make the root of", workshop))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("detach the old root below", workshop))?;
    chdir("/").map_err(failed("enter", Path::new("/")))?;
    let flags = MsFlags::MS_BIND
        | MsFlags::MS_REMOUNT
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    mount(NOTHING, "/", NOTHING, flags, NOTHING).map_err(failed("make read-only", Path::new("/")))
}
