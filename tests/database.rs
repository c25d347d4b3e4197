//! What Nestbox promises of its database, on SQLite and on PostgreSQL alike.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use nestbox::domain::id::SandboxId;
use nestbox::domain::sandbox::SandboxState;
use nestbox::domain::shape::Shape;
use nestbox::entity::api_keys::{ApiKey, Removal};
use nestbox::entity::hosts::{Heartbeat, Host, HostState};
use nestbox::entity::sandboxes::{
    Change, Filter, Idempotency, Insert, NewSandbox, Publish, Sandbox, Window,
};
use nestbox::entity::{Database, StoreError};
use rand::seq::SliceRandom;

#[path = "support/postgres.rs"]
mod server;

/// Makes each test two: one on a new SQLite file, one on a new PostgreSQL database.
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
                if let Some(url) = super::server::database().await {
                    super::$test(&url).await;
                }
            })+
        }
    };
}

on_both_databases! {
    opening_again_keeps_what_is_there,
    a_database_of_a_newer_version_is_left_alone,
    a_sandbox_reads_back_as_it_was_inserted,
    a_sandbox_needs_a_host_that_is_known,
    eight_inserts_with_one_idempotency_key_make_one_sandbox,
    an_idempotency_key_belongs_to_its_api_key_and_its_request,
    an_older_generation_never_wins,
    a_published_change_replaces_all_that_changes,
    a_list_shows_what_the_filter_asks_for,
    pages_are_complete_and_stable_while_rows_come_and_go,
    a_starting_host_stops_what_it_does_not_run,
    activity_never_goes_back,
    retention_deletes_only_what_is_long_gone,
    a_nul_is_refused_before_the_database_sees_it,
    api_keys_are_found_by_digest_until_deleted,
    the_last_use_of_a_key_is_written_once_a_minute,
    a_host_registers_beats_and_registers_again,
}

const HOST: &str = "here";

/// Opens the database and registers a host.
async fn open(location: &str) -> Database {
    let database = Database::open(location).await.unwrap();
    database.hosts().upsert(&host(HOST)).await.unwrap();
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
        hypervisor: "simulated".to_owned(),
        access_token: "token".to_owned(),
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

async fn a_sandbox_reads_back_as_it_was_inserted(location: &str) {
    let database = open(location).await;
    let new = NewSandbox {
        timeout_sec: Some(u32::MAX),
        envs: map(&[("PATH", "/bin:/usr/bin"), ("QUOTE", "\"'\\ \n ü 🐣")]),
        metadata: map(&[("team", "birds")]),
        created_at: noon() + TimeDelta::nanoseconds(123_456_789),
        expires_at: Some(noon() + TimeDelta::seconds(300)),
        ..idempotent("request", "digest")
    };
    let created = insert(&database, new.clone()).await;
    assert_eq!(find(&database, &new.id).await, created);
    assert_eq!(created.state, SandboxState::Pending);
    assert_eq!(created.generation, 0);
    assert_eq!(created.timeout_sec, new.timeout_sec);
    assert_eq!((&created.envs, &created.metadata), (&new.envs, &new.metadata));
    assert_eq!(created.idempotency, new.idempotency);
    assert_eq!(created.created_at, noon() + TimeDelta::microseconds(123_456));
    assert_eq!(created.last_active_at, created.created_at);
    assert_eq!(created.expires_at, new.expires_at);
    assert_eq!(database.sandboxes().find(&SandboxId::random()).await.unwrap(), None);
}

async fn a_sandbox_needs_a_host_that_is_known(location: &str) {
    let database = open(location).await;
    let new = NewSandbox { host_id: "nowhere".to_owned(), ..new_sandbox() };
    let error = database.sandboxes().insert(&new).await.unwrap_err();
    assert!(matches!(error, StoreError::Query { .. }), "{error:?}");
}

async fn eight_inserts_with_one_idempotency_key_make_one_sandbox(location: &str) {
    let database = open(location).await;
    for round in 0..10 {
        let key = format!("request {round}");
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (database, new) = (database.clone(), idempotent(&key, "same"));
                tokio::spawn(async move { database.sandboxes().insert(&new).await.unwrap() })
            })
            .collect();
        let (mut created, mut ids) = (0, HashSet::new());
        for task in tasks {
            match task.await.unwrap() {
                Insert::Created(sandbox) => {
                    created += 1;
                    ids.insert(sandbox.id);
                }
                Insert::AlreadyExists(sandbox) => drop(ids.insert(sandbox.id)),
                Insert::Conflict(id) => panic!("conflict with {id}"),
            }
        }
        assert_eq!((created, ids.len()), (1, 1));
    }
    let all = database.sandboxes().list(&Filter::default(), &window(100)).await.unwrap();
    assert_eq!(all.sandboxes.len(), 10);
}

