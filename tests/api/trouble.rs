//! What breaks is said, contained and taken away.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use futures::FutureExt;
use nestbox::actors::host::Limits;
use nestbox::startup::limits;
use nestbox::vmm::simulated::{Fault, Mode, Step};
use serde_json::{Value, json};

use crate::nest::{Answer, Nest, eventually};

fn assert_no_internals(answer: &Answer) {
    let text = String::from_utf8_lossy(&answer.body);
    for word in ["secret cause", "panicked", "src/", ".rs", "sqlite", "SELECT", "127.0.0.1"] {
        assert!(!text.contains(word), "{text}");
    }
}

#[actix_web::test]
async fn a_vm_that_is_killed_while_a_command_runs_is_told_within_two_seconds() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let file = nest.path("running");
    let running = nest.begin_exec(&id, &json!({"cmd": format!("touch {file}; sleep 1000")}));
    eventually("the command runs", async || std::fs::exists(&file).unwrap().then_some(())).await;
    let killed = Instant::now();
    nest.kill_vm(&id);
    let answer = running.await.unwrap();
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    let message = answer.error(502, "agent_error");
    assert!(message.contains("SIGKILL"), "{message}");
    assert_no_internals(&answer);

    let sandbox = nest.becomes(&id, "error").await;
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    assert_eq!(sandbox["reason"], "its VM was ended by SIGKILL");
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
    let message = nest.try_exec(&id, json!({"cmd": "true"})).await.error(409, "invalid_state");
    assert!(message.contains("error") && message.contains("SIGKILL"), "{message}");
}

#[actix_web::test]
async fn a_vm_that_is_killed_while_idle_is_noticed() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let neighbour = nest.create(json!({})).await;
    let killed = Instant::now();
    nest.kill_vm(&id);
    nest.becomes(&id, "error").await;
    assert!(killed.elapsed() < Duration::from_secs(2), "{:?}", killed.elapsed());
    assert_eq!(nest.sh(&neighbour, "echo on").await, "on\n");
    assert_eq!(nest.destroy(&id).await.status, 204);
    let sandbox = nest.sandbox(&id).await;
    assert_eq!(sandbox["state"], "stopped");
    assert_eq!(sandbox["reason"], "its VM was ended by SIGKILL", "the reason is kept");
}

#[actix_web::test]
async fn a_destroy_that_comes_while_a_dead_vm_is_cleared_away_waits_for_that() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Destroy, Mode::SingleStep);
    nest.kill_vm(&id);
    let step = nest.machines.held(Step::Destroy).await;
    nest.becomes(&id, "error").await;
    let destroying = nest.begin_destroy(&id);
    nest.becomes(&id, "stopping").await;
    assert!(!destroying.is_finished());
    step.succeed();
    assert_eq!(destroying.await.unwrap().status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
}

#[actix_web::test]
async fn a_start_that_fails_says_of_what_kind_it_is_and_leaves_nothing() {
    let nest = Nest::start().await;
    for (fault, status, code, word) in [
        (Fault::EndedEarly, 502, "agent_error", "exited with code 1"),
        (Fault::BootTimeout, 502, "agent_error", "60 s"),
        (Fault::NoSpace, 507, "no_space", "full"),
        (Fault::Disk, 500, "internal", "host"),
    ] {
        nest.machines.set_mode(Step::Boot, Mode::Failing { times: 1, fault });
        let answer = nest.begin_create().await.unwrap();
        let message = answer.error(status, code);
        assert!(message.contains(word), "{message}");
        assert_no_internals(&answer);
        assert!(nest.machines.present().is_empty());
    }
    let failed = nest.get("/v1/sandboxes?state=error").await.json();
    let failed = failed["sandboxes"].as_array().unwrap();
    assert_eq!(failed.len(), 4);
    assert!(failed.iter().all(|one| one["reason"].is_string()), "{failed:?}");
    let text = String::from_utf8(nest.get("/metrics").await.body.to_vec()).unwrap();
    assert!(text.contains("nestbox_sandbox_create_failures_total 4"), "{text}");
    nest.create(json!({})).await;
}

#[actix_web::test]
async fn what_a_destroy_leaves_the_janitor_takes_away_at_last() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Destroy, Mode::Failing { times: 1, fault: Fault::Remains });
    nest.machines.set_mode(Step::Sweep, Mode::Failing { times: 1, fault: Fault::Remains });
    assert_eq!(nest.destroy(&id).await.status, 204);
    let sandbox = nest.becomes(&id, "stopped").await;
    assert!(sandbox["reason"].as_str().unwrap().contains("the slot is busy"), "{sandbox}");
    assert_eq!(nest.machines.present().len(), 1, "the first sweep failed too");
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
}

