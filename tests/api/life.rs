//! Races and repetitions in a sandbox's life.

use std::time::{Duration, Instant};

use nestbox::vmm::simulated::{Fault, Mode, Step};
use serde_json::{Value, json};

use crate::nest::{Nest, eventually};

/// F14.
#[actix_web::test]
async fn a_client_that_hangs_up_does_not_cancel_its_create() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    nest.hang_up(creating).await;
    nest.becomes(&id, "starting").await;
    boot.succeed();
    nest.becomes(&id, "running").await;
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

/// F14.
#[actix_web::test]
async fn a_create_that_fails_when_nobody_waits_for_it_leaves_nothing() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    nest.hang_up(creating).await;
    boot.fail(Fault::EndedEarly);
    nest.becomes(&id, "error").await;
    assert!(nest.machines.present().is_empty());
    assert_eq!(nest.destroy(&id).await.status, 204);
}

/// F14.
#[actix_web::test]
async fn a_client_that_hangs_up_does_not_cancel_its_destroy() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Destroy, Mode::SingleStep);
    let destroying = nest.begin_destroy(&id);
    let step = nest.machines.held(Step::Destroy).await;
    nest.hang_up(destroying).await;
    nest.becomes(&id, "stopping").await;
    step.succeed();
    nest.becomes(&id, "stopped").await;
    assert!(nest.machines.present().is_empty());
}

/// F15.
#[actix_web::test]
async fn destroy_overtakes_a_slow_boot() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
    creating.await.unwrap().error(409, "invalid_state");
    nest.delete(&format!("/v1/sandboxes/{id}")).await;
    assert_eq!(nest.state(&id).await, "stopped", "and it stays so");
}

/// F15.
#[actix_web::test]
async fn a_boot_that_succeeds_after_all_is_taken_away_again() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStepDeaf);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    let destroying = nest.begin_destroy(&id);
    nest.becomes(&id, "stopping").await;
    assert!(!destroying.is_finished(), "it waits until nothing is left");
    boot.succeed();
    assert_eq!(destroying.await.unwrap().status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
    creating.await.unwrap().error(409, "invalid_state");
}

/// F15.
#[actix_web::test]
async fn a_boot_that_fails_while_it_is_destroyed_ends_as_destroyed() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStepDeaf);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    let destroying = nest.begin_destroy(&id);
    nest.becomes(&id, "stopping").await;
    boot.fail(Fault::EndedEarly);
    assert_eq!(destroying.await.unwrap().status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
    creating.await.unwrap().error(409, "invalid_state");
}

/// F15.
#[actix_web::test]
async fn two_destroys_at_once_are_one() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Destroy, Mode::SingleStep);
    let first = nest.begin_destroy(&id);
    let step = nest.machines.held(Step::Destroy).await;
    let second = nest.begin_destroy(&id);
    let message = nest.try_exec(&id, json!({"cmd": "true"})).await.error(409, "invalid_state");
    assert!(message.contains("stopping"), "{message}");
    assert!(!first.is_finished() && !second.is_finished());
    step.succeed();
    assert_eq!(first.await.unwrap().status, 204);
    assert_eq!(second.await.unwrap().status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
}

/// F15.
#[actix_web::test]
async fn destroy_ends_a_command_and_its_caller_learns_why() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let file = nest.path("running");
    let running = nest.begin_exec(&id, &json!({"cmd": format!("touch {file}; sleep 1000")}));
    eventually("the command runs", async || std::fs::exists(&file).unwrap().then_some(())).await;
    let started = Instant::now();
    assert_eq!(nest.destroy(&id).await.status, 204);
    let message = running.await.unwrap().error(409, "invalid_state");
    assert!(message.contains("stopp"), "{message}");
    assert!(started.elapsed() < Duration::from_secs(5));
}

/// F15.
#[actix_web::test]
async fn commands_that_race_a_destroy_are_done_or_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let mut racing = Vec::new();
    for n in 0..24 {
        racing.push(nest.begin_exec(&id, &json!({"cmd": "echo on"})));
        if n == 12 {
            racing.push(nest.begin_destroy(&id));
        }
    }
    for answer in racing {
        let answer = answer.await.unwrap();
        match answer.status {
            204 => {}
            200 => assert_eq!(answer.json()["stdout"], "on\n"),
            _ => drop(answer.error(409, "invalid_state")),
        }
    }
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
}

