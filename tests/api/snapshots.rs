//! Named snapshots: taken, listed, used, replaced and deleted.

use std::collections::BTreeSet;

use nestbox::vmm::machine::Machines;
use nestbox::vmm::simulated::{Fault, Mode, Step};
use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest, eventually};

const UNKNOWN: &str = "aaaaaaaaaaaaaaaaaaaa";

async fn names(nest: &Nest) -> Vec<String> {
    let answer = nest.get("/v1/snapshots").await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let list = answer.json()["snapshots"].as_array().unwrap().clone();
    list.iter().map(|one| one["name"].as_str().unwrap().to_owned()).collect()
}

async fn take(nest: &Nest, id: &str, name: &str) -> Value {
    let answer = nest.snapshot(id, name).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    answer.json()
}

#[actix_web::test]
async fn a_snapshot_says_what_it_is_of_and_what_it_takes() {
    let nest = Nest::start().await;
    let body = json!({"template": "alpine-3.20", "vcpus": 2, "memory_mb": 130});
    let id = nest.create(body).await;
    let taken = take(&nest, &id, "kept").await;
    let fields: BTreeSet<&str> = taken.as_object().unwrap().keys().map(String::as_str).collect();
    let expected = [
        "name",
        "sandbox_id",
        "image",
        "vcpus",
        "memory_mb",
        "hypervisor",
        "memory_bytes",
        "memory_generations",
        "disk_bytes",
        "shared_bytes",
        "created_at",
    ];
    assert_eq!(fields, BTreeSet::from(expected));
    assert_eq!((&taken["name"], &taken["sandbox_id"]), (&json!("kept"), &json!(id)));
    assert_eq!(
        (&taken["image"], &taken["hypervisor"]),
        (&json!("alpine-3.20"), &json!("simulated"))
    );
    assert_eq!((&taken["vcpus"], &taken["memory_mb"]), (&json!(2), &json!(130)));
    assert_eq!((&taken["memory_generations"], &taken["memory_bytes"]), (&json!(1), &json!(4096)));
    assert_eq!(nest.state(&id).await, "running");
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");

    let seen = nest.get("/v1/snapshots/kept").await.json();
    let list = nest.get("/v1/snapshots").await.json();
    assert_eq!(list, json!({"snapshots": [seen], "next_cursor": null}));
    assert_eq!(seen, taken);
}

#[actix_web::test]
async fn a_paused_sandbox_stays_paused_when_a_snapshot_is_taken_of_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.pause(&id).await;
    assert_eq!(take(&nest, &id, "kept").await["memory_generations"], 1);
    assert_eq!(nest.state(&id).await, "paused");
    assert_eq!(nest.resume(&id).await.status, 200);
}

#[actix_web::test]
async fn a_sandbox_from_a_snapshot_has_its_shape_and_names_it() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"template": "alpine-3.20", "vcpus": 2, "memory_mb": 130})).await;
    take(&nest, &id, "kept").await;
    nest.destroy(&id).await;
    let same = json!({"template": "kept", "vcpus": 2, "memory_mb": 130});
    for body in [json!({"template": "kept"}), same] {
        let answer = nest.post("/v1/sandboxes", body).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let made = answer.json();
        assert_eq!((&made["template"], &made["state"]), (&json!("kept"), &json!("running")));
        assert_eq!((&made["vcpus"], &made["memory_mb"]), (&json!(2), &json!(130)));
        let again = take(&nest, made["id"].as_str().unwrap(), "again").await;
        assert_eq!(again["image"], "alpine-3.20", "the image that it all began with");
        assert_eq!(nest.delete("/v1/snapshots/again").await.status, 204);
    }
}

#[actix_web::test]
async fn a_snapshot_has_one_shape_and_a_request_for_another_uses_no_idempotency_key() {
    let nest = Nest::start().await;
    let id = nest.create(json!({"memory_mb": 130})).await;
    take(&nest, &id, "kept").await;
    let create = async |body: Value| {
        let request = nest.request(Method::POST, "/v1/sandboxes").header("Idempotency-Key", "once");
        Answer::of(request.json(&body)).await
    };
    for field in [json!({"vcpus": 2}), json!({"memory_mb": 131}), json!({"memory_mb": 512})] {
        let mut body = json!({"template": "kept"});
        body.as_object_mut().unwrap().extend(field.as_object().unwrap().clone());
        let message = create(body).await.error(400, "invalid_request");
        let says = ["kept", "1 vCPUs", "130 MiB"].iter().all(|word| message.contains(word));
        assert!(says, "{message}");
    }
    let made = create(json!({"template": "kept"})).await;
    assert_eq!(made.status, 201, "{made:?}");
    assert_eq!(create(json!({"template": "kept"})).await.json()["id"], made.json()["id"]);
    assert_eq!(nest.machines.boots(), 2);
}

