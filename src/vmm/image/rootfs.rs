//! Makes root filesystems: a Debian tree with mmdebstrap, or somebody's tree, archive or disk, as
//! one read-only ext4 file.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::Progress;
use super::apt::{AptError, Mirrors, SUITE};
use super::command::{CommandError, Tool};
use super::registries::{self, Registries};

/// Apparent size of a root filesystem in bytes, unless its content needs more. It is sparse, so a
/// sandbox pays only for what it writes.
const DISK_BYTES: u64 = 4 << 30;
const MIB: u64 = 1 << 20;

/// What a sandbox for code needs besides Debian's essential packages and apt.
const PACKAGES: &[&str] = &[
    "bash",
    "ca-certificates",
    "curl",
    "git",
    "iproute2",
    "kmod",
    "nano",
    "netbase",
    "openssh-client",
    "procps",
    "python3",
    "python3-pip",
    "python3-venv",
    "sudo",
    "unzip",
    "wget",
];

/// What people build and look at software with, besides.
const DEVELOPMENT: &[&str] = &[
    "build-essential",
    "cmake",
    "fd-find",
    "file",
    "gdb",
    "git-lfs",
    "htop",
    "jq",
    "less",
    "libffi-dev",
    "libpq-dev",
    "libsqlite3-dev",
    "libssl-dev",
    "lsof",
    "nftables",
    "ninja-build",
    "nodejs",
    "npm",
    "patch",
    "pkg-config",
    "postgresql-client",
    "python3-dev",
    "ripgrep",
    "rsync",
    "sqlite3",
    "strace",
    "tmux",
    "tree",
    "vim-tiny",
    "xz-utils",
    "zip",
    "zlib1g-dev",
];

/// How much an image of Debian holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contents {
    /// What running code takes.
    Base,
    /// That, and what building software takes.
    Development,
}

impl Contents {
    fn packages(self) -> String {
        match self {
            Self::Base => PACKAGES.join(","),
            Self::Development => [PACKAGES, DEVELOPMENT].concat().join(","),
        }
    }

    /// What an image of it is made from, for people.
    pub fn source(self) -> String {
        match self {
            Self::Base => format!("Debian {SUITE}"),
            Self::Development => format!("Debian {SUITE} for development"),
        }
    }

    /// Apparent size of its disk in bytes: room for what is built in it.
    fn disk_bytes(self) -> u64 {
        match self {
            Self::Base => DISK_BYTES,
            Self::Development => 2 * DISK_BYTES,
        }
    }
}

/// Documentation that nobody reads in a sandbox; licences stay.
const DPKG_OPTIONS: &[&str] = &[
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    // The tree is copied into an image and synced once there; syncing each file twice is in vain.
    "force-unsafe-io",
];

/// Features that a 5.10 guest kernel reads too; newer e2fsprogs turns on ones it does not.
const FEATURES: &str = "^orphan_file,^metadata_csum_seed";

/// What a root filesystem is imported from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootfsSource {
    /// A directory that holds the tree.
    Dir(PathBuf),
    /// A tar archive of the tree, compressed or not.
    Tar(PathBuf),
    /// A disk without partitions that holds an ext2, ext3 or ext4 filesystem.
    Ext4(PathBuf),
}

