//! What happened is told once and in order: as a list, and to those who follow.

use std::collections::BTreeMap;
use std::time::Duration;

use chrono::Utc;
use nestbox::domain::lifecycle::SandboxState;
use nestbox::entity::sandboxes::Change;
use nestbox::http::Heartbeat;
use nestbox::vmm::simulated::{Fault, Mode, Step};
use reqwest::Method;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::protocol::Message;

use crate::nest::{Answer, Nest, eventually};
use crate::socket::{Said, Socket};

const EVENTS: &str = "/v1/events";

async fn follow(nest: &Nest, query: &str) -> Socket {
    Socket::open(&nest.url, &format!("{EVENTS}{query}"), &nest.key, None).await
}

async fn message(socket: &mut Socket) -> Value {
    match socket.next().await {
        Said::Message(message) => message,
        other => panic!("{other:?}"),
    }
}

/// Takes the first message; gives the id it names.
async fn started(socket: &mut Socket) -> String {
    let start = message(socket).await;
    assert_eq!(start["type"], "start", "{start}");
    start["after"].as_str().unwrap().to_owned()
}

async fn take(socket: &mut Socket, count: usize) -> Vec<Value> {
    let mut events = Vec::new();
    while events.len() < count {
        events.push(message(socket).await);
    }
    events
}

async fn page(nest: &Nest, query: &str) -> Value {
    let answer = nest.get(&format!("{EVENTS}{query}")).await;
    assert_eq!(answer.status, 200, "{query}: {answer:?}");
    answer.json()
}

async fn list(nest: &Nest, query: &str) -> Vec<Value> {
    page(nest, query).await["events"].as_array().unwrap().clone()
}

fn ids(events: &[Value]) -> Vec<u64> {
    events.iter().map(|event| event["id"].as_str().unwrap().parse().unwrap()).collect()
}

fn states<'a>(events: &'a [Value], id: &str) -> Vec<&'a str> {
    let of_it = events.iter().filter(|event| event["sandbox_id"] == id);
    of_it.filter_map(|event| event["state"].as_str()).collect()
}

/// Each event says from which state a sandbox comes: together they leave nothing out.
fn assert_complete(events: &[Value]) {
    assert!(ids(events).is_sorted_by(|a, b| a < b), "once and in order");
    let mut last: BTreeMap<&str, &str> = BTreeMap::new();
    for event in events.iter().filter(|event| event["type"] == "sandbox.state") {
        let id = event["sandbox_id"].as_str().unwrap();
        let former = last.insert(id, event["state"].as_str().unwrap());
        assert_eq!(event.get("previous").and_then(Value::as_str), former, "{event}");
    }
}

/// Writes so many changes of a sandbox's state, as its host would.
async fn change(nest: &Nest, id: &str, count: i64, reason: &str) {
    let id = id.parse().unwrap();
    let first = nest.database.sandboxes().find(&id).await.unwrap().unwrap().generation + 1;
    for generation in first..first + count {
        let change = Change {
            state: SandboxState::Running,
            reason: Some(reason.to_owned()),
            slot: None,
            at: Utc::now(),
        };
        nest.database.sandboxes().publish(&id, generation, None, &change).await.unwrap();
    }
}

#[actix_web::test]
async fn a_whole_life_is_told_once_and_in_order() {
    let nest = Nest::start().await;
    let mut socket = follow(&nest, "?after=0").await;
    assert_eq!(started(&mut socket).await, "0");
    let id = nest.create(json!({})).await;
    let child = nest.fork(&id, 1).await.remove(0);
    nest.pause(&id).await;
    nest.machines.set_mode(Step::Resume, Mode::Failing { times: 1, fault: Fault::NoSpace });
    nest.resume(&id).await.error(507, "no_space");
    assert_eq!(nest.resume(&id).await.status, 200);
    assert_eq!(nest.snapshot(&id, "kept").await.status, 201);
    nest.kill_vm(&child);
    nest.becomes(&child, "error").await;
    nest.destroy(&id).await;
    nest.destroy(&child).await;
    assert_eq!(nest.delete("/v1/snapshots/kept").await.status, 204);

    let whole = [
        "pending", "starting", "running", "pausing", "paused", "resuming", "paused", "resuming",
        "running", "stopping", "stopped",
    ];
    let of_child = ["pending", "starting", "running", "error", "stopped"];
    let events = take(&mut socket, whole.len() + of_child.len() + 2).await;
    assert_complete(&events);
    assert_eq!(states(&events, &id), whole);
    assert_eq!(states(&events, &child), of_child);
    let error = events.iter().find(|event| event["state"] == "error").unwrap();
    assert!(error["reason"].as_str().unwrap().contains("SIGKILL"), "{error}");
    let snapshots: Vec<_> = events.iter().filter(|event| event["snapshot"] == "kept").collect();
    let kinds: Vec<_> = snapshots.iter().map(|event| event["type"].clone()).collect();
    assert_eq!(kinds, ["snapshot.created", "snapshot.deleted"]);
    assert!(snapshots.iter().all(|event| event["sandbox_id"] == id.as_str()), "{snapshots:?}");
    assert_eq!(list(&nest, "?after=0").await, events, "the list says the same");
}

