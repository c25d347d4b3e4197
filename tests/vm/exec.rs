//! Commands in a sandbox, and what they try.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Sandbox, eventually, in_a_lab};

#[test]
fn a_command_ends_as_it_would_in_a_shell() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        for (cmd, code) in [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("nonsense", 127)] {
            assert_eq!(sandbox.exec(json!({ "cmd": cmd })).await.exit_code, code, "{cmd}");
        }
        let missing = sandbox.exec(json!({ "cmd": "no-such-program", "args": [] })).await;
        assert_eq!(missing.exit_code, 127);
        assert!(missing.errors().contains("no-such-program"), "{}", missing.errors());
        let directory = sandbox.exec(json!({ "cmd": "/etc/passwd", "args": [] })).await;
        assert_eq!(directory.exit_code, 126);

        // As it is: no shell looks at it.
        let literal = json!({ "cmd": "printf", "args": ["%s|", "$HOME", "a b", ""] });
        assert_eq!(sandbox.exec(literal).await.text(), "$HOME|a b||");
        let place = json!({ "cmd": "pwd; id -un", "cwd": "/tmp", "user": "root" });
        assert_eq!(sandbox.exec(place).await.text(), "/tmp\nroot");

        let nowhere = json!({ "cmd": "true", "cwd": "/no/such/directory" });
        sandbox.try_exec(nowhere).await.is_error(400, "invalid_request");
        let nobody = json!({ "cmd": "true", "user": "no-such-user" });
        sandbox.try_exec(nobody).await.is_error(400, "invalid_request");

        // More threads than that are there already.
        let few = "echo 20 > /proc/sys/kernel/threads-max";
        sandbox.sh_as_root(few).await;
        let refused = sandbox.try_exec(json!({ "cmd": "true" })).await;
        refused.is_error(409, "guest_exhausted");
        assert!(refused.message().contains("end some"), "{refused:?}");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn output_that_is_no_text_arrives_as_it_was() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let all: Vec<u8> = (0..=255).collect();
        let program = "import sys; sys.stdout.buffer.write(bytes(range(256)))";
        let output = sandbox.exec(json!({ "cmd": "python3", "args": ["-c", program] })).await;
        assert_eq!(output.stdout, all);
        assert_eq!(sandbox.sh("printf 'gr\\303\\274n'").await, "grün");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_flood_of_output_is_bounded_and_says_so() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let flood = "head -c 100000000 /dev/zero | tr '\\0' x; echo done >&2; exit 5";
        let output = sandbox.exec(json!({ "cmd": flood })).await;
        assert_eq!(output.stdout.len(), nestbox::http::OUTPUT_LIMIT);
        assert!(output.truncated);
        assert_eq!(
            (output.errors().as_str(), output.exit_code),
            ("done\n", 5),
            "it ran to its end"
        );
        let peak = peak_memory_mib(daemon.pid());
        assert!(peak < 250, "the daemon took {peak} MiB");
        assert_eq!(sandbox.sh("echo on").await, "on");
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

fn peak_memory_mib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("its status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("its peak");
    line.split_whitespace().next().expect("a number").parse::<u64>().expect("a number") / 1024
}

/// A line of shell that leaves sleepers of a telling length in every way there is.
const SLEEPERS: &str = "sleep 7351 & setsid sleep 7351 & \
    (setsid sh -c 'sleep 7351 & sleep 7351' &) ; \
    python3 -c 'import os; os.fork() or (os.setsid(), os.fork() or os.execvp(\"sleep\", [\"sleep\", \"7351\"]))'; \
    sleep 7351";

async fn sleepers(sandbox: &Sandbox) -> u32 {
    let count = "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n' | grep -cx '735[1]' || true";
    sandbox.sh(count).await.parse().expect("a number")
}

#[test]
fn a_timeout_kills_a_command_with_all_it_started() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let started = Instant::now();
        let output = sandbox.exec(json!({ "cmd": SLEEPERS, "timeout_sec": 2 })).await;
        assert!(output.timed_out);
        assert_eq!(output.exit_code, 124);
        // The sleepers would take two hours.
        assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
        assert_eq!(sleepers(&sandbox).await, 0);
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn a_caller_that_hangs_up_takes_the_command_along() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        let asking = {
            let sandbox = sandbox.clone();
            tokio::spawn(async move { sandbox.try_exec(json!({ "cmd": SLEEPERS })).await })
        };
        eventually("it runs", || async { sleepers(&sandbox).await >= 5 }).await;
        asking.abort();
        eventually("all of it is gone", || async { sleepers(&sandbox).await == 0 }).await;
        sandbox.destroy().await;
        daemon.stop().await;
    });
}

#[test]
fn many_commands_run_at_the_same_time() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let sandbox = daemon.create().await;
        // Each waits until all the others are there.
        let meet = "touch /tmp/met.$0; until [ $(ls /tmp/met.* | wc -l) = 20 ]; do sleep 0.2; done";
        let line = |number| format!("sh -c '{meet}' {number}; echo {number}");
        let lines: Vec<String> = (0..20).map(line).collect();
        let answers = futures::future::join_all(lines.iter().map(|line| sandbox.sh(line))).await;
        for (number, answer) in answers.iter().enumerate() {
            assert_eq!(*answer, number.to_string());
        }
        sandbox.destroy().await;
        daemon.stop().await;
    });
}
