//! Finds the hierarchies of this machine: version 2 with everything in one, version 1 with a
//! mount for each controller, or both at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

const MOUNTS: &str = "/proc/self/mountinfo";

/// What decides about devices, as version 1 calls it.
const DEVICES: &str = "devices";

/// What a cgroup can do for a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Controller {
    /// Limits memory.
    Memory,
    /// Limits the number of processes and threads.
    Pids,
    /// Shares processor time.
    Cpu,
    /// Counts processor time.
    CpuAccounting,
    /// Decides which devices can be opened.
    Devices,
    /// Kills all processes in one step (`cgroup.kill`).
    Kill,
}

impl Controller {
    pub(super) const ALL: [Controller; 6] =
        [Self::Memory, Self::Pids, Self::Cpu, Self::CpuAccounting, Self::Devices, Self::Kill];

    /// The kernel's name in the options of a version 1 mount.
    fn v1_name(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory"),
            Self::Pids => Some("pids"),
            Self::Cpu => Some("cpu"),
            Self::CpuAccounting => Some("cpuacct"),
            Self::Devices => Some(DEVICES),
            Self::Kill => None,
        }
    }

    /// The kernel's name in version 2, for what has to be enabled there; the rest is always there.
    pub(super) fn v2_name(self) -> Option<&'static str> {
        match self {
            Self::Memory => Some("memory"),
            Self::Pids => Some("pids"),
            Self::Cpu => Some("cpu"),
            Self::CpuAccounting | Self::Devices | Self::Kill => None,
        }
    }
}

/// The two interfaces that a hierarchy can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// One hierarchy for all.
    V2,
}

/// A mounted hierarchy and what it is used for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) root: PathBuf,
    pub(super) version: Version,
    pub(super) controllers: Vec<Controller>,
}

/// The hierarchies to use, each controller in exactly one of them.
pub(super) fn discover() -> io::Result<Vec<Hierarchy>> {
    let mounts = fs::read_to_string(MOUNTS)?;
    let available = |root: &Path| {
        let list = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        let names = list.split_whitespace().map(str::to_owned);
        let passed_on = names.filter(|name| can_pass_on(root, name));
        // No controller that the kernel lists, but a program that it has to be built for.
        passed_on.chain(super::devices::supported().then(|| DEVICES.to_owned())).collect()
    };
    Ok(assign(&parse_mounts(&mounts), available))
}

/// The hierarchy of one version that decides about devices, whichever the other can do.
#[cfg(test)]
pub(super) fn with_devices(version: Version) -> io::Result<Option<Hierarchy>> {
    let mounts = parse_mounts(&fs::read_to_string(MOUNTS)?);
    let found = mounts.into_iter().find(|mount| match version {
        Version::V1 => mount.version == version && mount.options.iter().any(|it| it == DEVICES),
        Version::V2 => mount.version == version && super::devices::supported(),
    });
    let controllers = vec![Controller::Devices];
    Ok(found.map(|Mount { root, version, .. }| Hierarchy { root, version, controllers }))
}

/// Whether the root of a version 2 hierarchy lets the cgroups below it have a controller. That of a
/// container does not while there are processes in it.
fn can_pass_on(root: &Path, controller: &str) -> bool {
    match enable(root, controller) {
        Ok(()) => true,
        // The lack of privilege shows later, as an error; it does not make the machine a poorer one.
        Err(e) => e.kind() == io::ErrorKind::PermissionDenied,
    }
}

/// Lets the cgroups below a version 2 cgroup have a controller.
pub(super) fn enable(dir: &Path, controller: &str) -> io::Result<()> {
    let path = dir.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&path)?;
    if enabled.split_whitespace().any(|name| name == controller) {
        return Ok(());
    }
    fs::write(path, format!("+{controller}"))
}

/// A cgroup mount: where, and the options of its filesystem.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: PathBuf,
    version: Version,
    options: Vec<String>,
}

