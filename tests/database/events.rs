//! What is promised of the table of events.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use nestbox::entity::events::{Event, EventFilter, EventId, EventKind, Limit, News, Page};
use nestbox::entity::snapshots::Snapshot;

use super::*;

on_both_databases! {
    each_change_of_state_is_an_event_and_nothing_else_is,
    a_sandbox_that_never_was_has_an_end_too,
    a_host_that_starts_tells_what_it_has_stopped,
    snapshots_come_and_go_in_events,
    a_host_that_starts_tells_which_snapshots_have_changed,
    an_insert_that_fails_leaves_no_event,
    events_become_visible_in_the_order_of_their_ids,
    pages_lead_both_ways_and_show_each_event_once,
    a_filter_leaves_out_what_is_not_wanted_and_goes_on_behind_it,
    the_newest_events_are_kept_and_what_is_missing_is_said,
    a_number_is_never_given_out_again,
}

fn limit(limit: u32) -> Limit {
    Limit::new(limit).unwrap()
}

async fn all(database: &Database) -> Vec<Event> {
    let page = Page::After(EventId::BEGINNING);
    let listed = database.events().list(&EventFilter::default(), page, limit(1000)).await.unwrap();
    assert_eq!(listed.next, None);
    listed.events
}

/// The snapshot of that name in one of its builds.
fn snapshot(name: &str, number: u32) -> Snapshot {
    Snapshot {
        name: name.parse().unwrap(),
        host_id: HOST.to_owned(),
        build: format!("build {number} of {name}"),
        sandbox_id: SandboxId::random(),
        image: "debian".parse().unwrap(),
        shape: Shape::DEFAULT,
        hypervisor: "simulated".to_owned(),
        memory_bytes: 1,
        disk_bytes: 2,
        shared_bytes: 3,
        memory_generations: 4,
        created_at: noon() + TimeDelta::seconds(number.into()),
    }
}

fn state(event: &Event) -> (Option<SandboxState>, Option<SandboxState>) {
    (event.previous, event.state)
}

async fn publish(database: &Database, id: &SandboxId, generation: i64, state: SandboxState) {
    database.sandboxes().publish(id, generation, None, &change(state)).await.unwrap();
}

async fn each_change_of_state_is_an_event_and_nothing_else_is(location: &str) {
    use SandboxState::*;
    let database = open(location).await;
    let created_at = noon() + TimeDelta::nanoseconds(123_456_789);
    let id = insert(&database, NewSandbox { created_at, ..new_sandbox() }).await.id;
    publish(&database, &id, 1, Starting).await;
    let reason = Some("a \0 and 🐣".to_owned());
    let running = Change { reason, at: noon() + TimeDelta::seconds(1), ..change(Running) };
    database.sandboxes().publish(&id, 2, None, &running).await.unwrap();
    // Neither an older one nor the same again, nor anything about nobody.
    publish(&database, &id, 2, Running).await;
    publish(&database, &id, 1, Starting).await;
    publish(&database, &SandboxId::random(), 1, Starting).await;
    database.sandboxes().touch(&id, noon() + TimeDelta::days(1), None).await.unwrap();
    // One in between was never recorded: what is told fits together all the same.
    publish(&database, &id, 4, Stopped).await;
    database.sandboxes().delete_over_before(noon() + TimeDelta::days(9)).await.unwrap();

    let events = all(&database).await;
    let states: Vec<_> = events.iter().map(state).collect();
    let (pending, starting, running) = (Some(Pending), Some(Starting), Some(Running));
    let wanted =
        [(None, pending), (pending, starting), (starting, running), (running, Some(Stopped))];
    assert_eq!(states, wanted);
    for event in &events {
        assert_eq!(event.kind, EventKind::SandboxState);
        assert_eq!((event.sandbox_id.as_ref(), &event.snapshot), (Some(&id), &None));
    }
    assert!(events.is_sorted_by(|a, b| a.id < b.id));
    assert_eq!(events[0].at, noon() + TimeDelta::microseconds(123_456));
    assert_eq!(events[2].at, noon() + TimeDelta::seconds(1));
    assert_eq!(events[2].reason.as_deref(), Some("a \u{fffd} and 🐣"));
    assert_eq!(events[1].reason, None);
}

