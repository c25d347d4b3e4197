//! `process.Process`: starting, following, ending.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::io::Read;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Agent, eventually, is_root, skip};

fn code<T: std::fmt::Debug>(result: Result<T, (String, String)>) -> String {
    result.unwrap_err().0
}

fn is_running(pid: &str) -> bool {
    // A zombie has ended, whoever should have waited for it.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"))
}

#[test]
fn output_and_exit_code_of_a_command_come_back() {
    let agent = Agent::start();
    let done = agent.shell("echo out; echo err >&2; exit 3");
    assert_eq!((done.text().as_str(), done.stderr.as_slice()), ("out\n", b"err\n".as_slice()));
    assert_eq!(
        done.end,
        json!({ "exitCode": 3, "exited": true, "status": "exit status 3", "error": "exit status 3" })
    );
    let done = agent.run(json!({ "process": { "cmd": "true" } }));
    assert_eq!(done.end, json!({ "exited": true, "status": "exit status 0" }));
}

#[test]
fn a_process_killed_by_a_signal_has_not_exited() {
    let agent = Agent::start();
    let done = agent.shell("kill -SEGV $$");
    assert_eq!(done.code(), -1);
    assert_eq!(done.end["exited"], Value::Null);
    assert_eq!(done.end["status"], "signal: segmentation fault");
}

#[test]
fn bytes_that_are_no_text_arrive_unchanged() {
    let agent = Agent::start();
    let done = agent.shell(r"printf 'a\377\000\342b'");
    assert_eq!(done.stdout, b"a\xff\x00\xe2b");
}

#[test]
fn the_environment_is_a_fresh_login_with_what_was_asked_for() {
    let agent = Agent::start();
    assert_eq!(agent.init(json!({ "envVars": { "A": "global", "B": "global" } })).status, 204);
    let done = agent.run(json!({
        "process": { "cmd": "env", "envs": { "B": "own", "EMPTY": "" }, "cwd": "/" }
    }));
    let text = done.text();
    let mut names: Vec<&str> =
        text.lines().filter_map(|line| Some(line.split_once('=')?.0)).collect();
    names.sort_unstable();
    assert_eq!(names, ["A", "B", "EMPTY", "HOME", "LANG", "LOGNAME", "PATH", "SHELL", "USER"]);
    for line in ["A=global", "B=own", "EMPTY=", "HOME=/root", "LANG=C.UTF-8", "USER=root"] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    assert_eq!(agent.get("/envs").json(), json!({ "A": "global", "B": "global" }));
}

#[test]
fn a_process_inherits_nothing_of_the_agent() {
    let agent = Agent::start();
    // The shell's own descriptor of the directory is the fourth.
    let done = agent.shell("ls /proc/self/fd; grep -E 'Sig(Blk|Ign)' /proc/self/status; umask");
    let text = done.text();
    assert!(text.starts_with("0\n1\n2\n3\nSigBlk"), "{text}");
    let mask = |name: &str| {
        let value = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        // Two signals belong to the C library, which lets nobody change them.
        u64::from_str_radix(value.trim(), 16).unwrap() & !0x1_8000_0000
    };
    assert_eq!((mask("SigBlk:"), mask("SigIgn:")), (0, 0), "{text}");
    assert!(text.ends_with("0022\n"), "{text}");
}

#[test]
fn a_process_runs_as_the_user_of_the_request_with_its_groups() {
    if !is_root() {
        return;
    }
    let mut agent = Agent::start();
    agent.set_user("nobody");
    let done = agent.run(json!({ "process": { "cmd": "/usr/bin/id", "cwd": "/" } }));
    let expected = std::process::Command::new("id").arg("nobody").output().unwrap().stdout;
    assert_eq!(done.stdout, expected);
    agent.set_user("no-such-user");
    let mut events = agent.stream("process.Process/Start", json!({ "process": { "cmd": "id" } }));
    let (code, message) = events.next().unwrap().unwrap_err();
    assert_eq!(
        (code.as_str(), message.as_str()),
        ("invalid_argument", "user not found: no-such-user")
    );
}

