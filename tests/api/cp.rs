//! `nestbox cp` means what cp(1) means. The files of "guests" are files of this host.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::json;

use crate::nest::Nest;

/// Runs the program where the test's own files are.
async fn cp(nest: &Nest, args: &[&OsStr]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
    command.env("NESTBOX_DATA_DIR", nest.dir.path()).stdin(Stdio::null());
    command.env_remove("NESTBOX_URL").env_remove("NESTBOX_API_KEY");
    command.arg("cp").args(args).current_dir(nest.dir.path());
    actix_web::rt::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn ok(nest: &Nest, args: &[&str]) -> String {
    let args: Vec<_> = args.iter().map(OsStr::new).collect();
    let output = cp(nest, &args).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{args:?}: {said}");
    said
}

async fn refused(nest: &Nest, args: &[&str], why: &str) {
    let args: Vec<_> = args.iter().map(OsStr::new).collect();
    let output = cp(nest, &args).await;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(125) && said.contains(why), "{args:?}: {said}");
}

/// Mode and time, in seconds.
fn about(path: &Path) -> (u32, i64) {
    let meta = fs::metadata(path).unwrap();
    (meta.mode() & 0o7777, meta.mtime())
}

#[actix_web::test]
async fn a_file_keeps_its_mode_and_time_and_goes_where_cp_puts_it() {
    let nest = Nest::start().await;
    let (id, other) = (nest.create(json!({})).await, nest.create(json!({})).await);
    let dir = nest.dir.path();
    let there = |id: &str, name: &str| format!("{id}:{}", dir.join(name).display());
    let script = dir.join("run.sh");
    fs::write(&script, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o754)).unwrap();
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    fs::File::open(&script).unwrap().set_modified(old).unwrap();
    fs::write(dir.join("second"), "2").unwrap();
    fs::create_dir(dir.join("into")).unwrap();

    // Into a directory that is there, without a slash; by a new name; over what is there.
    ok(&nest, &["run.sh", &there(&id, "into")]).await;
    ok(&nest, &["run.sh", &there(&id, "new")]).await;
    ok(&nest, &["run.sh", &there(&id, "new")]).await;
    // Out of it, and from one sandbox to another.
    ok(&nest, &[&there(&id, "new"), "back"]).await;
    ok(&nest, &[&there(&id, "new"), "into/back"]).await;
    ok(&nest, &[&there(&id, "new"), &there(&other, "other")]).await;
    for copy in ["into/run.sh", "new", "back", "into/back", "other"] {
        assert_eq!(about(&dir.join(copy)), (0o754, 1_000_000_000), "{copy}");
        assert_eq!(fs::read(dir.join(copy)).unwrap(), b"#!/bin/sh\n", "{copy}");
    }
    // What is empty has a mode, too.
    fs::write(dir.join("empty"), "").unwrap();
    fs::set_permissions(dir.join("empty"), fs::Permissions::from_mode(0o700)).unwrap();
    ok(&nest, &["empty", &there(&id, "empty2")]).await;
    assert_eq!(
        (about(&dir.join("empty2")).0, fs::read(dir.join("empty2")).unwrap()),
        (0o700, vec![])
    );
    // A file of the kernel's, which has no size.
    ok(&nest, &["/proc/self/status", &there(&id, "status")]).await;
    assert!(fs::read_to_string(dir.join("status")).unwrap().contains("nestbox"));

    // Several go into a directory, each as far as it can.
    ok(&nest, &["run.sh", "second", &there(&id, "into")]).await;
    assert_eq!(fs::read(dir.join("into/second")).unwrap(), b"2");
    fs::create_dir(dir.join("out")).unwrap();
    refused(&nest, &[&there(&id, "missing"), &there(&id, "second"), "out"], "missing").await;
    assert_eq!(fs::read(dir.join("out/second")).unwrap(), b"2");
    refused(&nest, &["run.sh", "second", &there(&id, "new")], "goes into a directory").await;
    refused(&nest, &["run.sh", &there(&id, "new/")], "is no directory").await;
    refused(&nest, &[&there(&id, "new"), "nowhere/"], "is no directory").await;
    refused(&nest, &["into", &there(&id, "x")], "cp -r").await;
    refused(&nest, &[&there(&id, "into"), "x"], "cp -r").await;
    refused(&nest, &["run.sh", "second"], "write ID:PATH").await;
}

