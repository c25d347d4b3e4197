//! What is promised of the table of named snapshots.

use std::collections::BTreeSet;

use nestbox::domain::name::TemplateName;
use nestbox::entity::Cursor;
use nestbox::entity::snapshots::Snapshot;

use super::*;

on_both_databases! {
    a_snapshot_reads_back_as_it_was_put,
    a_snapshot_needs_a_host_that_is_known,
    a_second_snapshot_of_a_name_replaces_all_of_the_first,
    eight_puts_of_one_name_leave_one_of_them_whole,
    a_snapshot_is_put_only_over_what_was_seen,
    removing_an_older_build_leaves_the_newer_one,
    pages_of_snapshots_are_complete_and_stable_while_rows_come_and_go,
    a_page_says_that_there_is_more_only_if_there_is,
    a_starting_host_has_exactly_the_rows_of_its_disk,
    rows_are_written_as_those_of_the_host_that_starts,
    a_replacement_that_fails_half_way_changes_nothing,
    readers_see_all_rows_of_a_host_or_all_of_the_others,
    a_row_that_makes_no_sense_is_named,
}

const ELSEWHERE: &str = "there";

/// Opens the database and registers a second host.
async fn open_with_two_hosts(location: &str) -> Database {
    let database = open(location).await;
    database.hosts().register(&host(ELSEWHERE)).await.unwrap();
    database
}

fn name(text: &str) -> TemplateName {
    text.parse().unwrap()
}

fn snapshot(text: &str) -> Snapshot {
    Snapshot {
        name: name(text),
        host_id: HOST.to_owned(),
        build: format!("build of {text}"),
        sandbox_id: SandboxId::random(),
        image: name("debian"),
        shape: Shape::DEFAULT,
        hypervisor: "simulated".to_owned(),
        memory_bytes: 1,
        disk_bytes: 2,
        shared_bytes: 3,
        memory_generations: 4,
        created_at: noon(),
    }
}

/// Another snapshot of the same name, different in every other column.
fn other_build(text: &str, number: u32) -> Snapshot {
    let more = u64::from(number) << 40;
    Snapshot {
        host_id: ELSEWHERE.to_owned(),
        build: format!("build {number}"),
        image: name(&format!("image-{number}")),
        shape: Shape { vcpus: 100 + number, memory_mib: 1000 + number },
        hypervisor: format!("hypervisor {number}"),
        memory_bytes: 10 + more,
        disk_bytes: 20 + more,
        shared_bytes: 30 + more,
        memory_generations: 40 + number,
        created_at: noon() + TimeDelta::seconds(i64::from(number) + 1),
        ..snapshot(text)
    }
}

async fn put(database: &Database, snapshot: &Snapshot) {
    // As somebody does who looks again when the row has changed since.
    loop {
        let known = found(database, snapshot.name.as_str()).await.map(|known| known.build);
        if database.snapshots().put(snapshot, known.as_deref()).await.unwrap() {
            return;
        }
    }
}

async fn found(database: &Database, text: &str) -> Option<Snapshot> {
    database.snapshots().find(&name(text)).await.unwrap()
}

/// All snapshots, newest first.
async fn all(database: &Database) -> Vec<Snapshot> {
    let page = database.snapshots().list(limit(1000), None).await.unwrap();
    assert!(page.next.is_none());
    page.snapshots
}

fn limit(limit: u32) -> NonZeroU32 {
    NonZeroU32::new(limit).unwrap()
}

async fn a_snapshot_reads_back_as_it_was_put(location: &str) {
    let database = open(location).await;
    let largest = Snapshot {
        shape: Shape { vcpus: u32::MAX, memory_mib: u32::MAX },
        memory_bytes: i64::MAX as u64,
        disk_bytes: 0,
        memory_generations: u32::MAX,
        created_at: noon() + TimeDelta::nanoseconds(123_456_789),
        ..snapshot("py3.12_slim-v2")
    };
    put(&database, &largest).await;
    let created_at = noon() + TimeDelta::microseconds(123_456);
    let want = Snapshot { created_at, ..largest };
    assert_eq!(found(&database, "py3.12_slim-v2").await, Some(want));
    assert_eq!(found(&database, "py3").await, None);
}

