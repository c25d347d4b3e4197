//! Metrics count, and every answer can be found in the log.

use nestbox::vmm::simulated::{Fault, Mode, Step};
use reqwest::Method;
use serde_json::json;

use crate::exec_stream::open;
use crate::nest::{Answer, Nest, eventually};

/// The value of one sample in Prometheus's text format.
fn sample(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}

/// Checks the text's form, line by line.
fn assert_parses(text: &str) {
    assert!(text.ends_with("# EOF\n"), "{text}");
    for line in text.lines().filter(|line| !line.starts_with("# ")) {
        let (name, value) = line.rsplit_once(' ').expect("a sample has a value");
        let bare = name.split('{').next().unwrap();
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '_';
        assert!(bare.starts_with("nestbox_") && bare.chars().all(legal), "{line}");
        value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
    }
}

#[actix_web::test]
async fn metrics_parse_and_count() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let second = nest.create(json!({})).await;
    nest.destroy(&second).await;
    nest.sh(&id, "true").await;
    nest.get("/v1/nothing").await;

    let answer = nest.get("/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").unwrap().starts_with("application/openmetrics-text"));
    let text = String::from_utf8(answer.body.to_vec()).unwrap();
    assert_parses(&text);
    for (name, value) in [
        ("nestbox_sandboxes{state=\"running\"}", 1.0),
        ("nestbox_sandbox_create_seconds_count", 2.0),
        ("nestbox_sandbox_create_failures_total", 0.0),
        ("nestbox_command_seconds_count", 1.0),
        ("nestbox_http_requests_total{status=\"201\"}", 2.0),
        ("nestbox_http_requests_total{status=\"204\"}", 1.0),
        ("nestbox_http_requests_total{status=\"404\"}", 1.0),
        ("nestbox_http_request_seconds_count", 5.0),
    ] {
        assert_eq!(sample(&text, name), Some(value), "{name} in {text}");
    }
    assert!(!text.contains(&id), "no ids in labels");
}

#[actix_web::test]
async fn what_is_done_to_sandboxes_is_counted_and_timed() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    nest.fork(&id, 2).await;
    nest.pause(&id).await;
    nest.snapshot(&id, "kept").await;
    nest.snapshot(&id, "kept").await.error(409, "conflict");
    nest.machines.set_mode(Step::Resume, Mode::Failing { times: 1, fault: Fault::NoSpace });
    nest.resume(&id).await.error(507, "no_space");
    nest.resume(&id).await;
    nest.pause(&id).await;

    let text = String::from_utf8(nest.get("/metrics").await.body.to_vec()).unwrap();
    assert_parses(&text);
    for (name, value) in [
        ("nestbox_sandboxes{state=\"running\"}", Some(2.0)),
        ("nestbox_sandboxes{state=\"paused\"}", Some(1.0)),
        ("nestbox_sandbox_create_seconds_count", Some(3.0)),
        ("nestbox_operation_seconds_count{operation=\"fork\"}", Some(1.0)),
        ("nestbox_operation_seconds_count{operation=\"pause\"}", Some(2.0)),
        ("nestbox_operation_seconds_count{operation=\"snapshot\"}", Some(1.0)),
        ("nestbox_operation_seconds_count{operation=\"resume\"}", Some(1.0)),
        ("nestbox_operation_failures_total{operation=\"resume\"}", Some(1.0)),
        // A name that is taken is no failure of the host.
        ("nestbox_operation_failures_total{operation=\"snapshot\"}", None),
    ] {
        assert_eq!(sample(&text, name), value, "{name} in {text}");
    }
}

#[actix_web::test]
async fn what_sandboxes_take_together_is_told() {
    let nest = Nest::start().await;
    let text = async || String::from_utf8(nest.get("/metrics").await.body.to_vec()).unwrap();
    let of =
        |text: &str, name: &str| sample(text, name).unwrap_or_else(|| panic!("{name}: {text}"));
    let (cpu, memory) = ("nestbox_sandbox_cpu_seconds_total", "nestbox_sandbox_memory_bytes");
    let idle = text().await;
    assert_parses(&idle);
    assert_eq!((of(&idle, cpu), of(&idle, memory)), (0.0, 0.0));
    for name in [
        "nestbox_slots_ready",
        "nestbox_vmms_ready",
        "nestbox_standbys_ready",
        "nestbox_websocket_sessions",
    ] {
        assert_eq!(of(&idle, name), 0.0, "{name}");
    }
    assert_eq!(of(&idle, "nestbox_database_busy_retries_total"), 0.0);
    assert!(of(&idle, "nestbox_mailbox_refusals_total") >= 0.0);

    let id = nest.create(json!({})).await;
    eventually("its memory is counted", async || (of(&text().await, memory) > 1e5).then_some(()))
        .await;
    // It is destroyed before it was ever sampled, and counts all the same.
    nest.sh(&id, "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done").await;
    nest.destroy(&id).await;
    let after = text().await;
    assert!(of(&after, cpu) > 0.02, "{after}");
    assert_eq!(of(&after, memory), 0.0);
}

#[actix_web::test]
async fn websockets_are_counted_while_they_are_open() {
    let nest = Nest::start().await;
    let id = nest.create(json!({})).await;
    let open_ones = async || {
        let text = String::from_utf8(nest.get("/metrics").await.body.to_vec()).unwrap();
        sample(&text, "nestbox_websocket_sessions").unwrap()
    };
    let mut first = open(&nest, &id).await;
    let second = open(&nest, &id).await;
    assert_eq!(open_ones().await, 2.0);
    first.start("true").await;
    first.rest().await;
    second.vanish();
    eventually("they are gone", async || (open_ones().await == 0.0).then_some(())).await;
}

#[actix_web::test]
async fn every_answer_has_an_id_of_its_own() {
    let nest = Nest::start().await;
    let mut ids = std::collections::BTreeSet::new();
    for path in ["/health", "/v1/sandboxes", "/v1/nothing", "/metrics"] {
        let answer = Answer::of(nest.request(Method::GET, path)).await;
        ids.insert(answer.header("x-request-id").expect("an id").to_owned());
    }
    assert_eq!(ids.len(), 4);
}

#[actix_web::test]
async fn health_says_the_version() {
    let nest = Nest::start().await;
    let health = nest.get("/health").await.json();
    assert_eq!(health, json!({"status": "ok", "version": env!("CARGO_PKG_VERSION")}));
}
