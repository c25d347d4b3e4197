//! How long slots take; prints medians. `cargo test --release --test network measure -- --ignored
//! --nocapture`

use std::time::{Duration, Instant};

use futures::future::try_join_all;
use nestbox::domain::egress::Policy;
use nestbox::vmm::network::SlotPool;
use serde_json::json;
use tempfile::TempDir;

use crate::egress::policy;
use crate::lab::{config, eventually, on_own_machine};

const ROUNDS: usize = 50;

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100];
    println!("{what}: p50 {:?}, p95 {:?}, n {}", at(50), at(95), times.len());
}

#[test]
#[ignore = "a measurement, not a test"]
fn measure_acquire_build_and_release() {
    on_own_machine(|| async {
        let data = TempDir::new().expect("a data directory");
        let pool = SlotPool::start(config(data.path(), 0), &[]).await.expect("the pool");
        let (mut build, mut tap, mut release) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let slot = pool.acquire().await.expect("a slot");
            build.push(start.elapsed());
            let start = Instant::now();
            drop(slot.tap().await.expect("the tap"));
            tap.push(start.elapsed());
            let start = Instant::now();
            slot.release().await.expect("released");
            release.push(start.elapsed());
        }
        report("build a slot from nothing", build);
        report("open its tap", tap);
        report("release it", release);

        let slots = try_join_all((0..ROUNDS).map(|_| pool.acquire())).await.expect("slots");
        let start = Instant::now();
        try_join_all(slots.into_iter().map(|slot| slot.release())).await.expect("released");
        println!("release {ROUNDS} at once: {:?}", start.elapsed());
        pool.shutdown().await.expect("a clean shutdown");

        let pool = SlotPool::start(config(data.path(), 4), &[]).await.expect("the pool");
        let mut acquire = vec![];
        for _ in 0..ROUNDS {
            eventually("a ready slot", || pool.status().ready > 0).await;
            let start = Instant::now();
            let slot = pool.acquire().await.expect("a slot");
            acquire.push(start.elapsed());
            slot.release().await.expect("released");
        }
        report("acquire a ready slot", acquire);
        pool.shutdown().await.expect("a clean shutdown");
    });
}

#[test]
#[ignore = "a measurement, not a test"]
fn measure_changes_of_a_policy() {
    on_own_machine(|| async {
        let data = TempDir::new().expect("a data directory");
        let pool = SlotPool::start(config(data.path(), 0), &[]).await.expect("the pool");
        let slot = pool.acquire().await.expect("a slot");
        for (what, rules) in [
            ("deny two networks", json!({ "deny": ["10.0.0.0/8", "192.168.0.0/16"] })),
            ("allow a name", json!({ "allow": ["example.com"] })),
        ] {
            let (mut limit, mut open) = (vec![], vec![]);
            for _ in 0..ROUNDS {
                let start = Instant::now();
                slot.limit(&policy(rules.clone()), None).await.expect("limited");
                limit.push(start.elapsed());
                let start = Instant::now();
                slot.limit(&Policy::default(), None).await.expect("opened");
                open.push(start.elapsed());
            }
            report(what, limit);
            report("open all again", open);
        }
        slot.release().await.expect("released");
        pool.shutdown().await.expect("a clean shutdown");
    });
}
