//! Processes in the background that are asked for wrongly, flood, or are not read.

use nestbox::http::MESSAGE_LIMIT;
use reqwest::Method;
use serde_json::json;
use tokio_tungstenite::tungstenite::Message;

use crate::exec_stream::{UNKNOWN, upgrade};
use crate::nest::{Answer, Nest, eventually, process_lives};
use crate::processes::{exited, follow, follow_slowly, list, start, start_tagged};

#[actix_web::test]
async fn a_start_that_makes_no_sense_starts_nothing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (body, word) in [
        (json!({"cmd": "true", "tag": "a"}), "background"),
        (json!({"cmd": "true", "background": true, "timeout_sec": 1}), "timeout_sec"),
        (json!({"cmd": "true", "background": 1}), "boolean"),
        (json!({"cmd": "", "background": true}), "empty"),
        (json!({"cmd": "/no/such/program", "args": [], "background": true}), "not found"),
        (json!({"cmd": "/etc/passwd", "args": [], "background": true}), "permission denied"),
        (json!({"cmd": "true", "cwd": "/no/such/dir", "background": true}), "/no/such/dir"),
        (json!({"cmd": "true", "user": "no-such-user", "background": true}), "no-such-user"),
    ] {
        let message = nest.try_exec(&id, body.clone()).await.error(400, "invalid_request");
        assert!(message.contains(word), "{body}: {message}");
    }
    let long = "x".repeat(64);
    for tag in ["", "1", "1a", "-a", "a b", "a/b", "..", "\u{e9}", "a\0", &long] {
        let body = json!({"cmd": "true", "background": true, "tag": tag});
        let message = nest.try_exec(&id, body).await.error(400, "invalid_request");
        assert!(message.contains("a tag matches"), "{tag:?}: {message}");
    }
    assert!(list(&nest, &id).await.is_empty());
}

#[actix_web::test]
async fn a_tag_names_one_process_that_runs_and_else_the_last_one() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let first = start_tagged(&nest, &id, "echo first; sleep 1000", Some("a")).await;
    // On a busy machine it may take its time to get there, and it is ended below.
    follow(&nest, &id, first, None).await.stdout("first\n").await;
    let body = json!({"cmd": "true", "background": true, "tag": "a"});
    let message = nest.try_exec(&id, body).await.error(409, "conflict");
    assert!(message.contains(&first.to_string()), "{message}");

    assert_eq!(nest.delete(&format!("/v1/sandboxes/{id}/processes/a")).await.status, 204);
    let second = start_tagged(&nest, &id, "echo second", Some("a")).await;
    assert_eq!(follow(&nest, &id, "a", None).await.rest().await.text(), "second\n");
    assert_eq!(follow(&nest, &id, first, None).await.rest().await.text(), "first\n");
    let pids: Vec<_> = list(&nest, &id).await.iter().map(|p| p["pid"].as_i64().unwrap()).collect();
    assert_eq!(pids, [i64::from(first), i64::from(second)]);
}

