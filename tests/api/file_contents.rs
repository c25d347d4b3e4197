//! `PUT` and `GET /files`: any size, any part, never half there.

use std::path::Path;
use std::time::Duration;

use nestbox::http::API_KEY_HEADER;
use reqwest::{Body, Method, RequestBuilder};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::files::{SmallDisk, noise};
use crate::nest::{Answer, Nest, eventually};

fn about(nest: &Nest, method: Method, id: &str, path: &str) -> RequestBuilder {
    nest.request(method, &format!("/v1/sandboxes/{id}/files")).query(&[("path", path)])
}

async fn put(nest: &Nest, id: &str, path: &str, content: impl Into<Body>) -> Answer {
    Answer::of(about(nest, Method::PUT, id, path).body(content)).await
}

async fn get(nest: &Nest, id: &str, path: &str) -> Answer {
    Answer::of(about(nest, Method::GET, id, path)).await
}

async fn part(nest: &Nest, id: &str, path: &str, range: &str) -> Answer {
    Answer::of(about(nest, Method::GET, id, path).header("range", range)).await
}

/// Content whose size is not told.
fn in_pieces(content: &[u8]) -> Body {
    let pieces: Vec<std::io::Result<Vec<u8>>> =
        content.chunks(10_000).map(|piece| Ok(piece.to_vec())).collect();
    Body::wrap_stream(futures::stream::iter(pieces))
}

/// A request by hand, whose body is the caller's to send.
async fn begin(nest: &Nest, id: &str, path: &str, framing: &str) -> TcpStream {
    let address = nest.url.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "PUT /v1/sandboxes/{id}/files?path={path} HTTP/1.1\r\nhost: localhost\r\n{API_KEY_HEADER}: {}\r\n\
         {framing}\r\n\r\n",
        nest.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

/// All that is answered until the connection ends.
async fn answer(mut stream: TcpStream) -> String {
    let mut text = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(Ok(read @ 1..)) =
        tokio::time::timeout(Duration::from_secs(30), stream.read(&mut piece)).await
    {
        text.extend_from_slice(&piece[..read]);
        if text.ends_with(b"}}") {
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// The names in a directory, hidden ones too.
fn names(dir: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[actix_web::test]
async fn what_is_put_can_be_got_byte_for_byte() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (name, content) in [
        ("text", b"hello\n".to_vec()),
        ("empty", Vec::new()),
        ("a b+c&d%e#f?\u{e9}", noise(70_000)),
        ("dir/that/is/not/there/yet", noise(3_000_000)),
    ] {
        let path = nest.path(name);
        for body in [Body::from(content.clone()), in_pieces(&content)] {
            let answer = put(&nest, &id, &path, body).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.json(), json!({"path": path, "size": content.len()}));
            assert!(std::fs::read(&path).unwrap() == content, "{name}");
            let answer = get(&nest, &id, &path).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
            assert!(answer.body == content, "{name}: {} bytes", answer.body.len());
            std::fs::remove_file(&path).unwrap();
        }
    }
}

#[actix_web::test]
async fn streams_by_their_other_names_are_the_same() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (path, content) = (nest.path("f"), noise(100_000));
    let form = reqwest::multipart::Form::new()
        .text("path", path.clone())
        .part("file", reqwest::multipart::Part::bytes(content.clone()));
    let target = format!("/v1/sandboxes/{id}/files/stream");
    let request = nest.request(Method::POST, &format!("{target}/write")).multipart(form);
    let answer = Answer::of(request).await;
    assert_eq!(answer.json(), json!({"path": path, "size": content.len()}));
    let read = nest.request(Method::POST, &format!("{target}/read")).json(&json!({"path": path}));
    let whole = Answer::of(read.try_clone().unwrap()).await;
    assert_eq!((whole.status, whole.body == content), (200, true));
    let some = Answer::of(read.header("range", "bytes=5-9")).await;
    assert_eq!((some.status, &some.body[..]), (206, &content[5..10]));
}

#[actix_web::test]
async fn a_range_is_a_part_of_the_file_and_says_which() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (path, content) = (nest.path("f"), noise(300_000));
    put(&nest, &id, &path, content.clone()).await;
    for (range, from, to) in [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199999", 100, 200_000),
        ("bytes=299990-", 299_990, 300_000),
        ("bytes=299990-999999", 299_990, 300_000),
        ("bytes=-10", 299_990, 300_000),
    ] {
        let answer = part(&nest, &id, &path, range).await;
        assert_eq!(answer.status, 206, "{range}: {answer:?}");
        let sent = format!("bytes {from}-{}/300000", to - 1);
        assert_eq!(answer.header("content-range"), Some(sent.as_str()), "{range}");
        assert_eq!(answer.header("content-length"), Some((to - from).to_string().as_str()));
        assert!(answer.body == content[from..to], "{range}");
    }
    for ignored in ["bytes=0-1,5-6", "bytes=9-5", "lines=1-2", "bytes=x"] {
        let answer = part(&nest, &id, &path, ignored).await;
        assert_eq!((answer.status, answer.body.len()), (200, 300_000), "{ignored}");
        assert_eq!(answer.header("accept-ranges"), Some("bytes"));
        assert!(answer.header("last-modified").unwrap().ends_with(" GMT"));
    }
}

#[actix_web::test]
async fn a_range_out_of_bounds_is_refused_with_the_length() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("f");
    put(&nest, &id, &path, "ten bytes.").await;
    for range in ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=99999999999999999999999-"] {
        let answer = part(&nest, &id, &path, range).await;
        let message = answer.error(416, "range_not_satisfiable");
        assert!(message.contains("10 bytes"), "{message}");
        assert_eq!(answer.header("content-range"), Some("bytes */10"), "{range}");
    }
}

