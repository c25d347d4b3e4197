//! How fast a sandbox may be: what is asked for, what the host allows, what is shown.

use nestbox::actors::host::Limits;
use nestbox::domain::rates::RateLimits;
use nestbox::startup::limits;
use serde_json::{Value, json};

use crate::nest::Nest;

async fn rates_of(nest: &Nest, body: Value) -> Value {
    let made = nest.post("/v1/sandboxes", body).await;
    assert_eq!(made.status, 201);
    let id = made.json()["id"].as_str().unwrap().to_owned();
    let shown = nest.get(&format!("/v1/sandboxes/{id}")).await.json()["rate_limits"].clone();
    assert_eq!(shown, made.json()["rate_limits"]);
    shown
}

#[actix_web::test]
async fn a_sandbox_has_the_rates_that_it_asks_for_and_the_hosts_for_the_rest() {
    let host = RateLimits::new(Some(1 << 20), None, Some(1 << 20)).unwrap();
    let real = limits(None).unwrap();
    let nest = Nest::with_limits(Limits { rates: host, ..real }).await;
    let usual = json!({"disk_bytes_per_sec": 1 << 20, "network_bytes_per_sec": 1 << 20});
    assert_eq!(rates_of(&nest, json!({})).await, usual);
    assert_eq!(rates_of(&nest, json!({"rate_limits": {}})).await, usual);
    assert_eq!(rates_of(&nest, json!({"rate_limits": null})).await, usual);
    let lower = json!({"rate_limits": {"disk_bytes_per_sec": 1 << 16, "disk_ops_per_sec": 100}});
    let expected = json!({
        "disk_bytes_per_sec": 1 << 16, "disk_ops_per_sec": 100, "network_bytes_per_sec": 1 << 20,
    });
    assert_eq!(rates_of(&nest, lower).await, expected);
}

#[actix_web::test]
async fn a_rate_that_cannot_be_is_refused_and_nothing_is_made() {
    let host = RateLimits::new(None, None, Some(1 << 20)).unwrap();
    let real = limits(None).unwrap();
    let nest = Nest::with_limits(Limits { rates: host, ..real }).await;
    for (rates, message) in [
        (json!({"disk_ops_per_sec": 1}), "disk_ops_per_sec is 1: it is 10 to 1000000000"),
        (json!({"network_bytes_per_sec": 2 << 20}), "a sandbox has at most 1048576 on this host"),
        (json!({"disk": 1}), "unknown field `disk`"),
        (json!([1]), "expected an object"),
    ] {
        let answer = nest.post("/v1/sandboxes", json!({"rate_limits": rates})).await;
        let said = answer.error(400, "invalid_request");
        assert!(said.contains(message), "{said}");
    }
    assert_eq!(nest.machines.boots(), 0);
}
