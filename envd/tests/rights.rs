//! Files are reached with the rights of who is meant.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Agent, Reply, is_root};

/// Somebody without rights, whom every machine has.
const USER: &str = "nobody";

/// A directory where everybody may make something, such as `/tmp`.
struct Common {
    dir: tempfile::TempDir,
    agent: Agent,
}

impl Common {
    fn new() -> Option<Self> {
        if !is_root() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o1777)).unwrap();
        let mut agent = Agent::start();
        agent.set_user(USER);
        Some(Self { dir, agent })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A file of root's.
    fn of_root(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, "of root").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn dir_of_root(&self, name: &str, mode: u32) -> PathBuf {
        let path = self.path(name);
        fs::create_dir(&path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    }

    fn read(&self, path: &Path) -> Reply {
        self.agent.get(&format!("/files?path={}&username={USER}", path.display()))
    }

    fn write(&self, path: &Path, text: &str) -> Reply {
        let target = format!("/files?path={}&username={USER}", path.display());
        let headers = [("Content-Type", "application/octet-stream")];
        self.agent.http("POST", &target, &headers, text.as_bytes())
    }

    fn call(&self, method: &str, request: Value) -> Result<Value, (String, String)> {
        self.agent.call(&format!("filesystem.Filesystem/{method}"), request)
    }

    /// A call is refused for want of rights.
    #[track_caller]
    fn is_refused(&self, method: &str, request: Value) {
        let (code, message) = self.call(method, request).unwrap_err();
        assert_eq!(code, "failed_precondition", "{method}: {message}");
        let reasons = ["ermission denied", "not permitted"];
        assert!(reasons.iter().any(|reason| message.contains(reason)), "{method}: {message}");
    }
}

#[track_caller]
fn is_denied(reply: &Reply) {
    let (status, message) = reply.refusal();
    assert!(status == 403 && message.contains("ermission denied"), "{status} {message}");
}

#[test]
fn what_is_roots_is_neither_read_nor_written_for_somebody_else() {
    let Some(common) = Common::new() else { return };
    let secret = common.of_root("secret", 0o600);
    let shown = common.of_root("shown", 0o644);
    let closed = common.dir_of_root("closed", 0o700);
    let open = common.dir_of_root("open", 0o755);
    fs::write(open.join("file"), "of root").unwrap();

    is_denied(&common.read(&secret));
    assert_eq!(common.read(&shown).body, b"of root");
    // Neither by itself nor by a link of one's own.
    let link = common.path("link");
    symlink(&shown, &link).unwrap();
    lchown(&link, Some(65534), None).unwrap();
    for path in [&secret, &shown, &link, &open.join("file"), &open.join("new"), &closed.join("d/f")]
    {
        is_denied(&common.write(path, "of somebody else"));
    }
    assert_eq!(fs::read(&shown).unwrap(), b"of root");
    assert_eq!(fs::read(open.join("file")).unwrap(), b"of root");

    for (method, path) in [
        ("ListDir", &closed),
        ("CreateWatcher", &closed),
        ("MakeDir", &open.join("d")),
        ("Remove", &secret),
        ("Remove", &open),
        ("Stat", &closed.join("x")),
    ] {
        common.is_refused(method, json!({ "path": path }));
    }
    let to = common.path("mine");
    common.is_refused("Move", json!({ "source": secret, "destination": to }));
    common.is_refused("Move", json!({ "source": open.join("file"), "destination": to }));
    assert!(secret.exists() && open.join("file").exists() && !to.exists());

    let archive = |path: &Path| format!("/files/archive?path={}&username={USER}", path.display());
    is_denied(&common.agent.get(&archive(&closed)));
    fs::copy(&secret, open.join("secret")).unwrap();
    fs::set_permissions(open.join("secret"), Permissions::from_mode(0o600)).unwrap();
    let (status, message) = common.agent.get(&archive(&open)).refusal();
    assert!(status == 400 && message.contains("ermission denied"), "{status} {message}");
    let mut tar = std::process::Command::new("tar");
    let packed = tar.arg("-C").arg(&open).args(["-c", "file"]).output().unwrap().stdout;
    fs::remove_file(open.join("file")).unwrap();
    is_denied(&common.agent.http("PUT", &archive(&open), &[], &packed));
    is_denied(&common.agent.http("PUT", &archive(&open.join("d")), &[], &packed));
    assert!(!open.join("file").exists() && !open.join("d").exists());
}

#[test]
fn what_is_ones_own_is_read_and_written_as_by_ones_own_programs() {
    let Some(common) = Common::new() else { return };
    let mine = common.path("dir/mine");
    assert_eq!(common.write(&mine, "mine").status, 200);
    for made in [&mine, mine.parent().unwrap()] {
        assert_eq!(fs::metadata(made).unwrap().uid(), 65534);
    }
    fs::set_permissions(&mine, Permissions::from_mode(0o400)).unwrap();
    assert_eq!(common.read(&mine).body, b"mine");
    is_denied(&common.write(&mine, "not to be written to"));

    // A link in a directory such as `/tmp` is followed for its owner alone.
    let link = common.path("link");
    symlink(&mine, &link).unwrap();
    lchown(&link, Some(65534), None).unwrap();
    assert_eq!(common.read(&link).body, b"mine");

    let moved = common.path("moved");
    common.call("Move", json!({ "source": mine, "destination": moved })).unwrap();
    common.call("Remove", json!({ "path": common.path("dir") })).unwrap();
    assert_eq!(fs::read(moved).unwrap(), b"mine");
}

#[test]
fn a_file_that_may_be_written_is_also_where_it_cannot_be_replaced() {
    let Some(common) = Common::new() else { return };
    let open = common.dir_of_root("open", 0o755);
    let shared = common.of_root("shared", 0o666);
    fs::write(open.join("shared"), "of root, and longer").unwrap();
    fs::set_permissions(open.join("shared"), Permissions::from_mode(0o666)).unwrap();
    for path in [shared, open.join("shared")] {
        let before = fs::metadata(&path).unwrap();
        assert_eq!(common.write(&path, "of all").status, 200);
        assert_eq!(fs::read(&path).unwrap(), b"of all");
        let after = fs::metadata(&path).unwrap();
        let kept = |meta: &fs::Metadata| (meta.ino(), meta.uid(), meta.mode());
        assert_eq!(kept(&before), kept(&after), "it stays the file that it is");
    }
    let left = |dir: &Path| {
        let names = fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".envd-upload-")).count()
    };
    assert_eq!(left(common.dir.path()) + left(&open), 0);
}

#[test]
fn a_watch_goes_where_its_user_may() {
    let Some(common) = Common::new() else { return };
    let dir = common.dir_of_root("dir", 0o755);
    fs::create_dir(dir.join("closed")).unwrap();
    fs::set_permissions(dir.join("closed"), Permissions::from_mode(0o700)).unwrap();
    let request = json!({ "path": dir, "recursive": true });
    let mut events = common.agent.stream("filesystem.Filesystem/WatchDir", request);
    events.next().unwrap().unwrap();
    fs::write(dir.join("closed/secret"), "").unwrap();
    fs::write(dir.join("shown"), "").unwrap();
    let event = events.next().unwrap().unwrap();
    assert_eq!(event["filesystem"]["name"], "shown", "{event}");
}