/// Finds the cgroup mounts that can be written to, in the format of proc_pid_mountinfo(5).
fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    let parse = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ').skip(4);
        let root = PathBuf::from(before.next()?);
        if before.next()?.split(',').any(|option| option == "ro") {
            return None;
        }
        let mut after = after.split(' ');
        let version = match after.next()? {
            "cgroup" => Version::V1,
            "cgroup2" => Version::V2,
            _ => return None,
        };
        let options = after.nth(1)?.split(',').map(str::to_owned).collect();
        Some(Mount { root, version, options })
    };
    mountinfo.lines().filter_map(parse).collect()
}

/// Gives each controller to the first hierarchy that has it, version 2 before version 1. The kernel
/// offers a controller in one version only, so there is nothing to prefer.
fn assign(mounts: &[Mount], available_in_v2: impl Fn(&Path) -> Vec<String>) -> Vec<Hierarchy> {
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    let mut place = |mount: &Mount, controller| match hierarchies
        .iter_mut()
        .find(|hierarchy| hierarchy.root == mount.root)
    {
        Some(hierarchy) => hierarchy.controllers.push(controller),
        None => hierarchies.push(Hierarchy {
            root: mount.root.clone(),
            version: mount.version,
            controllers: vec![controller],
        }),
    };
    let unified = mounts.iter().find(|mount| mount.version == Version::V2);
    let in_unified = unified.map(|mount| available_in_v2(&mount.root)).unwrap_or_default();
    for controller in Controller::ALL {
        let has = |name: &str| in_unified.iter().any(|available| available == name);
        let v1 = mounts.iter().find(|mount| {
            let name = controller.v1_name();
            mount.version == Version::V1
                && name.is_some_and(|n| mount.options.iter().any(|o| o == n))
        });
        let needed = match controller {
            Controller::Devices => Some(DEVICES),
            listed => listed.v2_name(),
        };
        let v2 = unified.filter(|_| needed.is_none_or(has));
        if let Some(mount) = v2.or(v1) {
            place(mount, controller);
        }
    }
    hierarchies
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1_LINE: &str =
        "31 24 0:27 / /sys/fs/cgroup/memory rw,nosuid shared:9 - cgroup cgroup rw,memory";
    const JOINT_LINE: &str = "32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid shared:10 - cgroup cgroup rw,cpu,cpuacct";
    const V2_LINE: &str = "33 24 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate";

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn other_filesystems_are_no_hierarchies() {
        let tmpfs = "24 1 0:5 / /sys/fs/cgroup ro - tmpfs tmpfs ro,mode=755";
        let found = parse_mounts(&[tmpfs, V1_LINE, V2_LINE].join("\n"));
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].root, Path::new("/sys/fs/cgroup/memory"));
        assert_eq!((found[0].version, found[1].version), (Version::V1, Version::V2));
    }

    #[test]
    fn a_read_only_mount_offers_nothing() {
        assert!(parse_mounts(&V2_LINE.replace(" rw ", " ro,nosuid ")).is_empty());
    }

    #[test]
    fn a_unified_machine_has_everything_in_one_hierarchy() {
        let mounts = parse_mounts(V2_LINE);
        let found = assign(&mounts, |_| names(&["cpuset", "cpu", "memory", "pids", DEVICES]));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controllers, Controller::ALL);
    }

    #[test]
    fn a_hybrid_machine_uses_both_versions() {
        let mounts = parse_mounts(&[V1_LINE, JOINT_LINE, V2_LINE].join("\n"));
        let found = assign(&mounts, |_| names(&[DEVICES]));
        let of = |root: &str| {
            let hierarchy = found.iter().find(|h| h.root.ends_with(root)).expect("is used");
            hierarchy.controllers.clone()
        };
        assert_eq!(of("memory"), [Controller::Memory]);
        assert_eq!(of("cpu,cpuacct"), [Controller::Cpu]);
        let unified = [Controller::CpuAccounting, Controller::Devices, Controller::Kill];
        assert_eq!(of("unified"), unified);
    }

    #[test]
    fn a_controller_that_is_nowhere_is_left_out() {
        let found = assign(&parse_mounts(V1_LINE), |_| Vec::new());
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].controllers, [Controller::Memory]);
        assert!(assign(&[], |_| Vec::new()).is_empty());
    }
}
