//! File systems that every program expects.

use std::fs;
use std::os::unix::fs::symlink;

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

const GUEST: [Virtual; 5] = [
    Virtual {
        fstype: "devpts",
        target: "/dev/pts",
        flags: MsFlags::MS_NOSUID.union(MsFlags::MS_NOEXEC),
        // Group 5 is `tty` in every distribution.
        options: "gid=5,mode=620,ptmxmode=666",
    },
    Virtual { fstype: "tmpfs", target: "/dev/shm", flags: FILES, options: "mode=1777" },
    Virtual { fstype: "tmpfs", target: "/run", flags: FILES, options: "mode=0755" },
    Virtual { fstype: "tmpfs", target: "/tmp", flags: FILES, options: "mode=1777" },
    Virtual { fstype: "cgroup2", target: "/sys/fs/cgroup", flags: SAFE, options: "nsdelegate" },
];

/// Mounts what the kernel itself provides.
pub fn kernel_file_systems() -> Result<(), InitError> {
    KERNEL.iter().try_for_each(ensure)
}

/// Mounts the rest.
pub fn guest_file_systems() -> Result<(), InitError> {
    GUEST.iter().try_for_each(ensure)?;
    let _ = fs::create_dir("/run/lock");
    let sticky = std::os::unix::fs::PermissionsExt::from_mode(0o1777);
    let _ = fs::set_permissions("/run/lock", sticky);
    Ok(())
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