#[actix_web::test]
async fn a_download_goes_on_only_with_the_same_version_of_the_file() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("f");
    put(&nest, &id, &path, "first").await;
    let tag = get(&nest, &id, &path).await.header("etag").unwrap().to_owned();
    let go_on = async || {
        let request = about(&nest, Method::GET, &id, &path).header("range", "bytes=3-");
        Answer::of(request.header("if-range", &tag)).await
    };
    let same = go_on().await;
    assert_eq!((same.status, &same.body[..]), (206, &b"st"[..]));
    put(&nest, &id, &path, "other").await;
    let other = go_on().await;
    assert_eq!((other.status, &other.body[..]), (200, &b"other"[..]));
}

#[actix_web::test]
async fn paths_that_cannot_be_are_refused_by_name() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("dir");
    put(&nest, &id, &format!("{dir}/file"), "x").await;
    let long = format!("/{}", "x/".repeat(2500));
    let long_name = format!("{dir}/{}", "n".repeat(300));
    let below = format!("{dir}/file/below");
    for (path, got, word) in [
        ("", (400, "invalid_request"), "4096"),
        ("a\0b", (400, "invalid_request"), "NUL"),
        (&long, (400, "invalid_request"), "4096"),
        (&long_name, (400, "invalid_request"), "nnn"),
        (&dir, (400, "invalid_request"), "directory"),
        ("/dev/null", (400, "invalid_request"), "regular"),
        // It can be opened, but not read.
        ("/sys/class/net/lo/speed", (400, "invalid_request"), "nvalid argument"),
        (&format!("{dir}/missing"), (404, "not_found"), "missing"),
        (&below, (404, "not_found"), "below"),
        ("~root/x", (400, "invalid_request"), "home"),
    ] {
        let message = get(&nest, &id, path).await.error(got.0, got.1);
        assert!(message.contains(word), "get {path:?}: {message}");
    }
    for path in ["", "a\0b", &long, &long_name, &dir, "/dev/null", &below, "~root/x"] {
        put(&nest, &id, path, "x").await.error(400, "invalid_request");
    }
    assert_eq!(names(&dir), ["file"]);
}

#[actix_web::test]
async fn dots_lead_up_to_the_root_and_no_further() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = nest.path("f");
    put(&nest, &id, &nest.path("no/../such/../f"), "x").await;
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
    assert!(!Path::new(&nest.path("no")).exists(), "they are resolved before anything is made");
    let up = format!("{}{path}", "/..".repeat(50));
    assert_eq!(get(&nest, &id, &up).await.body, b"x".as_slice());
}