#[test]
fn a_start_that_cannot_work_says_why() {
    let agent = Agent::start();
    let cases = [
        (json!({}), "invalid_argument", "command is missing"),
        (
            json!({ "process": { "cmd": "no-such-cmd" } }),
            "not_found",
            "command not found: no-such-cmd",
        ),
        (json!({ "process": { "cmd": "/no/such" } }), "not_found", "command not found: /no/such"),
        (
            json!({ "process": { "cmd": "/etc/passwd" } }),
            "permission_denied",
            "permission denied: ",
        ),
        (json!({ "process": { "cmd": "/tmp" } }), "permission_denied", "permission denied: /tmp"),
        (
            json!({ "process": { "cmd": "ls", "cwd": "/no/such" } }),
            "invalid_argument",
            "cwd /no/such: ",
        ),
        (
            json!({ "process": { "cmd": "ls", "cwd": "/etc/passwd" } }),
            "invalid_argument",
            "cwd /etc/passwd: ",
        ),
        (
            json!({ "process": { "cmd": "l\0s" } }),
            "invalid_argument",
            "command contains a NUL byte",
        ),
        (
            json!({ "process": { "cmd": "ls", "args": ["\0"] } }),
            "invalid_argument",
            "argument contains a NUL",
        ),
        (
            json!({ "process": { "cmd": "ls", "envs": { "A=B": "" } } }),
            "invalid_argument",
            "not a name of an",
        ),
        (
            json!({ "process": { "cmd": "ls", "envs": { "": "x" } } }),
            "invalid_argument",
            "not a name of an",
        ),
        (
            json!({ "process": { "cmd": "ls", "cwd": "~x" } }),
            "invalid_argument",
            "only one's own home",
        ),
    ];
    for (request, code, message) in cases {
        let error = agent.stream("process.Process/Start", request.clone()).next().unwrap();
        let error = error.unwrap_err();
        assert_eq!(error.0, code, "{request}: {error:?}");
        assert!(error.1.starts_with(message), "{request}: {error:?}");
    }
    assert_eq!(agent.call("process.Process/List", json!({})).unwrap(), json!({}));
}

#[test]
fn a_process_that_is_not_there_is_not_found() {
    let agent = Agent::start();
    let selectors = [json!({ "pid": 999_999 }), json!({ "tag": "none" })];
    for selector in selectors {
        let by = |rest: Value| {
            let mut request = json!({ "process": selector });
            request.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
            request
        };
        let calls = [
            ("Update", by(json!({ "pty": { "size": { "cols": 1, "rows": 1 } } }))),
            ("SendInput", by(json!({ "input": { "stdin": "" } }))),
            ("SendSignal", by(json!({ "signal": "SIGNAL_SIGKILL" }))),
            ("CloseStdin", by(json!({}))),
        ];
        for (method, request) in calls {
            assert_eq!(
                code(agent.call(&format!("process.Process/{method}"), request)),
                "not_found"
            );
        }
        let mut events = agent.stream("process.Process/Connect", by(json!({})));
        assert_eq!(code(events.next().unwrap()), "not_found");
    }
    let nobody = agent.call("process.Process/SendSignal", json!({ "signal": "SIGNAL_SIGKILL" }));
    assert_eq!(code(nobody), "invalid_argument");
}

#[test]
fn a_list_shows_what_runs_until_it_ends() {
    let agent = Agent::start();
    let request = json!({
        "process": { "cmd": "sleep", "args": ["100"], "envs": { "A": "b" }, "cwd": "/" }, "tag": "nap"
    });
    let (pid, events) = agent.start_process(request.clone());
    let list = agent.call("process.Process/List", json!({})).unwrap();
    let expected = json!({ "config": request["process"], "pid": pid, "tag": "nap" });
    assert_eq!(list, json!({ "processes": [expected] }));
    let kill = json!({ "process": { "tag": "nap" }, "signal": "SIGNAL_SIGTERM" });
    agent.call("process.Process/SendSignal", kill).unwrap();
    assert_eq!(events.finish().end["status"], "signal: terminated");
    assert_eq!(agent.call("process.Process/List", json!({})).unwrap(), json!({}));
}

#[test]
fn signals_reach_a_process() {
    let agent = Agent::start();
    for (signal, status) in [
        ("SIGNAL_SIGHUP", "signal: hangup"),
        ("SIGNAL_SIGINT", "signal: interrupt"),
        ("SIGNAL_SIGQUIT", "signal: SIGQUIT"),
        ("SIGNAL_SIGUSR1", "signal: SIGUSR1"),
        ("SIGNAL_SIGUSR2", "signal: SIGUSR2"),
    ] {
        let (pid, events) =
            agent.start_process(json!({ "process": { "cmd": "sleep", "args": ["100"] } }));
        let request = json!({ "process": { "pid": pid }, "signal": signal });
        agent.call("process.Process/SendSignal", request).unwrap();
        assert_eq!(events.finish().end["status"], status);
    }
}

