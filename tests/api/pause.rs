//! Sandboxes are frozen to disk, whatever else is wanted of them meanwhile.

use nestbox::vmm::simulated::{Fault, Mode, Step};
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest, eventually};

/// Whether a process has been stopped where it was.
fn stands_still(pid: &str) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim().starts_with('T')
}

#[actix_web::test]
async fn a_paused_sandbox_stands_still_and_goes_on_where_it_was() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"metadata": {"a": "b"}})).await;
    let pid = nest.sh(&id, "setsid sleep 1000 >/dev/null 2>&1 & echo $!").await.trim().to_owned();
    let before = nest.sandbox(&id).await;

    let answer = nest.pause(&id).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let paused = answer.json();
    assert_eq!((&paused["state"], &paused["reason"]), (&json!("paused"), &Value::Null));
    assert_eq!((&paused["id"], &paused["metadata"]), (&before["id"], &before["metadata"]));
    assert_eq!((paused.get("trace"), paused.get("storage")), (None, None));
    assert_eq!(nest.state(&id).await, "paused");
    assert!(stands_still(&pid));

    let answer = nest.resume(&id).await;
    assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("running")));
    assert!(!stands_still(&pid));
    assert_eq!(nest.sh(&id, &format!("kill -0 {pid} && echo on")).await, "on\n");
}

#[actix_web::test]
async fn pausing_what_is_paused_changes_nothing() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let first = nest.pause(&id).await.json();
    let again = nest.pause(&id).await;
    assert_eq!((again.status, again.json()), (200, first));
    assert_eq!(nest.sandbox(&id).await["storage"]["memory_generations"], 1);
}

/// F15.
#[actix_web::test]
async fn all_who_pause_at_once_get_the_one_pause() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let first = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    nest.becomes(&id, "pausing").await;
    let others: Vec<_> = (0..3).map(|_| nest.begin_to(&id, "pause")).collect();
    // The actor has them all when it has refused this one.
    let message = nest.try_exec(&id, json!({"cmd": "true"})).await.error(409, "invalid_state");
    assert!(message.contains("pausing"), "{message}");
    step.succeed();
    for answer in others.into_iter().chain([first]) {
        let answer = answer.await.unwrap();
        assert_eq!((answer.status, &answer.json()["state"]), (200, &json!("paused")));
    }
    assert_eq!(nest.sandbox(&id).await["storage"]["memory_generations"], 1);
}

#[actix_web::test]
async fn all_who_pause_at_once_hear_of_its_failure() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let first = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    let second = nest.begin_to(&id, "pause");
    nest.try_exec(&id, json!({"cmd": "true"})).await.error(409, "invalid_state");
    nest.machines.set_mode(Step::Pause, Mode::Automatic);
    step.fail(Fault::NoSpace);
    first.await.unwrap().error(507, "no_space");
    // Whether it came before the failure or after it.
    assert!([200, 507].contains(&second.await.unwrap().status));
}

#[actix_web::test]
async fn a_command_in_a_frozen_sandbox_is_refused_and_says_what_to_do() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let refused = async |state: &str, word: &str| {
        nest.becomes(&id, state).await;
        let exec = nest.try_exec(&id, json!({"cmd": "true"})).await;
        let read = format!("/v1/sandboxes/{id}/files/read");
        let read = nest.post(&read, json!({"path": "/x"})).await;
        for answer in [exec, read] {
            let message = answer.error(409, "invalid_state");
            assert!(message.contains(state) && message.contains(word), "{message}");
        }
    };
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    refused("pausing", "resume it first").await;
    step.succeed();
    assert_eq!(pausing.await.unwrap().status, 200);
    refused("paused", "resume it first").await;
    nest.machines.set_mode(Step::Resume, Mode::SingleStep);
    let resuming = nest.begin_to(&id, "resume");
    let step = nest.machines.held(Step::Resume).await;
    refused("resuming", "not running yet").await;
    step.succeed();
    assert_eq!(resuming.await.unwrap().status, 200);
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

#[actix_web::test]
async fn a_command_under_way_ends_when_a_pause_begins() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let file = nest.path("running");
    let running = nest.begin_exec(&id, &json!({"cmd": format!("touch {file}; sleep 1000")}));
    eventually("the command runs", async || std::fs::exists(&file).unwrap().then_some(())).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    let message = running.await.unwrap().error(409, "invalid_state");
    assert!(message.contains("became pausing"), "{message}");
    step.succeed();
    assert_eq!(pausing.await.unwrap().status, 200);
}

/// F4.
#[actix_web::test]
async fn a_pause_that_fails_leaves_it_running() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (fault, status, code) in [(Fault::NoSpace, 507, "no_space"), (Fault::Disk, 500, "internal")]
    {
        nest.machines.set_mode(Step::Pause, Mode::Failing { times: 1, fault });
        nest.pause(&id).await.error(status, code);
        assert_eq!(nest.state(&id).await, "running");
        assert_eq!(nest.sh(&id, "echo on").await, "on\n");
    }
    assert_eq!(nest.pause(&id).await.status, 200, "and it can be paused still");
    assert_eq!(nest.sandbox(&id).await["storage"]["memory_generations"], 1);
}

#[actix_web::test]
async fn the_end_of_a_vm_is_noticed_after_a_pause_that_failed() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::Failing { times: 1, fault: Fault::NoSpace });
    nest.pause(&id).await.error(507, "no_space");
    nest.kill_vm(&id);
    assert_eq!(nest.becomes(&id, "error").await["reason"], "its VM was ended by SIGKILL");
}

