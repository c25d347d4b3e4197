//! `filesystem.Filesystem`: metadata, making, moving, removing, listing.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::{Agent, is_root, keeps_attributes, skip};

fn call(agent: &Agent, method: &str, request: Value) -> Result<Value, (String, String)> {
    agent.call(&format!("filesystem.Filesystem/{method}"), request)
}

fn stat(agent: &Agent, path: &Path) -> Value {
    call(agent, "Stat", json!({ "path": path })).unwrap()["entry"].clone()
}

fn code(agent: &Agent, method: &str, request: Value) -> String {
    call(agent, method, request).unwrap_err().0
}

#[test]
fn an_entry_says_what_ls_says() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f.txt");
    fs::write(&file, "12345").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
    let entry = stat(&agent, &file);
    assert_eq!(entry["name"], "f.txt");
    assert_eq!(entry["path"], file.to_str().unwrap());
    assert_eq!(entry["type"], "FILE_TYPE_FILE");
    // 64-bit numbers are strings in this codec.
    assert_eq!(entry["size"], "5");
    assert_eq!((&entry["mode"], &entry["permissions"]), (&json!(0o640), &json!("-rw-r-----")));
    assert_eq!(entry.get("symlinkTarget"), None);
    assert!(entry["modifiedTime"].as_str().unwrap().starts_with("20"));
    let link = dir.path().join("link");
    symlink("f.txt", &link).unwrap();
    let entry = stat(&agent, &link);
    assert_eq!(entry["type"], "FILE_TYPE_FILE");
    assert_eq!(entry["symlinkTarget"], fs::canonicalize(&file).unwrap().to_str().unwrap());
    assert_eq!(stat(&agent, dir.path())["type"], "FILE_TYPE_DIRECTORY");
    assert_eq!(stat(&agent, Path::new("/dev/null")).get("type"), None);
}

#[test]
fn metadata_kept_with_a_file_is_shown_without_its_prefix() {
    let agent = Agent::start();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    if !keeps_attributes(dir.path()) {
        return;
    }
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    xattr::set(&file, "user.e2b.author", b"me").unwrap();
    xattr::set(&file, "user.other", b"x").unwrap();
    assert_eq!(stat(&agent, &file)["metadata"], json!({ "author": "me" }));
}

#[test]
fn paths_that_cannot_be_are_refused() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    let (below, missing) = (file.join("x"), dir.path().join("no"));
    for method in ["Stat", "ListDir"] {
        assert_eq!(code(&agent, method, json!({ "path": missing })), "not_found");
        assert_eq!(code(&agent, method, json!({ "path": "a\0b" })), "invalid_argument");
        assert_eq!(code(&agent, method, json!({ "path": "~other/x" })), "invalid_argument");
    }
    assert_eq!(code(&agent, "Stat", json!({ "path": below })), "invalid_argument");
    assert_eq!(code(&agent, "ListDir", json!({ "path": file })), "invalid_argument");
    assert_eq!(code(&agent, "MakeDir", json!({ "path": file })), "invalid_argument");
    assert_eq!(code(&agent, "MakeDir", json!({ "path": below })), "invalid_argument");
    assert_eq!(code(&agent, "Remove", json!({ "path": "/" })), "invalid_argument");
    let mut stranger = Agent::start();
    stranger.set_user("no-such-user");
    assert_eq!(code(&stranger, "Stat", json!({ "path": "/" })), "invalid_argument");
}

#[test]
fn a_directory_is_made_with_its_parents_once() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b/c");
    let made = call(&agent, "MakeDir", json!({ "path": path })).unwrap();
    assert_eq!(made["entry"]["type"], "FILE_TYPE_DIRECTORY");
    assert_eq!(made["entry"]["permissions"], "drwxr-xr-x");
    assert_eq!(code(&agent, "MakeDir", json!({ "path": path })), "already_exists");
}

#[test]
fn what_is_made_belongs_to_the_user_and_relative_paths_start_at_home() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    agent.set_user("nobody");
    call(&agent, "MakeDir", json!({ "path": dir.path().join("x/y") })).unwrap();
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    for made in ["x", "x/y"] {
        let meta = fs::metadata(dir.path().join(made)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (nobody.uid.as_raw(), nobody.gid.as_raw()));
    }
    agent.set_user("root");
    let entry = call(&agent, "Stat", json!({ "path": "." })).unwrap()["entry"].clone();
    assert_eq!((&entry["path"], &entry["owner"]), (&json!("/root"), &json!("root")));
}

#[test]
fn a_list_goes_as_deep_as_asked_in_the_order_of_names() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    for sub in ["b/x/deep", "a"] {
        fs::create_dir_all(dir.path().join(sub)).unwrap();
    }
    fs::write(dir.path().join("c"), "").unwrap();
    symlink("b", dir.path().join("d")).unwrap();
    let list = |depth: u32| -> Vec<String> {
        let request = json!({ "path": dir.path(), "depth": depth });
        let answer = call(&agent, "ListDir", request).unwrap();
        let path = |entry: &Value| entry["path"].as_str().unwrap().to_owned();
        let root = format!("{}/", dir.path().display());
        let entries = answer["entries"].as_array().unwrap();
        entries.iter().map(|entry| path(entry).replace(&root, "")).collect()
    };
    assert_eq!(list(1), ["a", "b", "c", "d"]);
    assert_eq!(list(0), list(1));
    assert_eq!(list(2), ["a", "b", "b/x", "c", "d"]);
    assert_eq!(list(9), ["a", "b", "b/x", "b/x/deep", "c", "d"]);
}