async fn a_sandbox_that_never_was_has_an_end_too(location: &str) {
    let database = open(location).await;
    let id = insert(&database, new_sandbox()).await.id;
    database.sandboxes().discard(&id, "no memory", noon()).await.unwrap();
    database.sandboxes().discard(&id, "again", noon()).await.unwrap();
    let taken = insert(&database, new_sandbox()).await.id;
    publish(&database, &taken, 1, SandboxState::Starting).await;
    database.sandboxes().discard(&taken, "too late", noon()).await.unwrap();
    let events = all(&database).await;
    let told: Vec<_> = events.iter().map(|it| (it.state.unwrap(), it.reason.as_deref())).collect();
    let wanted = [
        (SandboxState::Pending, None),
        (SandboxState::Stopped, Some("no memory")),
        (SandboxState::Pending, None),
        (SandboxState::Starting, None),
    ];
    assert_eq!(told, wanted);
    // The same request made again is no other sandbox.
    insert(&database, idempotent("request", "digest")).await;
    database.sandboxes().insert(&idempotent("request", "digest")).await.unwrap();
    database.sandboxes().insert(&idempotent("request", "other")).await.unwrap();
    assert_eq!(all(&database).await.len(), 5);
}

async fn a_host_that_starts_tells_what_it_has_stopped(location: &str) {
    let database = open(location).await;
    let mut gone = BTreeSet::new();
    // More than fit into one statement.
    for _ in 0..510 {
        gone.insert(insert(&database, new_sandbox()).await.id);
    }
    let kept = insert(&database, new_sandbox()).await.id;
    let over = insert(&database, new_sandbox()).await.id;
    publish(&database, &over, 1, SandboxState::Error).await;
    let before = database.events().newest().await.unwrap();
    let keep = [kept].into();
    database.sandboxes().stop_all_except(HOST, &keep, "restarted", noon()).await.unwrap();
    let page = Page::After(before);
    let listed = database.events().list(&EventFilter::default(), page, limit(1000)).await.unwrap();
    let told: BTreeSet<_> = listed.events.iter().map(|it| it.sandbox_id.clone().unwrap()).collect();
    assert_eq!((listed.events.len(), told), (510, gone));
    for event in &listed.events {
        assert_eq!(state(event), (Some(SandboxState::Pending), Some(SandboxState::Stopped)));
        assert_eq!(event.reason.as_deref(), Some("restarted"));
    }
}

/// What events say of snapshots: the name, and whether it came.
fn of_snapshots(events: &[Event]) -> Vec<(String, bool)> {
    let told = |event: &Event| {
        assert_eq!((event.state, event.previous), (None, None));
        assert!(event.sandbox_id.is_some());
        let name = event.snapshot.as_ref().unwrap().to_string();
        (name, event.kind == EventKind::SnapshotCreated)
    };
    events.iter().map(told).collect()
}

fn told(pairs: &[(&str, bool)]) -> Vec<(String, bool)> {
    pairs.iter().map(|(name, came)| ((*name).to_owned(), *came)).collect()
}

async fn snapshots_come_and_go_in_events(location: &str) {
    let database = open(location).await;
    let snapshots = database.snapshots();
    let (first, second) = (snapshot("a", 0), snapshot("a", 1));
    assert_ne!(first.build, second.build);
    assert!(snapshots.put(&first, None).await.unwrap());
    // The same once more, with another size: nothing came.
    let grown = Snapshot { disk_bytes: 9, ..first.clone() };
    assert!(snapshots.put(&grown, Some(&first.build)).await.unwrap());
    assert!(snapshots.put(&second, Some(&first.build)).await.unwrap());
    assert!(!snapshots.remove(&first.name, &first.build, noon()).await.unwrap());
    assert!(snapshots.remove(&second.name, &second.build, noon()).await.unwrap());
    let events = all(&database).await;
    let wanted = told(&[("a", true), ("a", false), ("a", true), ("a", false)]);
    assert_eq!(of_snapshots(&events), wanted);
    assert_eq!(events[0].sandbox_id.as_ref(), Some(&first.sandbox_id));
    assert_eq!(events[0].at, first.created_at);
}

