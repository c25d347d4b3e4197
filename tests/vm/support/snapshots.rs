//! What is done to sandboxes as a whole: pause, resume, fork, named snapshots.

use std::collections::BTreeMap;
use std::fs::{self, Metadata};
use std::path::PathBuf;

use serde_json::{Value, json};

use super::api::{Answer, Api, Sandbox};

impl Sandbox {
    /// Asks for it to be paused.
    pub async fn try_pause(&self) -> Answer {
        self.api.post(&self.path("/pause"), &json!({})).await
    }

    /// Pauses it.
    pub async fn pause(&self) {
        let body = self.try_pause().await.expect(200);
        assert_eq!(body["state"], "paused");
    }

    /// Asks for it to run again.
    pub async fn try_resume(&self) -> Answer {
        self.api.post(&self.path("/resume"), &json!({})).await
    }

    /// Makes it run again.
    pub async fn resume(&self) {
        let body = self.try_resume().await.expect(200);
        assert_eq!(body["state"], "running");
    }

    /// Asks for children.
    pub async fn try_fork(&self, count: usize) -> Answer {
        self.api.post(&self.path("/fork"), &json!({ "count": count })).await
    }

    /// Makes children of it.
    pub async fn fork(&self, count: usize) -> Vec<Sandbox> {
        let body = self.try_fork(count).await.expect(201);
        let children = body["sandboxes"].as_array().expect("a list");
        assert_eq!(children.len(), count);
        let child = |view: &Value| {
            assert_eq!(view["state"], "running");
            self.api.sandbox(view["id"].as_str().expect("an id"))
        };
        children.iter().map(child).collect()
    }

    /// Asks for it to be kept under a name.
    pub async fn try_snapshot(&self, name: &str, overwrite: bool) -> Answer {
        let wish = json!({ "sandbox_id": self.id, "name": name, "overwrite": overwrite });
        self.api.post("/v1/snapshots", &wish).await
    }

    /// Keeps it under a name.
    pub async fn snapshot(&self, name: &str) -> Value {
        self.try_snapshot(name, false).await.expect(201)
    }

    /// What it takes on disk.
    pub async fn storage(&self) -> Value {
        self.look().await["storage"].clone()
    }

    /// How many files its memory is made of.
    pub async fn generations(&self) -> u64 {
        self.storage().await["memory_generations"].as_u64().expect("a number")
    }

    /// The directory of the snapshot that it was last restored from or captured in. There is one.
    #[track_caller]
    pub fn snapshot_dir(&self) -> PathBuf {
        let mut found = self.files("snapshot-");
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// The files of its memory without the header, of a paused one.
    #[track_caller]
    pub fn memory_files(&self) -> BTreeMap<String, Metadata> {
        let entries = fs::read_dir(self.snapshot_dir()).expect("a snapshot").flatten();
        let all = entries.map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            (name, entry.metadata().expect("a file"))
        });
        all.filter(|(name, _)| name.starts_with("memfile") && !name.contains("header")).collect()
    }

    /// What its VM writes to. There is one.
    #[track_caller]
    pub fn overlay(&self) -> PathBuf {
        let mut found = self.files("disk-");
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0)
    }

    /// What is in its directory under names that begin so.
    pub fn files(&self, prefix: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.dir()).expect("its directory").flatten();
        let named = entries.filter(|it| it.file_name().to_string_lossy().starts_with(prefix));
        named.map(|entry| entry.path()).collect()
    }
}

impl Api {
    /// The names of all snapshots.
    pub async fn snapshot_names(&self) -> Vec<String> {
        let body = self.get("/v1/snapshots?limit=1000").await.expect(200);
        let list = body["snapshots"].as_array().expect("a list").iter();
        list.map(|snapshot| snapshot["name"].as_str().expect("a name").to_owned()).collect()
    }

    /// Removes a named snapshot.
    pub async fn delete_snapshot(&self, name: &str) {
        self.delete(&format!("/v1/snapshots/{name}")).await.expect(204);
    }

    /// Directories of named snapshots.
    pub fn named_dirs(&self) -> Vec<PathBuf> {
        let dir = self.data_dir.join("snapshots/named");
        fs::read_dir(dir).expect("the snapshots").flatten().map(|entry| entry.path()).collect()
    }
}
