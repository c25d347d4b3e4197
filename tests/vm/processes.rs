//! Processes in the background of real guests.

use serde_json::{Value, json};

use crate::support::{Rest, Sandbox, Socket, eventually, in_a_lab};

async fn start(sandbox: &Sandbox, line: &str, tag: &str) -> u64 {
    let body = json!({ "cmd": line, "background": true, "tag": tag });
    sandbox.try_exec(body).await.expect(200)["pid"].as_u64().expect("a pid")
}

async fn listed(sandbox: &Sandbox, tag: &str) -> Value {
    let list = sandbox.get("/processes").await.expect(200);
    let processes = list["processes"].as_array().expect("a list");
    processes.iter().find(|process| process["tag"] == tag).expect("it is listed").clone()
}

async fn follow(sandbox: &Sandbox, tag: &str, after: u64) -> Socket {
    let mut socket = sandbox.socket(&format!("/processes/{tag}/stream?after={after}")).await;
    socket.started().await;
    socket
}

/// What is numbered so, from `first` on, one number a line.
fn numbers(first: u64, text: &str) -> u64 {
    let mut next = first;
    for line in text.lines() {
        assert_eq!(line, next.to_string(), "nothing is missing and nothing doubled");
        next += 1;
    }
    next
}

/// Follows until some more lines have come, and leaves in the middle; gives the next line's number.
async fn hear_some(sandbox: &Sandbox, after: &mut u64, next: u64) -> u64 {
    let mut socket = follow(sandbox, "count", *after).await;
    let enough = |seen: &Rest| seen.stdout.len() > 20 && seen.stdout.ends_with(b"\n");
    let seen = socket.until(enough).await;
    socket.vanish();
    assert_eq!(seen.lost, 0);
    *after = seen.seq.expect("a number");
    numbers(next, &seen.text())
}

#[test]
fn a_process_is_followed_without_a_gap_over_pauses_crashes_of_the_daemon_and_forks() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let mut sandbox = daemon.create().await;
        let pid =
            start(&sandbox, "i=1; while :; do echo $i; i=$((i+1)); sleep 0.02; done", "count")
                .await;
        let (mut after, mut next) = (0, 1);
        next = hear_some(&sandbox, &mut after, next).await;

        let mut heard = follow(&sandbox, "count", after).await;
        sandbox.pause().await;
        let rest = heard.rest().await;
        assert_eq!((rest.code(), rest.exit_code), (Some(4001), None), "{:?}", rest.errors);
        sandbox.resume().await;
        next = hear_some(&sandbox, &mut after, next).await;

        daemon.kill9().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        next = hear_some(&sandbox, &mut after, next).await;

        let child = sandbox.fork(1).await.remove(0);
        let mut of_child = after;
        hear_some(&child, &mut of_child, next).await;
        hear_some(&sandbox, &mut after, next).await;
        assert_eq!(listed(&child, "count").await["pid"], pid);
        sandbox.delete("/processes/count").await.expect(204);
        let process = listed(&sandbox, "count").await;
        assert_eq!((&process["state"], &process["exit_code"]), (&json!("exited"), &json!(143)));
        assert_eq!(listed(&child, "count").await["state"], "running");
        child.destroy().await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_flood_in_the_background_is_bounded_and_a_kill_takes_all_of_it() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let line = "trap '' TERM; setsid sleep 7353 & yes | head -c 50000000; sleep 7353";
        start(&sandbox, line, "flood").await;
        eventually("all is written", || async {
            listed(&sandbox, "flood").await["next_seq"] == 50_000_001
        })
        .await;
        let first = listed(&sandbox, "flood").await["first_seq"].as_u64().expect("a number");
        assert!(first > 48_000_000, "{first}");
        let memory =
            "awk '/^Name/ { n = $2 } /^VmRSS/ && n == \"envd\" { print $2 }' /proc/[0-9]*/status";
        eprintln!("PID 1 and the agent have {:?} KiB resident", sandbox.sh_as_root(memory).await);

        let mut socket = follow(&sandbox, "flood", 0).await;
        sandbox.delete("/processes/flood").await.expect(204);
        let rest = socket.rest().await;
        assert_eq!((rest.lost, rest.exit_code), (first - 1, Some(137)));
        assert!(rest.stdout.chunks(2).all(|line| line == b"y\n"));
        let left =
            "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cx 735[3] || true";
        assert_eq!(sandbox.sh(left).await, "0");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_terminal_has_a_login_shell_of_its_user_and_is_come_back_to_after_a_pause() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let mut sandbox = daemon.create().await;
        let mut socket = sandbox.socket("/pty").await;
        socket
            .send(json!({ "type": "start", "tag": "main", "cols": 120, "rows": 40,
                          "envs": { "PS1": "> " } }))
            .await;
        socket.started().await;
        let keys = |text: &str| json!({ "type": "input", "data": text });
        socket.send(keys("echo $0-$USER-$PWD-$TERM; stty size; kept=$((6 * 7))\r")).await;
        let shown = socket.shows("40 120\r\n").await;
        assert!(shown.contains("bash-user-/home/user-xterm-256color"), "{shown:?}");
        // The program says so itself: what comes while the shell still begins it does not reach it.
        socket.send(keys("sh -c 'echo asleep $((1+2)); exec sleep 1000'\r")).await;
        socket.shows("asleep 3\r\n").await;
        sandbox.pause().await;
        assert_eq!(socket.rest().await.code(), Some(4001));
        daemon.kill9().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        sandbox.try_socket("/pty").await.is_error(409, "invalid_state");
        sandbox.resume().await;

        let mut socket = sandbox.socket("/pty").await;
        socket.send(json!({ "type": "connect", "tag": "main", "cols": 50, "rows": 10 })).await;
        socket.started().await;
        socket.shows("asleep 3").await;
        // Ctrl-C, and the shell knows what it knew.
        socket.send(keys("\u{3}")).await;
        socket.send(keys("echo kept=$kept; stty size\r")).await;
        let shown = socket.shows("10 50\r\n").await;
        assert!(shown.contains("kept=42\r\n"), "{shown:?}");
        socket.send(keys("exit 7\r")).await;
        assert_eq!(socket.rest().await.exit_code, Some(7));
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
