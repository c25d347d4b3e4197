//! Sandboxes that begin as another one is now.

use std::collections::BTreeSet;
use std::time::Duration;

use actix_web::rt::time::sleep;
use nestbox::actors::host::Limits;
use nestbox::domain::id::SandboxId;
use nestbox::startup::limits;
use nestbox::vmm::host_memory::host_memory;
use nestbox::vmm::simulated::{Fault, Mode, Step};
use serde_json::json;

use crate::nest::{Answer, Nest, eventually};

/// Asserts that of all forks nothing but these sandboxes is left on the host.
fn assert_present(nest: &Nest, ids: &[&String]) {
    let ids = ids.iter().map(|id| id.parse().unwrap()).collect::<BTreeSet<SandboxId>>();
    assert_eq!(nest.machines.present(), ids);
    assert_eq!(nest.machines.fork_points(), 0);
}

#[actix_web::test]
async fn children_are_like_their_parent_but_for_their_ids_and_tokens() {
    let nest = Nest::start().await;
    let body = json!({"template": "alpine-3.20", "vcpus": 2, "memory_mb": 130, "timeout_sec": 600,
        "envs": {"NAME": "value"}, "metadata": {"owner": "me"}});
    let id = nest.create(body).await;
    let children = nest.fork(&id, 3).await;
    let all: Vec<&String> = children.iter().chain([&id]).collect();
    assert_present(&nest, &all);

    let mut tokens = BTreeSet::new();
    let parent = nest.sandbox(&id).await;
    for one in all {
        let sandbox = nest.sandbox(one).await;
        for field in
            ["state", "template", "vcpus", "memory_mb", "timeout_sec", "metadata", "host_id"]
        {
            assert_eq!(sandbox[field], parent[field], "{field}");
        }
        assert_eq!(nest.sh(one, "echo $NAME").await, "value\n");
        tokens.insert(nest.ports_token(one).await);
    }
    assert_eq!(tokens.len(), 4);
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(nest.sh(&children[0], "echo on").await, "on\n", "children do not need their parent");
}

#[actix_web::test]
async fn one_child_is_made_unless_more_are_asked_for() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let count = |answer: Answer| answer.json()["sandboxes"].as_array().map(Vec::len);
    assert_eq!(count(nest.begin_to(&id, "fork").await.unwrap()), Some(1));
    let path = format!("/v1/sandboxes/{id}/fork");
    assert_eq!(count(nest.post(&path, json!({})).await), Some(1));
    assert_eq!(count(nest.post(&path, json!({"count": 2})).await), Some(2));
}

#[actix_web::test]
async fn a_count_that_makes_no_sense_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = format!("/v1/sandboxes/{id}/fork");
    for count in [json!(0), json!(17), json!(-1), json!(1.5), json!("two")] {
        nest.post(&path, json!({"count": count})).await.error(400, "invalid_request");
    }
    for body in ["{", "[]", "1"] {
        let request = nest.request(reqwest::Method::POST, &path);
        let request = request.header("content-type", "application/json").body(body);
        Answer::of(request).await.error(400, "invalid_request");
    }
    let untyped = nest.request(reqwest::Method::POST, &path).body("{}");
    let message = Answer::of(untyped).await.error(400, "invalid_request");
    assert!(message.contains("application/json"), "{message}");
    assert_present(&nest, &[&id]);
}

#[actix_web::test]
async fn if_one_child_fails_there_are_none() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = format!("/v1/sandboxes/{id}/fork");
    for (fault, status, code) in
        [(Fault::EndedEarly, 502, "agent_error"), (Fault::NoSpace, 507, "no_space")]
    {
        nest.machines.set_mode(Step::Boot, Mode::Failing { times: 1, fault });
        nest.post(&path, json!({"count": 3})).await.error(status, code);
        assert_present(&nest, &[&id]);
    }
    let running = nest.get("/v1/sandboxes?state=pending,starting,running").await.json();
    assert_eq!(running["sandboxes"].as_array().unwrap().len(), 1, "{running}");
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
    assert_eq!(nest.fork(&id, 3).await.len(), 3);
}

/// F25.
#[actix_web::test]
async fn if_there_is_no_memory_for_one_child_there_are_none() {
    let real = limits(None).unwrap();
    let available = host_memory().unwrap().available_mib;
    let nest = Nest::with_limits(Limits { reserve_mib: available / 4, ..real }).await;
    let id = nest.create(json!({"memory_mb": available / 3})).await;
    let path = format!("/v1/sandboxes/{id}/fork");
    let answer = nest.post(&path, json!({"count": 16})).await;
    let message = answer.error(503, "host_unavailable");
    assert!(message.contains("memory"), "{message}");
    assert_present(&nest, &[&id]);
}

#[actix_web::test]
async fn a_sandbox_that_does_not_run_is_not_forked() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let fork = async || nest.begin_to(&id, "fork").await.unwrap();
    nest.pause(&id).await;
    let message = fork().await.error(409, "invalid_state");
    assert!(message.contains("paused: resume it first"), "{message}");
    nest.destroy(&id).await;
    let message = fork().await.error(409, "invalid_state");
    assert!(message.contains("stopped"), "{message}");
    nest.begin_to("aaaaaaaaaaaaaaaaaaaa", "fork").await.unwrap().error(404, "not_found");
}