/// F15: each command ends about when the time would be over.
#[actix_web::test]
async fn work_that_races_the_end_of_the_time_wins_or_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 1})).await;
    for line in ["sleep 0.9", "sleep 0.99", "sleep 1.01", "sleep 2"] {
        let done = nest.exec(&id, json!({"cmd": line})).await;
        assert_eq!(done["exit_code"], 0, "work under way keeps a sandbox: {done}");
        assert_eq!(nest.state(&id).await, "running");
    }
    let ended = nest.becomes(&id, "stopped").await;
    assert_eq!(ended["reason"], "no work was done in it for 1 s");
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
    let message = nest.try_exec(&id, json!({"cmd": "true"})).await.error(409, "invalid_state");
    assert!(message.contains("no work was done"), "{message}");
    assert_eq!(nest.destroy(&id).await.status, 204);
}

#[actix_web::test]
async fn an_idle_sandbox_ends_and_its_neighbour_does_not() {
    let nest = Nest::start().await;
    let idle = nest.create(json!({"timeout_sec": 1})).await;
    let patient = nest.create(json!({"timeout_sec": 600})).await;
    let forever = nest.create(json!({})).await;
    nest.becomes(&idle, "stopped").await;
    for id in [patient, forever] {
        assert_eq!(nest.state(&id).await, "running");
    }
}

fn times(sandbox: &Value) -> (Value, Value) {
    (sandbox["last_active_at"].clone(), sandbox["expires_at"].clone())
}

/// F16.
#[actix_web::test]
async fn failed_requests_are_no_activity_and_work_is() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 100})).await;
    let before = times(&nest.sandbox(&id).await);
    let path = format!("/v1/sandboxes/{id}");
    for _ in 0..3 {
        nest.try_exec(&id, json!({"cmd": "true", "cwd": "/no/such"}))
            .await
            .error(400, "invalid_request");
        nest.try_exec(&id, json!({"nonsense": 1})).await.error(400, "invalid_request");
        let missing = json!({"path": nest.path("missing")});
        nest.post(&format!("{path}/files/read"), missing).await.error(404, "not_found");
        nest.post(&format!("{path}/files/write"), json!({})).await.error(400, "invalid_request");
        nest.get("/v1/sandboxes").await;
        let anonymous = nest.anonymous(reqwest::Method::GET, &path);
        crate::nest::Answer::of(anonymous).await.error(401, "unauthorized");
    }
    assert_eq!(times(&nest.sandbox(&id).await), before);

    let worked = chrono::Utc::now();
    nest.sh(&id, "true").await;
    let after = eventually("work is noted", async || {
        Some(times(&nest.sandbox(&id).await)).filter(|now| *now != before)
    })
    .await;
    let time =
        |value: &Value| chrono::DateTime::parse_from_rfc3339(value.as_str().unwrap()).unwrap();
    assert!(time(&after.0) >= worked, "nothing was noted before the work");
    assert_eq!((time(&after.1) - time(&after.0)).num_seconds(), 100);
}

/// F16: requests that fail all the time do not keep a sandbox.
#[actix_web::test]
async fn a_sandbox_in_which_everything_fails_is_idle() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 1})).await;
    eventually("it ends", async || {
        nest.try_exec(&id, json!({"cmd": "true", "cwd": "/no/such"})).await;
        (nest.state(&id).await == "stopped").then_some(())
    })
    .await;
}

/// F17.
#[actix_web::test]
async fn destroy_works_in_every_state_and_again() {
    let nest = Nest::start().await;
    let running = nest.create(json!({})).await;
    let stopped = nest.create(json!({})).await;
    assert_eq!(nest.destroy(&stopped).await.status, 204);
    let failed = nest.create(json!({})).await;
    nest.kill_vm(&failed);
    nest.becomes(&failed, "error").await;
    let expired = nest.create(json!({"timeout_sec": 1})).await;
    nest.becomes(&expired, "stopped").await;
    nest.machines.set_mode(Step::Boot, Mode::Failing { times: 1, fault: Fault::Disk });
    nest.begin_create().await.unwrap().error(500, "internal");
    let list = nest.get("/v1/sandboxes?state=error").await.json();
    let unborn = list["sandboxes"].as_array().unwrap().iter();
    let unborn = unborn.map(|one| one["id"].as_str().unwrap()).find(|id| *id != failed).unwrap();

    for id in [&running, &stopped, &failed, &expired, unborn] {
        for _ in 0..3 {
            let answer = nest.destroy(id).await;
            assert_eq!(answer.status, 204, "{answer:?}");
            assert_eq!(nest.state(id).await, "stopped");
        }
    }
    assert!(nest.machines.present().is_empty());
    nest.destroy("aaaaaaaaaaaaaaaaaaaa").await.error(404, "not_found");
}
