//! Files: written, read, and never half there.

use std::time::Duration;

use nestbox::http::API_KEY_HEADER;
use reqwest::Method;
use reqwest::multipart::{Form, Part};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::nest::{Answer, Nest, eventually};
use crate::skip::{is_root, skip};

fn form(path: &str, content: Vec<u8>) -> Form {
    Form::new().text("path", path.to_owned()).part("file", Part::bytes(content).file_name("f"))
}

async fn send(nest: &Nest, id: &str, form: Form) -> Answer {
    let request = nest.request(Method::POST, &format!("/v1/sandboxes/{id}/files/write"));
    Answer::of(request.multipart(form)).await
}

async fn write(nest: &Nest, id: &str, path: &str, content: &[u8]) {
    let answer = send(nest, id, form(path, content.to_vec())).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.json(), json!({"path": path, "size": content.len()}));
}

pub async fn read(nest: &Nest, id: &str, path: &str) -> Answer {
    nest.post(&format!("/v1/sandboxes/{id}/files/read"), json!({"path": path})).await
}

/// Bytes that are no text and do not repeat.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut word = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..length.div_ceil(8)).flat_map(|_| word()).take(length).collect()
}

#[actix_web::test]
async fn files_come_back_byte_for_byte() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let all_bytes: Vec<u8> = (0..=255).collect();
    for (name, content) in [
        ("text", b"hello\n".to_vec()),
        ("empty", Vec::new()),
        ("binary", all_bytes),
        ("a b \u{e9}", noise(70_000)),
    ] {
        let path = nest.path(name);
        write(&nest, &id, &path, &content).await;
        let answer = read(&nest, &id, &path).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
        // Of an empty one the agent does not say the length: files of /proc look empty too.
        let length = (!content.is_empty()).then(|| content.len().to_string());
        assert_eq!(answer.header("content-length"), length.as_deref());
        assert_eq!(answer.body, content, "{name}");
        assert_eq!(std::fs::read(&path).unwrap(), content, "{name}");
    }
}

#[actix_web::test]
async fn a_file_of_64_mib_comes_back_byte_for_byte() {
    // Before the first request: it takes longer than an idle connection is kept.
    let content = noise(64 << 20);
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("large");
    write(&nest, &id, &path, &content).await;
    let answer = read(&nest, &id, &path).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == content, "{} bytes came back", answer.body.len());
}

#[actix_web::test]
async fn directories_above_are_made_and_an_older_file_is_replaced() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("a/b/c.txt");
    write(&nest, &id, &path, b"first, and longer").await;
    write(&nest, &id, &path, b"second").await;
    assert_eq!(read(&nest, &id, &path).await.body, b"second".as_slice());
    assert_eq!(nest.sh(&id, &format!("cat {path}")).await, "second");
}

#[actix_web::test]
async fn a_command_sees_an_upload_and_its_file_is_downloaded() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (given, made) = (nest.path("given"), nest.path("made"));
    write(&nest, &id, &given, b"b\na\n").await;
    nest.sh(&id, &format!("sort {given} > {made}")).await;
    assert_eq!(read(&nest, &id, &made).await.body, b"a\nb\n".as_slice());
}

#[actix_web::test]
async fn what_is_not_there_is_not_found_and_a_directory_is_no_file() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let missing = nest.path("missing");
    let message = read(&nest, &id, &missing).await.error(404, "not_found");
    assert!(message.contains("missing"), "{message}");
    let dir = nest.path("");
    read(&nest, &id, &dir).await.error(400, "invalid_request");
    send(&nest, &id, form(&dir, b"x".to_vec())).await.error(400, "invalid_request");
    let below = format!("{}/below", nest.path("file"));
    write(&nest, &id, &nest.path("file"), b"x").await;
    send(&nest, &id, form(&below, b"x".to_vec())).await.error(400, "invalid_request");
}

#[actix_web::test]
async fn a_path_that_is_none_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let long = format!("/{}", "x".repeat(4096));
    for path in ["", "/a\0b", &long] {
        read(&nest, &id, path).await.error(400, "invalid_request");
        send(&nest, &id, form(path, b"x".to_vec())).await.error(400, "invalid_request");
    }
    let body = json!({"path": "/etc/passwd", "user": "no-such-user"});
    let answer = nest.post(&format!("/v1/sandboxes/{id}/files/read"), body).await;
    assert!(answer.error(400, "invalid_request").contains("no-such-user"));
}

#[actix_web::test]
async fn a_form_says_the_path_before_the_file_and_nothing_else() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("f");
    let part = || Part::bytes(b"x".to_vec());
    for (form, word) in [
        (Form::new().part("file", part()).text("path", path.clone()), "before"),
        (Form::new().text("path", path.clone()), "needed"),
        (Form::new().part("file", part()), "before"),
        (Form::new(), "needed"),
        (Form::new().text("mode", "0777").text("path", path.clone()).part("file", part()), "mode"),
        (Form::new().part("user", Part::bytes(vec![0xff])).part("file", part()), "UTF-8"),
    ] {
        let message = send(&nest, &id, form).await.error(400, "invalid_request");
        assert!(message.contains(word) || message.contains("multipart"), "{word}: {message}");
    }
    let target = format!("/v1/sandboxes/{id}/files/write");
    nest.post(&target, json!({"path": path})).await.error(400, "invalid_request");
    for kind in ["multipart/form-data", "multipart/form-data; boundary=x"] {
        let request = nest.request(Method::POST, &target).header("content-type", kind);
        Answer::of(request.body("no form")).await.error(400, "invalid_request");
    }
    assert!(!std::path::Path::new(&path).exists());
}