#[actix_web::test]
async fn an_event_is_there_before_the_answer_that_it_is_about() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let event = list(&nest, "?limit=1").await.remove(0);
    let at: chrono::DateTime<Utc> = event["at"].as_str().unwrap().parse().unwrap();
    assert!((Utc::now() - at).num_seconds().abs() < 30, "{event}");
    assert_eq!(
        event,
        json!({
            "id": event["id"], "at": event["at"], "type": "sandbox.state", "sandbox_id": id,
            "state": "running", "previous": "starting",
        })
    );
}

#[actix_web::test]
async fn a_sandbox_that_could_not_be_made_is_told_of_to_its_end() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::Failing { times: 1, fault: Fault::EndedEarly });
    nest.begin_create().await.unwrap().error(502, "agent_error");
    let events = list(&nest, "?after=0").await;
    assert_complete(&events);
    let told: Vec<_> = events.iter().map(|event| event["state"].as_str().unwrap()).collect();
    assert_eq!(told, ["pending", "starting", "error"]);

    // What no host takes on is not even recorded.
    let real = nestbox::startup::limits(Some(0)).unwrap();
    let full = nestbox::actors::host::Limits { cpus: 2, reserve_mib: 1 << 40, ..real };
    let nest = Nest::with_limits(full).await;
    nest.begin_create().await.unwrap().error(503, "host_unavailable");
    assert_eq!(list(&nest, "?after=0").await, [json!(null); 0]);
}

#[actix_web::test]
async fn a_client_that_comes_back_goes_on_where_it_was() {
    let nest = Nest::start().await;
    let mut socket = follow(&nest, "?after=0").await;
    started(&mut socket).await;
    let id = nest.create(json!({})).await;
    let mut events = take(&mut socket, 2).await;
    socket.vanish();
    nest.pause(&id).await;
    let last = events.last().unwrap()["id"].as_str().unwrap().to_owned();
    let mut socket = follow(&nest, &format!("?after={last}")).await;
    assert_eq!(started(&mut socket).await, last);
    events.extend(take(&mut socket, 3).await);
    nest.resume(&id).await;
    events.extend(take(&mut socket, 2).await);
    assert_complete(&events);
    let told = ["pending", "starting", "running", "pausing", "paused", "resuming", "running"];
    assert_eq!(states(&events, &id), told);
}

#[actix_web::test]
async fn events_that_happen_while_a_client_comes_are_neither_lost_nor_told_twice() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (database, sandbox) = (nest.database.clone(), id.parse().unwrap());
    let writer = actix_web::rt::spawn(async move {
        for generation in 10..400 {
            let state = SandboxState::Running;
            let change = Change { state, reason: None, slot: None, at: Utc::now() };
            database.sandboxes().publish(&sandbox, generation, None, &change).await.unwrap();
        }
    });
    for round in 0..5 {
        let mut socket = follow(&nest, "?after=2").await;
        started(&mut socket).await;
        let events = take(&mut socket, 50 * (round + 1)).await;
        let wanted: Vec<u64> = (3..).take(events.len()).collect();
        assert_eq!(ids(&events), wanted);
        socket.vanish();
    }
    writer.await.unwrap();
}

#[actix_web::test]
async fn without_after_only_what_comes_is_told() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = follow(&nest, "").await;
    let after = started(&mut socket).await;
    assert_eq!(after, list(&nest, "?limit=1").await[0]["id"].as_str().unwrap());
    nest.destroy(&id).await;
    assert_eq!(states(&take(&mut socket, 2).await, &id), ["stopping", "stopped"]);
}

#[actix_web::test]
async fn a_slow_client_holds_up_nobody_and_gets_it_all() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = Socket::open(&nest.url, "/v1/events?after=3", &nest.key, Some(1 << 14)).await;
    started(&mut socket).await;
    // More than all buffers between here and the database hold: 12 MB.
    change(&nest, &id, 3000, &"x".repeat(4000)).await;
    let other = nest.create(json!({})).await;
    assert_eq!(nest.sh(&other, "echo on").await, "on\n");
    let mut quick = follow(&nest, &format!("?after=3&sandbox_id={other}")).await;
    started(&mut quick).await;
    assert_eq!(states(&take(&mut quick, 3).await, &other), ["pending", "starting", "running"]);
    let events = take(&mut socket, 3003).await;
    let wanted: Vec<u64> = (4..3007).collect();
    assert_eq!(ids(&events), wanted);
}

