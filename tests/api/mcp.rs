//! The Model Context Protocol, spoken by hand to the real program.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use nestbox::vmm::simulated::{Mode, Step};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::nest::{Nest, PATIENCE, eventually, process_lives};

/// An agent, and the program that it has started.
struct Agent {
    child: Child,
    to: Option<ChildStdin>,
    /// Each line that the program has written.
    lines: Receiver<String>,
    last_id: u64,
}

impl Agent {
    /// Starts the program and agrees with it on how to speak.
    async fn of(nest: &Nest) -> Self {
        Self::with(nest, &[]).await
    }

    async fn with(nest: &Nest, args: &[&str]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
        command.arg("mcp").args(args).env("NESTBOX_DATA_DIR", nest.dir.path());
        command.env_remove("NESTBOX_URL").env_remove("NESTBOX_API_KEY");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (say, lines) = channel();
        let from = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || {
            from.lines().map_while(Result::ok).try_for_each(|l| say.send(l))
        });
        let to = child.stdin.take();
        let mut agent = Self { child, to, lines, last_id: 0 };
        let hello = json!({"protocolVersion": "2025-06-18", "capabilities": {},
            "clientInfo": {"name": "a test", "version": "1"}});
        let answer = agent.ask("initialize", hello).await;
        assert_eq!(answer["result"]["serverInfo"]["name"], "nestbox", "{answer}");
        agent.say(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}));
        agent
    }

    fn say(&mut self, message: &Value) {
        writeln!(self.to.as_mut().unwrap(), "{message}").unwrap();
    }

    fn begin(&mut self, method: &str, params: Value) -> u64 {
        self.last_id += 1;
        let id = self.last_id;
        self.say(&json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}));
        id
    }

    async fn ask(&mut self, method: &str, params: Value) -> Value {
        let id = self.begin(method, params);
        let look = async || self.lines.try_recv().ok();
        let line = eventually("an answer", look).await;
        let answer: Value = serde_json::from_str(&line).expect("nothing but the protocol");
        assert_eq!(answer["id"], id, "{answer}");
        answer
    }

    /// Calls a tool; gives whether it failed, and its text.
    async fn call(&mut self, tool: &str, arguments: Value) -> (bool, String) {
        let answer = self.ask("tools/call", json!({"name": tool, "arguments": arguments})).await;
        let result = &answer["result"];
        let text = result["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
        (result["isError"] == true, text.to_owned())
    }

    async fn ok(&mut self, tool: &str, arguments: Value) -> String {
        let (failed, text) = self.call(tool, arguments).await;
        assert!(!failed, "{tool}: {text}");
        text
    }

    async fn refused(&mut self, tool: &str, arguments: Value) -> String {
        let (failed, text) = self.call(tool, arguments).await;
        assert!(failed, "{tool}: {text}");
        text
    }

    /// Calls a tool, and does not wait.
    fn begin_call(&mut self, tool: &str, arguments: Value) -> u64 {
        self.begin("tools/call", json!({"name": tool, "arguments": arguments}))
    }

    fn cancel(&mut self, call: u64) {
        self.say(&json!({"jsonrpc": "2.0", "method": "notifications/cancelled",
            "params": {"requestId": call}}));
    }

    /// Waits for the program's end; gives its exit code, if it ended by itself.
    async fn ended(&mut self) -> Option<i32> {
        eventually("it ends", async || self.child.try_wait().unwrap()).await.code()
    }

    async fn create(&mut self) -> String {
        let told = self.ok("create_sandbox", json!({"envs": {"A": "bird"}})).await;
        told.split_whitespace().nth(2).unwrap().to_owned()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[actix_web::test]
async fn an_agent_finds_tools_that_say_what_they_take() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    let answer = agent.ask("tools/list", json!({})).await;
    let tools = answer["result"]["tools"].as_array().unwrap();
    let mut names: Vec<_> = tools.iter().map(|tool| tool["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    let want = [
        "create_sandbox",
        "destroy_sandbox",
        "list_sandboxes",
        "pause_sandbox",
        "read_file",
        "resume_sandbox",
        "run_code",
        "run_command",
        "write_file",
    ];
    assert_eq!(names, want);
    for tool in tools {
        assert!(tool["description"].as_str().unwrap().len() > 20, "{tool}");
        for (name, field) in tool["inputSchema"]["properties"].as_object().into_iter().flatten() {
            assert!(field["description"].is_string(), "{name} of {tool}");
        }
    }
}

#[actix_web::test]
async fn an_agent_works_in_a_sandbox_from_create_to_destroy() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    let id = agent.create().await;
    assert_eq!(nest.sandbox(&id).await["timeout_sec"], 3600, "none stays for ever");

    let code = json!({"sandbox_id": id, "language": "python", "code": "print(6*7)"});
    assert_eq!(agent.ok("run_code", code).await, "stdout:\n42\nexit code: 0");
    let command = json!({"sandbox_id": id, "command": "echo $A; echo oh >&2; exit 3"});
    let want = "stdout:\nbird\nstderr:\noh\nexit code: 3";
    assert_eq!(agent.ok("run_command", command).await, want, "a code is a result, no failure");
    let slow = json!({"sandbox_id": id, "command": "sleep 60", "timeout_sec": 1});
    assert!(agent.ok("run_command", slow).await.contains("its time was over"));
    let long = json!({"sandbox_id": id, "command": "seq 100000"});
    let shown = agent.ok("run_command", long).await;
    assert!(shown.len() < 40_000 && shown.contains("left out") && shown.contains("\n100000\n"));

    let path = nest.path("note");
    let file = json!({"sandbox_id": id, "path": path, "content": "hello"});
    assert!(agent.ok("write_file", file).await.starts_with("5 bytes"));
    let read = json!({"sandbox_id": id, "path": path});
    assert_eq!(agent.ok("read_file", read.clone()).await, "hello");
    let bytes = json!({"sandbox_id": id, "path": path, "content": "/w==", "encoding": "base64"});
    agent.ok("write_file", bytes).await;
    assert!(agent.refused("read_file", read).await.contains("not text"));

    let sandbox = json!({"sandbox_id": id});
    assert!(agent.ok("pause_sandbox", sandbox.clone()).await.contains("paused"));
    assert_eq!(nest.state(&id).await, "paused");
    assert!(agent.ok("resume_sandbox", sandbox.clone()).await.contains("running"));
    assert!(agent.ok("list_sandboxes", json!({})).await.contains(&id));
    agent.ok("destroy_sandbox", sandbox).await;
    assert_eq!(agent.ok("list_sandboxes", json!({})).await, "There are none.");
}

#[actix_web::test]
async fn a_sandbox_reaches_what_its_agent_says_and_nothing_else() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    for reach in [json!([]), json!(["pypi.org", "*.example.com"])] {
        let told = agent.ok("create_sandbox", json!({"reach": reach})).await;
        let id = told.split_whitespace().nth(2).unwrap();
        let policy = nest.get(&format!("/v1/sandboxes/{id}/network")).await.json();
        assert_eq!(policy["default"], "deny");
        assert_eq!(policy["allow"].as_array().unwrap().len(), reach.as_array().unwrap().len());
    }
}

