//! The way of the key from the command line to the daemon: to no proxy, and to nobody else who listens
//! where a daemon was. The attacker here records each byte that it is sent.

use std::io::{Read, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use actix_web::rt;
use nestbox::startup::{API_KEY_FILE, SOCKET_FILE, URL_FILE};
use serde_json::json;

use crate::nest::Nest;

const NOBODY: u32 = 65534;

/// Verbs of each kind: a list, a stream, an upload, and what an agent starts.
const VERBS: [&[&str]; 4] = [&["ls"], &["events", "--follow"], &["create"], &["key", "ls"]];

fn nestbox(args: &[&str], vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.args(args).envs(vars.iter().copied()).stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> Output {
    rt::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Listens, takes what comes, and answers nothing.
struct Recorder {
    url: String,
    seen: Arc<Mutex<Vec<u8>>>,
}

impl Recorder {
    fn start() -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Vec<u8>>>::default();
        let record = seen.clone();
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                record.lock().unwrap().extend_from_slice(b"connected ");
                let mut piece = [0; 4096];
                if let Ok(size) = stream.read(&mut piece) {
                    record.lock().unwrap().extend_from_slice(&piece[..size]);
                }
                let _ = stream.write_all(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n");
            }
        });
        Self { url, seen }
    }

    fn seen(&self) -> String {
        text(&self.seen.lock().unwrap())
    }
}

/// A listener of another user's, who writes what it gets into a file: a program of its own, because a
/// socket belongs to who made it.
struct Stranger {
    child: Child,
    dir: tempfile::TempDir,
}

const LISTEN: &str = r#"
import os, socket, sys
kind, place, record = sys.argv[1:]
if kind == "tcp":
    server = socket.create_server(("127.0.0.1", 0))
    place = "http://127.0.0.1:%d" % server.getsockname()[1]
else:
    server = socket.socket(socket.AF_UNIX)
    server.bind(place)
    server.listen()
print(place, flush=True)
while True:
    connection, _ = server.accept()
    with open(record, "ab") as file:
        file.write(connection.recv(65536))
    connection.close()
"#;

impl Stranger {
    /// Gives where it listens, too.
    fn listen(kind: &str, place: &str) -> (Self, String) {
        let dir = tempfile::tempdir().unwrap();
        chown(dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-c", LISTEN, kind, place]).arg(dir.path().join("record"));
        command.uid(NOBODY).gid(NOBODY).stdout(Stdio::piped());
        let mut child = command.spawn().expect("python3 is there");
        let mut line = String::new();
        let mut from = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut from, &mut line).unwrap();
        (Self { child, dir }, line.trim().to_owned())
    }

