//! A machine of a test's own, as far as networks and `/run` go: what others do is not seen in it.

use std::fs;
use std::process::Command;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Below this, in its directory of images, a daemon mounts what it needs to make one.
const IMAGE_IN_THE_MAKING: &str = "/.work/tree/";

/// Within it, in a temporary directory, other tests mount what they need, and take it away.
const OF_ANOTHER_TEST: &str = "/.tmp";

/// Gives the calling thread network and mount namespaces of its own with an empty `/run`.
pub fn separate() {
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("new namespaces");
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("private mounts");
    // The namespaces of daemons elsewhere come and go, and so do the images that they make.
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("mounts");
    let targets: Vec<&str> = mounts.lines().filter_map(|line| line.split(' ').nth(1)).collect();
    let passing = |target: &&str| {
        target.starts_with("/run/")
            || target.contains(IMAGE_IN_THE_MAKING)
            || target.contains(OF_ANOTHER_TEST)
    };
    for target in targets.into_iter().rev().filter(passing) {
        match umount2(target, MntFlags::MNT_DETACH) {
            // Gone in the meantime.
            Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
            Err(errno) => panic!("cannot unmount {target}: {errno}"),
        }
    }
    mount(Some("tmpfs"), "/run", Some("tmpfs"), MsFlags::empty(), None::<&str>)
        .expect("an empty /run");
    let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip runs");
    assert!(up.success(), "ip link set lo up");
}
