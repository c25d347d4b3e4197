//! `filesystem.Filesystem`: changes, streamed and asked for.

#![allow(
    clippy::print_stderr,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by a panic, and says what it has seen"
)]

mod support;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::{Agent, Events};

fn watch(agent: &Agent, request: Value) -> Events {
    let mut events = agent.stream("filesystem.Filesystem/WatchDir", request);
    let first = events.next().unwrap().unwrap();
    assert!(first.get("start").is_some(), "{first}");
    events
}

/// The next change, as kind and name.
fn next(events: &mut Events) -> (String, String) {
    let message = events.next().unwrap().unwrap();
    pair(&message["filesystem"])
}

fn pair(event: &Value) -> (String, String) {
    let kind = event["type"].as_str().unwrap().trim_start_matches("EVENT_TYPE_").to_owned();
    (kind, event["name"].as_str().unwrap().to_owned())
}

fn wait_for(events: &mut Events, kind: &str, name: &str) {
    while next(events) != (kind.to_owned(), name.to_owned()) {}
}

fn create(agent: &Agent, request: Value) -> String {
    let answer = agent.call("filesystem.Filesystem/CreateWatcher", request).unwrap();
    answer["watcherId"].as_str().unwrap().to_owned()
}

fn get(agent: &Agent, id: &str) -> Vec<(String, String)> {
    let request = json!({ "watcherId": id });
    let answer = agent.call("filesystem.Filesystem/GetWatcherEvents", request).unwrap();
    answer["events"].as_array().into_iter().flatten().map(pair).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(kind, name)| ((*kind).to_owned(), (*name).to_owned())).collect()
}

fn upload(agent: &Agent, path: &Path, text: &str) {
    let target = format!("/files?path={}&username=root", path.display());
    let headers = [("Content-Type", "application/octet-stream")];
    assert_eq!(agent.http("POST", &target, &headers, text.as_bytes()).status, 200);
}

#[test]
fn changes_are_reported_as_they_happen() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&agent, json!({ "path": dir.path() }));
    let file = dir.path().join("f");
    fs::write(&file, "text").unwrap();
    fs::rename(&file, dir.path().join("g")).unwrap();
    fs::remove_file(dir.path().join("g")).unwrap();
    let expected =
        [("CREATE", "f"), ("WRITE", "f"), ("RENAME", "f"), ("CREATE", "g"), ("REMOVE", "g")];
    for (kind, name) in expected {
        assert_eq!(next(&mut events), (kind.to_owned(), name.to_owned()));
    }
}

#[test]
fn two_watches_of_one_directory_both_see_everything() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let mut one = watch(&agent, json!({ "path": dir.path() }));
    let two = create(&agent, json!({ "path": dir.path() }));
    fs::create_dir(dir.path().join("d")).unwrap();
    assert_eq!(next(&mut one), ("CREATE".to_owned(), "d".to_owned()));
    assert_eq!(get(&agent, &two), pairs(&[("CREATE", "d")]));
    assert_eq!(get(&agent, &two), pairs(&[]), "each change is handed over once");
}

#[test]
fn a_watch_below_follows_directories_that_are_made_and_moved() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("old")).unwrap();
    let mut events = watch(&agent, json!({ "path": dir.path(), "recursive": true }));
    fs::write(dir.path().join("old/f"), "x").unwrap();
    wait_for(&mut events, "WRITE", "old/f");
    // All at once: the inner ones are made before their parents can be watched.
    fs::create_dir_all(dir.path().join("new/er")).unwrap();
    fs::write(dir.path().join("new/er/f"), "x").unwrap();
    wait_for(&mut events, "WRITE", "new/er/f");
    fs::rename(dir.path().join("new"), dir.path().join("moved")).unwrap();
    wait_for(&mut events, "CREATE", "moved");
    fs::write(dir.path().join("moved/er/g"), "x").unwrap();
    wait_for(&mut events, "WRITE", "moved/er/g");
    fs::remove_dir_all(dir.path().join("moved")).unwrap();
    wait_for(&mut events, "REMOVE", "moved");
}