    /// All that it was sent.
    fn record(&self) -> Vec<u8> {
        std::fs::read(self.dir.path().join("record")).unwrap_or_default()
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A data directory that a daemon has left.
fn left_behind(url: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(URL_FILE), url).unwrap();
    std::fs::write(dir.path().join(API_KEY_FILE), "nb_secret").unwrap();
    dir
}

fn text_of(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[actix_web::test]
async fn a_url_that_another_user_listens_at_gets_nothing() {
    let (stranger, url) = Stranger::listen("tcp", "");
    let dir = left_behind(&url);
    let dir = text_of(dir.path());
    for verb in VERBS {
        for vars in [
            &[("NESTBOX_DATA_DIR", dir)][..],
            &[("NESTBOX_DATA_DIR", dir), ("NESTBOX_API_KEY", "nb_secret")],
            // The URL is the local one, and so would be the key.
            &[("NESTBOX_DATA_DIR", dir), ("NESTBOX_URL", &url)],
        ] {
            let output = run(nestbox(verb, vars)).await;
            let said = text(&output.stderr);
            assert_eq!(output.status.code(), Some(125), "{verb:?}: {said}");
            assert!(said.contains("nothing was sent") && said.contains("nobody"), "{said}");
        }
    }
    assert_eq!(text(&stranger.record()), "");
    // That it would have been recorded: who names a URL and a key is obeyed.
    let vars = [("NESTBOX_URL", url.as_str()), ("NESTBOX_API_KEY", "nb_secret")];
    run(nestbox(&["ls"], &vars)).await;
    assert!(text(&stranger.record()).contains("nb_secret"));
}

#[actix_web::test]
async fn a_socket_of_another_users_gets_nothing() {
    // In a directory that is root's, but in which others may put things.
    let open = left_behind("http://127.0.0.1:1");
    std::fs::set_permissions(open.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    // In one of the stranger's own, as one might find it below /tmp.
    let theirs = left_behind("http://127.0.0.1:1");
    chown(theirs.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    // In one that was theirs when they bound it.
    let former = left_behind("http://127.0.0.1:1");
    chown(former.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    for (dir, said) in [(&open, "others may write"), (&theirs, "of the user"), (&former, "listens")]
    {
        let path = dir.path().join(SOCKET_FILE);
        let (stranger, _) = Stranger::listen("unix", text_of(&path));
        if said == "listens" {
            chown(dir.path(), Some(0), Some(0)).unwrap();
        }
        for verb in VERBS {
            let vars =
                [("NESTBOX_DATA_DIR", text_of(dir.path())), ("NESTBOX_API_KEY", "nb_secret")];
            let output = run(nestbox(verb, &vars)).await;
            assert_eq!(output.status.code(), Some(125), "{}", text(&output.stderr));
            assert!(text(&output.stderr).contains(said), "{said}: {}", text(&output.stderr));
        }
        assert_eq!(text(&stranger.record()), "", "{said}");
    }
}

#[actix_web::test]
async fn a_daemon_that_has_left_is_said_to_be_away() {
    let dir = left_behind("http://127.0.0.1:1");
    let vars = [("NESTBOX_DATA_DIR", text_of(dir.path()))];
    let output = run(nestbox(&["ls"], &vars)).await;
    assert!(text(&output.stderr).contains("is the daemon running?"), "{}", text(&output.stderr));
    drop(std::os::unix::net::UnixListener::bind(dir.path().join(SOCKET_FILE)).unwrap());
    let output = run(nestbox(&["ls"], &vars)).await;
    assert!(text(&output.stderr).contains("is it running?"), "{}", text(&output.stderr));
}

/// All variables by which programs are told of proxies.
fn proxied<'a>(proxy: &'a str, vars: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let names =
        ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
    names.into_iter().map(|name| (name, proxy)).chain(vars.iter().copied()).collect()
}

#[actix_web::test]
async fn nothing_for_this_machine_goes_through_a_proxy() {
    let nest = Nest::start().await;
    let proxy = Recorder::start();
    let dir = text_of(nest.dir.path());
    let by_name = nest.url.replace("127.0.0.1", "localhost");
    for vars in [
        &[("NESTBOX_DATA_DIR", dir)][..],
        &[("NESTBOX_URL", nest.url.as_str()), ("NESTBOX_API_KEY", &nest.key)],
        &[("NESTBOX_URL", by_name.as_str()), ("NESTBOX_API_KEY", &nest.key)],
    ] {
        let vars = proxied(&proxy.url, vars);
        let output = run(nestbox(&["ls"], &vars)).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    assert_eq!(proxy.seen(), "");
    // That it would have been seen: a daemon elsewhere is reached as the environment says.
    let far = [("NESTBOX_URL", "http://nest.invalid"), ("NESTBOX_API_KEY", "nb_far")];
    run(nestbox(&["ls"], &proxied(&proxy.url, &far))).await;
    assert!(proxy.seen().contains("nest.invalid"), "{}", proxy.seen());
}

#[actix_web::test]
async fn an_older_daemon_without_a_socket_is_reached_by_its_url() {
    let nest = Nest::start().await;
    std::fs::remove_file(nest.dir.path().join(SOCKET_FILE)).unwrap();
    let id = nest.create(json!({})).await;
    let vars = [("NESTBOX_DATA_DIR", text_of(nest.dir.path()))];
    for args in [&["get", &id][..], &["exec", &id, "--", "echo", "hi"]] {
        let output = run(nestbox(args, &vars)).await;
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
}
