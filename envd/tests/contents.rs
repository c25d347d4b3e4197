//! `GET /files` and `POST /files`.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Agent, Body, Reply, eventually, is_root, keeps_attributes};

const OCTETS: (&str, &str) = ("Content-Type", "application/octet-stream");

fn target(path: &Path) -> String {
    format!("/files?path={}&username=root", path.display())
}

fn put(agent: &Agent, path: &Path, body: &[u8]) -> Reply {
    agent.http("POST", &target(path), &[OCTETS], body)
}

/// A multipart body, and the header that goes with it.
fn form(parts: &[(&str, &str, &[u8])]) -> (String, Vec<u8>) {
    let mut body = Vec::new();
    for (field, file, content) in parts {
        let head = format!(
            "--XYZ\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"{file}\"\r\n\r\n"
        );
        body.extend(head.as_bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(b"--XYZ--\r\n");
    ("multipart/form-data; boundary=XYZ".to_owned(), body)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What a program makes of some bytes.
fn piped(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap().stdout;
    let _ = writer.join();
    output
}

#[test]
fn what_is_uploaded_can_be_downloaded() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep/er/f.bin");
    let content: Vec<u8> = (0..=255).cycle().take(300_000).collect();
    let reply = put(&agent, &file, &content);
    let written = json!([{ "path": file, "name": "f.bin", "type": "file" }]);
    assert_eq!((reply.status, reply.json()), (200, written));
    let reply = agent.get(&target(&file));
    assert_eq!((reply.status, reply.body == content), (200, true));
    assert_eq!(reply.header("content-length"), Some("300000"));
    assert_eq!(reply.header("content-disposition"), Some("inline; filename=\"f.bin\""));
    assert_eq!(names(&dir.path().join("deep/er")), ["f.bin"]);
    assert_eq!(put(&agent, &file, b"").status, 200);
    assert_eq!(agent.get(&target(&file)).body, b"");
}

#[test]
fn a_form_writes_one_file_by_path_or_many_by_name() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let (kind, body) = form(&[("other", "x", b"no"), ("file", "ignored.txt", b"one")]);
    let reply =
        agent.http("POST", &target(&dir.path().join("a")), &[("Content-Type", &kind)], &body);
    assert_eq!(reply.json()[0]["name"], "a");
    let names_in_form = ["b/c.txt", "d"].map(|name| dir.path().join(name).display().to_string());
    let (kind, body) =
        form(&[("file", &names_in_form[0], b"two"), ("file", &names_in_form[1], b"")]);
    let reply = agent.http("POST", "/files?username=root", &[("Content-Type", &kind)], &body);
    assert_eq!(reply.json().as_array().unwrap().len(), 2);
    assert_eq!(fs::read(dir.path().join("a")).unwrap(), b"one");
    assert_eq!(fs::read(dir.path().join("b/c.txt")).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["a", "b", "d"]);
}

#[test]
fn a_form_that_makes_no_sense_is_refused() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let path = target(&dir.path().join("a"));
    let post = |target: &str, kind: &str, body: &[u8]| {
        agent.http("POST", target, &[("Content-Type", kind)], body).refusal().0
    };
    let (kind, two) = form(&[("file", "x", b"1"), ("file", "y", b"2")]);
    assert_eq!(post(&path, &kind, &two), 400);
    let (_, nameless) = form(&[("file", "", b"1")]);
    assert_eq!(post("/files?username=root", &kind, &nameless), 400);
    assert_eq!(post(&path, "multipart/form-data", b"no boundary"), 400);
    assert_eq!(
        post(&path, &kind, b"--XYZ\r\nContent-Disposition: form-data; name=\"file\"\r\n\r\ncut"),
        400
    );
    assert_eq!(post("/files?username=root", "application/octet-stream", b"no path"), 400);
}

#[test]
fn files_that_cannot_be_read_are_refused() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    fs::write(dir.path().join("f"), "").unwrap();
    let refusal = |target: &str| agent.get(target).refusal();
    assert_eq!(refusal(&target(&dir.path().join("no"))).0, 404);
    assert_eq!(refusal(&target(&dir.path().join("f/x"))).0, 404);
    assert_eq!(
        refusal(&target(dir.path())),
        (400, format!("path '{}' is a directory", dir.path().display()))
    );
    assert_eq!(refusal(&target(&fifo)).0, 400);
    assert_eq!(refusal("/files?path=/dev/zero&username=root").0, 400);
    assert_eq!(refusal("/files?path=a%00b&username=root").0, 400);
    assert_eq!(refusal("/files?path=/etc/passwd&username=no-such-user").0, 401);
    assert_eq!(put(&agent, dir.path(), b"x").refusal().0, 400);
    assert_eq!(put(&agent, &fifo, b"x").refusal().0, 400);
    assert_eq!(put(&agent, &dir.path().join("f/x"), b"x").refusal().0, 400);
    let long = dir.path().join("n".repeat(300));
    assert_eq!(put(&agent, &long, b"x").refusal().0, 400);
}