async fn a_host_that_starts_tells_which_snapshots_have_changed(location: &str) {
    let database = open(location).await;
    database.hosts().register(&host("there")).await.unwrap();
    let snapshots = database.snapshots();
    let elsewhere = Snapshot { host_id: "there".to_owned(), ..snapshot("taken", 0) };
    let (same, gone, old, new) =
        (snapshot("same", 1), snapshot("gone", 2), snapshot("new", 3), snapshot("new", 4));
    for snapshot in [&elsewhere, &same, &gone, &old] {
        assert!(snapshots.put(snapshot, None).await.unwrap());
    }
    let before = database.events().newest().await.unwrap();
    let disk = [same, new, snapshot("found", 5), snapshot("taken", 6)];
    let taken = snapshots.replace_all(HOST, &disk, noon()).await.unwrap();
    assert_eq!(taken, ["taken".parse().unwrap()]);
    snapshots.replace_all(HOST, &disk, noon()).await.unwrap();
    let page = Page::After(before);
    let listed = database.events().list(&EventFilter::default(), page, limit(100)).await.unwrap();
    let wanted = told(&[("gone", false), ("new", false), ("new", true), ("found", true)]);
    assert_eq!(of_snapshots(&listed.events), wanted);
}

async fn an_insert_that_fails_leaves_no_event(location: &str) {
    let database = open(location).await;
    let new = NewSandbox { host_id: "nowhere".to_owned(), ..new_sandbox() };
    database.sandboxes().insert(&new).await.unwrap_err();
    let twice = new_sandbox();
    insert(&database, twice.clone()).await;
    database.sandboxes().insert(&twice).await.unwrap_err();
    assert_eq!(all(&database).await.len(), 1);
}

/// Many write at a time, and one follows: it may not go past an event that it has not seen.
async fn events_become_visible_in_the_order_of_their_ids(location: &str) {
    const WRITERS: i64 = 8;
    const CHANGES: i64 = 40;
    let database = open(location).await;
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let database = database.clone();
        writers.spawn(async move {
            let id = insert(&database, new_sandbox()).await.id;
            for generation in 1..CHANGES {
                publish(&database, &id, generation, SandboxState::Running).await;
            }
        });
    }
    let (mut after, mut seen) = (EventId::BEGINNING, Vec::new());
    let begun = Instant::now();
    let filter = EventFilter::default();
    while seen.len() < usize::try_from(WRITERS * CHANGES).unwrap() {
        let News { events, seen: up_to, lost } =
            database.events().after(&filter, after, limit(7)).await.unwrap();
        assert!(!lost);
        seen.extend(events.into_iter().map(|event| event.id));
        after = up_to;
        assert!(begun.elapsed() < Duration::from_secs(60), "only {} were seen", seen.len());
    }
    while let Some(done) = writers.join_next().await {
        done.unwrap();
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "each once, in order");
    let kept: Vec<_> = all(&database).await.into_iter().map(|event| event.id).collect();
    assert_eq!(seen, kept);
}

async fn pages_lead_both_ways_and_show_each_event_once(location: &str) {
    let database = open(location).await;
    let id = insert(&database, new_sandbox()).await.id;
    for generation in 1..10 {
        publish(&database, &id, generation, SandboxState::Running).await;
    }
    let ids: Vec<_> = all(&database).await.into_iter().map(|event| event.id).collect();
    for (first, backwards) in [(Page::Newest, true), (Page::After(EventId::BEGINNING), false)] {
        let (mut seen, mut page, mut pages, mut generation) = (Vec::new(), first, 0, 10);
        loop {
            let filter = EventFilter::default();
            let listed = database.events().list(&filter, page, limit(4)).await.unwrap();
            seen.extend(listed.events.into_iter().map(|event| event.id));
            pages += 1;
            // What happens meanwhile comes after, and on no page that leads back.
            if backwards {
                publish(&database, &id, generation, SandboxState::Running).await;
                generation += 1;
            }
            let Some(next) = listed.next else { break };
            page = next;
        }
        if backwards {
            seen.reverse();
            assert_eq!((pages, &seen), (3, &ids));
        } else {
            assert_eq!((pages, seen.len()), (4, 13), "three came while the first list was read");
            assert_eq!(seen[..10], ids);
        }
    }
}