#[test]
fn signals_that_cannot_be_sent_are_refused() {
    let agent = Agent::start();
    let (pid, _events) =
        agent.start_process(json!({ "process": { "cmd": "sleep", "args": ["100"] } }));
    for signal in [json!("SIGNAL_UNSPECIFIED"), json!(64)] {
        let request = json!({ "process": { "pid": pid }, "signal": signal });
        assert_eq!(code(agent.call("process.Process/SendSignal", request)), "invalid_argument");
    }
}

#[test]
fn a_kill_takes_descendants_that_left_the_session() {
    if !is_root() || !has_cgroup2() {
        return;
    }
    let agent = Agent::start();
    let script = "setsid sh -c 'echo $$; exec sleep 1000' & wait";
    let (pid, mut events) =
        agent.start_process(json!({ "process": { "cmd": "sh", "args": ["-c", script] } }));
    let descendant = events.until_output(2).text().trim().to_owned();
    assert!(is_running(&descendant));
    let kill = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGKILL" });
    agent.call("process.Process/SendSignal", kill).unwrap();
    assert_eq!(events.finish().end["status"], "signal: killed");
    eventually("the descendant is gone", || !is_running(&descendant));
}

fn has_cgroup2() -> bool {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap();
    let found = mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        let place = fields.next().unwrap_or_default();
        fields.next() == Some("cgroup2") && place.starts_with("/sys/fs/cgroup")
    });
    if !found {
        skip("no cgroup2 is mounted: `mount -t cgroup2 cgroup2 /sys/fs/cgroup`");
    }
    found
}

#[test]
fn an_ordinary_end_leaves_descendants_alone_and_is_not_delayed_by_them() {
    let agent = Agent::start();
    let begin = Instant::now();
    let done = agent.shell("(sleep 0.5; echo late; echo survived >&2; exec sleep 1000) & echo $!");
    assert!(begin.elapsed() < Duration::from_secs(20), "the end waits for the descendant");
    let descendant = done.text().trim().to_owned();
    // It writes to a pipe that nobody follows any more, and must survive that.
    std::thread::sleep(Duration::from_secs(1));
    assert!(is_running(&descendant));
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(descendant.parse().unwrap()),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
}

#[test]
fn a_process_outlives_its_caller_and_others_join_later() {
    let agent = Agent::start();
    let script = "echo early; read line; echo got $line";
    let request = json!({ "process": { "cmd": "sh", "args": ["-c", script] }, "tag": "t" });
    let (pid, mut events) = agent.start_process(request);
    assert_eq!(events.until_output(6).text(), "early\n");
    drop(events);
    let join = |selector: Value| {
        let mut events = agent.stream("process.Process/Connect", json!({ "process": selector }));
        let first = events.next().unwrap().unwrap();
        assert_eq!(first["event"]["start"]["pid"], pid);
        events
    };
    let (by_pid, by_tag) = (join(json!({ "pid": pid })), join(json!({ "tag": "t" })));
    let input = json!({ "process": { "pid": pid }, "input": { "stdin": "eAo=" } });
    agent.call("process.Process/SendInput", input).unwrap();
    for events in [by_pid, by_tag] {
        let done = events.finish();
        assert_eq!((done.text().as_str(), done.code()), ("got x\n", 0));
    }
}

#[test]
fn output_nobody_follows_is_thrown_away() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("done");
    let script = format!("head -c 20000000 /dev/zero; touch {}", mark.display());
    let (_, events) =
        agent.start_process(json!({ "process": { "cmd": "sh", "args": ["-c", script] } }));
    drop(events);
    eventually("the process is not held up", || mark.exists());
}

#[test]
fn a_slow_reader_slows_the_process_and_costs_no_memory() {
    let agent = Agent::start();
    let size = 50_000_000;
    let before = agent.memory_kib("VmRSS");
    let dir = tempfile::tempdir().unwrap();
    let mark = dir.path().join("done");
    let script = format!("head -c {size} /dev/zero; touch {}", mark.display());
    let (_, events) =
        agent.start_process(json!({ "process": { "cmd": "sh", "args": ["-c", script] } }));
    std::thread::sleep(Duration::from_secs(2));
    assert!(!mark.exists(), "the process waits for its reader");
    let done = events.finish();
    assert_eq!((done.stdout.len(), done.code()), (size, 0));
    let grown = agent.memory_kib("VmHWM") - before;
    assert!(grown < 6 * 1024, "{grown} KiB more while 50 MB went through");
}