/// F15.
#[actix_web::test]
async fn one_thing_is_done_at_a_time_and_work_goes_on_beside_a_fork() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let forking = nest.begin_to(&id, "fork");
    let step = nest.machines.held(Step::Capture).await;
    assert_eq!(nest.state(&id).await, "running");
    for what in ["fork", "pause"] {
        let message = nest.begin_to(&id, what).await.unwrap().error(409, "invalid_state");
        assert!(message.contains("running") && message.contains("fork"), "{message}");
    }
    let message = nest.snapshot(&id, "kept").await.error(409, "invalid_state");
    assert!(message.contains("fork"), "{message}");
    assert_eq!(nest.resume(&id).await.status, 200, "it runs");
    let working = nest.begin_exec(&id, &json!({"cmd": "echo on"}));
    step.succeed();
    assert_eq!(working.await.unwrap().json()["stdout"], "on\n");
    assert_eq!(forking.await.unwrap().status, 201);
    assert_eq!(nest.pause(&id).await.status, 200);
}

/// F4.
#[actix_web::test]
async fn a_fork_that_fails_leaves_its_parent_running() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::Failing { times: 1, fault: Fault::NoSpace });
    nest.begin_to(&id, "fork").await.unwrap().error(507, "no_space");
    assert_eq!(nest.state(&id).await, "running");
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
    assert_present(&nest, &[&id]);
    assert_eq!(nest.fork(&id, 1).await.len(), 1);
}

#[actix_web::test]
async fn a_vm_that_is_lost_in_a_fork_is_an_error_and_leaves_nothing() {
    let nest = Nest::start().await;
    let by_fault = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::Failing { times: 1, fault: Fault::VmLost });
    nest.begin_to(&by_fault, "fork").await.unwrap().error(500, "internal");
    let killed = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStepDeaf);
    let forking = nest.begin_to(&killed, "fork");
    let _step = nest.machines.held(Step::Capture).await;
    nest.kill_vm(&killed);
    forking.await.unwrap().error(500, "internal");
    for id in [by_fault, killed] {
        let reason = nest.becomes(&id, "error").await["reason"].clone();
        assert!(reason.as_str().unwrap().contains("SIGKILL"), "{reason}");
    }
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
}

/// F15.
#[actix_web::test]
async fn destroy_overtakes_a_slow_fork() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let forking = nest.begin_to(&id, "fork");
    let _step = nest.machines.held(Step::Capture).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    assert_eq!(nest.state(&id).await, "stopped");
    forking.await.unwrap().error(409, "invalid_state");
    assert_present(&nest, &[]);
}

/// F15.
#[actix_web::test]
async fn a_fork_that_succeeds_while_its_parent_is_destroyed_has_children() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStepDeaf);
    let forking = nest.begin_to(&id, "fork");
    let step = nest.machines.held(Step::Capture).await;
    let destroying = nest.begin_destroy(&id);
    nest.becomes(&id, "stopping").await;
    assert!(!destroying.is_finished(), "it waits until nothing is left");
    step.succeed();
    assert_eq!(destroying.await.unwrap().status, 204);
    let child = forking.await.unwrap().json()["sandboxes"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(nest.sh(&child, "echo on").await, "on\n");
    assert_present(&nest, &[&child]);
}

/// F14.
#[actix_web::test]
async fn a_client_that_hangs_up_does_not_cancel_its_fork() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let forking = nest.begin_to(&id, "fork");
    let step = nest.machines.held(Step::Capture).await;
    nest.hang_up(forking).await;
    step.succeed();
    let made = eventually("the child runs", async || {
        let list = nest.get("/v1/sandboxes?state=running").await.json();
        (list["sandboxes"].as_array().unwrap().len() == 2).then_some(list)
    });
    made.await;
    let settled = async || (nest.machines.fork_points() == 0).then_some(());
    eventually("nothing is left of the fork", settled).await;
}

/// Its reminder comes while it cannot be ended.
#[actix_web::test]
async fn a_sandbox_whose_time_runs_out_in_a_fork_ends_after_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"timeout_sec": 1})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let forking = nest.begin_to(&id, "fork");
    let step = nest.machines.held(Step::Capture).await;
    sleep(Duration::from_millis(1500)).await;
    assert_eq!(nest.state(&id).await, "running");
    step.succeed();
    assert_eq!(forking.await.unwrap().status, 201);
    let ended = nest.becomes(&id, "stopped").await;
    assert_eq!(ended["reason"], "no work was done in it for 1 s");
}

#[actix_web::test]
async fn a_trace_of_a_fork_has_the_steps_of_parent_and_children() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let path = format!("/v1/sandboxes/{id}/fork?trace=true");
    let answer = nest.post(&path, json!({"count": 3})).await.json();
    let trace = answer["trace"].as_array().unwrap();
    let count = |name: &str| trace.iter().filter(|span| span["span"] == name).count();
    assert_eq!((count("freeze"), count("guest"), count("boot")), (1, 3, 3));
    let first: Vec<_> = trace[..4].iter().map(|span| span["span"].as_str().unwrap()).collect();
    assert_eq!(first, ["record", "record", "record", "freeze"], "recorded first, as in a create");
    assert!(answer["sandboxes"].as_array().unwrap().iter().all(|one| one.get("trace").is_none()));
}