async fn an_idempotency_key_belongs_to_its_api_key_and_its_request(location: &str) {
    let database = open(location).await;
    let first = insert(&database, idempotent("request", "digest")).await;
    let other_owner =
        NewSandbox { api_key_id: "key-2".to_owned(), ..idempotent("request", "digest") };
    assert_ne!(insert(&database, other_owner).await.id, first.id);
    match database.sandboxes().insert(&idempotent("request", "other")).await.unwrap() {
        Insert::Conflict(id) => assert_eq!(id, first.id),
        other => panic!("{other:?}"),
    }
    // What is given back is the sandbox as it is now.
    database.sandboxes().publish(&first.id, 1, &change(SandboxState::Running)).await.unwrap();
    match database.sandboxes().insert(&idempotent("request", "digest")).await.unwrap() {
        Insert::AlreadyExists(sandbox) => assert_eq!(sandbox.state, SandboxState::Running),
        other => panic!("{other:?}"),
    }
    // Without a key nothing is a repetition.
    insert(&database, new_sandbox()).await;
    insert(&database, new_sandbox()).await;
}

async fn an_older_generation_never_wins(location: &str) {
    const GENERATIONS: i64 = 40;
    let database = open(location).await;
    for _ in 0..3 {
        let id = insert(&database, new_sandbox()).await.id;
        let mut generations: Vec<i64> = (1..=GENERATIONS).collect();
        generations.shuffle(&mut rand::rng());
        let tasks: Vec<_> = generations
            .into_iter()
            .map(|generation| {
                let (database, id) = (database.clone(), id.clone());
                tokio::spawn(async move {
                    let reason = Some(generation.to_string());
                    let change = Change { reason, ..change(SandboxState::Running) };
                    let result = database.sandboxes().publish(&id, generation, &change).await;
                    let result = result.unwrap();
                    // Once something was published, what is there is at least as new.
                    assert!(find(&database, &id).await.generation >= generation);
                    if let Publish::Stale(stored) = result {
                        assert!(stored > generation);
                    }
                    result
                })
            })
            .collect();
        let mut written = 0;
        for task in tasks {
            written += usize::from(task.await.unwrap() == Publish::Written);
        }
        assert!(written >= 1);
        let last = find(&database, &id).await;
        assert_eq!(last.generation, GENERATIONS);
        assert_eq!(last.reason.as_deref(), Some("40"), "state and generation come from one change");
    }
}

async fn a_published_change_replaces_all_that_changes(location: &str) {
    let database = open(location).await;
    let sandboxes = database.sandboxes();
    let id = insert(&database, new_sandbox()).await.id;
    let later = noon() + TimeDelta::seconds(1);
    let running = Change { slot: Some(7), at: later, ..change(SandboxState::Running) };
    assert_eq!(sandboxes.publish(&id, 3, &running).await.unwrap(), Publish::Written);
    let found = find(&database, &id).await;
    assert_eq!((found.state, found.slot, found.updated_at), (running.state, Some(7), later));
    assert_eq!(sandboxes.publish(&id, 3, &running).await.unwrap(), Publish::Stale(3));
    assert_eq!(sandboxes.publish(&id, 2, &running).await.unwrap(), Publish::Stale(3));

    let reason = Some("destroyed \0 by its owner".to_owned());
    let stopped = Change { reason, ..change(SandboxState::Stopped) };
    assert_eq!(sandboxes.publish(&id, 4, &stopped).await.unwrap(), Publish::Written);
    let found = find(&database, &id).await;
    assert_eq!((found.slot, found.stopped_at), (None, Some(noon())));
    assert_eq!(found.reason.as_deref(), Some("destroyed \u{fffd} by its owner"));

    let nobody = SandboxId::random();
    assert_eq!(sandboxes.publish(&nobody, 1, &running).await.unwrap(), Publish::NotFound);
}