#[actix_web::test]
async fn what_a_failed_start_leaves_the_janitor_takes_away() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::Failing { times: 1, fault: Fault::Remains });
    nest.machines.set_mode(Step::Sweep, Mode::SingleStep);
    nest.begin_create().await.unwrap().error(500, "internal");
    let sweep = nest.machines.held(Step::Sweep).await;
    assert_eq!(nest.machines.present().len(), 1);
    sweep.succeed();
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
}

#[actix_web::test]
async fn a_sandbox_with_too_many_waiting_requests_asks_to_come_back() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let (release, released) = mpsc::channel::<()>();
    // The actors' thread hangs, as it would in a bug; nothing is taken from any mailbox.
    nest.arbiter.spawn_fn(move || released.recv().unwrap_or(()));
    let workplace = nest.control.workplace(&id.parse().unwrap()).await.unwrap();
    let mut waiting = 0;
    // Each is queued when it is first polled, and is not un-sent when it is dropped.
    while workplace.stat(&"/x".into(), None).now_or_never().is_none() {
        waiting += 1;
        assert!(waiting < 5000, "a mailbox has a limit");
    }
    assert!(waiting >= 1000, "{waiting}");
    let answer = nest.try_exec(&id, json!({"cmd": "true"})).await;
    answer.error(503, "host_unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(nest.state(&id).await, "running", "reading needs no mailbox");
    drop(release);
    let again = eventually("it works again", async || {
        let answer = nest.try_exec(&id, json!({"cmd": "echo on"})).await;
        (answer.status != 503).then_some(answer)
    })
    .await;
    assert_eq!((again.status, &again.json()["stdout"]), (200, &json!("on\n")));
}

#[actix_web::test]
async fn a_failing_database_is_an_internal_error_without_its_words() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.database.clone().close().await.unwrap();
    for path in
        ["/v1/sandboxes".to_owned(), format!("/v1/sandboxes/{id}"), "/v1/api-keys".to_owned()]
    {
        let answer = nest.get(&path).await;
        answer.error(500, "internal");
        assert_no_internals(&answer);
    }
    let health = Answer::of(nest.anonymous(reqwest::Method::GET, "/health")).await;
    assert_eq!(health.status, 200);
}

/// F9, as far as it can be seen without VMs.
#[actix_web::test]
async fn a_new_daemon_takes_over_what_runs_and_says_what_does_not() {
    let real = limits(Some(0)).unwrap();
    let nest = Nest::start().await;
    let runs = nest.create(json!({"timeout_sec": 600})).await;
    let died = nest.create(json!({})).await;
    let short = nest.create(json!({"timeout_sec": 3})).await;
    let pid = nest.sh(&runs, "sleep 1000 >/dev/null 2>&1 & echo $!").await;
    let before = nest.sandbox(&runs).await;
    let (machines, dir) = nest.end().await;
    assert!(machines.kill(&died.parse().unwrap()));

    let nest = Nest::assemble(Limits { cpus: 2, ..real }, machines, dir).await;
    let after = nest.sandbox(&runs).await;
    assert_eq!((&after["state"], &after["created_at"]), (&json!("running"), &before["created_at"]));
    assert_eq!(nest.sh(&runs, &format!("kill -0 {pid}")).await, "");
    let lost = nest.becomes(&died, "error").await;
    assert_ne!(lost["reason"], Value::Null);
    nest.becomes(&short, "stopped").await;
    for id in [runs, died, short] {
        assert_eq!(nest.destroy(&id).await.status, 204);
    }
    assert!(nest.machines.present().is_empty());
}

#[actix_web::test]
async fn a_destroy_that_a_daemon_did_not_finish_is_finished_by_the_next() {
    let real = limits(Some(0)).unwrap();
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Destroy, Mode::SingleStep);
    let destroying = nest.begin_destroy(&id);
    let step = nest.machines.held(Step::Destroy).await;
    destroying.abort();
    let (machines, dir) = nest.end().await;
    machines.set_mode(Step::Destroy, Mode::Automatic);
    drop(step);
    let nest = Nest::assemble(Limits { cpus: 2, ..real }, machines, dir).await;
    nest.becomes(&id, "stopped").await;
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
}
