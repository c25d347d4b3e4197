//! Sandboxes are made, looked at and destroyed.

use serde_json::{Value, json};

use crate::nest::{Nest, eventually, process_lives, small};

#[actix_web::test]
async fn a_new_sandbox_runs_and_shows_what_was_asked_for() {
    let nest = Nest::start().await;
    let body = json!({
        "template": "alpine-3.20", "vcpus": 2, "memory_mb": 256, "timeout_sec": 600,
        "envs": {"SECRET": "hidden"}, "metadata": {"owner": "me", "\u{fc}": "\u{1f600}"},
    });
    let answer = nest.post("/v1/sandboxes", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let made = answer.json();
    assert_eq!(made["state"], "running");
    assert_eq!(made["reason"], Value::Null);
    assert_eq!(made["template"], "alpine-3.20");
    assert_eq!((&made["vcpus"], &made["memory_mb"]), (&json!(2), &json!(256)));
    assert_eq!(made["timeout_sec"], 600);
    assert_eq!(made["metadata"], json!({"owner": "me", "\u{fc}": "\u{1f600}"}));
    assert_eq!(made["hypervisor"], "simulated");
    assert_eq!(made["host_id"], "host-of-the-test");
    let text = made.to_string();
    assert!(!text.contains("hidden") && !text.contains("token"), "{text}");

    let id = made["id"].as_str().unwrap();
    let mut seen = nest.sandbox(id).await;
    let storage = seen.as_object_mut().unwrap().remove("storage").unwrap();
    assert_eq!(seen, made);
    assert_eq!((&storage["memory_bytes"], &storage["memory_generations"]), (&json!(0), &json!(0)));
    assert!(storage["disk_bytes"].is_u64() && storage["shared_bytes"].is_u64(), "{storage}");
}

#[actix_web::test]
async fn an_empty_request_gets_the_defaults() {
    let nest = Nest::start().await;
    let answer = nest.post("/v1/sandboxes", json!({})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let made = answer.json();
    assert_eq!(made["template"], "debian");
    assert_eq!((&made["vcpus"], &made["memory_mb"]), (&json!(1), &json!(512)));
    assert_eq!((&made["timeout_sec"], &made["expires_at"]), (&Value::Null, &Value::Null));
    assert_eq!(made["metadata"], json!({}));
}

#[actix_web::test]
async fn a_time_to_live_begins_when_the_sandbox_runs() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 100})).await;
    let sandbox = nest.sandbox(&id).await;
    let time = |field: &str| {
        let text = sandbox[field].as_str().unwrap();
        chrono::DateTime::parse_from_rfc3339(text).unwrap()
    };
    assert!(time("last_active_at") > time("created_at"));
    assert_eq!((time("expires_at") - time("last_active_at")).num_milliseconds(), 100_000);
}

#[actix_web::test]
async fn sandboxes_of_one_host_do_not_share_ids_or_agents() {
    let nest = Nest::start().await;
    let first = nest.create(json!({"envs": {"NAME": "first"}})).await;
    let second = nest.create(json!({"envs": {"NAME": "second"}})).await;
    assert_ne!(first, second);
    assert_eq!(nest.sh(&first, "echo $NAME").await, "first\n");
    assert_eq!(nest.sh(&second, "echo $NAME").await, "second\n");
}

#[actix_web::test]
async fn many_creates_at_once_make_as_many_sandboxes() {
    let nest = Nest::start().await;
    let making: Vec<_> = (0..8).map(|_| nest.begin_create()).collect();
    let mut ids = std::collections::BTreeSet::new();
    for answer in making {
        let answer = answer.await.unwrap();
        assert_eq!(answer.status, 201, "{answer:?}");
        ids.insert(answer.json()["id"].as_str().unwrap().to_owned());
    }
    assert_eq!((ids.len(), nest.machines.present().len()), (8, 8));
}

#[actix_web::test]
async fn a_destroyed_sandbox_leaves_nothing_but_its_record() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let agent: i32 = nest.sh(&id, "echo $PPID").await.trim().parse().unwrap();
    assert!(process_lives(agent));

    let answer = nest.destroy(&id).await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert!(!process_lives(agent));
    assert!(nest.machines.present().is_empty());
    let sandbox = nest.sandbox(&id).await;
    assert_eq!((&sandbox["state"], &sandbox["reason"]), (&json!("stopped"), &Value::Null));
    assert_eq!(sandbox["storage"], Value::Null);
}

#[actix_web::test]
async fn processes_of_a_sandbox_end_with_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let line = "setsid sleep 1000 >/dev/null 2>&1 & echo $!";
    let sleeper: i32 = nest.sh(&id, line).await.trim().parse().unwrap();
    assert!(process_lives(sleeper));
    nest.destroy(&id).await;
    eventually("the sleeper ends", async || (!process_lives(sleeper)).then_some(())).await;
}

#[actix_web::test]
async fn an_unset_label_is_no_error() {
    let nest = Nest::start().await;
    let answer =
        nest.post("/v1/sandboxes", small(json!({"timeout_sec": null, "vcpus": null}))).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}