#[test]
fn a_range_is_a_part_of_the_file() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "0123456789").unwrap();
    let ask = |range: &str| agent.http("GET", &target(&file), &[("Range", range)], b"");
    let reply = ask("bytes=2-4");
    assert_eq!((reply.status, reply.body.as_slice()), (206, &b"234"[..]));
    assert_eq!(reply.header("content-range"), Some("bytes 2-4/10"));
    let whole = ask("bytes=0-1,3-4");
    assert_eq!((whole.status, whole.header("accept-ranges")), (200, Some("bytes")));
    assert!(whole.header("etag").is_some() && whole.header("last-modified").is_some());
    let outside = ask("bytes=10-");
    assert_eq!(outside.header("content-range"), Some("bytes */10"));
    assert_eq!(outside.refusal().0, 416);
    let packed = [("Range", "bytes=2-4"), ("Accept-Encoding", "gzip")];
    assert_eq!(agent.http("GET", &target(&file), &packed, b"").status, 200);
}

#[test]
fn files_of_unknown_length_are_read_to_their_end() {
    let agent = Agent::start();
    let reply = agent.get("/files?path=/proc/self/status&username=root");
    assert!(String::from_utf8(reply.body).unwrap().starts_with("Name:\tenvd"));
}

#[test]
fn an_overwritten_file_keeps_its_mode_and_a_link_stays_a_link() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let (file, link) = (dir.path().join("f"), dir.path().join("link"));
    fs::write(&file, "old").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o750)).unwrap();
    symlink("f", &link).unwrap();
    assert_eq!(put(&agent, &link, b"new").status, 200);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&file).unwrap(), b"new");
    assert_eq!(fs::metadata(&file).unwrap().mode() & 0o7777, 0o750);
    put(&agent, &dir.path().join("fresh"), b"x");
    assert_eq!(fs::metadata(dir.path().join("fresh")).unwrap().mode() & 0o7777, 0o644);
}

#[test]
fn what_is_uploaded_belongs_to_the_user() {
    if !is_root() {
        return;
    }
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let query = format!("/files?path={}&username=nobody", dir.path().join("x/f").display());
    assert_eq!(agent.http("POST", &query, &[OCTETS], b"x").status, 200);
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap().uid.as_raw();
    for made in ["x", "x/f"] {
        assert_eq!(fs::metadata(dir.path().join(made)).unwrap().uid(), nobody);
    }
}

#[test]
fn metadata_of_an_upload_replaces_what_was_there() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    if !keeps_attributes(dir.path()) {
        return;
    }
    let agent = Agent::start();
    let file = dir.path().join("f");
    let metadata = || {
        let request = json!({ "path": file });
        let entry = agent.call("filesystem.Filesystem/Stat", request).unwrap();
        entry["entry"]["metadata"].clone()
    };
    let headers = [OCTETS, ("X-Metadata-Author", "me"), ("X-Metadata-Why", "a test")];
    let reply = agent.http("POST", &target(&file), &headers, b"x").json();
    let expected = json!({ "author": "me", "why": "a test" });
    assert_eq!((&reply[0]["metadata"], metadata()), (&expected, expected.clone()));
    agent.http("POST", &target(&file), &[OCTETS, ("X-Metadata-Author", "you")], b"x");
    assert_eq!(metadata(), json!({ "author": "you" }));
    put(&agent, &file, b"x");
    assert_eq!(metadata(), Value::Null);
    let long = "v".repeat(4096);
    let refused = agent.http("POST", &target(&file), &[OCTETS, ("X-Metadata-K", &long)], b"y");
    assert_eq!(refused.refusal().0, 400);
    assert_eq!(fs::read(&file).unwrap(), b"x");
}

#[test]
fn both_directions_can_be_compressed() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    let text = "compress me ".repeat(50_000);
    let packed = piped("gzip", &["-c"], text.as_bytes());
    let headers = [OCTETS, ("Content-Encoding", "gzip")];
    assert_eq!(agent.http("POST", &target(&file), &headers, &packed).status, 200);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    let reply = agent.http("GET", &target(&file), &[("Accept-Encoding", "gzip")], b"");
    assert_eq!(reply.header("content-encoding"), Some("gzip"));
    assert!(reply.body.len() < text.len() / 10);
    assert_eq!(piped("gzip", &["-dc"], &reply.body), text.as_bytes());
    let broken = agent.http("POST", &target(&file), &headers, b"not gzip at all");
    assert_eq!(broken.refusal().0, 400);
    let unknown = [OCTETS, ("Content-Encoding", "br")];
    assert_eq!(agent.http("POST", &target(&file), &unknown, b"x").refusal().0, 400);
    assert_eq!(fs::read_to_string(&file).unwrap(), text, "what was there is still there");
}

