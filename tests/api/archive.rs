//! Whole directories, as tar archives of everybody's making.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use nestbox::http::API_KEY_HEADER;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::files::{SmallDisk, noise};
use crate::nest::{Answer, Nest, eventually};
use crate::skip::is_root;

fn about(nest: &Nest, method: Method, id: &str, path: &str) -> RequestBuilder {
    let target = format!("/v1/sandboxes/{id}/files/archive");
    nest.request(method, &target).query(&[("path", path)])
}

async fn put(nest: &Nest, id: &str, path: &str, archive: impl Into<Body>) -> Answer {
    Answer::of(about(nest, Method::PUT, id, path).body(archive)).await
}

async fn get(nest: &Nest, id: &str, path: &str) -> Answer {
    Answer::of(about(nest, Method::GET, id, path)).await
}

/// What tar(1) makes.
fn tar(dir: &str, args: &[&str]) -> Vec<u8> {
    let output = Command::new("tar").args(["-C", dir, "-c"]).args(args).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// Unpacks with tar(1).
fn untar(archive: &[u8], dir: &str) {
    std::fs::create_dir(dir).unwrap();
    let mut tar = Command::new("tar").args(["-C", dir, "-xp"]).stdin(Stdio::piped()).spawn();
    let tar = tar.as_mut().unwrap();
    std::io::Write::write_all(tar.stdin.as_mut().unwrap(), archive).unwrap();
    drop(tar.stdin.take());
    assert!(tar.wait().unwrap().success());
}

fn names(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A directory with files, links and more directories.
fn sample(nest: &Nest) -> String {
    let dir = nest.path("sample");
    std::fs::create_dir_all(format!("{dir}/sub/empty")).unwrap();
    std::fs::write(format!("{dir}/run.sh"), "#!/bin/sh\n").unwrap();
    let mode = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(format!("{dir}/run.sh"), mode).unwrap();
    std::fs::write(format!("{dir}/sub/noise"), noise(1_000_000)).unwrap();
    std::fs::write(format!("{dir}/sub/{}", "n".repeat(200)), "").unwrap();
    symlink("sub/noise", format!("{dir}/link")).unwrap();
    dir
}

/// Whether two directories hold the same.
fn same(one: &str, other: &str) {
    let diff = Command::new("diff").args(["-r", "--no-dereference", one, other]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

#[actix_web::test]
async fn a_directory_goes_in_and_comes_out_as_an_archive() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (from, to) = (sample(&nest), nest.path("a/new/one"));
    let answer = put(&nest, &id, &to, tar(&from, &["."])).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({"path": to, "entries": 6, "size": 1_000_010}));
    same(&from, &to);
    let mode = std::fs::metadata(format!("{to}/run.sh")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o755);

    let answer = get(&nest, &id, &to).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/x-tar"));
    let back = nest.path("back");
    untar(&answer.body, &back);
    same(&from, &back);
}

#[actix_web::test]
async fn entries_that_could_do_harm_are_refused_by_name() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let from = nest.path("from");
    std::fs::create_dir(&from).unwrap();
    std::fs::write(format!("{from}/f"), "x").unwrap();
    symlink("/etc/passwd", format!("{from}/abs")).unwrap();
    symlink("../up", format!("{from}/up")).unwrap();
    nix::unistd::mkfifo(format!("{from}/pipe").as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    for (args, name, why) in [
        (&["-P", "--transform", "s,^f,../f,", "f"] as &[&str], "../f", "lead up"),
        (&["-P", "--transform", "s,^f,/tmp/f,", "f"], "/tmp/f", "begin at the root"),
        (&["-P", "--transform", "s,^f,a/../../f,", "f"], "a/../../f", "lead up"),
        (&["pipe"], "pipe", "pipes"),
    ] {
        let to = nest.path("to");
        let answer = put(&nest, &id, &to, tar(&from, args)).await;
        let message = answer.error(400, "invalid_request");
        assert!(message.contains(name) && message.contains(why), "{message}");
        assert!(names(&to).is_empty(), "{args:?}");
    }
    assert!(!Path::new(&nest.path("f")).exists());
    // A link is a link wherever it leads, and nothing passes through it.
    let to = nest.path("to");
    put(&nest, &id, &to, tar(&from, &["abs", "up"])).await;
    assert_eq!(names(&to), ["abs", "up"]);
    let through = tar(&from, &["-P", "--transform", "s,^f,up/f,", "f"]);
    let message = put(&nest, &id, &to, through).await.error(400, "invalid_request");
    assert!(message.contains("or a link, is in its way"), "{message}");
    assert!(!Path::new(&nest.path("up")).exists());
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn what_is_no_archive_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (from, to) = (sample(&nest), nest.path("to"));
    let whole = tar(&from, &["."]);
    for body in [Vec::new(), b"no archive".to_vec(), noise(100_000), whole[..500_000].to_vec()] {
        let message = put(&nest, &id, &to, body).await.error(400, "invalid_request");
        assert!(message.contains("tar archive"), "{message}");
    }
    let left = names(&to).into_iter().chain(names(&format!("{to}/sub")));
    assert!(!left.into_iter().any(|name| name.starts_with(".envd")), "nothing half-made");
}

#[actix_web::test]
async fn directories_that_cannot_be_are_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (from, file) = (sample(&nest), nest.path("sample/run.sh"));
    let archive = tar(&from, &["run.sh"]);
    let long = format!("/{}", "x/".repeat(2500));
    get(&nest, &id, &nest.path("missing")).await.error(404, "not_found");
    let message = get(&nest, &id, &file).await.error(400, "invalid_request");
    assert!(message.contains("not a directory"), "{message}");
    put(&nest, &id, &file, archive.clone()).await.error(400, "invalid_request");
    for path in ["", "a\0b", &long, "~root/x", &nest.path(&"n".repeat(300))] {
        get(&nest, &id, path).await.error(400, "invalid_request");
        put(&nest, &id, path, archive.clone()).await.error(400, "invalid_request");
    }
    let stranger = about(&nest, Method::GET, &id, &from).query(&[("user", "no-such-user")]);
    let message = Answer::of(stranger).await.error(400, "invalid_request");
    assert!(message.contains("no-such-user"), "{message}");
    nest.destroy(&id).await;
    get(&nest, &id, &from).await.error(409, "invalid_state");
    put(&nest, &id, &from, archive).await.error(409, "invalid_state");
}

#[actix_web::test]
async fn what_is_unpacked_belongs_to_the_user() {
    if !is_root("to switch users") {
        return;
    }
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (from, to) = (sample(&nest), nest.path("to"));
    nest.sh(&id, &format!("chmod 777 {}", nest.dir.path().display())).await;
    let request = about(&nest, Method::PUT, &id, &to).query(&[("user", "nobody")]);
    let answer = Answer::of(request.body(tar(&from, &["."]))).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let owners = nest.sh(&id, &format!("find {to} -printf '%u\\n' | sort -u")).await;
    assert_eq!(owners, "nobody\n");
}

#[actix_web::test]
async fn a_full_disk_is_said_and_leaves_no_half_file() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let Some(disk) = SmallDisk::mount(&nest) else { return };
    let archive = tar(&sample(&nest), &["."]);
    put(&nest, &id, &disk.0, archive).await.error(507, "no_space");
    let left = names(&format!("{}/sub", disk.0)).into_iter().chain(names(&disk.0));
    assert!(left.into_iter().all(|name| name != "noise" && !name.starts_with(".envd")));
}

#[actix_web::test]
async fn a_client_that_vanishes_or_a_pause_leaves_no_half_file() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (from, to) = (nest.path("from"), nest.path("to"));
    std::fs::create_dir(&from).unwrap();
    std::fs::write(format!("{from}/large"), noise(8 << 20)).unwrap();
    let archive = tar(&from, &["."]);
    for ended_by in ["the client", "a pause"] {
        let address = nest.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let head = format!(
            "PUT /v1/sandboxes/{id}/files/archive?path={to} HTTP/1.1\r\nhost: localhost\r\n\
             {API_KEY_HEADER}: {}\r\ncontent-length: {}\r\n\r\n",
            nest.key,
            archive.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&archive[..4 << 20]).await.unwrap();
        eventually("it is under way", async || (names(&to).len() == 1).then_some(())).await;
        match ended_by {
            "the client" => drop(stream),
            _ => {
                assert_eq!(nest.pause(&id).await.status, 200);
                assert_eq!(nest.resume(&id).await.status, 200);
            }
        }
        eventually("nothing is left of it", async || names(&to).is_empty().then_some(())).await;
    }
}
