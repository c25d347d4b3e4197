//! The command line's sessions: what is typed here goes there, and what is written there comes here.
//! The program is the real one, on a real terminal.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use nix::pty::openpty;
use serde_json::{Value, json};

use crate::nest::{Nest, eventually, process_lives};

/// The program, for the daemon of a test.
fn nestbox(nest: &Nest) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
    // By its socket, as on the machine of a daemon.
    command.env("NESTBOX_DATA_DIR", nest.dir.path());
    command.env_remove("NESTBOX_URL").env_remove("NESTBOX_API_KEY");
    command
}

/// Runs it with `input` and waits for its end, while the daemon of the test goes on.
async fn run(nest: &Nest, args: &[&str], input: &[u8]) -> Output {
    let mut command = nestbox(nest);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let (mut child, input) = (command.spawn().unwrap(), input.to_vec());
    let mut stdin = child.stdin.take().unwrap();
    // One that does not read has its reasons.
    std::thread::spawn(move || drop(stdin.write_all(&input)));
    actix_web::rt::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap()
}

async fn ok(nest: &Nest, args: &[&str]) -> String {
    let output = run(nest, args, b"").await;
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{args:?}: {out}{err}");
    out
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The program on a terminal, and a person before it.
struct Person {
    keys: File,
    screen: Arc<Mutex<Vec<u8>>>,
    child: Child,
    /// The program's end, so that it can be looked at.
    terminal: File,
    /// The terminal's settings before the program began.
    before: String,
}

impl Person {
    fn runs(nest: &Nest, args: &[&str]) -> Self {
        let pair = openpty(None, None).unwrap();
        let terminal = File::from(pair.slave);
        let end = || Stdio::from(terminal.try_clone().unwrap());
        // A session of its own, so that this is the terminal which signals come from.
        let program = nestbox(nest);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(program.get_program()).args(args);
        command.envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command.stdin(end()).stdout(end()).stderr(end());
        let before = stty(&terminal, &["cols", "100", "rows", "40"]) + &stty(&terminal, &["-g"]);
        Self {
            screen: watch(pair.master.try_clone().unwrap()),
            keys: File::from(pair.master),
            child: command.spawn().unwrap(),
            terminal,
            before,
        }
    }

    fn is_as_before(&self) -> bool {
        stty(&self.terminal, &["-g"]) == self.before
    }

    fn types(&mut self, keys: &str) {
        self.keys.write_all(keys.as_bytes()).unwrap();
    }

    /// Waits until the screen has shown this; gives all it has shown.
    async fn sees(&self, words: &str) -> String {
        let look = async || {
            let shown = text(&self.screen.lock().unwrap());
            shown.contains(words).then_some(shown)
        };
        eventually(&format!("the screen shows {words:?}"), look).await
    }

    /// Waits for the program's end; gives its exit code.
    async fn exit_code(&mut self) -> i32 {
        let look = async || self.child.try_wait().unwrap();
        eventually("the program ends", look).await.code().unwrap()
    }
}

impl Drop for Person {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn stty(terminal: &File, args: &[&str]) -> String {
    let mut command = Command::new("stty");
    command.args(args).stdin(terminal.try_clone().unwrap());
    text(&command.output().unwrap().stdout)
}

/// Remembers all that a screen shows.
fn watch(master: OwnedFd) -> Arc<Mutex<Vec<u8>>> {
    let screen = Arc::new(Mutex::new(Vec::new()));
    let (shown, mut from) = (screen.clone(), File::from(master));
    std::thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(size @ 1..) = from.read(&mut piece) {
            shown.lock().unwrap().extend_from_slice(&piece[..size]);
        }
    });
    screen
}

#[actix_web::test]
async fn a_shell_is_as_if_it_ran_here() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut person = Person::runs(&nest, &["shell", &id, "-e", "WORD=bird"]);
    person.types("echo $WORD-$((1+1))\r");
    person.sees("bird-2").await;
    assert!(!person.is_as_before(), "each key is passed on as it is");
    person.types("stty size\r");
    person.sees("40 100\r\n").await;
    stty(&person.terminal, &["cols", "70", "rows", "20"]);
    person.types("sleep 0.3; stty size\r");
    person.sees("20 70\r\n").await;
    person.types("exit 7\r");
    assert_eq!(person.exit_code().await, 7);
    assert!(person.is_as_before(), "the terminal is as it was");
}