#[actix_web::test]
async fn code_runs_without_a_sandbox_too_and_leaves_none() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    let code = json!({"language": "bash", "code": "echo $((2 + 3))"});
    assert_eq!(agent.ok("run_code", code).await, "stdout:\n5\nexit code: 0");
    assert_eq!(agent.ok("list_sandboxes", json!({})).await, "There are none.");
}

#[actix_web::test]
async fn what_goes_wrong_is_said_to_the_agent() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    let unknown = json!({"sandbox_id": "a".repeat(20), "command": "true"});
    assert!(agent.refused("run_command", unknown).await.contains("no sandbox"));
    let none = json!({"template": "none"});
    assert!(agent.refused("create_sandbox", none).await.contains("none"));
    let rule = json!({"reach": ["not a name"]});
    assert!(agent.refused("create_sandbox", rule).await.contains("is no rule"));
    for wrong in ["", "..", "abc", "../api-keys"] {
        let said = agent.refused("destroy_sandbox", json!({"sandbox_id": wrong})).await;
        assert!(said.contains("a sandbox id is 20 characters"), "{wrong}: {said}");
    }
    let id = agent.create().await;
    let long = json!({"sandbox_id": id, "command": format!(": {}", "x".repeat(200_000))});
    assert!(agent.refused("run_command", long).await.contains("write it to a file"));
    let missing = json!({"sandbox_id": id, "path": nest.path("missing")});
    assert!(!agent.refused("read_file", missing).await.is_empty());
    let bad = json!({"sandbox_id": id, "path": "x", "content": "?", "encoding": "base64"});
    assert!(agent.refused("write_file", bad).await.contains("base64"));
    let wrong = json!({"language": "cobol", "code": ""});
    assert!(agent.refused("run_code", wrong).await.contains("cobol"));
    let unknown = json!({"sandbox_id": id, "command": "true", "shell": "zsh"});
    assert!(agent.refused("run_command", unknown).await.contains("shell"));
    assert!(agent.ok("list_sandboxes", json!({})).await.contains(&id));
}