#[test]
fn a_caller_that_vanishes_leaves_the_old_file() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "old").unwrap();
    let mut stream = agent.begin("POST", &target(&file), &[OCTETS, ("Content-Length", "1000000")]);
    stream.write_all(&[b'x'; 100_000]).unwrap();
    eventually("the upload has begun", || names(dir.path()).len() == 2);
    assert_eq!(fs::read(&file).unwrap(), b"old");
    drop(stream);
    eventually("nothing is left of it", || names(dir.path()) == ["f"]);
    assert_eq!(fs::read(&file).unwrap(), b"old");
}

#[test]
fn large_files_pass_through_in_flat_memory() {
    let agent = Agent::start();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let file = dir.path().join("big");
    let before = agent.memory_kib("VmRSS");
    let (piece, count) = (vec![b'z'; 1 << 20], 50);
    let length = (piece.len() * count).to_string();
    let mut stream = agent.begin("POST", &target(&file), &[OCTETS, ("Content-Length", &length)]);
    for _ in 0..count {
        stream.write_all(&piece).unwrap();
    }
    assert_eq!(Reply::read(stream).status, 200);
    assert_eq!(fs::metadata(&file).unwrap().len(), piece.len() as u64 * count as u64);

    // The same as a form, whose reader must not run ahead of the disk.
    let (kind, empty) = form(&[("file", file.to_str().unwrap(), b"")]);
    let (head, tail) = empty.split_at(empty.len() - "\r\n--XYZ--\r\n".len());
    let whole = (empty.len() + piece.len() * count).to_string();
    let headers = [("Content-Type", kind.as_str()), ("Content-Length", whole.as_str())];
    let mut stream = agent.begin("POST", "/files?username=root", &headers);
    stream.write_all(head).unwrap();
    for _ in 0..count {
        stream.write_all(&piece).unwrap();
    }
    stream.write_all(tail).unwrap();
    assert_eq!(Reply::read(stream).status, 200);

    // Read slowly, so that all buffers on the way fill up.
    let (status, _, mut body) = Body::read_head(agent.begin("GET", &target(&file), &[]));
    std::thread::sleep(Duration::from_millis(500));
    let read = std::io::copy(&mut body.by_ref().take(u64::MAX), &mut std::io::sink()).unwrap();
    assert_eq!((status, read), (200, piece.len() as u64 * count as u64));
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(grown < 6 * 1024, "{grown} KiB more for 50 MB");
}

#[test]
fn a_mounted_file_is_written_in_place() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (source, path) = (dir.path().join("source"), dir.path().join("f"));
    std::fs::write(&source, "a longer text").unwrap();
    std::fs::write(&path, "beneath").unwrap();
    let (none, flags) = (None::<&str>, nix::mount::MsFlags::MS_BIND);
    nix::mount::mount(Some(&source), &path, none, flags, none).unwrap();
    let agent = Agent::start();
    let reply = put(&agent, &path, b"new");
    let left = names(dir.path());
    drop(agent);
    nix::mount::umount2(&path, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(reply.status, 200);
    assert_eq!(std::fs::read(&source).unwrap(), b"new");
    assert_eq!(std::fs::read(&path).unwrap(), b"beneath");
    assert_eq!(left, ["f", "source"]);
}

#[test]
fn a_full_disk_is_told_and_nothing_stays_on_it() {
    if !is_root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("tmpfs"), dir.path(), Some("tmpfs"), flags, Some("size=1m")).unwrap();
    let agent = Agent::start();
    let body = vec![b'x'; 3 << 20];
    let plain = put(&agent, &dir.path().join("f"), &body);
    let (kind, multipart) = form(&[("file", "x", &body)]);
    let headers = [("Content-Type", kind.as_str())];
    let by_form = agent.http("POST", &target(&dir.path().join("g")), &headers, &multipart);
    let left = names(dir.path());
    drop(agent);
    nix::mount::umount2(dir.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(plain.refusal(), (507, "not enough disk space".to_owned()));
    assert_eq!(by_form.refusal().0, 507);
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_file_that_can_be_opened_and_not_read_is_refused_with_the_reason() {
    let agent = Agent::start();
    // The speed of what has none.
    let speed = "/files?path=/sys/class/net/lo/speed";
    for headers in [&[][..], &[("Accept-Encoding", "gzip")]] {
        let (status, message) = agent.http("GET", speed, headers, b"").refusal();
        assert_eq!(status, 403, "{message}");
        assert!(message.contains("lo/speed") && message.contains("nvalid argument"), "{message}");
    }
    assert_eq!(agent.get("/files?path=/proc/self/stat").status, 200);
}