async fn a_filter_leaves_out_what_is_not_wanted_and_goes_on_behind_it(location: &str) {
    let database = open(location).await;
    let (one, other) =
        (insert(&database, new_sandbox()).await.id, insert(&database, new_sandbox()).await.id);
    publish(&database, &one, 1, SandboxState::Running).await;
    let taken = Snapshot { sandbox_id: one.clone(), ..snapshot("a", 0) };
    assert!(database.snapshots().put(&taken, None).await.unwrap());
    publish(&database, &other, 1, SandboxState::Running).await;
    let of = async |filter: EventFilter| {
        database.events().after(&filter, EventId::BEGINNING, limit(10)).await.unwrap()
    };
    let newest = database.events().newest().await.unwrap();
    let of_one = of(EventFilter { sandbox_id: Some(one.clone()), kind: None }).await;
    assert_eq!((of_one.events.len(), of_one.seen), (3, newest));
    let kind = Some(EventKind::SnapshotCreated);
    let created = of(EventFilter { sandbox_id: None, kind }).await;
    assert_eq!((created.events.len(), created.seen), (1, newest));
    let none = of(EventFilter { sandbox_id: Some(other), kind }).await;
    assert_eq!((none.events.len(), none.seen), (0, newest));
    // With a page that is full, what is behind it has not been looked at.
    let filter = EventFilter { sandbox_id: Some(one), kind: None };
    let first = database.events().after(&filter, EventId::BEGINNING, limit(1)).await.unwrap();
    assert_eq!(first.seen, first.events[0].id);
}

async fn the_newest_events_are_kept_and_what_is_missing_is_said(location: &str) {
    let database = open(location).await;
    let events = database.events();
    assert_eq!(events.prune(5).await.unwrap(), 0);
    let id = insert(&database, new_sandbox()).await.id;
    for generation in 1..20 {
        publish(&database, &id, generation, SandboxState::Running).await;
    }
    let ids: Vec<_> = all(&database).await.into_iter().map(|event| event.id).collect();
    assert_eq!(events.prune(20).await.unwrap(), 0);
    assert_eq!(events.prune(5).await.unwrap(), 15);
    assert_eq!(events.prune(5).await.unwrap(), 0);
    let kept: Vec<_> = all(&database).await.into_iter().map(|event| event.id).collect();
    assert_eq!(kept, ids[15..]);
    for (after, lost) in [(EventId::BEGINNING, true), (ids[13], true), (ids[14], false)] {
        assert_eq!(events.has_lost(after).await.unwrap(), lost, "{after}");
        let news = events.after(&EventFilter::default(), after, limit(2)).await.unwrap();
        assert_eq!((news.lost, news.seen), (lost, ids[16]));
    }
    assert!(!events.has_lost(ids[19]).await.unwrap());
    assert_eq!(events.prune(0).await.unwrap(), 4, "one stays in any case");
    assert_eq!(events.newest().await.unwrap(), ids[19]);
}

async fn a_number_is_never_given_out_again(location: &str) {
    let database = open(location).await;
    insert(&database, new_sandbox()).await;
    insert(&database, new_sandbox()).await;
    let newest = database.events().newest().await.unwrap();
    // As a person might do by hand.
    raw::execute(location, "DELETE FROM events").await;
    assert_eq!(database.events().newest().await.unwrap(), EventId::BEGINNING);
    insert(&database, new_sandbox()).await;
    assert!(database.events().newest().await.unwrap() > newest);
}
