//! Paused sandboxes run again, or stay as they are.

use std::time::Duration;

use actix_web::rt::time::sleep;
use nestbox::actors::host::Limits;
use nestbox::startup::limits;
use nestbox::vmm::host_memory::host_memory;
use nestbox::vmm::simulated::{Fault, Mode, Step};
use serde_json::{Value, json};

use crate::nest::{Nest, eventually};

async fn create_paused(nest: &Nest, body: Value) -> String {
    let id = nest.create(body).await;
    assert_eq!(nest.pause(&id).await.status, 200);
    id
}

#[actix_web::test]
async fn resuming_what_runs_changes_nothing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let before = nest.sandbox(&id).await;
    let answer = nest.resume(&id).await;
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("running")));
    assert_eq!(nest.sandbox(&id).await, before);
}

/// F10, as far as it can be seen without VMs.
#[actix_web::test]
async fn it_can_be_paused_and_resumed_again_and_again() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for round in 1..=20 {
        assert_eq!(nest.pause(&id).await.json()["state"], "paused");
        assert_eq!(nest.sandbox(&id).await["storage"]["memory_generations"], round);
        assert_eq!(nest.resume(&id).await.json()["state"], "running");
        assert_eq!(nest.sh(&id, "echo on").await, "on\n");
    }
}

/// F15.
#[actix_web::test]
async fn all_who_resume_at_once_get_the_one_resume() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({})).await;
    nest.machines.set_mode(Step::Resume, Mode::SingleStep);
    let first = nest.begin_to(&id, "resume");
    let step = nest.machines.held(Step::Resume).await;
    nest.becomes(&id, "resuming").await;
    let others: Vec<_> = (0..3).map(|_| nest.begin_to(&id, "resume")).collect();
    let message = nest.pause(&id).await.error(409, "invalid_state");
    assert!(message.contains("resuming"), "{message}");
    step.succeed();
    for answer in others.into_iter().chain([first]) {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("running")));
    }
}

#[actix_web::test]
async fn what_is_still_being_paused_is_not_resumed_yet() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    let message = nest.resume(&id).await.error(409, "invalid_state");
    assert!(message.contains("pausing") && message.contains("not paused yet"), "{message}");
    step.succeed();
    assert_eq!(pausing.await.unwrap().status, 200);
    assert_eq!(nest.resume(&id).await.status, 200);
}

/// F5.
#[actix_web::test]
async fn a_resume_that_fails_leaves_it_paused_and_a_second_one_works() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({})).await;
    for (fault, status, code, word) in [
        (Fault::NoSpace, 507, "no_space", "full"),
        (Fault::BootTimeout, 502, "agent_error", "60 s"),
        (Fault::Disk, 500, "internal", "host"),
    ] {
        nest.machines.set_mode(Step::Resume, Mode::Failing { times: 1, fault });
        let message = nest.resume(&id).await.error(status, code);
        assert!(message.contains(word), "{message}");
        assert_eq!(nest.state(&id).await, "paused", "the answer does not come before the state");
    }
    assert_eq!(nest.resume(&id).await.status, 200);
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

/// F23.
#[actix_web::test]
async fn what_another_version_has_paused_is_refused_with_both_versions() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({})).await;
    let fault = Fault::Incompatible;
    nest.machines.set_mode(Step::Resume, Mode::Failing { times: 1, fault });
    let message = nest.resume(&id).await.error(409, "invalid_state");
    assert!(message.contains("simulated 1") && message.contains("simulated 2"), "{message}");
    assert_eq!(nest.state(&id).await, "paused");
}

/// F15.
#[actix_web::test]
async fn destroy_overtakes_a_slow_resume() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({})).await;
    nest.machines.set_mode(Step::Resume, Mode::SingleStep);
    let resuming = nest.begin_to(&id, "resume");
    let _step = nest.machines.held(Step::Resume).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
    resuming.await.unwrap().error(409, "invalid_state");
}

/// F15.
#[actix_web::test]
async fn a_resume_that_ends_while_it_is_destroyed_leaves_nothing() {
    for fault in [None, Some(Fault::Disk)] {
        let nest = Nest::start().await;
        let id = create_paused(&nest, json!({})).await;
        nest.machines.set_mode(Step::Resume, Mode::SingleStepDeaf);
        let resuming = nest.begin_to(&id, "resume");
        let step = nest.machines.held(Step::Resume).await;
        let destroying = nest.begin_destroy(&id);
        nest.becomes(&id, "stopping").await;
        assert!(!destroying.is_finished(), "it waits until nothing is left");
        match fault {
            Some(fault) => step.fail(fault),
            None => step.succeed(),
        }
        assert_eq!(destroying.await.unwrap().status, 204);
        assert_eq!(nest.state(&id).await, "stopped");
        assert!(nest.machines.present().is_empty());
        resuming.await.unwrap().error(409, "invalid_state");
    }
}