async fn a_list_shows_what_the_filter_asks_for(location: &str) {
    let database = open(location).await;
    let odd = [
        ("plain", "v"),
        ("with.dot", "v"),
        ("quote\"and'", "v"),
        ("$dollar", "v"),
        ("[0]", "v"),
        ("0", "v"),
        ("back\\slash", "v"),
        ("ünï 🐣", "v"),
        ("", "v"),
    ];
    let mut ids = Vec::new();
    for (second, label) in odd.into_iter().enumerate() {
        let created_at = noon() + TimeDelta::seconds(i64::try_from(second).unwrap());
        let metadata = map(&[label, ("all", "same")]);
        ids.push(insert(&database, NewSandbox { created_at, metadata, ..new_sandbox() }).await.id);
    }
    let list = async |states: &[SandboxState], metadata: &[(&str, &str)]| {
        let filter = Filter { states: states.to_vec(), metadata: map(metadata) };
        let page = database.sandboxes().list(&filter, &window(100)).await.unwrap();
        page.sandboxes.into_iter().map(|sandbox| sandbox.id).collect::<Vec<_>>()
    };
    for (label, id) in odd.into_iter().zip(&ids) {
        assert_eq!(list(&[], &[label]).await, [id.clone()], "{label:?}");
        assert_eq!(list(&[], &[label, ("all", "same")]).await, [id.clone()], "{label:?}");
        assert!(list(&[], &[label, ("all", "other")]).await.is_empty(), "{label:?}");
        assert!(list(&[], &[(label.0, "w")]).await.is_empty(), "{label:?}");
    }
    assert!(list(&[], &[("pla\0in", "v")]).await.is_empty());
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(list(&[], &[]).await, newest_first);

    let running = change(SandboxState::Running);
    database.sandboxes().publish(&ids[2], 1, &running).await.unwrap();
    assert_eq!(list(&[SandboxState::Running], &[]).await, [ids[2].clone()]);
    let either = [SandboxState::Running, SandboxState::Pending];
    assert_eq!(list(&either, &[]).await, newest_first);
    assert!(list(&[SandboxState::Paused], &[]).await.is_empty());
}

async fn pages_are_complete_and_stable_while_rows_come_and_go(location: &str) {
    let database = open(location).await;
    let mut there_all_the_time = BTreeSet::new();
    let mut to_delete = Vec::new();
    for number in 0..57 {
        // Every third has the time of another one, and times differ in how many digits they need.
        let created_at = noon() + TimeDelta::microseconds(500 * (number / 3));
        let sandbox = insert(&database, NewSandbox { created_at, ..new_sandbox() }).await;
        if number % 10 == 4 {
            to_delete.push(sandbox.id);
        } else {
            there_all_the_time.insert(sandbox.id);
        }
    }
    let mut seen = Vec::new();
    let mut window = window(5);
    let mut pages = 0;
    loop {
        let page = database.sandboxes().list(&Filter::default(), &window).await.unwrap();
        assert!(page.sandboxes.len() <= 5);
        seen.extend(page.sandboxes.into_iter().map(|sandbox| (sandbox.created_at, sandbox.id)));
        pages += 1;
        assert!(pages < 50, "the list has no end");
        // A client gets the cursor as text.
        let Some(next) = page.next else { break };
        window.after = Some(next.to_string().parse().unwrap());
        let created_at = noon() + TimeDelta::seconds(pages);
        insert(&database, NewSandbox { created_at, ..new_sandbox() }).await;
        if let Some(id) = to_delete.pop() {
            database.sandboxes().publish(&id, 1, &change(SandboxState::Stopped)).await.unwrap();
            database.sandboxes().delete_over_before(noon() + TimeDelta::days(1)).await.unwrap();
        }
    }
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first, nothing twice");
    let seen: BTreeSet<_> = seen.into_iter().map(|(_, id)| id).collect();
    assert!(seen.is_superset(&there_all_the_time));
}

