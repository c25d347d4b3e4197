//! The tree of files: list, stat, mkdir, move, delete.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::nest::{Answer, Nest};
use crate::skip::is_root;

async fn ask(nest: &Nest, id: &str, what: &str, query: &[(&str, &str)]) -> Answer {
    let path = format!("/v1/sandboxes/{id}/files/{what}");
    Answer::of(nest.request(Method::GET, &path).query(query)).await
}

async fn stat(nest: &Nest, id: &str, path: &str) -> Value {
    let answer = ask(nest, id, "stat", &[("path", path)]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn list(nest: &Nest, id: &str, depth: &str) -> Vec<String> {
    let root = nest.path("tree");
    let answer = ask(nest, id, "list", &[("path", &root), ("depth", depth)]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let entries = answer.json()["entries"].as_array().unwrap().clone();
    let below = |entry: &Value| entry["path"].as_str().unwrap()[root.len() + 1..].to_owned();
    entries.iter().map(below).collect()
}

async fn mkdir(nest: &Nest, id: &str, path: &str) -> Answer {
    nest.post(&format!("/v1/sandboxes/{id}/files/mkdir"), json!({"path": path})).await
}

async fn rename(nest: &Nest, id: &str, source: &str, destination: &str) -> Answer {
    let body = json!({"source": source, "destination": destination});
    nest.post(&format!("/v1/sandboxes/{id}/files/move"), body).await
}

async fn remove(nest: &Nest, id: &str, path: &str) -> Answer {
    let request = nest.request(Method::DELETE, &format!("/v1/sandboxes/{id}/files"));
    Answer::of(request.query(&[("path", path)])).await
}

fn write(path: &str, content: &str) {
    std::fs::write(path, content).unwrap();
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[actix_web::test]
async fn an_entry_says_what_ls_would() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let file = nest.path("f");
    write(&file, "12345");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    let entry = stat(&nest, &id, &file).await;
    for (field, value) in [
        ("name", json!("f")),
        ("path", json!(file)),
        ("type", json!("file")),
        ("size", json!(5)),
        ("mode", json!(0o640)),
        ("permissions", json!("-rw-r-----")),
    ] {
        assert_eq!(entry[field], value, "{entry}");
    }
    let owners = nest.sh(&id, &format!("stat -c '%U %G' {file}")).await;
    let of = |field: &str| entry[field].as_str().unwrap().to_owned();
    assert_eq!(format!("{} {}\n", of("owner"), of("group")), owners);
    let modified = chrono::DateTime::parse_from_rfc3339(&of("modified_at")).unwrap();
    let age = chrono::Utc::now() - modified.to_utc();
    assert!(age.num_seconds().abs() < 60, "{entry}");
    assert!(entry.get("symlink_target").is_none(), "{entry}");
}

#[actix_web::test]
async fn a_link_is_what_it_leads_to_and_says_where() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("dir");
    std::fs::create_dir(&dir).unwrap();
    for (link, target, kind) in
        [("to-dir", dir.as_str(), "directory"), ("to-nothing", "nothing", "symlink")]
    {
        symlink(target, nest.path(link)).unwrap();
        let entry = stat(&nest, &id, &nest.path(link)).await;
        assert_eq!((&entry["type"], &entry["symlink_target"]), (&json!(kind), &json!(target)));
        assert!(entry["permissions"].as_str().unwrap().starts_with('l'), "{entry}");
    }
    let fifo = nest.path("fifo");
    nix::unistd::mkfifo(fifo.as_str(), nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert_eq!(stat(&nest, &id, &fifo).await["type"], "other");
}

#[actix_web::test]
async fn a_list_goes_as_deep_as_asked_in_the_order_of_names() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for dir in ["b/x/deep", "a"] {
        std::fs::create_dir_all(nest.path(&format!("tree/{dir}"))).unwrap();
    }
    write(&nest.path("tree/c"), "");
    symlink("b", nest.path("tree/d")).unwrap();
    assert_eq!(list(&nest, &id, "1").await, ["a", "b", "c", "d"]);
    assert_eq!(list(&nest, &id, "2").await, ["a", "b", "b/x", "c", "d"]);
    assert_eq!(list(&nest, &id, "64").await, ["a", "b", "b/x", "b/x/deep", "c", "d"]);
    let root = nest.path("tree");
    let short = ask(&nest, &id, "list", &[("path", &root)]).await.json();
    assert_eq!(short["entries"].as_array().unwrap().len(), 4, "one level is the default");
    let empty = ask(&nest, &id, "list", &[("path", &nest.path("tree/a"))]).await;
    assert_eq!(empty.json(), json!({"entries": []}));
}

#[actix_web::test]
async fn more_entries_than_an_answer_holds_are_refused() {
    let nest = Nest::start().await;
    let dir = nest.path("many");
    std::fs::create_dir(&dir).unwrap();
    for number in 0..45_000 {
        write(&format!("{dir}/{number}-{}", "n".repeat(200)), "");
    }
    // After that: it takes longer than an idle connection is kept.
    let id = nest.create(json!({})).await;
    let answer = ask(&nest, &id, "list", &[("path", &dir)]).await;
    assert!(answer.error(413, "too_large").contains("less depth"));
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn a_directory_is_made_with_its_parents_once() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("a/b/c");
    let answer = mkdir(&nest, &id, &path).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    assert_eq!(
        (&answer.json()["path"], &answer.json()["type"]),
        (&json!(path), &json!("directory"))
    );
    assert!(mkdir(&nest, &id, &path).await.error(409, "conflict").contains("a/b/c"));
    write(&nest.path("f"), "x");
    for path in [nest.path("f"), nest.path("f/below")] {
        mkdir(&nest, &id, &path).await.error(400, "invalid_request");
    }
    assert_eq!(read(&nest.path("f")), "x");
}

#[actix_web::test]
async fn a_move_replaces_a_file_and_nothing_else() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (a, b, dir) = (nest.path("a"), nest.path("b"), nest.path("dir"));
    write(&a, "new");
    write(&b, "old");
    let answer = rename(&nest, &id, &a, &b).await;
    assert_eq!((answer.status, &answer.json()["path"]), (200, &json!(b)), "{answer:?}");
    assert_eq!((read(&b).as_str(), Path::new(&a).exists()), ("new", false));
    let deep = nest.path("deep/er/b");
    assert_eq!(rename(&nest, &id, &b, &deep).await.status, 200);
    assert_eq!(read(&deep), "new");

    std::fs::create_dir(&dir).unwrap();
    write(&format!("{dir}/kept"), "");
    rename(&nest, &id, &deep, &dir).await.error(409, "conflict");
    rename(&nest, &id, &nest.path("deep"), &dir).await.error(409, "conflict");
    rename(&nest, &id, &dir, &deep).await.error(400, "invalid_request");
    rename(&nest, &id, &dir, &format!("{dir}/inside")).await.error(400, "invalid_request");
    rename(&nest, &id, &dir, &format!("{deep}/below")).await.error(400, "invalid_request");
    let message = rename(&nest, &id, &nest.path("gone"), &a).await.error(404, "not_found");
    assert!(message.contains("gone"), "{message}");
    rename(&nest, &id, "/", &a).await.error(400, "invalid_request");
    assert_eq!((read(&deep).as_str(), Path::new(&format!("{dir}/kept")).exists()), ("new", true));
}

#[actix_web::test]
async fn what_is_deleted_is_gone_with_all_in_it_and_may_be_gone_before() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    std::fs::create_dir_all(nest.path("tree/sub")).unwrap();
    write(&nest.path("tree/sub/f"), "");
    std::fs::create_dir(nest.path("kept")).unwrap();
    symlink("kept", nest.path("link")).unwrap();
    write(&nest.path("f"), "");
    for path in ["tree", "tree", "link", "f", "never/there"].map(|name| nest.path(name)) {
        assert_eq!(remove(&nest, &id, &path).await.status, 204, "{path}");
        assert!(std::fs::symlink_metadata(&path).is_err());
    }
    assert!(Path::new(&nest.path("kept")).exists(), "a link is deleted, not what it leads to");
    remove(&nest, &id, "/").await.error(400, "invalid_request");
    remove(&nest, &id, "/../.").await.error(400, "invalid_request");
}

