//! What is promised of the table of sandboxes.

use std::collections::{BTreeSet, HashSet};

use chrono::TimeDelta;

use super::*;

on_both_databases! {
    a_sandbox_reads_back_as_it_was_inserted,
    a_sandbox_needs_a_host_that_is_known,
    eight_inserts_with_one_idempotency_key_make_one_sandbox,
    an_idempotency_key_belongs_to_its_api_key_and_its_request,
    an_older_generation_never_wins,
    a_host_that_was_started_again_takes_no_word_of_an_earlier_run,
    of_two_changes_of_what_may_be_reached_the_later_one_stays,
    a_published_change_replaces_all_that_changes,
    a_list_shows_what_the_filter_asks_for,
    pages_are_complete_and_stable_while_rows_come_and_go,
    a_starting_host_stops_what_it_does_not_run,
    activity_never_goes_back,
    retention_deletes_only_what_is_long_gone,
    a_nul_is_refused_before_the_database_sees_it,
}

async fn a_sandbox_reads_back_as_it_was_inserted(location: &str) {
    let database = open(location).await;
    let new = NewSandbox {
        timeout_sec: Some(u32::MAX),
        envs: map(&[("PATH", "/bin:/usr/bin"), ("QUOTE", "\"'\\ \n ü 🐣")]),
        metadata: map(&[("team", "birds")]),
        public_ports: [8000, 1].map(|port: u32| port.try_into().unwrap()).into(),
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
    assert_eq!((&created.public_ports, &created.ports_token_digest), (&new.public_ports, &None));
    assert_eq!((&created.network, created.rates), (&Policy::off(), new.rates));
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
    database.sandboxes().publish(&first.id, 1, None, &change(SandboxState::Running)).await.unwrap();
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
                    let result = database.sandboxes().publish(&id, generation, None, &change).await;
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

async fn a_host_that_was_started_again_takes_no_word_of_an_earlier_run(location: &str) {
    let database = open(location).await;
    let (sandboxes, hosts) = (database.sandboxes(), database.hosts());
    let id = insert(&database, new_sandbox()).await.id;
    let former = hosts.register(&host(HOST)).await.unwrap();
    let now = hosts.register(&host(HOST)).await.unwrap();
    assert!(former < now);
    let publish = async |generation, epoch, state| {
        sandboxes.publish(&id, generation, Some(epoch), &change(state)).await.unwrap()
    };
    assert_eq!(publish(1, now, SandboxState::Running).await, Publish::Written);
    assert_eq!(publish(2, former, SandboxState::Stopped).await, Publish::Fenced);
    assert_eq!(find(&database, &id).await.state, SandboxState::Running);
    assert_eq!(publish(2, now, SandboxState::Pausing).await, Publish::Written);
    // What was published before is known, whoever says it again.
    assert_eq!(publish(2, former, SandboxState::Pausing).await, Publish::Written);
    let events = database.events();
    let limit = Limit::new(9).unwrap();
    let listed = events.list(&EventFilter::default(), Page::Newest, limit).await.unwrap();
    let states: Vec<_> = listed.events.iter().rev().filter_map(|event| event.state).collect();
    let told = [SandboxState::Pending, SandboxState::Running, SandboxState::Pausing];
    assert_eq!(states, told, "what was not taken has not happened");
}

async fn of_two_changes_of_what_may_be_reached_the_later_one_stays(location: &str) {
    let database = open(location).await;
    let (sandboxes, id) = (database.sandboxes(), insert(&database, new_sandbox()).await.id);
    let first = PolicyRevision { policy: Policy::default(), revision: 1 };
    let second = PolicyRevision { policy: Policy::off(), revision: 2 };
    sandboxes.set_network(&id, &second).await.unwrap();
    sandboxes.set_network(&id, &first).await.unwrap();
    let found = find(&database, &id).await;
    assert_eq!((found.network, found.network_revision), (second.policy, 2));
    // A host that starts with an older record, as after a crash, is right about itself.
    sandboxes.correct_network(&id, &first).await.unwrap();
    let found = find(&database, &id).await;
    assert_eq!((found.network, found.network_revision), (first.policy, 1));
}

async fn a_published_change_replaces_all_that_changes(location: &str) {
    let database = open(location).await;
    let sandboxes = database.sandboxes();
    let id = insert(&database, new_sandbox()).await.id;
    let later = noon() + TimeDelta::seconds(1);
    let running = Change { slot: Some(7), at: later, ..change(SandboxState::Running) };
    assert_eq!(sandboxes.publish(&id, 3, None, &running).await.unwrap(), Publish::Written);
    let found = find(&database, &id).await;
    assert_eq!((found.state, found.slot, found.updated_at), (running.state, Some(7), later));
    // The same once more, as after an answer that was lost; and something else by the same number.
    assert_eq!(sandboxes.publish(&id, 3, None, &running).await.unwrap(), Publish::Written);
    let paused = Change { state: SandboxState::Paused, ..running.clone() };
    assert_eq!(sandboxes.publish(&id, 3, None, &paused).await.unwrap(), Publish::Stale(3));
    assert_eq!(sandboxes.publish(&id, 2, None, &running).await.unwrap(), Publish::Stale(3));

    let reason = Some("destroyed \0 by its owner".to_owned());
    let stopped = Change { reason, ..change(SandboxState::Stopped) };
    assert_eq!(sandboxes.publish(&id, 4, None, &stopped).await.unwrap(), Publish::Written);
    let found = find(&database, &id).await;
    assert_eq!((found.slot, found.stopped_at), (None, Some(noon())));
    assert_eq!(found.reason.as_deref(), Some("destroyed \u{fffd} by its owner"));

    // An end that is known is not another one because somebody says it later.
    let lost = change(SandboxState::Error);
    assert_eq!(sandboxes.publish(&id, 3, None, &lost).await.unwrap(), Publish::Written);
    assert_eq!(find(&database, &id).await.state, SandboxState::Stopped);

    let nobody = SandboxId::random();
    assert_eq!(sandboxes.publish(&nobody, 1, None, &running).await.unwrap(), Publish::NotFound);
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
        assert_eq!(list(&[], &[label]).await, std::slice::from_ref(id), "{label:?}");
        assert_eq!(
            list(&[], &[label, ("all", "same")]).await,
            std::slice::from_ref(id),
            "{label:?}"
        );
        assert!(list(&[], &[label, ("all", "other")]).await.is_empty(), "{label:?}");
        assert!(list(&[], &[(label.0, "w")]).await.is_empty(), "{label:?}");
    }
    assert!(list(&[], &[("pla\0in", "v")]).await.is_empty());
    let newest_first: Vec<_> = ids.iter().rev().cloned().collect();
    assert_eq!(list(&[], &[]).await, newest_first);

    let running = change(SandboxState::Running);
    database.sandboxes().publish(&ids[2], 1, None, &running).await.unwrap();
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
            database
                .sandboxes()
                .publish(&id, 1, None, &change(SandboxState::Stopped))
                .await
                .unwrap();
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
    database.hosts().register(&host("there")).await.unwrap();
    let kept = insert(&database, new_sandbox()).await.id;
    let elsewhere = NewSandbox { host_id: "there".to_owned(), ..new_sandbox() };
    let elsewhere = insert(&database, elsewhere).await.id;
    let failed = insert(&database, new_sandbox()).await.id;
    sandboxes.publish(&failed, 1, None, &change(SandboxState::Error)).await.unwrap();
    // More than fit into one statement.
    let mut gone = BTreeSet::new();
    for _ in 0..510 {
        gone.insert(insert(&database, new_sandbox()).await.id);
    }
    let lost = gone.first().unwrap().clone();
    let running = Change { slot: Some(3), ..change(SandboxState::Running) };
    sandboxes.publish(&lost, 8, None, &running).await.unwrap();

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
        sandboxes.publish(&id, 1, None, &Change { at: stopped, ..change(state) }).await.unwrap();
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
