//! Lists of sandboxes: filters and pages.

use std::collections::BTreeSet;

use nestbox::vmm::simulated::{Fault, Mode, Step};
use serde_json::json;

use crate::nest::Nest;

async fn ids(nest: &Nest, query: &str) -> Vec<String> {
    let answer = nest.get(&format!("/v1/sandboxes{query}")).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let list = answer.json();
    let sandboxes = list["sandboxes"].as_array().unwrap();
    sandboxes.iter().map(|sandbox| sandbox["id"].as_str().unwrap().to_owned()).collect()
}

#[actix_web::test]
async fn an_empty_host_lists_nothing() {
    let nest = Nest::start().await;
    let answer = nest.get("/v1/sandboxes").await;
    assert_eq!(answer.json(), json!({"sandboxes": [], "next_cursor": null}));
}

#[actix_web::test]
async fn those_that_live_are_listed_newest_first_and_stopped_ones_when_asked_for() {
    let nest = Nest::start().await;
    let first = nest.create(json!({})).await;
    let second = nest.create(json!({})).await;
    let gone = nest.create(json!({})).await;
    nest.destroy(&gone).await;

    assert_eq!(ids(&nest, "").await, [second.clone(), first.clone()]);
    assert_eq!(ids(&nest, "?state=stopped").await, [gone.as_str()]);
    let all = [gone, second, first];
    assert_eq!(ids(&nest, "?state=stopped,running").await, all);
    assert_eq!(ids(&nest, "?state=stopped&state=running").await, all);
    assert!(ids(&nest, "?state=error").await.is_empty());
}

#[actix_web::test]
async fn those_that_have_ended_are_listed_apart_and_forgotten_together() {
    let nest = Nest::start().await;
    let (living, stopped) = (nest.create(json!({})).await, nest.create(json!({})).await);
    nest.destroy(&stopped).await;
    nest.machines.set_mode(Step::Boot, Mode::SingleStep);
    let creating = nest.begin_create();
    let boot = nest.machines.held(Step::Boot).await;
    let failed = boot.id.to_string();
    boot.fail(Fault::EndedEarly);
    creating.await.unwrap();
    nest.becomes(&failed, "error").await;
    assert_eq!(ids(&nest, "").await, [living.as_str()]);
    assert_eq!(ids(&nest, "?state=ended").await, [failed.clone(), stopped.clone()]);
    let all = [failed.as_str(), stopped.as_str(), living.as_str()];
    assert_eq!(ids(&nest, "?state=running,ended").await, all);

    for query in ["", "?state=running", "?state=ended&state=running", "?state=ended&x=y"] {
        nest.delete(&format!("/v1/sandboxes{query}")).await.error(400, "invalid_request");
    }
    let cleared = nest.delete("/v1/sandboxes?state=ended").await;
    assert_eq!((cleared.status, cleared.json()), (200, json!({"cleared": 2})));
    assert!(ids(&nest, "?state=ended").await.is_empty());
    assert_eq!(ids(&nest, "").await, [living]);
    nest.get(&format!("/v1/sandboxes/{failed}")).await.error(404, "not_found");
    let again = nest.delete("/v1/sandboxes?state=ended").await;
    assert_eq!(again.json(), json!({"cleared": 0}));
}

#[actix_web::test]
async fn labels_select_and_mean_nothing_to_the_database() {
    let nest = Nest::start().await;
    let plain = nest.create(json!({"metadata": {"app": "web", "stage": "test"}})).await;
    let odd = nest.create(json!({"metadata": {"a.b\"'$[0]": "x=y & 100%", "app": "web"}})).await;

    assert_eq!(ids(&nest, "?metadata=app%3Dweb").await, [odd.clone(), plain.clone()]);
    let both = "?metadata=app%3Dweb&metadata=stage%3Dtest";
    assert_eq!(ids(&nest, both).await, [plain]);
    let escaped = "?metadata=a.b%22%27%24%5B0%5D%3Dx%3Dy%20%26%20100%25";
    assert_eq!(ids(&nest, escaped).await, [odd]);
    for none in [
        "?metadata=app%3D",
        "?metadata=app%3DWEB",
        "?metadata=%27%20OR%201%3D1--%3D",
        "?metadata=app%3Dweb%00",
    ] {
        assert!(ids(&nest, none).await.is_empty(), "{none}");
    }
}

#[actix_web::test]
async fn pages_show_each_sandbox_once_although_others_come_and_go() {
    let nest = Nest::start().await;
    let mut made = Vec::new();
    for _ in 0..5 {
        made.push(nest.create(json!({})).await);
    }
    let mut seen = Vec::new();
    let mut query = "?limit=2".to_owned();
    let mut pages = 0;
    loop {
        let page = nest.get(&format!("/v1/sandboxes{query}")).await.json();
        let sandboxes = page["sandboxes"].as_array().unwrap();
        assert!(sandboxes.len() <= 2);
        seen.extend(sandboxes.iter().map(|one| one["id"].as_str().unwrap().to_owned()));
        pages += 1;
        // One that came after the first page, and one that was shown already.
        if pages == 1 {
            nest.create(json!({})).await;
            nest.destroy(&made[4]).await;
        }
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        query = format!("?limit=2&cursor={cursor}");
    }
    assert_eq!((pages, seen.len()), (3, 5));
    let unique: BTreeSet<&String> = seen.iter().collect();
    assert_eq!(unique, made.iter().collect());
}

#[actix_web::test]
async fn a_list_that_makes_no_sense_is_refused() {
    let nest = Nest::start().await;
    for (query, word) in [
        ("?state=asleep", "asleep"),
        ("?state=", "state"),
        ("?state=running,", "state"),
        ("?metadata=app", "key=value"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?limit=-1", "limit"),
        ("?limit=many", "limit"),
        ("?cursor=", "cursor"),
        ("?cursor=%00", "cursor"),
        ("?cursor=AAAA", "cursor"),
        ("?color=red", "color"),
    ] {
        let message =
            nest.get(&format!("/v1/sandboxes{query}")).await.error(400, "invalid_request");
        assert!(message.contains(word), "{query}: {message}");
    }
}
