//! Processes in the background: started, listed, followed again and again, ended.

use std::time::Duration;

use serde_json::{Value, json};

use crate::exec_stream::ends;
use crate::nest::{Nest, eventually, process_lives};
use crate::socket::{Said, Socket};

/// Starts a line of shell in the background; gives its process id.
pub async fn start(nest: &Nest, id: &str, line: &str) -> i32 {
    start_tagged(nest, id, line, None).await
}

pub async fn start_tagged(nest: &Nest, id: &str, line: &str, tag: Option<&str>) -> i32 {
    let mut body = json!({"cmd": line, "background": true});
    if let Some(tag) = tag {
        body["tag"] = json!(tag);
    }
    let started = nest.exec(id, body).await;
    assert_eq!(started["tag"], json!(tag), "{started}");
    assert_eq!(started.as_object().unwrap().len(), 2, "{started}");
    i32::try_from(started["pid"].as_i64().unwrap()).unwrap()
}

/// Follows a process.
pub async fn follow(nest: &Nest, id: &str, process: impl ToString, after: Option<u64>) -> Socket {
    follow_slowly(nest, id, process, after, None).await
}

/// Follows a process, with room for so many bytes that wait to be read.
pub async fn follow_slowly(
    nest: &Nest,
    id: &str,
    process: impl ToString,
    after: Option<u64>,
    window: Option<u32>,
) -> Socket {
    let query = after.map(|seq| format!("?after={seq}")).unwrap_or_default();
    let path = format!("/v1/sandboxes/{id}/processes/{}/stream{query}", process.to_string());
    let mut socket = Socket::open(&nest.url, &path, &nest.key, window).await;
    socket.started().await;
    socket
}

pub async fn list(nest: &Nest, id: &str) -> Vec<Value> {
    let answer = nest.get(&format!("/v1/sandboxes/{id}/processes")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["processes"].as_array().unwrap().clone()
}

/// Waits until a process has ended; gives what is listed of it.
pub async fn exited(nest: &Nest, id: &str, pid: i32) -> Value {
    eventually("it ends", async || {
        let found = list(nest, id).await.into_iter().find(|process| process["pid"] == pid);
        found.filter(|process| process["state"] == "exited")
    })
    .await
}

#[actix_web::test]
async fn a_process_is_started_listed_followed_and_known_after_its_end() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"envs": {"A": "secret"}})).await;
    assert_eq!(list(&nest, &id).await, Vec::<Value>::new());
    let body =
        json!({"cmd": "cat", "args": ["-u"], "cwd": "/usr", "background": true, "tag": "c.1"});
    let started = nest.exec(&id, body).await;
    let pid = started["pid"].as_i64().unwrap();

    let mut listed = list(&nest, &id).await;
    let started_at = listed[0]["started_at"].take();
    let age =
        chrono::Utc::now() - started_at.as_str().unwrap().parse::<chrono::DateTime<_>>().unwrap();
    assert!(age.num_seconds() < 60, "{started_at}");
    let mut expected = json!({
        "pid": pid, "tag": "c.1", "cmd": "cat", "args": ["-u"], "cwd": "/usr", "terminal": false,
        "state": "running", "exit_code": null, "started_at": null, "first_seq": 1, "next_seq": 1,
    });
    assert_eq!(listed, [expected.clone()]);

    let path = format!("/v1/sandboxes/{id}/processes/c.1/stream");
    let mut socket = Socket::open(&nest.url, &path, &nest.key, None).await;
    let start = json!({"type": "start", "pid": pid, "tag": "c.1"});
    assert_eq!(socket.next().await, Said::Message(start));
    socket.send(json!({"type": "stdin", "data": "one\n"})).await;
    let said = json!({"type": "stdout", "seq": 4, "data": "one\n"});
    assert_eq!(socket.next().await, Said::Message(said));
    socket.send(json!({"type": "stdin", "data": "/w==", "encoding": "base64", "eof": true})).await;
    let said = json!({"type": "stdout", "seq": 5, "data": "/w==", "encoding": "base64"});
    assert_eq!(socket.next().await, Said::Message(said));
    assert_eq!(socket.next().await, Said::Message(json!({"type": "exit", "exit_code": 0})));
    assert_eq!(socket.next().await, Said::Closed(1000, String::new()));

    expected["state"] = json!("exited");
    expected["exit_code"] = json!(0);
    expected["next_seq"] = json!(6);
    let mut listed = list(&nest, &id).await;
    listed[0]["started_at"] = Value::Null;
    assert_eq!(listed, [expected]);
    let rest = follow(&nest, &id, pid, Some(2)).await.rest().await;
    assert_eq!((rest.stdout.as_slice(), rest.exit_code), (&b"e\n\xff"[..], Some(0)));
    assert_eq!((rest.seq, rest.lost, rest.code()), (Some(5), 0, Some(1000)));
}