impl RootfsSource {
    /// Tells by its content which kind of source is at `path`.
    ///
    /// # Errors
    /// [`RootfsError::Io`] if it cannot be read.
    pub fn detect(path: &Path) -> Result<Self, RootfsError> {
        let io = |source| RootfsError::Io { path: path.to_owned(), source };
        if fs::metadata(path).map_err(io)?.is_dir() {
            return Ok(Self::Dir(path.to_owned()));
        }
        match is_ext4(path).map_err(io)? {
            true => Ok(Self::Ext4(path.to_owned())),
            false => Ok(Self::Tar(path.to_owned())),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        match self {
            Self::Dir(path) | Self::Tar(path) | Self::Ext4(path) => path,
        }
    }
}

/// Why no root filesystem could be made.
#[derive(Debug, thiserror::Error)]
pub enum RootfsError {
    /// It is not known where to get Debian's packages.
    #[error("cannot find out where Debian's packages come from")]
    Sources(#[source] AptError),
    /// Debian's packages could not be installed into a tree.
    #[error("cannot install Debian {SUITE}")]
    Install(#[source] CommandError),
    /// The archive could not be unpacked.
    #[error("cannot unpack {}", path.display())]
    Unpack {
        /// The archive.
        path: PathBuf,
        /// What tar said.
        #[source]
        source: CommandError,
    },
    /// The disk could not be copied.
    #[error("cannot copy {}", path.display())]
    Copy {
        /// The disk.
        path: PathBuf,
        /// What cp said.
        #[source]
        source: CommandError,
    },
    /// The tree could not be put into a filesystem.
    #[error("cannot make an ext4 filesystem of {}", path.display())]
    Format {
        /// The tree.
        path: PathBuf,
        /// What mke2fs said.
        #[source]
        source: CommandError,
    },
    /// The filesystem is damaged beyond what e2fsck repairs without asking.
    #[error("the filesystem in {} is damaged", path.display())]
    Damaged {
        /// The disk it was imported from.
        path: PathBuf,
        /// What e2fsck said.
        #[source]
        source: CommandError,
    },
    /// The source holds no root filesystem.
    #[error("{} holds no root filesystem: it has neither bin nor usr", path.display())]
    NoTree {
        /// The directory or archive.
        path: PathBuf,
    },
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

/// Installs Debian into a tree under `work` and makes `disk` of it.
///
/// # Errors
/// [`RootfsError`].
pub fn build_debian(
    contents: Contents,
    work: &Path,
    disk: &Path,
    progress: &dyn Progress,
) -> Result<(), RootfsError> {
    let tree = work.join("tree");
    let mirrors = Mirrors::of_host().map_err(RootfsError::Sources)?;
    let sources = work.join("sources.list");
    write(&sources, mirrors.sources().as_bytes())?;
    let hooks = work.join("customize.sh");
    write(&hooks, CUSTOMIZE.as_bytes())?;
    fs::set_permissions(&hooks, fs::Permissions::from_mode(0o755))
        .map_err(|source| RootfsError::Io { path: hooks.clone(), source })?;

    progress.step(&match contents {
        Contents::Base => format!("installing Debian {SUITE} with Python, git, curl and sudo"),
        Contents::Development => {
            format!("installing Debian {SUITE} with compilers, Python and Node")
        }
    });
    Tool::new("mmdebstrap", "mmdebstrap")
        .args(["--mode=root", "--variant=minbase", "--format=directory"])
        .arg(format!("--include={}", contents.packages()))
        .arg("--aptopt=APT::Install-Recommends \"false\"")
        .args(DPKG_OPTIONS.iter().map(|option| format!("--dpkgopt={option}")))
        .arg(format!("--customize-hook={}", hooks.display()))
        .arg(SUITE)
        .args([&tree, &sources])
        .run_watched(|line| {
            if let Some(note) = line.strip_prefix("I: ") {
                progress.detail(note);
            }
        })
        .map_err(RootfsError::Install)?;
    // mmdebstrap leaves a copy of the sources it was given.
    let given = tree.join("etc/apt/sources.list.d/0000sources.list");
    fs::remove_file(&given).map_err(|source| RootfsError::Io { path: given, source })?;
    write(&tree.join("etc/apt/sources.list"), mirrors.guest_sources().as_bytes())?;
    take_over_registries(&tree)?;
    format_tree(&tree, contents.disk_bytes(), disk, progress)
}

/// Makes pip and npm in the guest look where they do on this machine.
fn take_over_registries(tree: &Path) -> Result<(), RootfsError> {
    let of_host = Registries::of_host();
    registries::write(&of_host, tree).map_err(|(path, source)| RootfsError::Io { path, source })?;
    if of_host.certificates.is_empty() {
        return Ok(());
    }
    Tool::new("chroot", "coreutils")
        .args([tree.as_os_str(), "update-ca-certificates".as_ref()])
        .run()
        .map_err(RootfsError::Install)
}

/// What turns Debian's base into a sandbox; runs on the host with the tree as its argument. The
/// host's name, name servers and identity are not the guest's: the agent sets its own.
const CUSTOMIZE: &str = r#"#!/bin/sh
set -eu
root=$1
chroot "$root" useradd --create-home --uid 1000 --user-group --shell /bin/bash user
echo 'user ALL=(ALL:ALL) NOPASSWD:ALL' > "$root/etc/sudoers.d/user"
chmod 0440 "$root/etc/sudoers.d/user"
echo sandbox > "$root/etc/hostname"
printf '127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
echo 'LANG=C.UTF-8' > "$root/etc/default/locale"
rm -f "$root/etc/resolv.conf"
: > "$root/etc/resolv.conf"
: > "$root/etc/machine-id"
ln -sf /proc/self/mounts "$root/etc/mtab"
rm -rf "$root"/var/cache/debconf/*-old "$root"/var/lib/dpkg/*-old "$root"/var/log/*.log \
    "$root"/var/log/apt/* "$root"/var/cache/ldconfig/aux-cache
"#;

/// Makes `disk` of what somebody gives.
///
/// # Errors
/// [`RootfsError`].
pub fn import(
    source: &RootfsSource,
    work: &Path,
    disk: &Path,
    progress: &dyn Progress,
) -> Result<(), RootfsError> {
    match source {
        RootfsSource::Dir(tree) => {
            require_tree(tree, tree)?;
            format_tree(tree, DISK_BYTES, disk, progress)
        }
        RootfsSource::Tar(archive) => {
            progress.step("unpacking the archive");
            let tree = work.join("tree");
            fs::create_dir(&tree).map_err(|e| RootfsError::Io { path: tree.clone(), source: e })?;
            Tool::new("tar", "tar")
                .args(["--extract", "--numeric-owner", "--preserve-permissions", "--xattrs"])
                .args(["--xattrs-include=*", "--file"])
                .arg(archive)
                .arg("--directory")
                .arg(&tree)
                .run()
                .map_err(|e| RootfsError::Unpack { path: archive.clone(), source: e })?;
            require_tree(&tree, archive)?;
            format_tree(&tree, DISK_BYTES, disk, progress)
        }
        RootfsSource::Ext4(file) => {
            progress.step("copying the disk");
            Tool::new("cp", "coreutils")
                .args(["--sparse=always", "--reflink=auto", "--no-preserve=all", "--"])
                .arg(file)
                .arg(disk)
                .run()
                .map_err(|e| RootfsError::Copy { path: file.clone(), source: e })?;
            // A filesystem that was not unmounted needs its journal replayed, and a read-only
            // base can never have that done.
            Tool::new("e2fsck", "e2fsprogs")
                .args(["-f", "-p"])
                .arg(disk)
                .run()
                .or_else(repaired)
                .map_err(|e| RootfsError::Damaged { path: file.clone(), source: e })?;
            finish(disk)
        }
    }
}

/// e2fsck's statuses 1 and 2 say that it repaired what it found, e2fsck(8).
fn repaired(error: CommandError) -> Result<(), CommandError> {
    match &error {
        CommandError::Failed { status, .. } if matches!(status.code(), Some(1 | 2)) => Ok(()),
        _ => Err(error),
    }
}

fn require_tree(tree: &Path, given: &Path) -> Result<(), RootfsError> {
    let has = |name: &str| tree.join(name).symlink_metadata().is_ok();
    if has("bin") || has("usr") {
        return Ok(());
    }
    Err(RootfsError::NoTree { path: given.to_owned() })
}

fn format_tree(
    tree: &Path,
    at_least: u64,
    disk: &Path,
    progress: &dyn Progress,
) -> Result<(), RootfsError> {
    progress.step("making the ext4 filesystem");
    let io = |source| RootfsError::Io { path: tree.to_owned(), source };
    // Half as much again, for what ext4 needs itself and for work to be done in it.
    let wanted = tree_bytes(tree).map_err(io)?.saturating_mul(3) / 2 + 256 * MIB;
    let bytes = wanted.max(at_least).next_multiple_of(MIB);
    File::create_new(disk)
        .and_then(|file| file.set_len(bytes))
        .map_err(|source| RootfsError::Io { path: disk.to_owned(), source })?;
    Tool::new("mke2fs", "e2fsprogs")
        .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-m", "1", "-L", "root", "-O", FEATURES])
        // Inode tables count as initialized: else each guest would write them all into its overlay.
        // The journal reads as zero without being written, because the file is new.
        .args(["-E", "lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0"])
        .args(["-J", "size=32", "-d"])
        .args([tree, disk])
        .run()
        .map_err(|source| RootfsError::Format { path: tree.to_owned(), source })?;
    finish(disk)
}

/// Brings a finished disk to stable storage, read-only for everybody.
fn finish(disk: &Path) -> Result<(), RootfsError> {
    let seal = || {
        let file = File::open(disk)?;
        file.sync_all()?;
        super::manifest::publish_mode(&file)
    };
    seal().map_err(|source| RootfsError::Io { path: disk.to_owned(), source })
}

/// Sums the space a tree takes, each file rounded up to a block, without leaving its filesystem.
fn tree_bytes(dir: &Path) -> io::Result<u64> {
    let device = dir.metadata()?.dev();
    let (mut total, mut pending) = (0, vec![dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            total += 4096 + meta.len().min(meta.blocks() * 512).next_multiple_of(4096);
            if meta.is_dir() && meta.dev() == device {
                pending.push(entry.path());
            }
        }
    }
    Ok(total)
}

/// ext2, ext3 and ext4 have their magic number at 56 bytes into the superblock at 1024.
fn is_ext4(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    let mut magic = [0; 2];
    file.seek(SeekFrom::Start(1024 + 56))?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == [0x53, 0xef]),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), RootfsError> {
    fs::write(path, bytes).map_err(|source| RootfsError::Io { path: path.to_owned(), source })
}