#[test]
fn a_move_replaces_files_makes_parents_and_keeps_the_rest() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("a"), "new").unwrap();
    fs::write(path("b"), "old").unwrap();
    let rename = |from: &str, to: &str| {
        call(&agent, "Move", json!({ "source": path(from), "destination": path(to) }))
    };
    assert_eq!(rename("a", "b").unwrap()["entry"]["name"], "b");
    assert_eq!(fs::read_to_string(path("b")).unwrap(), "new");
    rename("b", "deep/er/c").unwrap();
    assert_eq!(fs::read_to_string(path("deep/er/c")).unwrap(), "new");
    assert_eq!(rename("gone", "x").unwrap_err().0, "not_found");
    assert_eq!(rename("deep", "deep/er/self").unwrap_err().0, "invalid_argument");
}

#[test]
fn a_move_to_another_file_system_takes_everything_along() {
    let (one, other) = (tempfile::tempdir_in("/dev/shm"), tempfile::tempdir_in("/var/tmp"));
    let (Ok(one), Ok(other)) = (one, other) else {
        skip("there is no /dev/shm or no /var/tmp: `mount -t tmpfs shm /dev/shm`");
        return;
    };
    if fs::metadata(one.path()).unwrap().dev() == fs::metadata(other.path()).unwrap().dev() {
        skip("/dev/shm and /var/tmp are one file system: `mount -t tmpfs shm /dev/shm`");
        return;
    }
    let agent = Agent::start();
    let (source, destination) = (one.path().join("tree"), other.path().join("moved"));
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/f"), "text").unwrap();
    symlink("sub/f", source.join("link")).unwrap();
    let request = json!({ "source": source, "destination": destination });
    call(&agent, "Move", request).unwrap();
    assert_eq!(fs::read_to_string(destination.join("link")).unwrap(), "text");
    assert!(!source.exists());
    let left: Vec<_> = fs::read_dir(other.path()).unwrap().flatten().collect();
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn what_is_removed_is_gone_and_may_be_gone_before() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/f"), "").unwrap();
    let (target, link) = (dir.path().join("kept"), dir.path().join("link"));
    fs::create_dir(&target).unwrap();
    symlink(&target, &link).unwrap();
    for path in [&tree, &tree, &link] {
        call(&agent, "Remove", json!({ "path": path })).unwrap();
        assert!(fs::symlink_metadata(path).is_err());
    }
    assert!(target.exists(), "a link is removed, not what it leads to");
}

#[test]
fn names_that_are_not_utf8_are_told_and_taken_as_bytes() {
    use std::os::unix::ffi::OsStrExt;

    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let raw =
        |name: &[u8]| STANDARD.encode([dir.path().as_os_str().as_bytes(), b"/", name].concat());
    let mut events = agent.stream("filesystem.Filesystem/WatchDir", json!({ "path": dir.path() }));
    events.next().unwrap().unwrap();
    let file = dir.path().join(std::ffi::OsStr::from_bytes(b"bad\xff"));
    fs::write(&file, "x").unwrap();
    fs::write(dir.path().join("bad\u{fffd}"), "similar").unwrap();

    let event = events.next().unwrap().unwrap();
    let name = STANDARD.encode(b"bad\xff");
    assert_eq!(event["filesystem"]["rawName"], name, "{event}");
    let request = json!({ "path": dir.path() });
    let list = agent.call("filesystem.Filesystem/ListDir", request).unwrap();
    let entries = list["entries"].as_array().unwrap();
    assert_eq!(entries[0]["name"], entries[1]["name"], "{list}");
    let told: Vec<_> = entries.iter().filter(|entry| entry["rawName"] == name).collect();
    assert_eq!((told.len(), &told[0]["rawPath"]), (1, &json!(raw(b"bad\xff"))));

    // What does not know of bytes finds a zero byte in the text.
    let at = |name: &[u8]| json!({ "path": "\0", "rawPath": raw(name) });
    let stat = agent.call("filesystem.Filesystem/Stat", at(b"bad\xff")).unwrap();
    assert_eq!(stat["entry"]["rawName"], name);
    agent.call("filesystem.Filesystem/Remove", at(b"bad\xff")).unwrap();
    assert!(!file.exists());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let target = format!("/files?path={}/bad%EF%BF%BD", dir.path().display());
    assert_eq!(agent.get(&target).body, b"similar");
    let target = format!("/files?path={}/bad%FF", dir.path().display());
    assert_eq!(agent.get(&target).refusal().0, 404);
}

#[test]
fn a_list_has_an_end_before_it_is_put_together() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let long = "n".repeat(240);
    for number in 0..16_000 {
        fs::write(dir.path().join(format!("{number}{long}")), "").unwrap();
    }
    let (code, message) = call(&agent, "ListDir", json!({ "path": dir.path() })).unwrap_err();
    // The words by which the host tells it from a full disk.
    assert!(code == "resource_exhausted" && message.contains(" exceeds limit "), "{message}");
}
