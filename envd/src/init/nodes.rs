//! Devices that are there before their drivers are: whoever opens one has the kernel load it.
//!
//! `/dev/fuse`, `/dev/net/tun` and `/dev/loop-control` are such. The kernel makes the file of a device
//! when a driver says that it is there, and nobody would load `fuse` without the file; elsewhere udev
//! makes them, from the same list, which depmod writes.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Component, Path, PathBuf};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::sys::utsname::uname;

const DEV: &str = "/dev";
/// Bytes of the list that are read; Debian's has some 400.
const LIMIT: u64 = 64 * 1024;

/// Who may use a device, as udev's rules have it: mode and group. All else is root's.
const SHARED: [(&str, u32, Option<u32>); 3] =
    [("fuse", 0o666, None), ("net/tun", 0o666, None), ("loop-control", 0o660, Some(DISK))];
const ALONE: u32 = 0o600;
/// Group 6 is `disk` in every distribution.
const DISK: u32 = 6;

/// Makes the files for the modules of the running kernel, where the image has such.
pub fn make_static() {
    let Ok(uname) = uname() else { return };
    let list = Path::new("/lib/modules").join(uname.release()).join("modules.devname");
    let mut text = String::new();
    let read = File::open(list).and_then(|file| file.take(LIMIT).read_to_string(&mut text));
    if read.is_err() {
        return;
    }
    for node in text.lines().filter_map(Node::parse) {
        if let Err(error) = node.make(Path::new(DEV)) {
            eprintln!("envd: no /dev/{}: {error}", node.name.display());
        }
    }
}

/// A line of the list: `fuse fuse c10:229`.
#[derive(Debug, PartialEq, Eq)]
struct Node {
    name: PathBuf,
    kind: SFlag,
    major: u64,
    minor: u64,
}

impl Node {
    fn parse(line: &str) -> Option<Self> {
        let [_, name, device] = line.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
        let kind = match device.get(..1)? {
            "c" => SFlag::S_IFCHR,
            "b" => SFlag::S_IFBLK,
            _ => return None,
        };
        let (major, minor) = device[1..].split_once(':')?;
        let name = PathBuf::from(name);
        let inside = name.components().all(|part| matches!(part, Component::Normal(_)));
        let (major, minor) = (major.parse().ok()?, minor.parse().ok()?);
        inside.then_some(Self { name, kind, major, minor })
    }

    fn make(&self, dev: &Path) -> io::Result<()> {
        let path = dev.join(&self.name);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let device = makedev(self.major, self.minor);
        match mknod(&path, self.kind, Mode::S_IRUSR | Mode::S_IWUSR, device) {
            // The driver is there already, and has made its own.
            Err(nix::errno::Errno::EEXIST) | Ok(()) => {}
            Err(errno) => return Err(errno.into()),
        }
        let shared = SHARED.iter().find(|(name, ..)| self.name == Path::new(name));
        let (mode, group) = shared.map_or((ALONE, None), |(_, mode, group)| (*mode, *group));
        if group.is_some() {
            chown(&path, None, group)?;
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    use super::*;

    #[test]
    fn a_line_is_a_device_and_leads_nowhere_else() {
        let tun = Node::parse("tun net/tun c10:200").unwrap();
        assert_eq!((tun.name.as_path(), tun.major, tun.minor), (Path::new("net/tun"), 10, 200));
        for line in [
            "",
            "# Device nodes to trigger on-demand module loading.",
            "x ../etc/x c1:1",
            "x /etc/x c1:1",
            "x x c1",
            "x x d1:1",
            "x x c1:x",
            "x x \u{e9}1:1",
        ] {
            assert_eq!(Node::parse(line), None, "{line}");
        }
    }

    #[test]
    fn everybody_may_use_fuse_and_nobody_the_rest() {
        if !crate::skip::is_root("a device") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        for (line, name, mode, group) in [
            ("fuse fuse c10:229", "fuse", 0o666, 0),
            ("loop loop-control c10:237", "loop-control", 0o660, DISK),
            ("dm_mod mapper/control c10:236", "mapper/control", 0o600, 0),
        ] {
            let node = Node::parse(line).unwrap();
            if let Err(error) = node.make(dir.path()) {
                crate::skip::skip(&format!(
                    "root may make no devices here, only outside a container: {error}"
                ));
                return;
            }
            node.make(dir.path()).unwrap();
            let meta = fs::symlink_metadata(dir.path().join(name)).unwrap();
            assert!(meta.file_type().is_char_device(), "{name}");
            assert_eq!((meta.mode() & 0o7777, meta.gid()), (mode, group), "{name}");
            assert_eq!(meta.rdev(), makedev(10, node.minor), "{name}");
        }
    }
}