#[test]
fn a_stuck_follower_does_not_keep_the_end_from_others() {
    let agent = Agent::start();
    let script = "read line; head -c 60000000 /dev/zero";
    let (pid, events) =
        agent.start_process(json!({ "process": { "cmd": "sh", "args": ["-c", script] } }));
    let stuck = agent.stream("process.Process/Connect", json!({ "process": { "pid": pid } }));
    let input = json!({ "process": { "pid": pid }, "input": { "stdin": "Cg==" } });
    agent.call("process.Process/SendInput", input).unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let kill = json!({ "process": { "pid": pid }, "signal": "SIGNAL_SIGKILL" });
    agent.call("process.Process/SendSignal", kill).unwrap();
    let end = events.finish().end;
    assert!(end.is_object());
    drop(stuck);
}

#[test]
fn an_idle_stream_is_kept_alive_as_often_as_asked() {
    let agent = Agent::start();
    let request = json!({ "process": { "cmd": "sleep", "args": ["2.5"] } });
    let headers = [("Keepalive-Ping-Interval", "1")];
    let mut events = agent.stream_with("process.Process/Start", request, &headers);
    events.next().unwrap().unwrap();
    assert_eq!(events.finish().keepalives, 2);
}

#[test]
fn a_deadline_ends_the_stream_and_the_process() {
    let agent = Agent::start();
    let begin = Instant::now();
    let request = json!({ "process": { "cmd": "sleep", "args": ["1000"] } });
    let headers = [("Connect-Timeout-Ms", "500")];
    let mut events = agent.stream_with("process.Process/Start", request.clone(), &headers);
    events.next().unwrap().unwrap();
    assert_eq!(code(events.next().unwrap()), "deadline_exceeded");
    assert!(begin.elapsed() >= Duration::from_millis(500));
    let none = json!({});
    eventually("the process is gone", || {
        agent.call("process.Process/List", json!({})).unwrap() == none
    });
    // Zero means that there is none.
    let headers = [("Connect-Timeout-Ms", "0")];
    let request = json!({ "process": { "cmd": "sleep", "args": ["0.1"] } });
    let mut events = agent.stream_with("process.Process/Start", request, &headers);
    events.next().unwrap().unwrap();
    assert_eq!(events.finish().code(), 0);
}

#[test]
fn a_deadline_holds_for_a_process_whose_caller_left() {
    let agent = Agent::start();
    let request = json!({ "process": { "cmd": "sleep", "args": ["1000"] } });
    let headers = [("Connect-Timeout-Ms", "300")];
    let mut events = agent.stream_with("process.Process/Start", request, &headers);
    events.next().unwrap().unwrap();
    drop(events);
    let none = json!({});
    eventually("the process is gone", || {
        agent.call("process.Process/List", json!({})).unwrap() == none
    });
}

#[test]
fn many_processes_leave_nothing_behind() {
    let agent = Agent::start();
    let open = || std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().count();
    agent.shell("true");
    let before = open();
    for _ in 0..100 {
        assert_eq!(agent.run(json!({ "process": { "cmd": "true" } })).code(), 0);
    }
    // Connections close a little after their last answer.
    eventually("descriptors are closed", || open() <= before + 2);
    let children = format!("/proc/{0}/task/{0}/children", agent.pid());
    assert_eq!(std::fs::read_to_string(children).unwrap(), "", "no zombies");
}

#[test]
fn a_broken_request_is_refused_and_the_agent_lives_on() {
    let agent = Agent::start();
    let headers = [("Content-Type", "application/json")];
    let reply = agent.http("POST", "/process.Process/List", &headers, b"{not json");
    assert_eq!((reply.status, reply.json()["code"].as_str()), (400, Some("invalid_argument")));
    assert_eq!(agent.http("POST", "/process.Process/Nothing", &headers, b"{}").status, 404);
    assert_eq!(agent.http("POST", "/", &headers, b"{}").status, 404);
    let mut raw = agent.connect();
    std::io::Write::write_all(&mut raw, b"GARBAGE\r\n\r\n").unwrap();
    let mut answer = String::new();
    raw.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(agent.get("/health").status, 204);
}