#[actix_web::test]
async fn files_are_those_of_the_user_asked_for() {
    if !is_root("to switch users") {
        return;
    }
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("owned");
    nest.sh(&id, &format!("chmod 777 {}", nest.dir.path().display())).await;
    let form = Form::new().text("path", path.clone()).text("user", "nobody").text("file", "x");
    assert_eq!(send(&nest, &id, form).await.status, 200);
    assert_eq!(nest.sh(&id, &format!("stat -c %U {path}")).await, "nobody\n");
}

#[actix_web::test]
async fn files_are_there_only_while_the_sandbox_runs() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.destroy(&id).await;
    read(&nest, &id, "/etc/passwd").await.error(409, "invalid_state");
    let path = nest.path("f");
    send(&nest, &id, form(&path, b"x".to_vec())).await.error(409, "invalid_state");
    assert!(!std::path::Path::new(&path).exists());
    let unknown = "aaaaaaaaaaaaaaaaaaaa";
    send(&nest, unknown, form(&path, b"x".to_vec())).await.error(404, "not_found");
    send(&nest, "x", form(&path, b"x".to_vec())).await.error(400, "invalid_request");
}

/// The names in the directory of the upload, hidden ones too.
fn names(nest: &Nest) -> Vec<String> {
    let dir = nest.path("up");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[actix_web::test]
async fn a_client_that_vanishes_in_mid_upload_leaves_nothing_new() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (new, old) = (nest.path("up/new"), nest.path("up/old"));
    write(&nest, &id, &old, b"as it was").await;
    for path in [&new, &old] {
        let address = nest.url.trim_start_matches("http://");
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let begin = format!(
            "POST /v1/sandboxes/{id}/files/write HTTP/1.1\r\nhost: localhost\r\n{API_KEY_HEADER}: {}\r\n\
             content-type: multipart/form-data; boundary=b\r\ncontent-length: 10000000\r\n\r\n\
             --b\r\ncontent-disposition: form-data; name=\"path\"\r\n\r\n{path}\r\n\
             --b\r\ncontent-disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n",
            nest.key
        );
        stream.write_all(begin.as_bytes()).await.unwrap();
        stream.write_all(&noise(3_000_000)).await.unwrap();
        eventually("the upload is under way", async || (names(&nest).len() > 1).then_some(()))
            .await;
        drop(stream);
        eventually("nothing is left of it", async || (names(&nest) == ["old"]).then_some(())).await;
    }
    assert_eq!(std::fs::read(&old).unwrap(), b"as it was");
}

#[actix_web::test]
async fn a_sandbox_that_goes_away_ends_a_download() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("large");
    std::fs::File::create(&path).unwrap().set_len(1 << 30).unwrap();
    let address = nest.url.trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let body = json!({"path": path}).to_string();
    let request = format!(
        "POST /v1/sandboxes/{id}/files/read HTTP/1.1\r\nhost: localhost\r\n{API_KEY_HEADER}: {}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        nest.key,
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut piece = vec![0; 1 << 16];
    assert!(stream.read(&mut piece).await.unwrap() > 0, "it has begun");
    assert_eq!(nest.destroy(&id).await.status, 204);
    let rest = async {
        let mut total = 0;
        loop {
            match stream.read(&mut piece).await {
                Ok(0) | Err(_) => return total,
                Ok(read) => total += read,
            }
        }
    };
    let total = tokio::time::timeout(Duration::from_secs(10), rest).await.expect("it ends");
    assert!(total < 1 << 30, "it ends early");
}

/// A file system that is full after some kilobytes; unmounted when dropped.
pub struct SmallDisk(pub String);

impl SmallDisk {
    /// Skips the test if that cannot be.
    pub fn mount(nest: &Nest) -> Option<Self> {
        let dir = nest.path("small");
        std::fs::create_dir(&dir).unwrap();
        let (flags, size) = (nix::mount::MsFlags::empty(), Some("size=256k"));
        let mounted = nix::mount::mount(Some("none"), dir.as_str(), Some("tmpfs"), flags, size);
        if let Err(errno) = mounted {
            skip(&format!("no small file system can be mounted ({errno}): run the tests as root"));
        }
        mounted.ok().map(|()| Self(dir))
    }

    /// How many files there are.
    pub fn files(&self) -> usize {
        std::fs::read_dir(&self.0).unwrap().count()
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.as_str(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[actix_web::test]
async fn a_full_disk_of_the_guest_is_said_and_leaves_nothing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let Some(disk) = SmallDisk::mount(&nest) else { return };
    let path = format!("{}/large", disk.0);
    send(&nest, &id, form(&path, noise(1 << 20))).await.error(507, "no_space");
    assert_eq!(disk.files(), 0);
    write(&nest, &id, &path, b"fits").await;
}