#[actix_web::test]
async fn output_is_followed_again_from_a_number_and_nothing_is_lost_or_doubled() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "for i in $(seq 2000); do echo line $i; [ $((i % 7)) = 0 ] && echo e$i >&2; \
                [ $((i % 100)) = 0 ] && sleep 0.05; done; exit 5";
    let pid = start(&nest, &id, line).await;
    let (mut out, mut err, mut after, mut connections) = (Vec::new(), Vec::new(), 0, 0);
    let code = loop {
        connections += 1;
        let mut socket = follow(&nest, &id, pid, Some(after)).await;
        // Leaves in the middle, at another place each time.
        let most = 500 * connections;
        let enough = |seen: &crate::socket::Rest| {
            seen.stdout.len() + seen.stderr.len() > most || seen.exit_code.is_some()
        };
        let seen = socket.until(enough).await;
        assert_eq!((seen.lost, seen.errors.len()), (0, 0));
        let bytes = (seen.stdout.len() + seen.stderr.len()) as u64;
        assert_eq!(seen.seq.unwrap_or(after), after + bytes, "bytes are numbered");
        after += bytes;
        out.extend(seen.stdout);
        err.extend(seen.stderr);
        match connections % 2 {
            0 => drop(socket.close().await),
            _ => socket.vanish(),
        }
        if let Some(code) = seen.exit_code {
            break code;
        }
    };
    let lines: String = (1..=2000).map(|i| format!("line {i}\n")).collect();
    let errors: String = (1..=2000).filter(|i| i % 7 == 0).map(|i| format!("e{i}\n")).collect();
    assert!(connections > 5, "{connections}");
    assert_eq!((String::from_utf8(out).unwrap(), code), (lines, 5));
    assert_eq!(String::from_utf8(err).unwrap(), errors);
}

#[actix_web::test]
async fn what_is_not_kept_any_more_is_told_in_bytes() {
    const SIZE: u64 = 3_000_000;
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let pid = start(&nest, &id, &format!("seq 1000000 | head -c {SIZE}")).await;
    let listed = exited(&nest, &id, pid).await;
    let first = listed["first_seq"].as_u64().unwrap();
    assert_eq!(listed["next_seq"], SIZE + 1);
    assert!(first > SIZE / 2 && first < SIZE, "{first}");
    let all: String = (1..=1_000_000).map(|i| format!("{i}\n")).collect();
    let all = &all.as_bytes()[..usize::try_from(SIZE).unwrap()];

    for (after, lost) in [(Some(10), first - 11), (Some(first - 1), 0), (None, first - 1)] {
        let rest = follow(&nest, &id, pid, after).await.rest().await;
        assert_eq!((rest.lost, rest.seq, rest.exit_code), (lost, Some(SIZE), Some(0)), "{after:?}");
        assert!(rest.stdout == all[usize::try_from(first - 1).unwrap()..], "{after:?}");
    }
    let rest = follow(&nest, &id, pid, Some(SIZE)).await.rest().await;
    assert_eq!((rest.stdout.len(), rest.lost, rest.exit_code), (0, 0, Some(0)));
}

#[actix_web::test]
async fn a_client_that_leaves_ends_nothing_and_what_it_sent_before_arrives() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    // A signal may end a `read` early.
    let line = "trap 'echo got usr1' USR1; while :; do if read x; then echo got $x; fi; done";
    let pid = start(&nest, &id, line).await;
    for round in 0..4 {
        let mut socket = follow(&nest, &id, pid, None).await;
        socket.send(json!({"type": "stdin", "data": format!("{round}\n")})).await;
        match round % 2 {
            0 => socket.vanish(),
            _ => drop(socket.close().await),
        }
    }
    let mut socket = follow(&nest, &id, pid, Some(0)).await;
    let seen = socket.until(|seen| seen.stdout.len() >= 24).await;
    assert_eq!(seen.text(), "got 0\ngot 1\ngot 2\ngot 3\n");
    socket.send(json!({"type": "signal", "signal": "SIGUSR1"})).await;
    socket.stdout("got usr1\n").await;
    assert!(process_lives(pid));
    socket.send(json!({"type": "stop"})).await;
    assert_eq!(socket.rest().await.exit_code, Some(143));
}

