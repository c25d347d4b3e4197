//! A disk of the host that is full with the database and everything else on it: creates are refused,
//! what is there can be taken away, also after a restart, and what is acknowledged is so.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Daemon, Options, SmallDisk, eventually, in_a_lab};

/// What the API lists, by id.
async fn listed(daemon: &Daemon, id: &str) -> Option<Value> {
    let list = daemon.get("/v1/sandboxes?limit=100").await.expect(200);
    let all = list["sandboxes"].as_array().expect("a list").clone();
    all.into_iter().find(|sandbox| sandbox["id"] == id)
}

/// The states that were told of a sandbox, the first one first.
async fn told(daemon: &Daemon, id: &str) -> Vec<String> {
    let events = daemon.get(&format!("/v1/events?sandbox_id={id}&limit=100")).await.expect(200);
    let events = events["events"].as_array().expect("events");
    let mut states: Vec<String> =
        events.iter().map(|event| event["state"].as_str().expect("a state").to_owned()).collect();
    states.reverse();
    states
}

/// Creates until the disk is full in the middle of one, or before; each is refused for that.
async fn creates_are_refused(daemon: &Daemon) {
    for _ in 0..3 {
        let answer = daemon.try_create(json!({ "memory_mb": 256 })).await;
        answer.is_error(507, "no_space");
        let message = answer.message();
        assert!(message.contains("destroy sandboxes"), "it says what to do: {message}");
    }
}

async fn none_is_pending(daemon: &Daemon) {
    eventually("none that could not be made is said to be coming", || async {
        let list = daemon.get("/v1/sandboxes?limit=100").await.expect(200);
        let all = list["sandboxes"].as_array().expect("a list").clone();
        let coming =
            |sandbox: &Value| sandbox["state"] == "pending" || sandbox["state"] == "starting";
        !all.iter().any(coming)
    })
    .await;
}

#[test]
fn a_full_disk_with_everything_on_it_is_got_through() {
    in_a_lab(3, async |lab| {
        let disk = SmallDisk::mount(&lab.path("disk"), lab.data_dir(), 1024);
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let reserve = lab.data_dir().join("nestbox.reserve");
        eventually("room is kept back", || async {
            fs::metadata(&reserve).is_ok_and(|reserve| reserve.len() > 1 << 20)
        })
        .await;
        let mut sandbox = daemon.create().await;
        let doomed = daemon.create().await;

        disk.fill();
        creates_are_refused(&daemon).await;
        none_is_pending(&daemon).await;
        assert_eq!(sandbox.sh("echo on").await, "on");
        // Things are taken away on it.
        doomed.destroy().await;
        assert_eq!(doomed.state().await, "stopped");
        disk.fill();
        creates_are_refused(&daemon).await;

        // Room is made: everything is as before, for readers too.
        disk.free();
        let later = daemon.create().await;
        assert_eq!(listed(&daemon, &later.id).await.expect("it is listed")["state"], "running");
        assert_eq!(told(&daemon, &later.id).await, ["pending", "starting", "running"]);
        later.pause().await;
        assert_eq!(listed(&daemon, &later.id).await.expect("it is listed")["state"], "paused");

        // It starts on a full disk, after a crash as after an orderly end, and takes things away.
        disk.fill();
        daemon.kill9().await;
        daemon.start_again().await;
        sandbox = sandbox.through(daemon.api());
        assert_eq!(sandbox.state().await, "running");
        assert_eq!(sandbox.sh("echo still").await, "still");
        let later = later.through(daemon.api());
        assert_eq!(later.state().await, "paused");
        disk.free();
        daemon.stop().await;
        disk.fill();
        daemon.start_again().await;
        disk.fill();
        creates_are_refused(&daemon).await;
        for gone in [&later, &sandbox] {
            let gone = gone.through(daemon.api());
            gone.destroy().await;
            assert_eq!(gone.state().await, "stopped");
            assert!(!gone.dir().exists(), "its files are gone");
            disk.fill();
        }
        disk.free();
        daemon.create().await.destroy().await;
        daemon.stop().await;
        disk.unmount();
    });
}

#[test]
fn what_lives_here_without_a_record_is_listed_again() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon_with(Options { slot_pool: 0, ..Options::default() }).await;
        let backup = lab.path("older.db");
        daemon.stop().await;
        fs::copy(lab.data_dir().join("nestbox.db"), &backup).expect("a copy");
        daemon.start_again().await;
        let wish = json!({ "memory_mb": 256, "timeout_sec": 3000, "envs": { "MARK": "kept" } });
        let running = daemon.create_with(wish).await;
        let paused = daemon.create().await;
        paused.pause().await;
        daemon.stop().await;

        // An older copy of the database is brought back.
        fs::copy(&backup, lab.data_dir().join("nestbox.db")).expect("a copy");
        daemon.start_again().await;
        let look = listed(&daemon, &running.id).await.expect("it is listed");
        assert_eq!((&look["state"], &look["timeout_sec"]), (&json!("running"), &json!(3000)));
        assert_eq!(look["memory_mb"], 256);
        let (running, paused) = (running.through(daemon.api()), paused.through(daemon.api()));
        assert_eq!(running.sh("echo $MARK").await, "kept");
        assert_eq!(listed(&daemon, &paused.id).await.expect("it is listed")["state"], "paused");
        paused.resume().await;
        for sandbox in [running, paused] {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}
