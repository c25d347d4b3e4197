//! What sandboxes take of the host: now, before, and what looking does to them.

use std::time::Duration;

use actix_web::rt::time::sleep;
use nestbox::vmm::simulated::{Mode, Step};
use reqwest::Method;
use serde_json::{Value, json};

use crate::exec_stream::open;
use crate::nest::{Answer, Nest, eventually};

const UNKNOWN: &str = "aaaaaaaaaaaaaaaaaaaa";

fn path(id: &str) -> String {
    format!("/v1/sandboxes/{id}/metrics")
}

async fn usage(nest: &Nest, id: &str) -> Value {
    let answer = nest.get(&path(id)).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()
}

async fn history(nest: &Nest, id: &str) -> Vec<Value> {
    usage(nest, id).await["history"].as_array().unwrap().clone()
}

fn cpu(sample: &Value) -> f64 {
    sample["cpu_percent"].as_f64().unwrap()
}

/// Waits until counting has begun: it does when a machine runs, not before its creator is told.
async fn counted(nest: &Nest, id: &str) {
    eventually("its memory is known", async || {
        let text = nest.get("/metrics").await.body;
        let text = String::from_utf8(text.to_vec()).unwrap();
        let running = usage(nest, id).await["now"]["memory_used_bytes"].as_u64().unwrap() > 0;
        (running && !text.contains("nestbox_sandbox_memory_bytes 0\n")).then_some(())
    })
    .await;
}

#[actix_web::test]
async fn a_sample_has_the_documented_fields() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    counted(&nest, &id).await;
    nest.control.sample_usage().await.unwrap();
    let usage = usage(&nest, &id).await;
    let fields: Vec<&String> = usage.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["history", "now"]);
    for sample in [&usage["now"], &usage["history"][0]] {
        let mut fields: Vec<&str> =
            sample.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let wanted =
            ["at", "cpu_percent", "disk_used_bytes", "memory_total_bytes", "memory_used_bytes"];
        assert_eq!(fields, wanted);
        sample["at"].as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
        assert_eq!(sample["memory_total_bytes"], 128 << 20);
        assert_eq!(sample["disk_used_bytes"], 1 << 20);
        assert!(sample["memory_used_bytes"].as_u64().unwrap() > 100_000, "{sample}");
        assert!(cpu(sample) >= 0.0, "{sample}");
    }
    let storage = nest.sandbox(&id).await["storage"].clone();
    assert_eq!(usage["now"]["disk_used_bytes"], storage["disk_bytes"]);
}

#[actix_web::test]
async fn a_busy_sandbox_shows_it_and_an_idle_one_does_not() {
    let nest = Nest::start().await;
    let busy = nest.create(json!({})).await;
    let idle = nest.create(json!({})).await;
    let mut socket = open(&nest, &busy).await;
    socket.start("while :; do :; done").await;
    // The start of a guest is over by then, so it is not counted any more.
    sleep(Duration::from_millis(500)).await;
    nest.control.sample_usage().await.unwrap();
    sleep(Duration::from_secs(2)).await;
    nest.control.sample_usage().await.unwrap();
    let (told, quiet) = (usage(&nest, &busy).await, usage(&nest, &idle).await);
    // Half of a CPU at least, unless others take it.
    for sample in [&told["now"], told["history"].as_array().unwrap().last().unwrap()] {
        assert!((15.0..130.0).contains(&cpu(sample)), "{told}");
    }
    for sample in [&quiet["now"], quiet["history"].as_array().unwrap().last().unwrap()] {
        assert!(cpu(sample) < 3.0, "{quiet}");
    }
}

#[actix_web::test]
async fn a_paused_sandbox_has_the_history_it_had_and_goes_on_after_a_resume() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    counted(&nest, &id).await;
    for _ in 0..3 {
        nest.control.sample_usage().await.unwrap();
    }
    let before = history(&nest, &id).await;
    assert_eq!(before.len(), 3);
    let times: Vec<&str> = before.iter().map(|sample| sample["at"].as_str().unwrap()).collect();
    assert!(times.is_sorted(), "the oldest first: {times:?}");

    assert_eq!(nest.pause(&id).await.status, 200);
    nest.control.sample_usage().await.unwrap();
    let paused = usage(&nest, &id).await;
    assert_eq!(paused["history"].as_array().unwrap(), &before);
    let now = &paused["now"];
    assert_eq!((cpu(now), &now["memory_used_bytes"]), (0.0, &json!(0)), "{now}");
    assert_eq!(
        (&now["memory_total_bytes"], &now["disk_used_bytes"]),
        (&json!(128 << 20), &json!(1 << 20))
    );

    assert_eq!(nest.resume(&id).await.status, 200);
    counted(&nest, &id).await;
    nest.control.sample_usage().await.unwrap();
    let after = history(&nest, &id).await;
    assert_eq!(after[..3], before);
    assert_eq!(after.len(), 4);
}

#[actix_web::test]
async fn looking_is_no_work_done() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 2})).await;
    let active = nest.sandbox(&id).await["last_active_at"].clone();
    eventually("its time is over although it is looked at", async || {
        nest.control.sample_usage().await.unwrap();
        let over = nest.get(&path(&id)).await.status == 409;
        sleep(Duration::from_millis(100)).await;
        over.then_some(())
    })
    .await;
    assert_eq!(nest.sandbox(&id).await["last_active_at"], active);
}

#[actix_web::test]
async fn looking_does_not_wait_for_what_is_being_done() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let held = nest.machines.held(Step::Pause).await;
    let look = async {
        nest.control.sample_usage().await.unwrap();
        usage(&nest, &id).await
    };
    tokio::time::timeout(Duration::from_secs(5), look).await.expect("an answer at once");
    held.succeed();
    assert_eq!(pausing.await.unwrap().status, 200);
}

#[actix_web::test]
async fn what_cannot_be_looked_at_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.get(&path(UNKNOWN)).await.error(404, "not_found");
    nest.get(&path("no-id")).await.error(400, "invalid_request");
    let keyless = nest.anonymous(Method::GET, &path(&id));
    Answer::of(keyless).await.error(401, "unauthorized");
    let answer = nest.post(&path(&id), json!({})).await;
    answer.error(405, "method_not_allowed");
    assert_eq!(answer.header("allow"), Some("GET"));

    let failed = nest.create(json!({})).await;
    nest.kill_vm(&failed);
    nest.becomes(&failed, "error").await;
    let message = nest.get(&path(&failed)).await.error(409, "invalid_state");
    assert!(message.contains("SIGKILL"), "{message}");
    nest.destroy(&id).await;
    let message = nest.get(&path(&id)).await.error(409, "invalid_state");
    assert!(message.contains("stopped"), "{message}");
}

#[actix_web::test]
async fn samples_come_by_themselves() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    eventually("a sample is there", async || {
        let samples = history(&nest, &id).await;
        (!samples.is_empty()).then_some(())
    })
    .await;
}