#[actix_web::test]
async fn what_is_not_kept_any_more_is_said_to_be_missing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    change(&nest, &id, 17, "why").await;
    assert_eq!(nest.database.events().prune(5).await.unwrap(), 15);

    let whole = page(&nest, "?after=3").await;
    assert_eq!(
        (whole["lost"].clone(), ids(whole["events"].as_array().unwrap())),
        (json!(true), vec![16, 17, 18, 19, 20])
    );
    let whole = page(&nest, "?after=15").await;
    assert_eq!(whole["lost"], false);
    let newest = page(&nest, "").await;
    assert_eq!((newest["lost"].clone(), &newest["next_cursor"]), (json!(false), &Value::Null));

    let mut socket = follow(&nest, "?after=3").await;
    assert_eq!(started(&mut socket).await, "3");
    assert_eq!(message(&mut socket).await, json!({"type": "lost"}));
    assert_eq!(ids(&take(&mut socket, 5).await), [16, 17, 18, 19, 20]);
    let mut socket = follow(&nest, "?after=15").await;
    started(&mut socket).await;
    assert_eq!(ids(&take(&mut socket, 5).await), [16, 17, 18, 19, 20]);
}

#[actix_web::test]
async fn a_client_that_is_too_slow_is_told_that_it_missed_something() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut socket = Socket::open(&nest.url, "/v1/events?after=3", &nest.key, Some(1 << 14)).await;
    started(&mut socket).await;
    change(&nest, &id, 3000, &"x".repeat(4000)).await;
    nest.database.events().prune(10).await.unwrap();
    let (mut seen, mut lost) = (Vec::new(), 0);
    while seen.last() != Some(&3003) {
        let message = message(&mut socket).await;
        match message["type"].as_str().unwrap() {
            "lost" => lost += 1,
            _ => seen.extend(ids(&[message])),
        }
    }
    assert_eq!(lost, 1);
    assert!(seen.is_sorted_by(|a, b| a < b));
    assert_eq!(seen[seen.len() - 10..], (2994..=3003).collect::<Vec<u64>>());
    assert!(seen.len() < 3000, "{}", seen.len());
}

#[actix_web::test]
async fn a_list_leads_back_from_the_newest_and_on_from_any() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    change(&nest, &id, 7, "why").await;
    for (first, wanted) in [
        ("?limit=4", (1..=10).rev().collect::<Vec<u64>>()),
        ("?limit=4&after=2", (3..=10).collect()),
    ] {
        let (mut seen, mut query) = (Vec::new(), first.to_owned());
        loop {
            let page = page(&nest, &query).await;
            seen.extend(ids(page["events"].as_array().unwrap()));
            let Some(cursor) = page["next_cursor"].as_str() else { break };
            query = format!("?limit=4&cursor={cursor}");
        }
        assert_eq!(seen, wanted, "{first}");
    }
    assert_eq!(page(&nest, "?after=10").await["events"], json!([]));
}

#[actix_web::test]
async fn filters_leave_out_what_is_not_wanted() {
    let nest = Nest::start().await;
    let (one, other) = (nest.create(json!({})).await, nest.create(json!({})).await);
    nest.snapshot(&one, "kept").await;
    nest.destroy(&other).await;
    assert_eq!(list(&nest, &format!("?after=0&sandbox_id={one}")).await.len(), 4);
    assert_eq!(list(&nest, &format!("?sandbox_id={other}")).await.len(), 5);
    assert_eq!(list(&nest, "?type=snapshot.created").await.len(), 1);
    let mut socket = follow(&nest, "?after=0&type=snapshot.deleted").await;
    started(&mut socket).await;
    nest.delete("/v1/snapshots/kept").await;
    let events = take(&mut socket, 1).await;
    assert_eq!(
        (&events[0]["type"], &events[0]["snapshot"]),
        (&json!("snapshot.deleted"), &json!("kept"))
    );
}