#[actix_web::test]
async fn requests_that_make_no_sense_are_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (path, target) = (nest.path("f"), format!("/v1/sandboxes/{id}/files"));
    for method in [Method::GET, Method::PUT, Method::DELETE] {
        let request = || nest.request(method.clone(), &target);
        let message = Answer::of(request()).await.error(400, "invalid_request");
        assert!(message.contains("path"), "{message}");
        let more = request().query(&[("path", path.as_str()), ("mode", "0777")]);
        let message = Answer::of(more).await.error(400, "invalid_request");
        assert!(message.contains("mode"), "{message}");
        let stranger = request().query(&[("path", path.as_str()), ("user", "no-such-user")]);
        let message = Answer::of(stranger).await.error(400, "invalid_request");
        assert!(message.contains("no-such-user"), "{message}");
    }
    let some = about(&nest, Method::PUT, &id, &path).header("content-range", "bytes 0-0/2");
    let message = Answer::of(some.body("x")).await.error(400, "invalid_request");
    assert!(message.contains("whole"), "{message}");
    let mut broken = begin(&nest, &id, &path, "transfer-encoding: chunked").await;
    broken.write_all(b"4\r\nfour\r\nno number\r\n").await.unwrap();
    // Nobody can tell where a next request would begin, so the connection ends; with or without
    // words about it.
    let text = answer(broken).await;
    assert!(text.is_empty() || text.starts_with("HTTP/1.1 400 "), "{text}");
    assert!(!Path::new(&path).exists());
    eventually("nothing is left of it", async || {
        let left = names(&nest.path(""));
        (!left.iter().any(|name| name.starts_with(".envd"))).then_some(())
    })
    .await;
    assert_eq!(Answer::of(nest.request(Method::POST, &target)).await.status, 405);
}

#[actix_web::test]
async fn a_client_that_vanishes_in_the_middle_of_a_gigabyte_leaves_nothing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("up");
    let old = format!("{dir}/old");
    put(&nest, &id, &old, "as it was").await;
    for (path, framing, head) in [
        (format!("{dir}/new"), "content-length: 1073741824", ""),
        (format!("{dir}/new"), "transfer-encoding: chunked", "40000000\r\n"),
        (old.clone(), "content-length: 1073741824", ""),
    ] {
        let mut stream = begin(&nest, &id, &path, framing).await;
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&noise(3_000_000)).await.unwrap();
        eventually("the upload is under way", async || (names(&dir).len() > 1).then_some(())).await;
        assert_eq!(std::fs::read(&old).unwrap(), b"as it was");
        drop(stream);
        eventually("nothing is left of it", async || (names(&dir) == ["old"]).then_some(())).await;
    }
    assert_eq!(std::fs::read(&old).unwrap(), b"as it was");
}

#[actix_web::test]
async fn a_full_disk_is_said_also_to_a_client_that_still_sends() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let Some(disk) = SmallDisk::mount(&nest) else { return };
    let path = format!("{}/large", disk.0);
    let content = noise(8 << 20);
    put(&nest, &id, &path, content.clone()).await.error(507, "no_space");
    put(&nest, &id, &path, in_pieces(&content)).await.error(507, "no_space");
    assert_eq!(disk.files(), 0);
    assert_eq!(put(&nest, &id, &path, "fits").await.status, 200);
}

#[actix_web::test]
async fn a_pause_ends_an_upload_and_leaves_nothing_of_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let dir = nest.path("up");
    std::fs::create_dir(&dir).unwrap();
    let mut stream = begin(&nest, &id, &format!("{dir}/f"), "content-length: 1073741824").await;
    stream.write_all(&noise(3_000_000)).await.unwrap();
    eventually("the upload is under way", async || (!names(&dir).is_empty()).then_some(())).await;
    assert_eq!(nest.pause(&id).await.status, 200);
    let text = answer(stream).await;
    assert!(text.starts_with("HTTP/1.1 409 ") && text.contains("became pausing"), "{text}");
    assert_eq!(nest.resume(&id).await.status, 200);
    eventually("nothing is left of it", async || names(&dir).is_empty().then_some(())).await;
}

#[actix_web::test]
async fn a_slow_transfer_keeps_its_sandbox_alive() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 2})).await;
    let path = nest.path("f");
    let mut stream = begin(&nest, &id, &path, "content-length: 8").await;
    for _ in 0..8 {
        stream.write_all(b"x").await.unwrap();
        actix_web::rt::time::sleep(Duration::from_millis(500)).await;
    }
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    assert_eq!(nest.state(&id).await, "running", "the end of the transfer counts");
    nest.becomes(&id, "stopped").await;
}

#[actix_web::test]
async fn a_path_of_two_thousand_names_is_no_trouble() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let deep = format!("{}{}", nest.path("d"), "/d".repeat(1950));
    assert_eq!(put(&nest, &id, &format!("{deep}/f"), "deep").await.status, 200);
    assert_eq!(get(&nest, &id, &format!("{deep}/f")).await.body, b"deep".as_slice());
    let answer = Answer::of(about(&nest, Method::DELETE, &id, &nest.path("d"))).await;
    assert_eq!(answer.status, 204, "{answer:?}");
    assert!(!Path::new(&nest.path("d")).exists());
}