/// F24: names of snapshots become paths.
#[actix_web::test]
async fn a_name_that_is_none_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let long = "a".repeat(64);
    for name in ["..", ".", "../x", "a/b", "/etc", "", "A", "a b", "a\0", ".a", "-a", &long] {
        let message = nest.snapshot(&id, name).await.error(400, "invalid_request");
        assert!(message.contains("name"), "{message}");
    }
    for path in ["..%2F..%2Fetc", "A", "a%2Fb", "%00", &long] {
        let path = format!("/v1/snapshots/{path}");
        nest.delete(&path).await.error(400, "invalid_request");
        nest.get(&path).await.error(400, "invalid_request");
    }
    assert!(names(&nest).await.is_empty());
}

#[actix_web::test]
async fn a_request_that_makes_no_sense_is_refused() {
    let nest = Nest::start().await;
    for body in [
        json!({}),
        json!({"name": "x"}),
        json!({"sandbox_id": UNKNOWN}),
        json!({"sandbox_id": "x", "name": "x"}),
        json!({"sandbox_id": UNKNOWN, "name": "x", "overwrite": "yes"}),
    ] {
        nest.post("/v1/snapshots", body).await.error(400, "invalid_request");
    }
    nest.snapshot(UNKNOWN, "x").await.error(404, "not_found");
    nest.get("/v1/snapshots/x").await.error(404, "not_found");
    nest.delete("/v1/snapshots/x").await.error(404, "not_found");
    nest.delete("/v1/snapshots/debian").await.error(404, "not_found");
    for (query, word) in
        [("limit=0", "limit"), ("limit=1001", "limit"), ("cursor=x", "cursor"), ("a=b", "a")]
    {
        let answer = nest.get(&format!("/v1/snapshots?{query}")).await;
        let message = answer.error(400, "invalid_request");
        assert!(message.contains(word), "{message}");
    }
    let id = nest.create(json!({})).await;
    nest.destroy(&id).await;
    let message = nest.snapshot(&id, "x").await.error(409, "invalid_state");
    assert!(message.contains("stopped"), "{message}");
}

#[actix_web::test]
async fn a_name_that_is_taken_is_a_conflict_unless_it_is_to_be_overwritten() {
    let nest = Nest::start().await;
    let first = nest.create(json!({})).await;
    let second = nest.create(json!({"memory_mb": 130})).await;
    take(&nest, &first, "kept").await;
    let child = nest.post("/v1/sandboxes", json!({"template": "kept"})).await.json();
    let message = nest.snapshot(&second, "kept").await.error(409, "conflict");
    assert!(message.contains("kept"), "{message}");
    let message = nest.snapshot(&second, "debian").await.error(409, "conflict");
    assert!(message.contains("debian"), "{message}");
    assert_eq!(nest.get("/v1/snapshots/kept").await.json()["sandbox_id"], first);
    assert_eq!(nest.sh(&second, "echo on").await, "on\n");

    let body = json!({"sandbox_id": second, "name": "kept", "overwrite": true});
    let answer = nest.post("/v1/snapshots", body).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    let now = nest.get("/v1/snapshots/kept").await.json();
    assert_eq!((&now["sandbox_id"], &now["memory_mb"]), (&json!(second), &json!(130)));
    assert_eq!(names(&nest).await, ["kept"]);
    assert_eq!(nest.sh(child["id"].as_str().unwrap(), "echo on").await, "on\n");
    assert_eq!(
        nest.post("/v1/sandboxes", json!({"template": "kept"})).await.json()["memory_mb"],
        130
    );
}

#[actix_web::test]
async fn of_two_that_take_a_name_at_once_one_has_it() {
    let nest = Nest::start().await;
    let sandboxes = [nest.create(json!({})).await, nest.create(json!({})).await];
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let taking: Vec<_> = sandboxes.iter().map(|id| nest.begin_snapshot(id, "kept")).collect();
    let steps = [nest.machines.held(Step::Capture).await, nest.machines.held(Step::Capture).await];
    steps.into_iter().for_each(|step| step.succeed());
    let mut taken = Vec::new();
    for (answer, id) in taking.into_iter().zip(&sandboxes) {
        let answer = answer.await.unwrap();
        match answer.status {
            201 => taken.push(id),
            _ => drop(answer.error(409, "conflict")),
        }
    }
    assert_eq!(taken.len(), 1);
    assert_eq!(nest.get("/v1/snapshots/kept").await.json()["sandbox_id"], *taken[0]);
}

#[actix_web::test]
async fn a_deleted_snapshot_is_gone_and_what_was_made_from_it_lives_on() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    take(&nest, &id, "kept").await;
    let child = nest.post("/v1/sandboxes", json!({"template": "kept"})).await.json();
    let child = child["id"].as_str().unwrap();
    let answer = nest.delete("/v1/snapshots/kept").await;
    assert_eq!((answer.status, answer.body.len()), (204, 0));
    assert!(names(&nest).await.is_empty());
    nest.delete("/v1/snapshots/kept").await.error(404, "not_found");
    let message = nest.post("/v1/sandboxes", json!({"template": "kept"})).await;
    assert!(message.error(404, "not_found").contains("kept"));
    assert_eq!(nest.sh(child, "echo on").await, "on\n");
    for id in [child, &id] {
        assert_eq!(nest.pause(id).await.status, 200);
        assert_eq!(nest.resume(id).await.status, 200);
    }
    take(&nest, child, "kept").await;
    assert_eq!(nest.get("/v1/snapshots/kept").await.json()["sandbox_id"], child);
}