#[actix_web::test]
async fn what_makes_no_sense_is_refused() {
    let nest = Nest::start().await;
    nest.create(json!({})).await;
    let cursor = page(&nest, "?limit=1").await["next_cursor"].as_str().unwrap().to_owned();
    let both = format!("?after=1&cursor={cursor}");
    for (query, word) in [
        ("?after=", "after"),
        ("?after=-1", "after"),
        ("?after=01", "after"),
        ("?after=one", "after"),
        ("?after=9223372036854775808", "after"),
        ("?after=4", "no event 4 yet"),
        (&both, "cursor"),
        ("?cursor=", "cursor"),
        ("?cursor=1", "cursor"),
        ("?cursor=%00", "cursor"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?sandbox_id=nobody!", "20 characters"),
        ("?type=sandbox", "sandbox"),
        ("?state=running", "state"),
    ] {
        let message = nest.get(&format!("{EVENTS}{query}")).await.error(400, "invalid_request");
        assert!(message.contains(word), "{query}: {message}");
    }
    Answer::of(nest.anonymous(Method::GET, EVENTS)).await.error(401, "unauthorized");
    let answer = nest.post(EVENTS, json!({})).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET"));
    // A sandbox that nobody knows has had no events.
    assert!(list(&nest, "?sandbox_id=aaaaaaaaaaaaaaaaaaaa").await.is_empty());
}

#[actix_web::test]
async fn a_stream_that_makes_no_sense_is_refused_before_the_upgrade() {
    let nest = Nest::start().await;
    for (query, word) in [
        ("?limit=5", "pages"),
        ("?after=1", "no event 1 yet"),
        ("?after=x", "after"),
        ("?colour=red", "colour"),
    ] {
        let request = nest
            .request(Method::GET, &format!("{EVENTS}{query}"))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
        let message = Answer::of(request).await.error(400, "invalid_request");
        assert!(message.contains(word), "{query}: {message}");
    }
    let half = nest.request(Method::GET, EVENTS).header("upgrade", "websocket");
    let message = Answer::of(half).await.error(400, "invalid_request");
    assert!(message.contains("WebSocket"), "{message}");
}

#[actix_web::test]
async fn a_stream_ends_as_every_session_does() {
    let heartbeat =
        Heartbeat { period: Duration::from_millis(50), limit: Duration::from_millis(500) };
    let nest = Nest::with_heartbeat(heartbeat).await;
    let mut talker = follow(&nest, "").await;
    started(&mut talker).await;
    talker.send(json!({"type": "start"})).await;
    let rest = talker.rest().await;
    assert_eq!(rest.code(), Some(1008), "{rest:?}");
    assert!(rest.errors[0].contains("takes no messages"), "{rest:?}");

    let mut binary = follow(&nest, "").await;
    started(&mut binary).await;
    binary.send_raw(Message::binary(vec![1])).await;
    assert_eq!(binary.rest().await.code(), Some(1008));

    let mut polite = follow(&nest, "").await;
    started(&mut polite).await;
    // Pings are answered while it listens, so it is not taken for gone.
    let silence = tokio::time::timeout(Duration::from_millis(1500), polite.next()).await;
    assert!(silence.is_err(), "{silence:?}");
    assert_eq!(polite.close().await.code(), Some(1000));

    let mut last = follow(&nest, "").await;
    started(&mut last).await;
    nest.sockets.end_all();
    assert_eq!(last.rest().await.code(), Some(1001));
}

#[actix_web::test]
async fn a_client_that_is_silent_or_gone_leaves_nothing_behind() {
    let heartbeat =
        Heartbeat { period: Duration::from_millis(50), limit: Duration::from_millis(500) };
    let nest = Nest::with_heartbeat(heartbeat).await;
    // It reads nothing, so it answers no ping.
    let mut silent = follow(&nest, "").await;
    let gone = follow(&nest, "").await;
    gone.vanish();
    eventually("both sessions are over", async || {
        let text = String::from_utf8(nest.get("/metrics").await.body.to_vec()).unwrap();
        text.contains("nestbox_websocket_sessions 0\n").then_some(())
    })
    .await;
    started(&mut silent).await;
    // It is told, unless it is hung up on before it reads that.
    let code = silent.rest().await.code();
    assert!(code.is_none_or(|code| code == 4003), "{code:?}");
}

#[actix_web::test]
async fn a_later_daemon_goes_on_with_the_same_events() {
    let nest = Nest::start().await;
    let running = nest.create(json!({})).await;
    let lost = nest.create(json!({})).await;
    nest.pause(&running).await;
    let last = list(&nest, "?limit=1").await[0]["id"].as_str().unwrap().to_owned();
    let (machines, dir) = nest.end().await;
    machines.kill(&lost.parse().unwrap());
    let limits = nestbox::startup::limits(Some(0)).unwrap();
    let nest = Nest::assemble(limits, machines, dir).await;
    nest.becomes(&lost, "error").await;
    nest.resume(&running).await;
    let events = list(&nest, "?after=0").await;
    assert_complete(&events);
    let later = list(&nest, &format!("?after={last}")).await;
    assert_eq!(states(&later, &running), ["resuming", "running"]);
    assert_eq!(states(&later, &lost), ["error"]);
}
