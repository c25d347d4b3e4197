//! `GET` and `PUT /files/archive`.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use support::{Agent, Body, Reply, eventually, is_root};

fn target(path: &Path) -> String {
    format!("/files/archive?path={}&username=root", path.display())
}

fn tar(dir: &Path, args: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").arg("-C").arg(dir).arg("-c").args(args).output().unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn a_directory_is_packed_and_unpacked() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/f"), "content").unwrap();
    fs::write(from.join(".envd-upload-1-1"), "not whole yet").unwrap();
    let archive = agent.get(&target(&from));
    assert_eq!((archive.status, archive.header("content-type")), (200, Some("application/x-tar")));
    let reply = agent.http("PUT", &target(&to), &[], &archive.body);
    assert_eq!((reply.status, reply.json()["entries"].as_u64()), (200, Some(2)));
    assert_eq!(fs::read(to.join("sub/f")).unwrap(), b"content");
    assert_eq!(fs::read_dir(&to).unwrap().count(), 1);
    assert_eq!(agent.get(&target(&dir.path().join("no"))).refusal().0, 404);
    assert_eq!(agent.get(&target(&to.join("sub/f"))).refusal().0, 400);
    assert_eq!(agent.http("PUT", &target(&to.join("sub/f")), &[], &archive.body).refusal().0, 400);
    assert_eq!(agent.http("PUT", &target(&to), &[], b"no archive").refusal().0, 400);
}

#[test]
fn an_archive_is_for_those_with_the_token() {
    let mut agent = Agent::start();
    agent.init(serde_json::json!({ "accessToken": "secret" }));
    assert_eq!(agent.get("/files/archive?path=/tmp").refusal().0, 401);
    assert_eq!(agent.get("/files/archive?path=/tmp&signature=x").refusal().0, 401);
    agent.set_header("X-Access-Token", "secret");
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(agent.get(&target(dir.path())).status, 200);
}

#[test]
fn large_archives_pass_through_in_flat_memory_and_slow_readers_hold_up_nobody() {
    let agent = Agent::start();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    let size = 50 << 20;
    fs::File::create(from.join("big")).unwrap().set_len(size).unwrap();
    for number in 0..2000 {
        fs::write(from.join(number.to_string()), "x").unwrap();
    }
    let archive = tar(&from, &["."]);
    let before = agent.memory_kib("VmRSS");
    let length = archive.len().to_string();
    let mut stream = agent.begin("PUT", &target(&to), &[("Content-Length", &length)]);
    stream.write_all(&archive).unwrap();
    assert_eq!(Reply::read(stream).status, 200);
    assert_eq!(fs::metadata(to.join("big")).unwrap().len(), size);

    // More of them than there are threads for single files.
    let slow: Vec<_> = (0..8).map(|_| agent.begin("GET", &target(&from), &[])).collect();
    std::thread::sleep(Duration::from_millis(500));
    let small = format!("/files?path={}&username=root", from.join("1").display());
    assert_eq!(agent.get(&small).body, b"x");
    for stream in slow {
        let (status, _, mut body) = Body::read_head(stream);
        let read = std::io::copy(&mut body.by_ref(), &mut std::io::sink()).unwrap();
        assert!(status == 200 && read > size, "{read}");
    }
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(grown < 12 * 1024, "{grown} KiB more for nine times 50 MB");
}

#[test]
fn a_caller_that_vanishes_leaves_no_half_file() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("f"), vec![b'x'; 1_000_000]).unwrap();
    let archive = tar(&from, &["."]);
    let length = archive.len().to_string();
    let mut stream = agent.begin("PUT", &target(&to), &[("Content-Length", &length)]);
    stream.write_all(&archive[..500_000]).unwrap();
    let count = || fs::read_dir(&to).into_iter().flatten().count();
    eventually("it has begun", || count() == 1);
    drop(stream);
    eventually("nothing is left of it", || count() == 0);
}

#[test]
fn what_is_unpacked_belongs_to_the_user() {
    if !is_root() {
        return;
    }
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    fs::create_dir_all(from.join("sub")).unwrap();
    fs::write(from.join("sub/f"), "x").unwrap();
    let query = format!("/files/archive?path={}&username=nobody", to.display());
    assert_eq!(agent.http("PUT", &query, &[], &tar(&from, &["."])).status, 200);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    for made in ["", "sub", "sub/f"] {
        assert_eq!(fs::metadata(to.join(made)).unwrap().uid(), nobody, "{made}");
    }
}

#[test]
fn what_cannot_be_packed_is_refused_with_the_reason() {
    let agent = Agent::start();
    // Drivers' files, which can be opened and not all be read, or are shorter than they say.
    let (status, message) = agent.get(&target(Path::new("/sys/class/net/lo"))).refusal();
    assert!([400, 403].contains(&status), "{status} {message}");
    assert!(message.contains("/sys/class/net/lo/"), "{message}");
}