async fn a_snapshot_needs_a_host_that_is_known(location: &str) {
    let database = open(location).await;
    let nowhere = Snapshot { host_id: "nowhere".to_owned(), ..snapshot("a") };
    let error = database.snapshots().put(&nowhere, None).await.unwrap_err();
    assert!(matches!(error, StoreError::Query { .. }), "{error:?}");
    assert_eq!(all(&database).await, []);
}

async fn a_second_snapshot_of_a_name_replaces_all_of_the_first(location: &str) {
    let database = open_with_two_hosts(location).await;
    put(&database, &snapshot("a")).await;
    put(&database, &snapshot("b")).await;
    let second = other_build("a", 1);
    put(&database, &second).await;
    assert_eq!(all(&database).await[0], second);
    assert_eq!(all(&database).await.len(), 2);
}

async fn eight_puts_of_one_name_leave_one_of_them_whole(location: &str) {
    let database = open_with_two_hosts(location).await;
    for _ in 0..10 {
        let snapshots: Vec<_> = (0..8).map(|number| other_build("a", number)).collect();
        let tasks: Vec<_> = snapshots
            .iter()
            .cloned()
            .map(|snapshot| {
                let database = database.clone();
                tokio::spawn(async move { put(&database, &snapshot).await })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        let [left] = &all(&database).await[..] else { panic!("not one row") };
        assert!(snapshots.contains(left), "{left:?} is none of those that were put");
    }
}

async fn a_snapshot_is_put_only_over_what_was_seen(location: &str) {
    let database = open_with_two_hosts(location).await;
    let snapshots = database.snapshots();
    let (first, second, third) = (snapshot("a"), other_build("a", 1), other_build("a", 2));
    assert!(!snapshots.put(&first, Some("another build")).await.unwrap());
    assert_eq!(found(&database, "a").await, None);
    assert!(snapshots.put(&first, None).await.unwrap());
    assert!(!snapshots.put(&second, None).await.unwrap());
    assert_eq!(found(&database, "a").await.as_ref(), Some(&first));
    assert!(snapshots.put(&second, Some(&first.build)).await.unwrap());
    assert!(!snapshots.put(&third, Some(&first.build)).await.unwrap());
    assert_eq!(found(&database, "a").await, Some(second));
    let events = database.events();
    let newest = Page::Newest;
    let listed =
        events.list(&EventFilter::default(), newest, Limit::new(9).unwrap()).await.unwrap();
    assert_eq!(listed.events.len(), 3, "one came, and was replaced by another: {listed:?}");
}

async fn removing_an_older_build_leaves_the_newer_one(location: &str) {
    let database = open_with_two_hosts(location).await;
    let snapshots = database.snapshots();
    let (old, new) = (snapshot("a"), other_build("a", 1));
    put(&database, &old).await;
    put(&database, &snapshot("b")).await;
    assert!(!snapshots.remove(&name("b"), &old.build, noon()).await.unwrap());
    put(&database, &new).await;
    assert!(!snapshots.remove(&old.name, &old.build, noon()).await.unwrap());
    assert_eq!(found(&database, "a").await, Some(new.clone()));
    assert!(snapshots.remove(&new.name, &new.build, noon()).await.unwrap());
    assert!(!snapshots.remove(&new.name, &new.build, noon()).await.unwrap());
    assert_eq!(all(&database).await, [snapshots.find(&name("b")).await.unwrap().unwrap()]);

    // Also when both come at one time, whichever is first.
    for _ in 0..20 {
        put(&database, &old).await;
        let putting = {
            let (database, new) = (database.clone(), new.clone());
            tokio::spawn(async move { put(&database, &new).await })
        };
        snapshots.remove(&old.name, &old.build, noon()).await.unwrap();
        putting.await.unwrap();
        assert_eq!(found(&database, "a").await, Some(new.clone()));
    }
}

async fn pages_of_snapshots_are_complete_and_stable_while_rows_come_and_go(location: &str) {
    let database = open(location).await;
    let mut there_all_the_time = BTreeSet::new();
    let mut to_remove = Vec::new();
    for number in 0..57 {
        // Every third has the time of another one, and times differ in how many digits they need.
        let created_at = noon() + TimeDelta::microseconds(500 * (number / 3));
        let text = format!("{}.{number:02}_x-", number % 3);
        let snapshot = Snapshot { created_at, ..snapshot(&text) };
        put(&database, &snapshot).await;
        if number % 10 == 4 {
            to_remove.push(snapshot);
        } else {
            there_all_the_time.insert(snapshot.name);
        }
    }
    let mut seen = Vec::new();
    let mut after: Option<Cursor<TemplateName>> = None;
    let mut pages = 0;
    loop {
        let page = database.snapshots().list(limit(5), after.as_ref()).await.unwrap();
        assert!(page.snapshots.len() <= 5);
        seen.extend(page.snapshots.into_iter().map(|found| (found.created_at, found.name)));
        pages += 1;
        assert!(pages < 50, "the list has no end");
        // A client gets the cursor as text.
        let Some(next) = page.next else { break };
        after = Some(next.to_string().parse().unwrap());
        let created_at = noon() + TimeDelta::seconds(pages);
        put(&database, &Snapshot { created_at, ..snapshot(&format!("new-{pages}")) }).await;
        if let Some(gone) = to_remove.pop() {
            assert!(database.snapshots().remove(&gone.name, &gone.build, noon()).await.unwrap());
        }
    }
    assert!(seen.is_sorted_by(|a, b| a > b), "newest first, nothing twice");
    let seen: BTreeSet<_> = seen.into_iter().map(|(_, name)| name).collect();
    assert!(seen.is_superset(&there_all_the_time));
}

async fn a_page_says_that_there_is_more_only_if_there_is(location: &str) {
    let database = open(location).await;
    let page = database.snapshots().list(limit(2), None).await.unwrap();
    assert!(page.snapshots.is_empty() && page.next.is_none());
    for (text, more) in [("a", false), ("b", false), ("c", true)] {
        put(&database, &snapshot(text)).await;
        let page = database.snapshots().list(limit(2), None).await.unwrap();
        assert_eq!(page.next.is_some(), more, "with {text}");
    }
}

async fn a_starting_host_has_exactly_the_rows_of_its_disk(location: &str) {
    let database = open_with_two_hosts(location).await;
    let elsewhere = |text| Snapshot { host_id: ELSEWHERE.to_owned(), ..snapshot(text) };
    for row in [snapshot("gone"), snapshot("kept"), snapshot("changed")] {
        put(&database, &row).await;
    }
    for row in [elsewhere("theirs"), elsewhere("taken")] {
        put(&database, &row).await;
    }
    let changed = Snapshot { host_id: HOST.to_owned(), ..other_build("changed", 1) };
    let kept = found(&database, "kept").await.unwrap();
    let taken = Snapshot { host_id: HOST.to_owned(), ..other_build("taken", 2) };
    let disk = [changed.clone(), taken, kept.clone(), snapshot("new")];
    let not_ours = database.snapshots().replace_all(HOST, &disk, noon()).await.unwrap();
    assert_eq!(not_ours, [name("taken")]);

    let rows = all(&database).await;
    let names: BTreeSet<_> = rows.iter().map(|row| row.name.as_str()).collect();
    assert_eq!(names, BTreeSet::from(["changed", "kept", "new", "taken", "theirs"]));
    assert!(rows.contains(&changed) && rows.contains(&kept));
    let theirs = |rows: &[Snapshot]| {
        let rows = rows.iter().filter(|row| row.host_id == ELSEWHERE);
        rows.map(|row| (row.name.to_string(), row.build.clone())).collect::<Vec<_>>()
    };
    let want = ["theirs", "taken"].map(|text| (text.to_owned(), format!("build of {text}")));
    assert_eq!(theirs(&rows), want);

    assert!(database.snapshots().replace_all(HOST, &[], noon()).await.unwrap().is_empty());
    let rows = all(&database).await;
    assert_eq!((theirs(&rows), rows.len()), (want.to_vec(), 2));
}

async fn rows_are_written_as_those_of_the_host_that_starts(location: &str) {
    let database = open_with_two_hosts(location).await;
    // A manifest from a disk that was in another machine.
    database.snapshots().replace_all(HOST, &[other_build("a", 1)], noon()).await.unwrap();
    let want = Snapshot { host_id: HOST.to_owned(), ..other_build("a", 1) };
    let row = found(&database, "a").await.unwrap();
    assert_eq!(Snapshot { sandbox_id: want.sandbox_id.clone(), ..row }, want);
}

async fn a_replacement_that_fails_half_way_changes_nothing(location: &str) {
    let database = open(location).await;
    put(&database, &snapshot("a")).await;
    let before = all(&database).await;
    raw::execute(location, "CREATE UNIQUE INDEX in_the_way ON snapshots (build)").await;
    let disk = [snapshot("b"), Snapshot { build: snapshot("b").build, ..snapshot("c") }];
    let error = database.snapshots().replace_all(HOST, &disk, noon()).await.unwrap_err();
    assert!(matches!(error, StoreError::Query { .. }), "{error:?}");
    assert_eq!(all(&database).await, before);
    // The connection is not left in a transaction.
    put(&database, &snapshot("d")).await;
    assert_eq!(all(&database).await.len(), 2);
}

async fn readers_see_all_rows_of_a_host_or_all_of_the_others(location: &str) {
    let database = open(location).await;
    let builds = |build: &str| -> Vec<_> {
        let of = |number| Snapshot { build: build.to_owned(), ..snapshot(&format!("s{number}")) };
        (0..20).map(of).collect()
    };
    let (even, odd) = (builds("even"), builds("odd"));
    database.snapshots().replace_all(HOST, &even, noon()).await.unwrap();
    let replacing = {
        let database = database.clone();
        tokio::spawn(async move {
            loop {
                database.snapshots().replace_all(HOST, &odd, noon()).await.unwrap();
                database.snapshots().replace_all(HOST, &even, noon()).await.unwrap();
            }
        })
    };
    let (mut seen, mut reads) = (BTreeSet::new(), 0);
    while seen.len() < 2 || reads < 50 {
        assert!(!replacing.is_finished(), "a replacement failed");
        let rows = all(&database).await;
        let builds: BTreeSet<_> = rows.iter().map(|row| row.build.clone()).collect();
        assert_eq!((rows.len(), builds.len()), (20, 1), "{builds:?}");
        seen.extend(builds);
        reads += 1;
    }
    // In the middle of a transaction, most likely: nothing of that one stays, and others go on.
    replacing.abort();
    assert!(replacing.await.unwrap_err().is_cancelled());
    put(&database, &snapshot("another")).await;
    assert_eq!(all(&database).await.len(), 21);
}

async fn a_row_that_makes_no_sense_is_named(location: &str) {
    let database = open(location).await;
    put(&database, &snapshot("a")).await;
    raw::execute(location, "UPDATE snapshots SET disk_bytes = -1").await;
    let error = database.snapshots().find(&name("a")).await.unwrap_err();
    assert_eq!(error.to_string(), "the database's row snapshots/a has a bad disk_bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_locked_sqlite_is_waited_for() {
    use sea_orm::sqlx::Executor;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nestbox.db");
    let path = path.to_str().unwrap();
    let database = open(path).await;
    put(&database, &snapshot("old")).await;
    let mut other = raw::sqlite(path).await;
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    let replacing = {
        let database = database.clone();
        let disk = [snapshot("new")];
        tokio::spawn(
            async move { database.snapshots().replace_all(HOST, &disk, noon()).await.unwrap() },
        )
    };
    while database.busy_retries() == 0 {
        assert!(!replacing.is_finished(), "never busy");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(found(&database, "old").await.is_some() && !replacing.is_finished());
    other.execute("COMMIT").await.unwrap();
    assert!(replacing.await.unwrap().is_empty());
    let names: Vec<_> = all(&database).await.into_iter().map(|row| row.name).collect();
    assert_eq!(names, [name("new")]);
}