async fn a_starting_host_stops_what_it_does_not_run(location: &str) {
    let database = open(location).await;
    let sandboxes = database.sandboxes();
    database.hosts().upsert(&host("there")).await.unwrap();
    let kept = insert(&database, new_sandbox()).await.id;
    let elsewhere = NewSandbox { host_id: "there".to_owned(), ..new_sandbox() };
    let elsewhere = insert(&database, elsewhere).await.id;
    let failed = insert(&database, new_sandbox()).await.id;
    sandboxes.publish(&failed, 1, &change(SandboxState::Error)).await.unwrap();
    // More than fit into one statement.
    let mut gone = BTreeSet::new();
    for _ in 0..510 {
        gone.insert(insert(&database, new_sandbox()).await.id);
    }
    let lost = gone.first().unwrap().clone();
    let running = Change { slot: Some(3), ..change(SandboxState::Running) };
    sandboxes.publish(&lost, 8, &running).await.unwrap();

    let keep = HashSet::from([kept.clone()]);
    let later = noon() + TimeDelta::hours(1);
    let marked = sandboxes.stop_all_except(HOST, &keep, "the host restarted", later).await.unwrap();
    assert_eq!(marked.into_iter().collect::<BTreeSet<_>>(), gone);
    let row = find(&database, &lost).await;
    assert_eq!((row.state, row.slot, row.generation), (SandboxState::Stopped, None, 9));
    assert_eq!(row.reason.as_deref(), Some("the host restarted"));
    assert_eq!(row.stopped_at, Some(later));
    for (id, state) in [
        (&kept, SandboxState::Pending),
        (&elsewhere, SandboxState::Pending),
        (&failed, SandboxState::Error),
    ] {
        assert_eq!(find(&database, id).await.state, state);
    }
    let again = sandboxes.stop_all_except(HOST, &keep, "again", later).await.unwrap();
    assert!(again.is_empty());
}

async fn activity_never_goes_back(location: &str) {
    let database = open(location).await;
    let id = insert(&database, new_sandbox()).await.id;
    let at = |seconds| noon() + TimeDelta::seconds(seconds);
    database.sandboxes().touch(&id, at(10), Some(at(310))).await.unwrap();
    database.sandboxes().touch(&id, at(5), Some(at(305))).await.unwrap();
    let row = find(&database, &id).await;
    assert_eq!((row.last_active_at, row.expires_at), (at(10), Some(at(310))));
    assert_eq!(row.generation, 0, "activity is no change of state");
    database.sandboxes().touch(&id, at(11), None).await.unwrap();
    assert_eq!(find(&database, &id).await.expires_at, None);
    database.sandboxes().touch(&SandboxId::random(), at(1), None).await.unwrap();
}

async fn retention_deletes_only_what_is_long_gone(location: &str) {
    let database = open(location).await;
    let sandboxes = database.sandboxes();
    let at = |seconds| noon() + TimeDelta::seconds(seconds);
    let mut ids = Vec::new();
    for (state, stopped) in [
        (SandboxState::Stopped, at(0)),
        (SandboxState::Stopped, at(100)),
        (SandboxState::Running, at(0)),
        (SandboxState::Error, at(0)),
    ] {
        let id = insert(&database, new_sandbox()).await.id;
        sandboxes.publish(&id, 1, &Change { at: stopped, ..change(state) }).await.unwrap();
        ids.push(id);
    }
    assert_eq!(sandboxes.delete_over_before(at(50)).await.unwrap(), 2);
    let mut left = Vec::new();
    for id in &ids {
        left.push(sandboxes.find(id).await.unwrap().is_some());
    }
    assert_eq!(left, [false, true, true, false]);
}

async fn a_nul_is_refused_before_the_database_sees_it(location: &str) {
    let database = open(location).await;
    for new in [
        NewSandbox { envs: map(&[("A", "b\0c")]), ..new_sandbox() },
        NewSandbox { metadata: map(&[("a\0", "b")]), ..new_sandbox() },
        idempotent("re\0quest", "digest"),
    ] {
        let error = database.sandboxes().insert(&new).await.unwrap_err();
        assert!(matches!(error, StoreError::NulCharacter { .. }), "{error:?}");
    }
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
    assert_eq!(keys.count().await.unwrap(), 1);
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
    hosts.upsert(&host("a")).await.unwrap();
    hosts.upsert(&Host { created_at: noon() - TimeDelta::days(1), ..host("b") }).await.unwrap();
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
    hosts.upsert(&changed).await.unwrap();
    let list = hosts.list().await.unwrap();
    let ids: Vec<_> = list.iter().map(|host| host.id.as_str()).collect();
    assert_eq!(ids, ["b", "a"]);
    assert_eq!(list[1], Host { created_at: noon(), ..changed });
}

/// Statements past Nestbox, as another program would make them.
mod raw {
    use sea_orm::sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};

    pub async fn execute(location: &str, sql: &str) {
        let sql = AssertSqlSafe(sql.to_owned());
        if location.starts_with("postgres") {
            PgConnection::connect(location).await.unwrap().execute(sql).await.unwrap();
        } else {
            sqlite(location).await.execute(sql).await.unwrap();
        }
    }

    pub async fn sqlite(path: &str) -> SqliteConnection {
        SqliteConnection::connect(&format!("sqlite://{path}")).await.unwrap()
    }

    pub async fn text(connection: &mut SqliteConnection, sql: &'static str) -> String {
        connection.fetch_one(sql).await.unwrap().get(0)
    }
}

