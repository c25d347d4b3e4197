//! File systems that every program expects.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};

use super::InitError;

/// A file system that comes from no device.
struct Virtual {
    fstype: &'static str,
    target: &'static str,
    flags: MsFlags,
    options: &'static str,
}

const SAFE: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV).union(MsFlags::MS_NOEXEC);
const FILES: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

const KERNEL: [Virtual; 3] = [
    Virtual { fstype: "proc", target: "/proc", flags: SAFE, options: "" },
    Virtual { fstype: "sysfs", target: "/sys", flags: SAFE, options: "" },
    Virtual { fstype: "devtmpfs", target: "/dev", flags: MsFlags::MS_NOSUID, options: "mode=0755" },
];

const GUEST: [Virtual; 4] = [
    Virtual {
        fstype: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        // Group 5 is `tty` in every distribution.
        options: "gid=5,mode=620,ptmxmode=666",
    },
    Virtual { fstype: "tmpfs", target: "/dev/shm", flags: FILES, options: "mode=1777" },
    Virtual { fstype: "tmpfs", target: "/run", flags: FILES, options: "mode=0755" },
    Virtual { fstype: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, options: "nsdelegate" },
];

/// Mounts what the kernel itself provides.
pub fn kernel_file_systems() -> Result<(), InitError> {
    KERNEL.iter().try_for_each(ensure)
}

/// Mounts the rest.
pub fn guest_file_systems() -> Result<(), InitError> {
    GUEST.iter().try_for_each(ensure)?;
    common("/run/lock");
    // On the disk, which has more room than memory. It is not emptied: a guest is booted once, for all
    // that come from its snapshot, and what an image has there it has on purpose.
    common("/tmp");
    Ok(())
}

/// Makes a directory for everybody, if there is nothing yet, and sees that it is open to everybody. An
/// image that was imported may have none, or a link to another one, which is left as it is.
fn common(dir: &str) {
    const EVERYBODY: u32 = 0o1777;
    let _ = fs::create_dir(dir);
    let closed = |meta: fs::Metadata| meta.is_dir() && meta.mode() & 0o7777 != EVERYBODY;
    // Looked at first: a write would cost each guest a block of its own.
    if fs::symlink_metadata(dir).is_ok_and(closed) {
        let _ = fs::set_permissions(dir, Permissions::from_mode(EVERYBODY));
    }
}

fn ensure(fs: &Virtual) -> Result<(), InitError> {
    // There already in any image worth its name; where not, the mount says so.
    let _ = fs::create_dir(fs.target);
    let options = Some(fs.options).filter(|options| !options.is_empty());
    match mount(Some(fs.fstype), fs.target, Some(fs.fstype), fs.flags, options) {
        // Mounted before, by the kernel or by the initramfs.
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(source) => Err(InitError::Mount { target: fs.target.to_owned(), source }),
    }
}

/// The names that scripts use for open files.
pub fn device_links() {
    let links = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ];
    for (target, link) in links {
        let _ = symlink(target, link);
    }
}

/// Makes the root file system whole and closed to writing, as far as it lets itself.
pub fn seal_root() {
    let none = None::<&str>;
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let _ = mount(none, "/", none, flags, none);
}