/// F14.
#[actix_web::test]
async fn a_client_that_hangs_up_does_not_cancel_its_resume() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({})).await;
    nest.machines.set_mode(Step::Resume, Mode::SingleStep);
    let resuming = nest.begin_to(&id, "resume");
    let step = nest.machines.held(Step::Resume).await;
    nest.hang_up(resuming).await;
    nest.becomes(&id, "resuming").await;
    step.succeed();
    nest.becomes(&id, "running").await;
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn the_end_of_a_vm_is_noticed_after_a_resume() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({})).await;
    nest.resume(&id).await;
    nest.kill_vm(&id);
    assert_eq!(nest.becomes(&id, "error").await["reason"], "its VM was ended by SIGKILL");
    nest.resume(&id).await.error(409, "invalid_state");
}

#[actix_web::test]
async fn the_time_of_a_paused_sandbox_stands_still_and_counts_anew_after_it() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({"timeout_sec": 1})).await;
    sleep(Duration::from_millis(1500)).await;
    let paused = nest.sandbox(&id).await;
    assert_eq!((&paused["state"], &paused["expires_at"]), (&json!("paused"), &Value::Null));
    let asked = chrono::Utc::now();
    let running = nest.resume(&id).await.json();
    assert_eq!(running["state"], "running");
    let expires_at = running["expires_at"].as_str().expect("its time runs again");
    let expires_at = chrono::DateTime::parse_from_rfc3339(expires_at).unwrap();
    assert!((expires_at.to_utc() - asked).num_milliseconds() >= 1000, "{running}");
    let ended = nest.becomes(&id, "stopped").await;
    assert_eq!(ended["reason"], "no work was done in it for 1 s");
}

/// Its reminder comes while it cannot be ended.
#[actix_web::test]
async fn a_sandbox_whose_time_runs_out_in_a_pause_that_fails_ends_after_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 1})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    sleep(Duration::from_millis(1500)).await;
    nest.becomes(&id, "pausing").await;
    step.fail(Fault::NoSpace);
    pausing.await.unwrap().error(507, "no_space");
    nest.becomes(&id, "stopped").await;
}

/// F25.
#[actix_web::test]
async fn a_resume_for_which_there_is_no_memory_is_refused_with_the_reason() {
    let real = limits(None).unwrap();
    let available = host_memory().unwrap().available_mib;
    let nest = Nest::with_limits(Limits { reserve_mib: available / 4, ..real }).await;
    let id = create_paused(&nest, json!({"memory_mb": available / 2})).await;
    // As much is promised to another one that starts.
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let body = json!({"memory_mb": available / 2});
    let creating = nest.begin(nest.request(reqwest::Method::POST, "/v1/sandboxes").json(&body));
    let boot = nest.machines.held(Step::Boot).await;
    let answer = nest.resume(&id).await;
    let message = answer.error(503, "host_unavailable");
    assert!(message.contains("memory"), "{message}");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(nest.state(&id).await, "paused");
    boot.succeed();
    assert_eq!(creating.await.unwrap().status, 201);
    // A simulated machine takes nothing, so what was promised is there again.
    assert_eq!(nest.resume(&id).await.status, 200);
}

/// F9, as far as it can be seen without VMs.
#[actix_web::test]
async fn a_new_daemon_knows_what_is_paused_and_resumes_it() {
    let nest = Nest::start().await;
    let id = create_paused(&nest, json!({"timeout_sec": 1})).await;
    let before = nest.sandbox(&id).await;
    let nest = nest.restart().await;
    sleep(Duration::from_millis(1200)).await;
    assert_eq!(nest.sandbox(&id).await, before, "its time stands still");
    assert_eq!(nest.resume(&id).await.json()["state"], "running");
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
    nest.becomes(&id, "stopped").await;
}

#[actix_web::test]
async fn what_a_daemon_did_not_finish_has_not_happened_for_the_next() {
    let nest = Nest::start().await;
    let pausing = nest.create(json!({})).await;
    let resuming = create_paused(&nest, json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    nest.machines.set_mode(Step::Resume, Mode::SingleStep);
    let requests = [nest.begin_to(&pausing, "pause"), nest.begin_to(&resuming, "resume")];
    let steps = (nest.machines.held(Step::Pause).await, nest.machines.held(Step::Resume).await);
    requests.iter().for_each(|request| request.abort());
    let nest = nest.restart().await;
    drop(steps);
    nest.machines.set_mode(Step::Pause, Mode::Automatic);
    nest.machines.set_mode(Step::Resume, Mode::Automatic);

    nest.becomes(&pausing, "running").await;
    assert_eq!(nest.sh(&pausing, "echo on").await, "on\n");
    nest.becomes(&resuming, "paused").await;
    assert_eq!(nest.resume(&resuming).await.status, 200);
    assert_eq!(nest.sh(&resuming, "echo on").await, "on\n");
    for id in [pausing, resuming] {
        assert_eq!(nest.destroy(&id).await.status, 204);
    }
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
}