#[actix_web::test]
async fn who_asks_for_what_is_not_there_is_told_so_before_the_upgrade() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let pid = start(&nest, &id, "echo on; sleep 1000").await;
    // One that was not started so is none of them.
    let mut foreground = crate::exec_stream::open(&nest, &id).await;
    let other = foreground.start("sleep 1000").await;
    eventually("it writes", async || (list(&nest, &id).await[0]["next_seq"] == 4).then_some(()))
        .await;
    let ask = async |id: &str, rest: &str| {
        let path = format!("/v1/sandboxes/{id}/processes/{rest}");
        Answer::of(upgrade(nest.request(Method::GET, &path))).await
    };
    for unknown in [other.to_string(), "4294967295".to_owned(), "none".to_owned()] {
        let message = ask(&id, &format!("{unknown}/stream")).await.error(404, "not_found");
        assert!(message.contains(&unknown), "{message}");
        let path = format!("/v1/sandboxes/{id}/processes/{unknown}");
        nest.delete(&path).await.error(404, "not_found");
    }
    assert!(process_lives(other));
    for bad in ["0", "4294967296", "-1", "1a", "a%20b", "a%2Fb", &"x".repeat(64)] {
        ask(&id, &format!("{bad}/stream")).await.error(400, "invalid_request");
        let path = format!("/v1/sandboxes/{id}/processes/{bad}");
        nest.delete(&path).await.error(400, "invalid_request");
    }
    for bad in ["after=-1", "after=x", "after=4", "before=1", "after=18446744073709551616"] {
        ask(&id, &format!("{pid}/stream?{bad}")).await.error(400, "invalid_request");
    }
    let message = ask(&id, &format!("{pid}/stream?after=4")).await.error(400, "invalid_request");
    assert!(message.contains("3 bytes so far"), "{message}");
    ask(UNKNOWN, "1/stream").await.error(404, "not_found");

    let path = format!("/v1/sandboxes/{id}/processes");
    nest.get(&format!("{path}/{pid}/stream")).await.error(400, "invalid_request");
    for (method, path, allowed) in [
        (Method::POST, path.clone(), "GET"),
        (Method::GET, format!("{path}/{pid}"), "DELETE"),
        (Method::POST, format!("{path}/{pid}/stream"), "GET"),
    ] {
        let answer = Answer::of(nest.request(method, &path)).await;
        answer.error(405, "method_not_allowed");
        assert_eq!(answer.header("allow"), Some(allowed), "{path}");
    }
    assert_eq!(nest.pause(&id).await.status, 200);
    ask(&id, &format!("{pid}/stream")).await.error(409, "invalid_state");
    nest.get(&path).await.error(409, "invalid_state");
    nest.delete(&format!("{path}/{pid}")).await.error(409, "invalid_state");
    let body = json!({"cmd": "true", "background": true});
    nest.try_exec(&id, body).await.error(409, "invalid_state");
}

#[actix_web::test]
async fn a_message_that_makes_no_sense_ends_the_session_but_not_the_process() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let pid = start(&nest, &id, "sleep 1000").await;
    let text = |text: &str| Message::text(text.to_owned());
    for (message, code) in [
        (text(r#"{"type":"start","cmd":"true"}"#), 1008),
        (text(r#"{"type":"signal","signal":"SIGSEGV"}"#), 1008),
        (text(r#"{"type":"resize","cols":80,"rows":24}"#), 1008),
        (text("{"), 1008),
        (Message::binary(vec![1]), 1008),
        (text(&"x".repeat(MESSAGE_LIMIT + 1)), 1009),
    ] {
        let mut socket = follow(&nest, &id, pid, None).await;
        socket.send_raw(message).await;
        let rest = socket.rest().await;
        assert_eq!((rest.code(), rest.exit_code), (Some(code), None), "{rest:?}");
    }
    assert!(process_lives(pid));
}

#[actix_web::test]
async fn what_is_said_to_a_process_that_has_ended_harms_nobody() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let pid = start(&nest, &id, "exit 3").await;
    exited(&nest, &id, pid).await;
    let mut socket = follow(&nest, &id, pid, None).await;
    for message in [
        json!({"type": "signal", "signal": "SIGKILL"}),
        json!({"type": "stdin", "data": "x"}),
        json!({"type": "stop"}),
    ] {
        socket.send(message).await;
    }
    let rest = socket.rest().await;
    assert_eq!((rest.exit_code, rest.code(), rest.errors), (Some(3), Some(1000), vec![]));
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn a_client_that_never_reads_stops_nothing_and_hears_later_what_it_missed() {
    const SIZE: u64 = 50_000_000;
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let pid = start(&nest, &id, &format!("read go; head -c {SIZE} /dev/zero | tr '\\0' x")).await;
    let mut slow = follow_slowly(&nest, &id, pid, None, Some(1 << 16)).await;
    slow.send(json!({"type": "stdin", "data": "\n"})).await;
    let listed = exited(&nest, &id, pid).await;
    assert_eq!(listed["next_seq"], SIZE + 1, "it ran on");
    let kept = SIZE + 1 - listed["first_seq"].as_u64().unwrap();
    assert!(kept <= 1 << 20, "{kept} bytes are kept");
    let rest = slow.rest().await;
    assert_eq!((rest.exit_code, rest.seq), (Some(0), Some(SIZE)));
    assert!(rest.lost > SIZE / 2, "{} bytes were lost", rest.lost);
    assert_eq!(rest.lost + rest.stdout.len() as u64, SIZE, "all that is missing is told");
}