#[actix_web::test]
async fn paths_that_cannot_be_are_refused_everywhere() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    write(&nest.path("f"), "");
    let long = format!("/{}", "x/".repeat(2500));
    let long_name = nest.path(&"n".repeat(300));
    for path in ["", "a\0b", &long, &long_name, "~root/x"] {
        for what in ["stat", "list"] {
            ask(&nest, &id, what, &[("path", path)]).await.error(400, "invalid_request");
        }
        mkdir(&nest, &id, path).await.error(400, "invalid_request");
        rename(&nest, &id, path, &nest.path("x")).await.error(400, "invalid_request");
        rename(&nest, &id, &nest.path("f"), path).await.error(400, "invalid_request");
        remove(&nest, &id, path).await.error(400, "invalid_request");
    }
    for what in ["stat", "list"] {
        let missing = nest.path("missing");
        ask(&nest, &id, what, &[("path", &missing)]).await.error(404, "not_found");
        let stranger = [("path", "/"), ("user", "no-such-user")];
        let message = ask(&nest, &id, what, &stranger).await.error(400, "invalid_request");
        assert!(message.contains("no-such-user"), "{message}");
    }
    let file = nest.path("f");
    ask(&nest, &id, "list", &[("path", &file)]).await.error(400, "invalid_request");
    for depth in ["0", "65", "-1", "x", "4294967296"] {
        let query = [("path", "/"), ("depth", depth)];
        ask(&nest, &id, "list", &query).await.error(400, "invalid_request");
    }
}

#[actix_web::test]
async fn what_the_guests_kernel_refuses_is_the_callers_mistake() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    mkdir(&nest, &id, "/sys/nestbox").await.error(400, "invalid_request");
    let link = nest.path("loop");
    symlink("loop", &link).unwrap();
    ask(&nest, &id, "list", &[("path", &link)]).await.error(400, "invalid_request");
}

#[actix_web::test]
async fn what_is_made_belongs_to_the_user() {
    if !is_root("to switch users") {
        return;
    }
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.sh(&id, &format!("chmod 777 {}", nest.dir.path().display())).await;
    let body = json!({"path": nest.path("mine/too"), "user": "nobody"});
    let answer = nest.post(&format!("/v1/sandboxes/{id}/files/mkdir"), body).await;
    assert_eq!(answer.json()["owner"], "nobody", "{answer:?}");
    assert_eq!(stat(&nest, &id, &nest.path("mine")).await["owner"], "nobody");
}

#[actix_web::test]
async fn the_tree_is_there_only_while_the_sandbox_runs() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    assert_eq!(nest.pause(&id).await.status, StatusCode::OK);
    let path = nest.path("d");
    for what in ["stat", "list"] {
        ask(&nest, &id, what, &[("path", "/")]).await.error(409, "invalid_state");
    }
    mkdir(&nest, &id, &path).await.error(409, "invalid_state");
    rename(&nest, &id, &path, &path).await.error(409, "invalid_state");
    remove(&nest, &id, &path).await.error(409, "invalid_state");
}
