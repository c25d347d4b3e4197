//! Everything that sandboxes could leave behind on a machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::lab::run;

/// What the daemon itself keeps in its data directory.
const OWN_FILES: [&str; 17] = [
    "api-key",
    "daemon.lock",
    "host-id",
    "nestbox.db",
    "nestbox.db-shm",
    "nestbox.db-wal",
    "nestbox.reserve",
    "nestbox.sock",
    "sandboxes",
    "snapshots",
    "snapshots/forks",
    "snapshots/named",
    "token-secret",
    "url",
    "warm",
    "warm/debian",
    "warm/debian/.lock",
];

/// What there is on the lab's machine at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Census(BTreeMap<&'static str, Vec<String>>);

impl Census {
    /// Counts everything that belongs to the lab or to the daemon of this data directory.
    pub fn take(data_dir: &Path) -> Self {
        let lines = |text: String| text.lines().map(str::to_owned).collect::<Vec<_>>();
        let owner = data_dir.display().to_string();
        let mut mounts = lines(fs::read_to_string("/proc/thread-self/mounts").expect("mounts"));
        // The directory itself stays mounted, as after anybody's first `ip netns add`.
        mounts.retain(|line| line.split(' ').nth(1) != Some("/run/netns"));
        let mut links = lines(run("ip -o link"));
        links.iter_mut().for_each(|line| *line = second_word(line));
        // Without pids: a daemon that was started again is as good as the one before.
        let mut processes: Vec<_> =
            processes_of(data_dir).into_iter().map(|(_, line)| line).collect();
        processes.sort();
        Self(BTreeMap::from([
            ("network namespaces", names(Path::new("/run/netns"))),
            ("links", links),
            ("routes", lines(run("ip route show table all"))),
            ("packet filters", lines(run("nft list ruleset"))),
            ("claimed slots", names(Path::new("/run/nestbox/slots"))),
            ("mounts", mounts),
            ("loop devices", loops(&owner)),
            ("device-mapper devices", nestbox_devices(data_dir)),
            ("processes", processes),
            ("cgroups", cgroups(data_dir)),
            ("files", files(data_dir)),
        ]))
    }

    /// How many there are of a kind.
    pub fn count(&self, kind: &str) -> usize {
        self.0[kind].len()
    }

    /// The same without files.
    pub fn without_files(mut self) -> Self {
        self.0.remove("files");
        self
    }

    /// Panics with the difference if there is more or less now than before.
    #[track_caller]
    pub fn compare(&self, after: &Self) {
        let mut difference = String::new();
        for (kind, before) in &self.0 {
            let (mut gone, mut new) = (before.clone(), Vec::new());
            for item in &after.0[kind] {
                match gone.iter().position(|known| known == item) {
                    Some(index) => drop(gone.swap_remove(index)),
                    None => new.push(item),
                }
            }
            gone.iter().for_each(|item| difference += &format!("\n  {kind}: - {item}"));
            new.iter().for_each(|item| difference += &format!("\n  {kind}: + {item}"));
        }
        assert!(difference.is_empty(), "the machine is not as it was:{difference}");
    }
}

/// Processes that were started with the data directory, are in it or in a cgroup that stands for it:
/// daemons and VMs, which see neither the directory nor its name.
pub fn processes_of(data_dir: &Path) -> Vec<(i32, String)> {
    let (owner, group) = (data_dir.display().to_string(), format!("/{}/", cgroup_name(data_dir)));
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let ours = pids.filter_map(|pid| {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(proc.join("cmdline")).ok()?;
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let cwd = fs::read_link(proc.join("cwd")).unwrap_or_default();
        let groups = fs::read_to_string(proc.join("cgroup")).unwrap_or_default();
        let ours = line.contains(&owner) || cwd.starts_with(data_dir) || groups.contains(&group);
        // One that has ended, and that nobody has asked after yet, has no arguments any more.
        (ours && !line.is_empty()).then_some((pid, line))
    });
    ours.collect()
}

fn second_word(line: &str) -> String {
    line.split_whitespace().nth(1).unwrap_or_default().to_owned()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Loop devices on files of the data directory.
fn loops(owner: &str) -> Vec<String> {
    let backing = |name: &String| {
        let file = format!("/sys/block/{name}/loop/backing_file");
        fs::read_to_string(file).is_ok_and(|path| path.contains(owner))
    };
    names(Path::new("/sys/block")).into_iter().filter(backing).collect()
}

/// Device-mapper devices of the daemon with that data directory. Without udev there are no nodes that
/// show them.
fn nestbox_devices(data_dir: &Path) -> Vec<String> {
    let Ok(path) = fs::canonicalize(data_dir) else { return Vec::new() };
    let digest = Sha256::digest(path.as_os_str().as_encoded_bytes());
    let ours: String = digest[..4].iter().map(|byte| format!("{byte:02x}")).collect();
    let all = names(Path::new("/sys/block")).into_iter();
    let named = all.filter_map(|block| {
        fs::read_to_string(Path::new("/sys/block").join(block).join("dm/name")).ok()
    });
    let named = named.map(|name| name.trim().to_owned());
    named.filter(|name| name.starts_with(&format!("nestbox-{ours}"))).collect()
}

/// Cgroups below the one that stands for the data directory in each hierarchy, itself included.
fn cgroups(data_dir: &Path) -> Vec<String> {
    let daemon = cgroup_name(data_dir);
    let mounts = fs::read_to_string("/proc/thread-self/mounts").expect("mounts");
    let roots = mounts.lines().filter_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (root, kind) = (words.next()?, words.next()?);
        ["cgroup", "cgroup2"].contains(&kind).then(|| Path::new(root).join("nestbox").join(&daemon))
    });
    let found = roots.filter(|dir| dir.is_dir()).flat_map(|dir| {
        let below = names(&dir).into_iter().map(|name| dir.join(name)).filter(|path| path.is_dir());
        below.chain([dir.clone()]).map(|path| path.display().to_string()).collect::<Vec<_>>()
    });
    found.collect()
}

/// What stands for a data directory in the names of cgroups.
fn cgroup_name(data_dir: &Path) -> String {
    let digest = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    digest[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Files in the data directory that are not the daemon's own.
fn files(data_dir: &Path) -> Vec<String> {
    let (mut found, mut pending) = (Vec::new(), vec![data_dir.to_owned()]);
    while let Some(dir) = pending.pop() {
        for name in names(&dir) {
            let path = dir.join(&name);
            let below = path.strip_prefix(data_dir).expect("it is below");
            if !OWN_FILES.iter().any(|own| Path::new(own) == below) {
                found.push(path.display().to_string());
            }
            // A socket or a link is no directory.
            if fs::symlink_metadata(&path).is_ok_and(|metadata| metadata.is_dir()) {
                pending.push(path);
            }
        }
    }
    found
}
