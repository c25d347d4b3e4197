//! What Nestbox promises of its database, on SQLite and on PostgreSQL alike.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::task::Poll;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use nestbox::domain::egress::{Policy, PolicyRevision};
use nestbox::domain::id::SandboxId;
use nestbox::domain::lifecycle::SandboxState;
use nestbox::domain::rates::RateLimits;
use nestbox::domain::shape::Shape;
use nestbox::entity::api_keys::{ApiKey, Removal};
use nestbox::entity::events::{EventFilter, Limit, Page};
use nestbox::entity::hosts::{Heartbeat, Host, HostState};
use nestbox::entity::sandboxes::{
    Change, Filter, Idempotency, Insert, NewSandbox, Publish, Sandbox, Window,
};
use nestbox::entity::{Database, StoreError};
use rand::seq::SliceRandom;

/// Makes each test two: one on a new SQLite file, one on a new PostgreSQL database. Stands before
/// the modules, which see it only then.
macro_rules! on_both_databases {
    ($($test:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let dir = tempfile::tempdir().unwrap();
                let path = dir.path().join("nestbox.db");
                super::$test(path.to_str().unwrap()).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                if let Some(url) = crate::server::database().await {
                    super::$test(&url).await;
                }
            })+
        }
    };
}

#[path = "database/events.rs"]
mod events;
#[path = "database/full_disk.rs"]
mod full_disk;
#[path = "database/postgres.rs"]
mod postgres_only;
#[path = "database/raw.rs"]
mod raw;
#[path = "database/sandboxes.rs"]
mod sandboxes;
#[path = "support/postgres.rs"]
mod server;
#[path = "support/skip.rs"]
mod skip;
#[path = "support/small_disk.rs"]
mod small_disk;
#[path = "database/snapshots.rs"]
mod snapshots;
#[path = "database/sqlite.rs"]
mod sqlite_only;
#[path = "database/tokens.rs"]
mod tokens;

on_both_databases! {
    opening_again_keeps_what_is_there,
    a_database_of_a_newer_version_is_left_alone,
    api_keys_are_found_by_digest_until_deleted,
    of_two_keys_that_are_deleted_at_once_one_stays,
    the_last_use_of_a_key_is_written_once_a_minute,
    a_host_registers_beats_and_registers_again,
    whoever_gives_a_write_up_costs_nobody_else_a_write,
}

const HOST: &str = "here";

/// Opens the database and registers a host.
async fn open(location: &str) -> Database {
    let database = Database::open(location).await.unwrap();
    database.hosts().register(&host(HOST)).await.unwrap();
    database
}

fn noon() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

