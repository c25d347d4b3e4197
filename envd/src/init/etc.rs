//! The files in `/etc` that the host has a say in: in memory, mounted over those of the image.
//!
//! `POST /init` rewrites them in each clone. On disk that takes a clone blocks of its own, and the
//! time to find and to journal them. As with the files that container runtimes mount, programs may
//! write to these, but to remove, replace or rename one is answered with `EBUSY`; whoever must can
//! unmount it first. Where one cannot be mounted, `POST /init` replaces the image's file.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};

/// Where they really are. Mounted by `mounts`, and gone with the guest.
const MEMORY: &str = "/run/envd";
/// Each with what it says where the image has none.
const FILES: [(&str, &str); 2] =
    [("/etc/hosts", "127.0.0.1\tlocalhost\n"), ("/etc/resolv.conf", "")];

/// Mounts them, with the contents that the image gave them.
pub fn keep_in_memory() {
    let _ = fs::create_dir(MEMORY);
    for (path, usual) in FILES {
        let path = Path::new(path);
        if let Err(error) = cover(path, Path::new(MEMORY), usual) {
            eprintln!("envd: {} stays on disk: {error}", path.display());
        }
    }
}

fn cover(path: &Path, memory: &Path, usual: &str) -> io::Result<()> {
    let text = fs::read(path).unwrap_or_else(|_| usual.into());
    let copy = memory.join(path.file_name().unwrap_or_default());
    fs::write(&copy, &text)?;
    // A mount would follow a link, to what may belong to a service that is not there.
    if fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink()) {
        fs::remove_file(path)?;
    }
    if !path.exists() {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(path, text)?;
    }
    let none = None::<&str>;
    Ok(mount(Some(&copy), path, none, MsFlags::MS_BIND, none)?)
}

#[cfg(test)]
mod tests {
    use nix::mount::{MntFlags, umount2};

    use super::*;

    #[test]
    fn what_the_image_says_is_kept_and_the_image_is_left_alone() {
        if !crate::skip::is_root("a mount") {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("memory");
        fs::create_dir(&memory).unwrap();
        let path = |name: &str| dir.path().join("etc").join(name);
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(path("full"), "image").unwrap();
        fs::write(path("elsewhere"), "service").unwrap();
        std::os::unix::fs::symlink("elsewhere", path("link")).unwrap();
        std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
        for (name, text) in
            [("full", "image"), ("absent", "usual"), ("link", "service"), ("dangling", "usual")]
        {
            let covered = cover(&path(name), &memory, "usual");
            let said = fs::read_to_string(path(name));
            let written = fs::write(path(name), "host");
            let undone = umount2(&path(name), MntFlags::MNT_DETACH);
            assert!(covered.is_ok() && written.is_ok() && undone.is_ok(), "{name}");
            assert_eq!(said.unwrap(), text, "{name}");
            assert_eq!(fs::read_to_string(memory.join(name)).unwrap(), "host", "{name}");
            assert_eq!(fs::read_to_string(path(name)).unwrap(), text, "{name}");
        }
        assert_eq!(fs::read_to_string(path("elsewhere")).unwrap(), "service");
    }
}