#[actix_web::test]
async fn ctrl_c_is_for_what_runs_in_the_sandbox() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "trap 'echo caught; exit 3' INT; echo ready-$((6*7)); sleep 100 & wait";
    let mut person = Person::runs(&nest, &["exec", "-it", &id, "--", "sh", "-c", line]);
    person.sees("ready-42").await;
    person.types("\u{3}");
    person.sees("caught").await;
    assert_eq!(person.exit_code().await, 3);
}

#[actix_web::test]
async fn a_terminal_is_left_and_come_back_to() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut person = Person::runs(&nest, &["exec", "-it", &id, "--", "sh", "-c", "echo on; cat"]);
    person.sees("on\r\n").await;
    person.types("one\r");
    person.sees("one\r\none\r\n").await;
    person.types("\u{10}\u{11}");
    let told = person.sees("comes back").await;
    assert_eq!(person.exit_code().await, 0);
    assert!(person.is_as_before());
    let process = told.split("--connect ").nth(1).unwrap().split('`').next().unwrap();
    assert!(process_lives(process.parse().unwrap()));

    let mut person = Person::runs(&nest, &["shell", &id, "--connect", process]);
    person.sees("one\r\none\r\n").await;
    // What leaves for good.
    person.types("\u{4}");
    assert_eq!(person.exit_code().await, 0);
}

#[actix_web::test]
async fn a_pause_says_how_to_come_back_and_so_does_a_signal_restore_the_terminal() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut person = Person::runs(&nest, &["exec", "-it", &id, "--", "sh", "-c", "echo on; cat"]);
    person.sees("on\r\n").await;
    assert_eq!(nest.pause(&id).await.status, 200);
    let told = person.sees("goes on where it was").await;
    assert!(told.contains(&format!("nestbox resume {id}")), "{told}");
    assert_eq!(person.exit_code().await, 125);
    assert!(person.is_as_before());

    assert_eq!(nest.resume(&id).await.status, 200);
    let process = told.split("--connect ").nth(1).unwrap().split('`').next().unwrap();
    let mut person = Person::runs(&nest, &["shell", &id, "--connect", process]);
    person.types("two\r");
    person.sees("two\r\ntwo\r\n").await;
    // What setsid has become.
    let program = person.child.id() as i32;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(program), nix::sys::signal::SIGTERM).unwrap();
    assert_eq!(person.exit_code().await, 143);
    assert!(person.is_as_before());
}

#[actix_web::test]
async fn without_a_terminal_there_is_none_there_either() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for args in [&["exec", "-it", &id, "--", "true"] as &[&str], &["shell", &id]] {
        let output = run(&nest, args, b"").await;
        assert_eq!(output.status.code(), Some(125));
        assert!(text(&output.stderr).contains("exec without -t"), "{output:?}");
    }
    let output = run(&nest, &["exec", "--json", "-i", &id, "--", "cat"], b"").await;
    assert_eq!(output.status.code(), Some(125));
}

#[actix_web::test]
async fn a_command_reads_what_we_read_and_writes_as_it_goes() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let input: Vec<u8> = (0..3_000_000u32).map(|n| (n.wrapping_mul(n) >> 9) as u8).collect();
    let output = run(&nest, &["exec", "-i", &id, "--", "sh", "-c", "cat; exit 9"], &input).await;
    assert_eq!(output.status.code(), Some(9), "{}", text(&output.stderr));
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
    // Without -i it has none, and a reader who has seen enough ends it.
    assert_eq!(ok(&nest, &["exec", &id, "--", "wc", "-c"]).await.trim(), "0");
    let marker = nest.path("marker");
    let line = format!("echo $$ > {marker}; exec yes");
    let mut child = nestbox(&nest);
    child.args(["exec", &id, "--", "sh", "-c", &line]).stdout(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let first = actix_web::rt::task::spawn_blocking(move || {
        let mut first = [0; 4];
        out.read_exact(&mut first).unwrap();
        first
    });
    assert_eq!(&first.await.unwrap(), b"y\ny\n", "output comes while the command runs");
    let status = eventually("it ends", async || child.try_wait().unwrap()).await;
    assert_eq!(status.code(), Some(141));
    let pid: i32 = std::fs::read_to_string(&marker).unwrap().trim().parse().unwrap();
    eventually("the command ends", async || (!process_lives(pid)).then_some(())).await;
}

