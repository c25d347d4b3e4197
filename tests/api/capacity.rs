//! F25: a host takes only what its real memory holds.

use nestbox::actors::host::Limits;
use nestbox::startup::limits;
use nestbox::vmm::host_memory::host_memory;
use nestbox::vmm::simulated::{Mode, Step};
use reqwest::Method;
use serde_json::json;

use crate::nest::Nest;

#[actix_web::test]
async fn a_host_whose_memory_is_all_kept_free_says_so_and_makes_nothing() {
    let real = limits(None).unwrap();
    // As on a host that is twice as large, of which most is taken.
    let memory_mib = real.memory_mib * 2;
    let nest = Nest::with_limits(Limits { memory_mib, reserve_mib: real.memory_mib, ..real }).await;
    let answer = nest.post("/v1/sandboxes", json!({})).await;
    let message = answer.error(503, "host_unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert!(message.contains("memory") && message.contains("608 MiB"), "{message}");
    assert_eq!(nest.machines.boots(), 0);
    let list = nest.get("/v1/sandboxes?state=pending,starting,error,stopped").await.json();
    assert_eq!(list["sandboxes"], json!([]), "it never was");
}

#[actix_web::test]
async fn a_reserve_beyond_the_hosts_memory_takes_no_sandbox() {
    let real = limits(None).unwrap();
    let nest = Nest::with_limits(Limits { reserve_mib: real.memory_mib + 1, ..real }).await;
    let answer = nest.post("/v1/sandboxes", json!({"memory_mb": 128})).await;
    answer.error(503, "host_unavailable");
    assert_eq!(nest.machines.boots(), 0);
}

#[actix_web::test]
async fn memory_is_promised_once_and_those_that_have_it_are_unharmed() {
    let real = limits(None).unwrap();
    let available = host_memory().unwrap().available_mib;
    let reserve_mib = available / 4;
    let nest = Nest::with_limits(Limits { reserve_mib, ..real }).await;
    let half = json!({"memory_mb": available / 2});
    let request = || nest.request(Method::POST, "/v1/sandboxes").json(&half);

    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let first = nest.begin(request());
    let boot = nest.machines.held(Step::Boot).await;
    let id = boot.id.to_string();
    nest.begin(request()).await.unwrap().error(503, "host_unavailable");
    boot.succeed();
    assert_eq!(first.await.unwrap().status, 201);
    assert_eq!(nest.sh(&id, "echo on").await, "on\n");

    // A simulated machine takes nothing, so what was promised is there again.
    let again = nest.begin(request());
    nest.machines.held(Step::Boot).await.succeed();
    assert_eq!(again.await.unwrap().status, 201);
}

#[actix_web::test]
async fn a_create_that_was_refused_for_memory_frees_its_idempotency_key() {
    let real = limits(None).unwrap();
    let available = host_memory().unwrap().available_mib;
    let nest = Nest::with_limits(Limits { reserve_mib: available / 4, ..real }).await;
    let half = json!({"memory_mb": available / 2});
    let request = |key: &str| {
        let request = nest.request(Method::POST, "/v1/sandboxes");
        request.header("Idempotency-Key", key).json(&half)
    };
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let first = nest.begin(request("first"));
    let boot = nest.machines.held(Step::Boot).await;
    nest.begin(request("second")).await.unwrap().error(503, "host_unavailable");
    boot.succeed();
    assert_eq!(first.await.unwrap().status, 201);
    nest.machines.set_mode(Step::Boot, Mode::Automatic);
    let second = nest.begin(request("second")).await.unwrap();
    assert_eq!(second.status, 201, "{second:?}");
}