fn host(id: &str) -> Host {
    Host {
        id: id.to_owned(),
        name: format!("host {id}"),
        state: HostState::Ready,
        hypervisor: "simulated".to_owned(),
        capacity: Shape { vcpus: 4, memory_mib: 8192 },
        version: "0.1.0".to_owned(),
        last_heartbeat_at: None,
        created_at: noon(),
    }
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn new_sandbox() -> NewSandbox {
    NewSandbox {
        id: SandboxId::random(),
        host_id: HOST.to_owned(),
        template: "debian".parse().unwrap(),
        shape: Shape::DEFAULT,
        timeout_sec: None,
        envs: BTreeMap::new(),
        metadata: BTreeMap::new(),
        public_ports: BTreeSet::new(),
        network: Policy::off(),
        rates: RateLimits::new(Some(1 << 20), None, Some(1 << 20)).unwrap(),
        hypervisor: "simulated".to_owned(),
        api_key_id: "key-1".to_owned(),
        idempotency: None,
        created_at: noon(),
        expires_at: None,
    }
}

fn idempotent(key: &str, digest: &str) -> NewSandbox {
    let idempotency = Idempotency { key: key.to_owned(), request_digest: digest.to_owned() };
    NewSandbox { idempotency: Some(idempotency), ..new_sandbox() }
}

async fn insert(database: &Database, new: NewSandbox) -> Sandbox {
    match database.sandboxes().insert(&new).await.unwrap() {
        Insert::Created(sandbox) => *sandbox,
        other => panic!("not created: {other:?}"),
    }
}

fn change(state: SandboxState) -> Change {
    Change { state, reason: None, slot: None, at: noon() }
}

fn window(limit: u32) -> Window {
    Window { limit: NonZeroU32::new(limit).unwrap(), after: None }
}

async fn find(database: &Database, id: &SandboxId) -> Sandbox {
    database.sandboxes().find(id).await.unwrap().unwrap()
}

async fn opening_again_keeps_what_is_there(location: &str) {
    let database = open(location).await;
    let sandbox = insert(&database, new_sandbox()).await;
    database.close().await.unwrap();
    for _ in 0..2 {
        let database = Database::open(location).await.unwrap();
        assert_eq!(find(&database, &sandbox.id).await, sandbox);
        database.close().await.unwrap();
    }
}

async fn a_database_of_a_newer_version_is_left_alone(location: &str) {
    open(location).await.close().await.unwrap();
    let sql = "INSERT INTO seaql_migrations (version, applied_at) VALUES ('m2999_future', 0)";
    raw::execute(location, sql).await;
    let error = Database::open(location).await.err().unwrap();
    assert!(matches!(error, StoreError::SchemaTooNew(_)), "{error:?}");
}

fn api_key(id: &str) -> ApiKey {
    ApiKey {
        id: id.to_owned(),
        name: format!("key {id}"),
        digest: format!("digest of {id}"),
        prefix: "nb_abcd".to_owned(),
        created_at: noon(),
        last_used_at: None,
    }
}

async fn api_keys_are_found_by_digest_until_deleted(location: &str) {
    let database = open(location).await;
    let keys = database.api_keys();
    assert_eq!(keys.count().await.unwrap(), 0);
    let (one, two) = (api_key("1"), api_key("2"));
    keys.insert(&two).await.unwrap();
    keys.insert(&one).await.unwrap();
    assert_eq!(keys.list().await.unwrap(), [one.clone(), two.clone()]);
    assert_eq!(keys.find_by_digest(&two.digest).await.unwrap(), Some(two.clone()));
    assert_eq!(keys.find_by_digest("other").await.unwrap(), None);
    let copy = ApiKey { digest: one.digest.clone(), ..api_key("3") };
    assert!(keys.insert(&copy).await.is_err(), "a digest is there once");
    assert_eq!(keys.delete("2").await.unwrap(), Removal::Removed);
    assert_eq!(keys.delete("2").await.unwrap(), Removal::NotFound);
    assert_eq!(keys.delete("2\0").await.unwrap(), Removal::NotFound);
    assert_eq!(keys.find_by_digest(&two.digest).await.unwrap(), None);
    assert_eq!(keys.delete("1").await.unwrap(), Removal::Last);
    assert_eq!(keys.count().await.unwrap(), 1);
}

async fn of_two_keys_that_are_deleted_at_once_one_stays(location: &str) {
    let database = open(location).await;
    // As another daemon on the same database has it.
    let other = Database::open(location).await.unwrap();
    for _ in 0..10 {
        for id in ["1", "2"] {
            if !database.api_keys().list().await.unwrap().iter().any(|key| key.id == id) {
                database.api_keys().insert(&api_key(id)).await.unwrap();
            }
        }
        let (keys, others) = (database.api_keys(), other.api_keys());
        let (one, two) = tokio::join!(keys.delete("1"), others.delete("2"));
        let mut outcomes = [one.unwrap(), two.unwrap()];
        outcomes.sort_by_key(|outcome| *outcome == Removal::Last);
        assert_eq!(outcomes, [Removal::Removed, Removal::Last]);
        assert_eq!(database.api_keys().count().await.unwrap(), 1);
    }
}

async fn the_last_use_of_a_key_is_written_once_a_minute(location: &str) {
    let database = open(location).await;
    let keys = database.api_keys();
    keys.insert(&api_key("1")).await.unwrap();
    let at = |seconds| noon() + TimeDelta::seconds(seconds);
    for (used, stored) in [(0, 0), (1, 0), (59, 0), (60, 60), (30, 60), (119, 60), (180, 180)] {
        keys.touch_last_used("1", at(used)).await.unwrap();
        assert_eq!(keys.list().await.unwrap()[0].last_used_at, Some(at(stored)), "at {used}");
    }
    // Another process, or this one after a restart, does not go back either.
    let second = Database::open(location).await.unwrap();
    second.api_keys().touch_last_used("1", at(100)).await.unwrap();
    assert_eq!(keys.list().await.unwrap()[0].last_used_at, Some(at(180)));
}

async fn a_host_registers_beats_and_registers_again(location: &str) {
    let database = Database::open(location).await.unwrap();
    let hosts = database.hosts();
    hosts.register(&host("a")).await.unwrap();
    hosts.register(&Host { created_at: noon() - TimeDelta::days(1), ..host("b") }).await.unwrap();
    let at = |seconds| noon() + TimeDelta::seconds(seconds);
    assert_eq!(hosts.heartbeat("a", at(5)).await.unwrap(), Heartbeat::Noted);
    assert_eq!(hosts.heartbeat("a", at(4)).await.unwrap(), Heartbeat::Late);
    assert_eq!(hosts.heartbeat("nobody", at(4)).await.unwrap(), Heartbeat::Late);
    let changed = Host {
        state: HostState::Draining,
        capacity: Shape { vcpus: 8, memory_mib: 1 },
        last_heartbeat_at: Some(at(6)),
        created_at: at(6),
        ..host("a")
    };
    hosts.register(&changed).await.unwrap();
    let list = hosts.list().await.unwrap();
    let ids: Vec<_> = list.iter().map(|host| host.id.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(list[1], Host { created_at: noon(), ..changed });
}

/// A request whose client hangs up is dropped wherever it waits: at each of its waits once.
async fn whoever_gives_a_write_up_costs_nobody_else_a_write(location: &str) {
    let database = open(location).await;
    let key = api_key("1");
    database.api_keys().insert(&key).await.unwrap();
    let mut news = database.news();
    for polls in 1..60 {
        let new = new_sandbox();
        let sandboxes = database.sandboxes();
        let mut insert = Box::pin(sandboxes.insert(&new));
        for _ in 0..polls {
            let once = std::future::poll_fn(|cx| Poll::Ready(insert.as_mut().poll(cx)));
            if once.await.is_ready() {
                break;
            }
            tokio::task::yield_now().await;
        }
        drop(insert);
        // One statement by itself, which is in nobody's transaction.
        let at = noon() + TimeDelta::minutes(polls);
        database.api_keys().touch_last_used(&key.id, at).await.unwrap();
        let used = raw::one_text(location, "SELECT CAST(last_used_at AS TEXT) FROM api_keys").await;
        assert!(used.contains(&at.format("%H:%M:%S").to_string()), "{used} after {polls} waits");
        // What was begun is done, and told.
        let deadline = Instant::now() + Duration::from_secs(20);
        while database.sandboxes().find(&new.id).await.unwrap().is_none() {
            assert!(Instant::now() < deadline, "given up after {polls} waits");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tokio::time::timeout(Duration::from_secs(20), news.changed()).await.unwrap().unwrap();
    }
}

/// Prints how long the statements on the way of creating a sandbox take. Not a check:
/// `cargo test --release --test database -- --ignored --nocapture`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures, checks nothing"]
async fn latency_of_the_statements_that_a_create_waits_for() {
    let dir = tempfile::tempdir().unwrap();
    let database = open(dir.path().join("nestbox.db").to_str().unwrap()).await;
    let key = api_key("1");
    database.api_keys().insert(&key).await.unwrap();
    let (mut inserts, mut publishes, mut finds, mut keys) = (vec![], vec![], vec![], vec![]);
    for number in 0..2000 {
        let new = idempotent(&number.to_string(), "digest");
        let begun = Instant::now();
        let id = insert(&database, new).await.id;
        inserts.push(begun.elapsed());
        let begun = Instant::now();
        database.sandboxes().publish(&id, 1, None, &change(SandboxState::Running)).await.unwrap();
        publishes.push(begun.elapsed());
        let begun = Instant::now();
        find(&database, &id).await;
        finds.push(begun.elapsed());
        let begun = Instant::now();
        database.api_keys().find_by_digest(&key.digest).await.unwrap();
        keys.push(begun.elapsed());
    }
    for (name, mut times) in
        [("insert", inserts), ("publish", publishes), ("find", finds), ("find api key", keys)]
    {
        times.sort();
        println!(
            "{name}: p50 {:?}, p95 {:?}",
            times[times.len() / 2],
            times[times.len() * 95 / 100]
        );
    }
}