#[actix_web::test]
async fn a_link_that_is_named_is_followed_both_ways() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.dir.path();
    let there = |name: &str| format!("{id}:{}", dir.join(name).display());
    fs::write(dir.join("file"), "new").unwrap();
    for target in ["in", "out"] {
        fs::write(dir.join(target), "old").unwrap();
        symlink(target, dir.join(format!("{target}-link"))).unwrap();
    }
    symlink("made", dir.join("dangling")).unwrap();
    ok(&nest, &["file", &there("in-link")]).await;
    ok(&nest, &["file", &there("dangling")]).await;
    ok(&nest, &[&there("file"), "out-link"]).await;
    for (link, target) in [("in-link", "in"), ("out-link", "out"), ("dangling", "made")] {
        assert_eq!(fs::read_link(dir.join(link)).unwrap(), Path::new(target));
        assert_eq!(fs::read(dir.join(target)).unwrap(), b"new", "{target}");
    }
}

/// As a virtual environment of Python's has it.
#[actix_web::test]
async fn links_that_lead_out_go_in_as_they_are_and_are_left_out_on_the_way_back() {
    let nest = Nest::start().await;
    let (id, other) = (nest.create(json!({})).await, nest.create(json!({})).await);
    let dir = nest.dir.path();
    fs::create_dir_all(dir.join("project/.venv/bin")).unwrap();
    fs::write(dir.join("project/main.py"), "print()").unwrap();
    symlink("/usr/bin/python3", dir.join("project/.venv/bin/python3")).unwrap();
    symlink("python3", dir.join("project/.venv/bin/python")).unwrap();
    symlink("../../../up", dir.join("project/.venv/bin/up")).unwrap();
    let there = |id: &str, name: &str| format!("{id}:{}", dir.join(name).display());
    ok(&nest, &["-r", "project", &there(&id, "work")]).await;
    ok(&nest, &["-r", &there(&id, "work"), &there(&other, "copy")]).await;
    for copy in ["work", "copy"] {
        let bin = dir.join(copy).join(".venv/bin");
        assert_eq!(fs::read_link(bin.join("python3")).unwrap(), Path::new("/usr/bin/python3"));
        assert_eq!(fs::read_link(bin.join("up")).unwrap(), Path::new("../../../up"));
    }
    let said = ok(&nest, &["-r", &there(&id, "work"), "back"]).await;
    assert!(said.contains("left out 2 links") && said.contains(".venv/bin/"), "{said}");
    assert_eq!(fs::read(dir.join("back/main.py")).unwrap(), b"print()");
    assert_eq!(fs::read_link(dir.join("back/.venv/bin/python")).unwrap(), Path::new("python3"));
    for name in ["python3", "up"] {
        assert!(fs::symlink_metadata(dir.join("back/.venv/bin").join(name)).is_err(), "{name}");
    }
}

#[actix_web::test]
async fn a_name_need_not_be_text() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.dir.path();
    let odd = OsString::from_vec(b"odd\xff".to_vec());
    fs::write(dir.join(&odd), "odd").unwrap();
    fs::create_dir(dir.join("into")).unwrap();
    fs::create_dir(dir.join("back")).unwrap();
    let mut into = OsString::from(format!("{id}:"));
    into.push(dir.join("into"));
    let output = cp(&nest, &[&odd, &into]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(dir.join("into").join(&odd)).unwrap(), b"odd");
    into.push("/");
    into.push(&odd);
    let output = cp(&nest, &[&into, OsStr::from_bytes(b"back")]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(dir.join("back").join(&odd)).unwrap(), b"odd");
}