#[test]
fn a_watch_of_one_level_is_silent_about_the_next() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    let id = create(&agent, json!({ "path": dir.path() }));
    fs::write(dir.path().join("sub/f"), "x").unwrap();
    assert_eq!(get(&agent, &id), pairs(&[]));
}

#[test]
fn an_uploaded_file_looks_as_if_written_in_place() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let id = create(&agent, json!({ "path": dir.path() }));
    upload(&agent, &dir.path().join("f"), "one");
    assert_eq!(get(&agent, &id), pairs(&[("CREATE", "f"), ("CHMOD", "f"), ("WRITE", "f")]));
    upload(&agent, &dir.path().join("f"), "two");
    assert_eq!(get(&agent, &id), pairs(&[("WRITE", "f")]));
}

#[test]
fn an_event_describes_its_file_if_asked_to() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let mut events = watch(&agent, json!({ "path": dir.path(), "includeEntry": true }));
    fs::write(dir.path().join("f"), "").unwrap();
    let event = events.next().unwrap().unwrap();
    let entry = &event["filesystem"]["entry"];
    assert_eq!(entry["path"], dir.path().join("f").to_str().unwrap());
    assert_eq!(entry["type"], "FILE_TYPE_FILE");
    fs::remove_file(dir.path().join("f")).unwrap();
    let event = loop {
        let event = events.next().unwrap().unwrap()["filesystem"].clone();
        if event["type"] == "EVENT_TYPE_REMOVE" {
            break event;
        }
    };
    assert_eq!(event.get("entry"), None);
}

#[test]
fn an_idle_watch_is_kept_alive() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let request = json!({ "path": dir.path() });
    let headers = [("Keepalive-Ping-Interval", "1")];
    let mut events = agent.stream_with("filesystem.Filesystem/WatchDir", request, &headers);
    assert!(events.next().unwrap().unwrap().get("start").is_some());
    assert!(events.next().unwrap().unwrap().get("keepalive").is_some());
}

#[test]
fn what_cannot_be_watched_is_refused() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "").unwrap();
    for (path, code) in [(file, "invalid_argument"), (dir.path().join("no"), "not_found")] {
        let request = json!({ "path": path });
        let created = agent.call("filesystem.Filesystem/CreateWatcher", request.clone());
        assert_eq!(created.unwrap_err().0, code);
        let mut events = agent.stream("filesystem.Filesystem/WatchDir", request);
        assert_eq!(events.next().unwrap().unwrap_err().0, code);
    }
    for method in ["GetWatcherEvents", "RemoveWatcher"] {
        let unknown =
            agent.call(&format!("filesystem.Filesystem/{method}"), json!({ "watcherId": "w0" }));
        assert_eq!(unknown.unwrap_err().0, "not_found");
    }
}

#[test]
fn a_removed_watcher_is_gone_and_holds_nothing() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let inotify = || {
        let fds = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap().flatten();
        fds.filter(|fd| {
            fs::read_link(fd.path()).is_ok_and(|to| to == Path::new("anon_inode:inotify"))
        })
        .count()
    };
    let id = create(&agent, json!({ "path": dir.path() }));
    assert_eq!(inotify(), 1);
    let request = json!({ "watcherId": id });
    agent.call("filesystem.Filesystem/RemoveWatcher", request.clone()).unwrap();
    let again = agent.call("filesystem.Filesystem/RemoveWatcher", request);
    assert_eq!(again.unwrap_err().0, "not_found");
    support::eventually("inotify is closed", || inotify() == 0);
    drop(watch(&agent, json!({ "path": dir.path() })));
    support::eventually("a stream left alone is closed too", || inotify() == 0);
}

#[test]
fn a_backlog_nobody_fetches_is_bounded_and_says_so() {
    let agent = Agent::start();
    let dir = tempfile::tempdir().unwrap();
    let id = create(&agent, json!({ "path": dir.path() }));
    for number in 0..20_000 {
        fs::File::create(dir.path().join(number.to_string())).unwrap();
    }
    let request = json!({ "watcherId": id });
    let lost = agent.call("filesystem.Filesystem/GetWatcherEvents", request);
    assert_eq!(lost.unwrap_err().0, "data_loss");
}