#[actix_web::test]
async fn a_sandbox_is_made_for_one_command_and_gone_with_it() {
    let nest = Nest::start().await;
    let mut person =
        Person::runs(&nest, &["run", "-it", "--rm", "--", "sh", "-c", "read a; echo $a$a; exit 4"]);
    person.types("bird\r");
    person.sees("birdbird").await;
    assert_eq!(person.exit_code().await, 4);
    let list: Value = serde_json::from_str(&ok(&nest, &["ls", "--json"]).await).unwrap();
    assert_eq!(list["sandboxes"], json!([]));

    let output = run(&nest, &["run", "--keep", "--", "echo", "kept"], b"").await;
    assert_eq!(text(&output.stdout), "kept\n");
    let list: Value = serde_json::from_str(&ok(&nest, &["ls", "--json"]).await).unwrap();
    let id = list["sandboxes"][0]["id"].as_str().unwrap();
    assert!(text(&output.stderr).contains(id), "{output:?}");
}

#[actix_web::test]
async fn what_runs_in_the_background_is_listed_read_and_ended() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "echo one; echo two >&2; trap 'echo caught' USR1; while :; do sleep 0.1; done";
    let pid = ok(&nest, &["exec", "-d", "--tag", "web", &id, "--", "sh", "-c", line]).await;
    let listed = ok(&nest, &["ps", &id]).await;
    assert!(listed.contains(pid.trim()) && listed.contains("web"), "{listed}");
    let both = async || {
        let output = run(&nest, &["logs", &id, "web"], b"").await;
        (output.stdout == b"one\n" && output.stderr == b"two\n").then_some(())
    };
    eventually("both streams are shown", both).await;
    let after = ok(&nest, &["logs", &id, "web", "--json", "--after", "4"]).await;
    assert!(!after.contains("one") && after.contains("\"seq\":8"), "{after}");

    ok(&nest, &["kill", "-s", "SIGUSR1", &id, "web"]).await;
    let caught = async || ok(&nest, &["logs", &id, "web"]).await.contains("caught").then_some(());
    eventually("the signal has arrived", caught).await;
    ok(&nest, &["kill", &id, pid.trim()]).await;
    assert!(!ok(&nest, &["ps", &id]).await.contains("web"));
    assert!(ok(&nest, &["ps", "--all", &id]).await.contains("exited 143"));
    assert!(ok(&nest, &["logs", "--follow", &id, "web"]).await.starts_with("one\n"));
    for args in [&["kill", "-s", "SIGUSR1", &id, "web"] as &[&str], &["logs", &id, "none"]] {
        assert_eq!(run(&nest, args, b"").await.status.code(), Some(125), "{args:?}");
    }
}

#[actix_web::test]
async fn one_signal_ends_us_when_the_command_does_not_care() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "trap 'echo caught' TERM; echo ready; while :; do sleep 0.1; done";
    let mut child = nestbox(&nest);
    child.args(["exec", &id, "--", "sh", "-c", line]);
    child.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut ready = [0; 6];
    let (child, output, status) = actix_web::rt::task::spawn_blocking(move || {
        out.read_exact(&mut ready).unwrap();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM).unwrap();
        let mut output = String::new();
        out.read_to_string(&mut output).unwrap();
        let status = child.wait().unwrap();
        (child, output, status)
    })
    .await
    .unwrap();
    assert_eq!((output.as_str(), status.code()), ("caught\n", Some(143)));
    let mut said = String::new();
    child.stderr.unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("has not ended after SIGTERM"), "{said}");
}

#[actix_web::test]
async fn who_follows_ends_when_nobody_reads_any_more() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let started = json!({"cmd": "echo on; sleep 600", "background": true, "tag": "slow"});
    nest.post(&format!("/v1/sandboxes/{id}/exec"), started).await;
    for args in [vec!["events", "--follow", "--last", "1"], vec!["logs", "--follow", &id, "slow"]] {
        let mut child = nestbox(&nest);
        child.args(&args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        let mut out = child.stdout.take().unwrap();
        let ended = actix_web::rt::task::spawn_blocking(move || {
            // As `head -1` does: it has read a line, and is gone. Nothing more comes by itself.
            let mut byte = [0];
            while byte != *b"\n" {
                out.read_exact(&mut byte).unwrap();
            }
            drop(out);
            child.wait().unwrap()
        });
        assert!(ended.await.unwrap().success(), "{args:?}");
    }
}