/// What is special about SQLite.
mod sqlite_only {
    use std::os::unix::fs::PermissionsExt;

    use sea_orm::sqlx::Executor;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lock_of_another_process_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nestbox.db");
        let path = path.to_str().unwrap();
        let database = open(path).await;
        let mut other = raw::sqlite(path).await;
        other.execute("BEGIN IMMEDIATE").await.unwrap();
        let writing = {
            let database = database.clone();
            tokio::spawn(async move { insert(&database, new_sandbox()).await })
        };
        // Readers are not in the way of a writer, nor it in theirs.
        let begun = Instant::now();
        database.sandboxes().list(&Filter::default(), &window(10)).await.unwrap();
        assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
        // Until SQLite itself has given up once and said busy.
        while database.busy_retries() == 0 {
            assert!(begun.elapsed() < Duration::from_secs(9), "never busy");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(!writing.is_finished());
        other.execute("COMMIT").await.unwrap();
        let id = writing.await.unwrap().id;
        assert_eq!(find(&database, &id).await.id, id);
    }

    #[tokio::test]
    async fn a_lock_that_is_never_released_is_an_error_that_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nestbox.db");
        let path = path.to_str().unwrap();
        let database = open(path).await;
        let mut other = raw::sqlite(path).await;
        other.execute("BEGIN IMMEDIATE").await.unwrap();
        let error = database.sandboxes().insert(&new_sandbox()).await.unwrap_err();
        assert!(matches!(error, StoreError::Busy { .. }), "{error:?}");
        assert!(error.to_string().contains("locked by another process"), "{error}");
    }

    #[tokio::test]
    async fn the_file_is_private_and_in_wal_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("nestbox.db");
        let database = open(path.to_str().unwrap()).await;
        let mut other = raw::sqlite(path.to_str().unwrap()).await;
        assert_eq!(raw::text(&mut other, "PRAGMA journal_mode").await, "wal");
        for name in ["nestbox.db", "nestbox.db-wal", "nestbox.db-shm"] {
            let mode = dir.path().join(name).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        drop(database);
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "no database at all, and long enough to look like one ".repeat(20))
            .unwrap();
        for (path, why) in [
            (dir.path().join("missing/nestbox.db"), "No such file"),
            (file.join("nestbox.db"), "Not a directory"),
            (dir.path().to_owned(), "Is a directory"),
            (file.clone(), "file is not a database"),
        ] {
            let error = Database::open(path.to_str().unwrap()).await.err().unwrap();
            let StoreError::OpenFile { path: named, source } = &error else { panic!("{error:?}") };
            assert_eq!(named, &path);
            assert!(source.to_string().contains(why), "{source}");
        }
    }
}

/// What is special about PostgreSQL.
mod postgres_only {
    use std::error::Error;

    use super::*;

    /// The error with its causes, as `main` would print it.
    async fn refusal(url: &str) -> String {
        let error = Database::open(url).await.err().unwrap();
        let mut text = format!("{error:?}; {error}");
        let mut source = error.source();
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_named_without_the_password() {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let text = refusal(&format!("postgres://bird:s3cret@127.0.0.1:{port}/nest")).await;
        assert!(text.contains(&format!("postgres://bird@127.0.0.1:{port}/nest")), "{text}");
        assert!(text.contains("refused"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }

    #[tokio::test]
    async fn a_url_that_cannot_be_read_does_not_show_its_password() {
        for url in ["postgres://bird:s3cret@host:port/nest", "postgres://bird:s3cret@[::1/nest"] {
            let text = refusal(url).await;
            assert!(text.contains("cannot be read"), "{text}");
            assert!(!text.contains("s3cret"), "{text}");
        }
    }

    #[tokio::test]
    async fn a_wrong_password_is_an_error_at_once() {
        let Some(url) = server::database().await else { return };
        let begun = Instant::now();
        let text = refusal(&url.replace(server::PASSWORD, "s3cret")).await;
        assert!(text.contains("password authentication failed"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
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
        database.sandboxes().publish(&id, 1, &change(SandboxState::Running)).await.unwrap();
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
