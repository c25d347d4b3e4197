//! Named snapshots: taken from what runs or is paused, and kept for whatever builds on them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::json;

use crate::support::{Witness, in_a_lab};

/// Bytes that the files of some directories take on disk, those with several names once.
fn bytes_in(dirs: &[&Path]) -> u64 {
    let mut blocks = BTreeMap::new();
    for dir in dirs {
        for entry in fs::read_dir(dir).expect("a directory").flatten() {
            let data = entry.metadata().expect("a file");
            blocks.insert(data.ino(), data.blocks());
        }
    }
    blocks.values().sum::<u64>() * 512
}

#[test]
fn sandboxes_start_where_a_snapshot_was_taken() {
    in_a_lab(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let source = daemon.create().await;
        let mut witness = Witness::start(&source).await;
        source.sh("echo kept > /home/user/note").await;
        let view = source.snapshot("running").await;
        assert_eq!(view["sandbox_id"], source.id.as_str());
        assert_eq!((&view["image"], &view["memory_mb"]), (&json!("debian"), &json!(256)));
        // It goes on, and what it does from now on is its own.
        witness.goes_on(&source).await;
        source.sh("echo changed > /home/user/note").await;

        source.pause().await;
        source.snapshot("paused").await;
        for (name, note) in [("running", "kept"), ("paused", "changed")] {
            let made = daemon.create_with(json!({ "template": name })).await;
            assert_eq!(made.sh("cat /home/user/note").await, note);
            if name == "paused" {
                witness.clone().goes_on(&made).await;
            }
            let look = made.look().await;
            assert_eq!((&look["template"], &look["memory_mb"]), (&json!(name), &json!(256)));
            made.destroy().await;
        }
        source.resume().await;
        witness.goes_on(&source).await;
        source.destroy().await;
        let mut names = daemon.snapshot_names().await;
        names.sort();
        assert_eq!(names, ["paused", "running"]);
        for name in names {
            daemon.delete_snapshot(&name).await;
        }
        assert!(daemon.named_dirs().is_empty());
        daemon.stop().await;
    });
}

#[test]
fn whatever_was_made_of_a_snapshot_outlives_it() {
    in_a_lab(3, async |lab| {
        let mut daemon = lab.daemon().await;
        let source = daemon.create().await;
        let mut witness = Witness::start(&source).await;
        source.snapshot("template").await;
        source.destroy().await;
        let made = daemon.create_with(json!({ "template": "template" })).await;
        witness.goes_on(&made).await;
        daemon.delete_snapshot("template").await;
        daemon.delete("/v1/snapshots/template").await.is_error(404, "not_found");
        daemon.try_create(json!({ "template": "template" })).await.is_error(404, "not_found");

        witness.goes_on(&made).await;
        made.pause().await;
        daemon.kill9().await;
        daemon.start_again().await;
        let made = made.through(daemon.api());
        made.resume().await;
        witness.goes_on(&made).await;
        let child = made.fork(1).await.remove(0);
        witness.clone().goes_on(&child).await;
        for sandbox in [made, child] {
            sandbox.destroy().await;
        }
        daemon.stop().await;
    });
}

#[test]
fn a_name_is_given_anew_only_on_demand() {
    in_a_lab(2, async |lab| {
        let mut daemon = lab.daemon().await;
        let source = daemon.create().await;
        source.sh("echo one > /home/user/note").await;
        source.snapshot("name").await;
        source.sh("echo two > /home/user/note").await;
        source.try_snapshot("name", false).await.is_error(409, "conflict");
        source.try_snapshot("debian", true).await.is_error(409, "conflict");
        for bad in ["../up", "a/b", "", ".hidden", "UPPER"] {
            source.try_snapshot(bad, true).await.is_error(400, "invalid_request");
        }
        // What was refused has disturbed nothing.
        assert_eq!(source.sh("cat /home/user/note").await, "two");

        let old = daemon.create_with(json!({ "template": "name" })).await;
        source.try_snapshot("name", true).await.expect(201);
        assert_eq!(daemon.named_dirs().len(), 1);
        assert_eq!(old.sh("cat /home/user/note").await, "one");
        old.destroy().await;
        let new = daemon.create_with(json!({ "template": "name" })).await;
        assert_eq!(new.sh("cat /home/user/note").await, "two");
        new.destroy().await;

        let wrong = json!({ "template": "name", "memory_mb": 512 });
        daemon.try_create(wrong).await.is_error(400, "invalid_request");
        source.destroy().await;
        daemon.kill9().await;
        daemon.start_again().await;
        assert_eq!(daemon.snapshot_names().await, ["name"]);
        daemon.delete_snapshot("name").await;
        daemon.stop().await;
    });
}

#[test]
fn sizes_are_those_on_disk_and_are_given_back() {
    in_a_lab(1, async |lab| {
        let mut daemon = lab.daemon().await;
        let source = daemon.create().await;
        source.sh("head -c 20000000 /dev/urandom > /dev/shm/much").await;
        source.pause().await;
        let reported = |view: &serde_json::Value| {
            let number = |name: &str| view[name].as_u64().expect("a number");
            (number("memory_bytes") + number("disk_bytes"), number("shared_bytes"))
        };
        let snapshot = source.snapshot("big").await;
        let (all, shared) = reported(&snapshot);
        let named = daemon.named_dirs().remove(0);
        let on_disk = bytes_in(&[&named]);
        // The directory has a few small files besides: devices, header, manifest.
        assert!(all <= on_disk && on_disk - all < 1 << 20, "{all} of {on_disk}");
        assert!(all > 20_000_000 && shared == all, "{shared} of {all} are shared");

        source.destroy().await;
        let own = |dir: &Path| {
            let entries = fs::read_dir(dir).expect("a directory").flatten();
            let files = entries.map(|entry| entry.metadata().expect("a file"));
            files.filter(|data| data.nlink() == 1).map(|data| data.blocks() * 512).sum::<u64>()
        };
        assert!(own(&named) > 20_000_000, "nobody else has what was changed any more");
        daemon.delete_snapshot("big").await;
        assert!(!named.exists());
        daemon.stop().await;
    });
}
