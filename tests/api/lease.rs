//! Leases: a sandbox that its client does not renew ends, whatever goes on in it.

use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::{Value, json};

use crate::nest::{Answer, Nest, eventually};

async fn renew(nest: &Nest, id: &str, body: Value) -> Answer {
    let path = format!("/v1/sandboxes/{id}/lease");
    Answer::of(nest.request(Method::PUT, &path).json(&body)).await
}

/// Waits until it has ended, for this reason.
async fn ends_unrenewed(nest: &Nest, id: &str) {
    let sandbox = nest.becomes(id, "stopped").await;
    let reason = sandbox["reason"].as_str().expect("it says why");
    assert!(reason.contains("has not renewed its lease"), "{reason}");
}

#[actix_web::test]
async fn a_sandbox_whose_lease_is_not_renewed_ends_whatever_goes_on_in_it() {
    let nest = Nest::start().await;
    let leased = async || nest.create(json!({ "lease_sec": 2 })).await;
    let renewed = leased().await;
    let released = leased().await;
    let parent = nest.create(json!({})).await;
    assert_eq!(renew(&nest, &renewed, json!({ "lease_sec": 3600 })).await.status, 204);
    let path = format!("/v1/sandboxes/{released}/lease");
    assert_eq!(nest.delete(&path).await.status, 204);

    // All of these begin after that, and have no longer to live than those had.
    let (paused, busy) = (leased().await, leased().await);
    let fork = format!("/v1/sandboxes/{parent}/fork");
    let forked = nest.post(&fork, json!({ "lease_sec": 2 })).await.json();
    let forked = forked["sandboxes"][0]["id"].as_str().expect("a child").to_owned();
    nest.pause(&paused).await;
    let work = nest.begin_exec(&busy, &json!({ "cmd": "sleep 1000" }));
    for id in [&paused, &busy, &forked] {
        ends_unrenewed(&nest, id).await;
    }
    let message = work.await.unwrap().error(409, "invalid_state");
    assert!(message.contains("has not renewed its lease"), "{message}");
    for id in [&renewed, &released, &parent] {
        assert_eq!(nest.state(id).await, "running");
    }
    // What is gone is not brought back.
    renew(&nest, &busy, json!({ "lease_sec": 60 })).await.error(409, "invalid_state");
    let nobody = "k3v9x1p0qzt7m2c8rw5b";
    renew(&nest, nobody, json!({ "lease_sec": 60 })).await.error(404, "not_found");
}

#[actix_web::test]
async fn a_later_daemon_knows_of_a_lease_and_gives_time_to_renew_it() {
    let nest = Nest::start().await;
    let long = nest.create(json!({ "lease_sec": 3600 })).await;
    let given = nest.create(json!({})).await;
    renew(&nest, &given, json!({ "lease_sec": 2 })).await;
    let paused = nest.create(json!({ "lease_sec": 2 })).await;
    nest.pause(&paused).await;
    let nest = nest.restart().await;
    for id in [&given, &paused] {
        ends_unrenewed(&nest, id).await;
    }
    assert_eq!(nest.state(&long).await, "running");
}

#[actix_web::test]
async fn a_lease_that_makes_no_sense_is_refused() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    for seconds in [0, 86_401] {
        let wish = json!({ "lease_sec": seconds });
        for answer in [
            nest.post("/v1/sandboxes", wish.clone()).await,
            nest.post(&format!("/v1/sandboxes/{id}/fork"), wish.clone()).await,
            renew(&nest, &id, wish.clone()).await,
        ] {
            let message = answer.error(400, "invalid_request");
            assert_eq!(message, "lease_sec is from 1 to 86400");
        }
    }
    renew(&nest, &id, json!({})).await.error(400, "invalid_request");
}

#[actix_web::test]
async fn a_sandbox_of_run_lives_as_long_as_the_program_and_ends_when_it_is_killed() {
    let nest = Nest::start().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_nestbox"));
    command.env("NESTBOX_DATA_DIR", nest.dir.path());
    command.env_remove("NESTBOX_URL").env_remove("NESTBOX_API_KEY");
    command.args(["run", "--rm", "--lease-sec", "4", "--", "sleep", "1000"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut program = command.spawn().unwrap();
    let running = async || {
        let list = nest.get("/v1/sandboxes?state=running").await.json();
        list["sandboxes"][0]["id"].as_str().map(str::to_owned)
    };
    let id = eventually("its sandbox runs", running).await;
    // One whose lease began later, and as long, ends before that of the program does.
    let unrenewed = nest.create(json!({ "lease_sec": 4 })).await;
    ends_unrenewed(&nest, &unrenewed).await;
    assert_eq!(nest.state(&id).await, "running");
    program.kill().unwrap();
    program.wait().unwrap();
    ends_unrenewed(&nest, &id).await;
}