#[actix_web::test]
async fn snapshots_are_listed_newest_first_and_page_by_page() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for name in ["one", "two.2", "three-3", "four_4", "five"] {
        take(&nest, &id, name).await;
    }
    let all = ["five", "four_4", "three-3", "two.2", "one"];
    assert_eq!(names(&nest).await, all);
    let (mut seen, mut query) = (Vec::new(), "?limit=2".to_owned());
    loop {
        let page = nest.get(&format!("/v1/snapshots{query}")).await.json();
        let snapshots = page["snapshots"].as_array().unwrap();
        assert!(snapshots.len() <= 2);
        seen.extend(snapshots.iter().map(|one| one["name"].as_str().unwrap().to_owned()));
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=2&cursor={cursor}");
    }
    assert_eq!(seen, all);
}

/// F4.
#[actix_web::test]
async fn a_snapshot_that_fails_leaves_the_sandbox_as_it_was_and_no_snapshot() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for state in ["running", "paused"] {
        for (fault, status, code) in
            [(Fault::NoSpace, 507, "no_space"), (Fault::Disk, 500, "internal")]
        {
            nest.machines.set_mode(Step::Capture, Mode::Failing { times: 1, fault });
            nest.snapshot(&id, "kept").await.error(status, code);
            assert_eq!(nest.state(&id).await, state);
        }
        if state == "running" {
            assert_eq!(nest.sh(&id, "echo on").await, "on\n");
        }
        nest.pause(&id).await;
    }
    assert!(names(&nest).await.is_empty());
    take(&nest, &id, "kept").await;
}

#[actix_web::test]
async fn a_vm_that_is_lost_in_a_snapshot_is_an_error() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::Failing { times: 1, fault: Fault::VmLost });
    nest.snapshot(&id, "kept").await.error(500, "internal");
    nest.becomes(&id, "error").await;
    eventually("nothing is left", async || nest.machines.present().is_empty().then_some(())).await;
    assert!(names(&nest).await.is_empty());
}

/// F15.
#[actix_web::test]
async fn one_thing_is_done_at_a_time_while_a_snapshot_is_taken() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for (state, refused) in [("running", ["pause", "fork"]), ("paused", ["resume", "resume"])] {
        nest.machines.set_mode(Step::Capture, Mode::SingleStep);
        let taking = nest.begin_snapshot(&id, state);
        let step = nest.machines.held(Step::Capture).await;
        assert_eq!(nest.state(&id).await, state);
        for what in refused {
            let message = nest.begin_to(&id, what).await.unwrap().error(409, "invalid_state");
            assert!(message.contains(state) && message.contains("snapshot"), "{message}");
        }
        nest.snapshot(&id, "other").await.error(409, "invalid_state");
        step.succeed();
        assert_eq!(taking.await.unwrap().status, 201);
        assert_eq!(nest.pause(&id).await.status, 200);
    }
    assert_eq!(nest.resume(&id).await.status, 200);
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");
}

/// F15.
#[actix_web::test]
async fn destroy_overtakes_a_slow_snapshot() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let taking = nest.begin_snapshot(&id, "kept");
    let _step = nest.machines.held(Step::Capture).await;
    assert_eq!(nest.destroy(&id).await.status, 204);
    taking.await.unwrap().error(409, "invalid_state");
    assert!(names(&nest).await.is_empty() && nest.machines.present().is_empty());
}

/// F14.
#[actix_web::test]
async fn a_client_that_hangs_up_does_not_cancel_its_snapshot() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.machines.set_mode(Step::Capture, Mode::SingleStep);
    let taking = nest.begin_snapshot(&id, "kept");
    let step = nest.machines.held(Step::Capture).await;
    nest.hang_up(taking).await;
    step.succeed();
    eventually("it is there", async || (names(&nest).await == ["kept"]).then_some(())).await;
}

#[actix_web::test]
async fn a_new_daemon_goes_by_what_is_on_its_disk() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    take(&nest, &id, "kept").await;
    take(&nest, &id, "vanished").await;
    let kept = nest.get("/v1/snapshots/kept").await.json();
    nest.machines.remove_snapshot(&"vanished".parse().unwrap()).await.unwrap();
    assert_eq!(names(&nest).await, ["vanished", "kept"], "nobody has looked yet");

    let nest = nest.restart().await;
    assert_eq!(names(&nest).await, ["kept"]);
    assert_eq!(nest.get("/v1/snapshots/kept").await.json(), kept);
    let made = nest.post("/v1/sandboxes", json!({"template": "kept"})).await;
    assert_eq!(made.status, 201, "{made:?}");
}

#[actix_web::test]
async fn a_snapshot_whose_files_are_gone_can_be_deleted() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    take(&nest, &id, "kept").await;
    nest.machines.remove_snapshot(&"kept".parse().unwrap()).await.unwrap();
    assert_eq!(nest.delete("/v1/snapshots/kept").await.status, 204);
    nest.delete("/v1/snapshots/kept").await.error(404, "not_found");
}
