//! What happened, told by a real daemon and its command line, whatever becomes of the daemon.

use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Stdio};

use serde_json::Value;

use crate::support::{Options, in_a_lab};

/// `events --follow --json`, and what it has printed.
struct Follower {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Follower {
    fn next(&mut self) -> Value {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("it prints");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Takes events up to one that says this of a sandbox; gives the states that were told of it.
    fn until(&mut self, id: &str, last: &str) -> Vec<String> {
        let mut states = Vec::new();
        while states.last().is_none_or(|state| state != last) {
            let event = self.next();
            if event["sandbox_id"] == id {
                states.push(event["state"].as_str().expect("a state").to_owned());
            }
        }
        states
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_command_line_tells_what_happens_also_across_a_crash_of_the_daemon() {
    in_a_lab(1, async |lab| {
        // The same port again, so that the follower finds it.
        let options = Options { listen: "127.0.0.1:18181".to_owned(), ..Options::default() };
        let mut daemon = lab.daemon_with(options).await;
        let mut child = lab.nestbox();
        child.args(["events", "--follow", "--last", "0", "--json"]).stdout(Stdio::piped());
        let mut child = child.spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut follower = Follower { child, lines };
        // Until it follows, what happens is none of its business.
        crate::support::eventually("it follows", || async {
            let metrics = daemon.get("/metrics").await.expect(200);
            metrics.as_str().is_some_and(|text| text.contains("nestbox_websocket_sessions 1\n"))
        })
        .await;
        let sandbox = daemon.create().await;
        let id = sandbox.id.clone();
        assert_eq!(follower.until(&id, "running"), ["pending", "starting", "running"]);

        daemon.kill9().await;
        sandbox.kill_vm();
        daemon.start_again().await;
        let sandbox = sandbox.through(daemon.api());
        sandbox.becomes("error").await;
        sandbox.destroy().await;
        assert_eq!(follower.until(&id, "stopped"), ["error", "stopped"]);
        drop(follower);

        let told = lab.cli_ok(&["events"]);
        let whole = ["  pending", "pending -> starting", "starting -> running"];
        for (line, state) in told.lines().zip(whole) {
            assert!(line.contains(&id) && line.contains(state), "{told}");
        }
        assert!(told.lines().count() == 5 && told.contains("error -> stopped"), "{told}");
        let newest = lab.cli_ok(&["events", "--last", "1", "--json", "--sandbox", &id]);
        let newest: Value = serde_json::from_str(&newest).expect("one line of JSON");
        assert_eq!((&newest["state"], &newest["previous"]), (&"stopped".into(), &"error".into()));
        let after = lab.cli_ok(&["events", "--after", "3"]);
        assert_eq!(after.lines().count(), 2, "{after}");
        assert_eq!(lab.cli(&["events", "--after", "999"]).status.code(), Some(125));
        assert_eq!(lab.cli(&["events", "--follow", "--after", "999"]).status.code(), Some(125));
        daemon.stop().await;
    });
}

#[test]
fn top_shows_what_sandboxes_take() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let (running, paused) = (daemon.create().await, daemon.create().await);
        paused.pause().await;
        // No terminal: one look, and no codes for a screen.
        let table = lab.cli_ok(&["top"]);
        assert!(table.starts_with("ID ") && !table.contains('\x1b'), "{table}");
        let line = |id: &str| table.lines().find(|line| line.starts_with(id)).expect("a line");
        assert!(line(&running.id).contains("of 256 MiB"), "{table}");
        assert!(line(&paused.id).contains("0.0 MiB of 256 MiB"), "{table}");
        let json: Value = serde_json::from_str(&lab.cli_ok(&["top", "--json"])).expect("JSON");
        let sandboxes = json["sandboxes"].as_array().expect("a list");
        assert_eq!(sandboxes.len(), 2);
        let of = |id: &str| sandboxes.iter().find(|one| one["id"] == id).expect("it is there");
        assert!(of(&running.id)["metrics"]["memory_used_bytes"].as_u64() > Some(1 << 20), "{json}");
        assert_eq!(of(&paused.id)["metrics"]["memory_used_bytes"], 0, "{json}");

        let script = lab.cli_ok(&["completions", "bash"]);
        assert!(script.contains("completions") && script.contains("--follow"), "{script}");
        running.destroy().await;
        paused.destroy().await;
        daemon.stop().await;
    });
}