#[actix_web::test]
async fn a_stop_is_a_signal_first_and_a_kill_of_everything_then() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = |process: &str| format!("/v1/sandboxes/{id}/processes/{process}");
    let pid = start_tagged(
        &nest,
        &id,
        "trap 'echo bye; exit 7' TERM; echo on; while :; do sleep 0.1; done",
        Some("polite"),
    )
    .await;
    let mut socket = follow(&nest, &id, "polite", Some(0)).await;
    // Before that it has no trap yet, and ends like any other.
    socket.stdout("on\n").await;
    assert_eq!(nest.delete(&path("polite")).await.status, 204);
    let listed = list(&nest, &id).await;
    assert_eq!((&listed[0]["state"], &listed[0]["exit_code"]), (&json!("exited"), &json!(7)));
    assert_eq!(socket.rest().await.text(), "bye\n");
    for again in ["polite", &pid.to_string()] {
        assert_eq!(nest.delete(&path(again)).await.status, 204, "it has ended already");
    }

    let line = "trap '' TERM; sleep 1000 & echo $!; wait; sleep 1000";
    let pid = start(&nest, &id, line).await;
    let mut socket = follow(&nest, &id, pid, None).await;
    let child: i32 =
        socket.until(|seen| seen.text().ends_with('\n')).await.text().trim().parse().unwrap();
    let asked = std::time::Instant::now();
    // Whoever asks and hangs up has asked.
    let request = nest.request(reqwest::Method::DELETE, &path(&pid.to_string()));
    let first = nest.begin(request);
    nest.hang_up(first).await;
    assert_eq!(nest.delete(&path(&pid.to_string())).await.status, 204);
    assert!(asked.elapsed() > Duration::from_secs(4), "{:?}", asked.elapsed());
    assert_eq!(socket.rest().await.exit_code, Some(137));
    ends(pid).await;
    ends(child).await;
}

#[actix_web::test]
async fn a_process_and_its_output_outlive_a_pause_and_a_restart_of_the_daemon() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "i=0; while read x; do i=$((i + 1)); echo $x $i; done";
    let pid = start_tagged(&nest, &id, line, Some("count")).await;
    let mut socket = follow(&nest, &id, "count", None).await;
    socket.send(json!({"type": "stdin", "data": "before\n"})).await;
    socket.stdout("before 1\n").await;
    assert_eq!(nest.pause(&id).await.status, 200);
    let rest = socket.rest().await;
    assert_eq!((rest.code(), rest.exit_code), (Some(4001), None), "{:?}", rest.errors);
    assert_eq!(nest.resume(&id).await.status, 200);

    let mut socket = follow(&nest, &id, "count", Some(9)).await;
    socket.send(json!({"type": "stdin", "data": "resumed\n"})).await;
    socket.stdout("resumed 2\n").await;
    let nest = nest.restart().await;
    let mut socket = follow(&nest, &id, pid, Some(9)).await;
    socket.stdout("resumed 2\n").await;
    socket.send(json!({"type": "stdin", "data": "restarted\n", "eof": true})).await;
    let rest = socket.rest().await;
    assert_eq!((rest.text().as_str(), rest.exit_code), ("restarted 3\n", Some(0)));
    assert_eq!(rest.seq, Some("before 1\nresumed 2\nrestarted 3\n".len() as u64));
    nest.destroy(&id).await;
}

#[actix_web::test]
async fn a_process_alone_keeps_no_sandbox_but_whoever_follows_it_does() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 2})).await;
    let pid = start(&nest, &id, "sleep 1000").await;
    // Looking is no work either.
    eventually("it times out", async || {
        let answer = nest.get(&format!("/v1/sandboxes/{id}/processes")).await;
        (answer.status == 409).then_some(())
    })
    .await;
    ends(pid).await;

    let id = nest.create(json!({"timeout_sec": 2})).await;
    let pid = start(&nest, &id, "sleep 4; echo on").await;
    let rest = follow(&nest, &id, pid, None).await.rest().await;
    assert_eq!((rest.text().as_str(), rest.exit_code), ("on\n", Some(0)));
    assert_eq!(nest.state(&id).await, "running", "following counts");
    nest.becomes(&id, "stopped").await;
}