#[actix_web::test]
async fn a_vm_that_is_lost_in_a_pause_is_an_error_and_leaves_nothing() {
    let nest = Nest::start().await;
    let by_fault = nest.create(json!({})).await;
    let fault = Fault::VmLost;
    nest.machines.set_mode(Step::Pause, Mode::Failing { times: 1, fault });
    nest.pause(&by_fault).await.error(500, "internal");

    let killed = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStepDeaf);
    let pausing = nest.begin_to(&killed, "pause");
    let _step = nest.machines.held(Step::Pause).await;
    nest.kill_vm(&killed);
    pausing.await.unwrap().error(500, "internal");

    for id in [by_fault, killed] {
        let sandbox = nest.sandbox(&id).await;
        assert_eq!(sandbox["state"], "error", "the answer does not come before the state");
        let reason = sandbox["reason"].as_str().unwrap();
        assert!(reason.contains("lost") && reason.contains("SIGKILL"), "{reason}");
        let message = nest.resume(&id).await.error(409, "invalid_state");
        assert!(message.contains("error") && message.contains("SIGKILL"), "{message}");
        assert_eq!(nest.destroy(&id).await.status, 204);
    }
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
}

/// F15.
#[actix_web::test]
async fn destroy_overtakes_a_slow_pause() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let _step = nest.machines.held(Step::Pause).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    assert!(nest.machines.present().is_empty());
    let message = pausing.await.unwrap().error(409, "invalid_state");
    assert!(message.contains("destroyed"), "{message}");
}

/// F15.
#[actix_web::test]
async fn a_pause_that_ends_while_it_is_destroyed_leaves_nothing() {
    for fault in [None, Some(Fault::NoSpace), Some(Fault::VmLost)] {
        let nest = Nest::start().await;
        let id = nest.create(json!({})).await;
        nest.machines.set_mode(Step::Pause, Mode::SingleStepDeaf);
        let pausing = nest.begin_to(&id, "pause");
        let step = nest.machines.held(Step::Pause).await;
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
        pausing.await.unwrap().error(409, "invalid_state");
    }
}

/// F17.
#[actix_web::test]
async fn a_paused_sandbox_can_be_destroyed_and_again() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.pause(&id).await;
    for _ in 0..2 {
        assert_eq!(nest.destroy(&id).await.status, 204);
        let sandbox = nest.sandbox(&id).await;
        assert_eq!((&sandbox["state"], &sandbox["storage"]), (&json!("stopped"), &Value::Null));
    }
    assert!(nest.machines.present().is_empty());
}

/// F14.
#[actix_web::test]
async fn a_client_that_hangs_up_does_not_cancel_its_pause() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Pause, Mode::SingleStep);
    let pausing = nest.begin_to(&id, "pause");
    let step = nest.machines.held(Step::Pause).await;
    nest.hang_up(pausing).await;
    nest.becomes(&id, "pausing").await;
    step.succeed();
    nest.becomes(&id, "paused").await;
}

#[actix_web::test]
async fn what_cannot_be_paused_says_why() {
    let nest = Nest::start().await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    let message = nest.pause(&id).await.error(409, "invalid_state");
    assert!(message.contains("starting"), "{message}");
    boot.succeed();
    assert_eq!(creating.await.unwrap().status, 201);
    nest.destroy(&id).await;
    let message = nest.pause(&id).await.error(409, "invalid_state");
    assert!(message.contains("stopped"), "{message}");
    nest.pause("aaaaaaaaaaaaaaaaaaaa").await.error(404, "not_found");
}

#[actix_web::test]
async fn a_paused_sandbox_holds_no_network_slot() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let slot = async || {
        let sandbox = nest.database.sandboxes().find(&id.parse().unwrap()).await.unwrap();
        sandbox.unwrap().slot
    };
    assert!(slot().await.is_some());
    nest.pause(&id).await;
    assert_eq!(slot().await, None);
    nest.resume(&id).await;
    assert!(slot().await.is_some());
}

#[actix_web::test]
async fn a_paused_sandbox_takes_room_on_disk_and_lists_do_not_say_so() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.pause(&id).await;
    let storage = nest.sandbox(&id).await["storage"].clone();
    assert_eq!(
        (&storage["memory_bytes"], &storage["memory_generations"]),
        (&json!(4096), &json!(1))
    );
    let list = nest.get("/v1/sandboxes?state=paused").await.json();
    assert_eq!(
        (&list["sandboxes"][0]["id"], list["sandboxes"][0].get("storage")),
        (&json!(id), None)
    );
}

#[actix_web::test]
async fn a_trace_says_where_the_time_went() {
    let nest = Nest::start().await;
    let spans = |answer: &Answer| -> Vec<String> {
        let trace = answer.json()["trace"].as_array().expect("it was asked for").clone();
        for span in &trace {
            let (start, took) =
                (span["start_ms"].as_f64().unwrap(), span["took_ms"].as_f64().unwrap());
            assert!((0.0..30_000.0).contains(&start) && (0.0..30_000.0).contains(&took), "{span}");
        }
        trace.iter().map(|span| span["span"].as_str().unwrap().to_owned()).collect()
    };
    let made = nest.post("/v1/sandboxes?trace=true", json!({"memory_mb": 128})).await;
    assert_eq!(spans(&made), ["record", "guest", "boot"]);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let path = |what: &str| format!("/v1/sandboxes/{id}/{what}");
    let to = async |what: &str| Answer::of(nest.request(Method::POST, &path(what))).await;
    assert_eq!(spans(&to("pause?trace=true").await), ["freeze"]);
    assert_eq!(spans(&to("resume?trace=true").await), ["thaw"]);
    assert_eq!(to("pause?trace=false").await.json().get("trace"), None);
}