/// A line that says which process it is, and stays.
fn staying(marker: &str) -> String {
    format!("echo $$ > {marker}; exec sleep 100")
}

async fn pid_in(marker: &str) -> i32 {
    let look = async || std::fs::read_to_string(marker).ok()?.trim().parse::<i32>().ok();
    eventually("the command runs", look).await
}

async fn none_is_left(nest: &Nest) {
    let look = async || nest.machines.present().is_empty().then_some(());
    eventually("no sandbox is left", look).await;
}

#[actix_web::test]
async fn a_call_that_is_cancelled_ends_the_command() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    let id = agent.create().await;
    let marker = nest.path("marker");
    let arguments = json!({"sandbox_id": id, "command": staying(&marker)});
    let call = agent.begin_call("run_command", arguments);
    let pid = pid_in(&marker).await;
    agent.cancel(call);
    eventually("the command ends", async || (!process_lives(pid)).then_some(())).await;
}

#[actix_web::test]
async fn a_sandbox_that_nobody_waits_for_any_more_does_not_stay() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let call = agent.begin_call("create_sandbox", json!({}));
    let held = nest.machines.held(Step::Boot).await;
    agent.cancel(call);
    // An answer: the cancellation before it has been seen.
    agent.ok("list_sandboxes", json!({})).await;
    held.succeed();
    none_is_left(&nest).await;
}

#[actix_web::test]
async fn the_end_of_a_session_leaves_nothing_of_a_call_under_way() {
    let nest = Nest::start().await;
    for by_signal in [true, false] {
        let mut agent = Agent::of(&nest).await;
        let marker = nest.path(&format!("marker-{by_signal}"));
        let code = json!({"language": "bash", "code": staying(&marker)});
        agent.begin_call("run_code", code);
        let pid = pid_in(&marker).await;
        let code = if by_signal {
            kill(Pid::from_raw(agent.child.id() as i32), Signal::SIGTERM).unwrap();
            128 + Signal::SIGTERM as i32
        } else {
            agent.to = None;
            0
        };
        assert_eq!(agent.ended().await, Some(code));
        eventually("the command ends", async || (!process_lives(pid)).then_some(())).await;
        none_is_left(&nest).await;
    }
}

#[actix_web::test]
async fn what_a_session_has_created_outlives_it() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    let id = agent.create().await;
    agent.to = None;
    assert_eq!(agent.ended().await, Some(0));
    assert_eq!(nest.state(&id).await, "running");
}

#[actix_web::test]
async fn the_end_of_its_input_ends_the_program() {
    let nest = Nest::start().await;
    let mut agent = Agent::of(&nest).await;
    agent.to = None;
    assert_eq!(agent.ended().await, Some(0));
    assert!(agent.lines.recv_timeout(PATIENCE).is_err(), "nothing more is said");
}

#[actix_web::test]
async fn what_an_agent_made_ends_when_the_program_is_killed_and_stays_when_that_ends_in_order() {
    let nest = Nest::start().await;
    let mut killed = Agent::with(&nest, &["--lease-sec", "3"]).await;
    let mut orderly = Agent::with(&nest, &["--lease-sec", "3"]).await;
    let (left, kept) = (killed.create().await, orderly.create().await);
    let destroyed = orderly.create().await;
    orderly.ok("destroy_sandbox", json!({ "sandbox_id": destroyed })).await;
    orderly.to = None;
    assert_eq!(orderly.ended().await, Some(0));
    killed.child.kill().unwrap();
    let sandbox = nest.becomes(&left, "stopped").await;
    let reason = sandbox["reason"].as_str().unwrap();
    assert!(reason.contains("has not renewed its lease"), "{reason}");
    assert_eq!(nest.state(&kept).await, "running");
}
