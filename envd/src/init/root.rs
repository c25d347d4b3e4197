//! From the initramfs to the root file system.

use std::fs;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{FsType, TMPFS_MAGIC, statfs};
use nix::unistd::{chdir, chroot};

use super::InitError;
use super::cmdline::{Access, Cmdline};

/// Where the root file system is mounted first.
const NEW_ROOT: &str = "/newroot";
/// `linux/magic.h`; the initramfs is one of this kind or a tmpfs.
const RAMFS_MAGIC: FsType = FsType(0x8584_58f6);
/// File systems that move along.
const MOVED: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Mounts the root file system and makes it the root of this process, and so of all others.
pub fn enter(cmdline: &Cmdline) -> Result<(), InitError> {
    let failed = |target: &str| {
        let target = target.to_owned();
        move |source| InitError::Mount { target, source }
    };
    // Times of reading would cost every clone of a snapshot blocks of its own.
    let mut flags = MsFlags::MS_NOATIME;
    if cmdline.access == Access::ReadOnly {
        flags |= MsFlags::MS_RDONLY;
    }
    let (device, fstype) = (cmdline.root.as_str(), cmdline.fstype.as_str());
    mount(Some(device), NEW_ROOT, Some(fstype), flags, cmdline.flags.as_deref())
        .map_err(failed(device))?;

    forget_initramfs();
    for place in MOVED {
        let target = format!("{NEW_ROOT}{place}");
        // An image without the directory gets it; a read-only one fails at the mount.
        let _ = fs::create_dir(&target);
        let none = None::<&str>;
        mount(Some(place), target.as_str(), none, MsFlags::MS_MOVE, none)
            .map_err(failed(&target))?;
    }
    chdir(NEW_ROOT).map_err(InitError::ChangeRoot)?;
    let none = None::<&str>;
    mount(Some("."), "/", none, MsFlags::MS_MOVE, none).map_err(failed("/"))?;
    chroot(".").map_err(InitError::ChangeRoot)?;
    chdir("/").map_err(InitError::ChangeRoot)
}

/// Gives back the memory of the modules. This program's own stays in use for as long as it runs.
fn forget_initramfs() {
    let in_memory =
        statfs("/").is_ok_and(|fs| [RAMFS_MAGIC, TMPFS_MAGIC].contains(&fs.filesystem_type()));
    if in_memory {
        let _ = fs::remove_dir_all(Path::new("/lib"));
        let _ = fs::remove_file("/init");
    }
}
