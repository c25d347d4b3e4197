//! A full disk costs the writes that it has no room for, and nothing that comes after them.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nestbox::entity::Spare;
use nestbox::entity::events::Page;

use super::*;
use crate::small_disk::SmallDisk;

/// More inserts than fit into what the log has left on the disk.
const MANY: usize = 10_000;

/// A small disk with a database on it.
struct Bed {
    disk: SmallDisk,
    dir: tempfile::TempDir,
}

impl Bed {
    fn make() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let disk = SmallDisk::mount(&dir.path().join("disk"), &dir.path().join("mounted"), 16);
        Self { disk, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("mounted").join(name)
    }

    fn location(&self) -> String {
        self.path("nestbox.db").display().to_string()
    }

    /// Fills the disk, and what the database has left of it.
    async fn fill(&self, database: &Database) {
        self.disk.fill();
        for _ in 0..MANY {
            if let Err(error) = database.sandboxes().insert(&new_sandbox()).await {
                assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
                return;
            }
        }
        panic!("the disk is never full");
    }
}

/// What a reader of another connection sees.
async fn states(location: &str, id: &SandboxId) -> Vec<String> {
    let mut other = raw::sqlite(location).await;
    let sql = format!("SELECT coalesce(group_concat(state), '') FROM sandboxes WHERE id = '{id}'");
    let sql = sea_orm::sqlx::AssertSqlSafe(sql);
    let row = sea_orm::sqlx::Executor::fetch_one(&mut other, sql).await.unwrap();
    let text: String = sea_orm::sqlx::Row::get(&row, 0);
    text.split(',').filter(|state| !state.is_empty()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_acknowledged_after_a_full_disk_is_there() {
    let bed = Bed::make();
    let database = open(&bed.location()).await;
    let early = insert(&database, new_sandbox()).await.id;
    bed.fill(&database).await;
    // Of every kind, for each may find the connection as the one before has left it. What is small may
    // still fit, and is there then.
    let mut refused = 0;
    for generation in 1..=3 {
        let new = new_sandbox();
        let inserted = database.sandboxes().insert(&new).await.map(drop);
        assert_eq!(states(&bed.location(), &new.id).await.len(), usize::from(inserted.is_ok()));
        let running = change(SandboxState::Running);
        let before = find(&database, &early).await.generation;
        let published =
            database.sandboxes().publish(&early, generation, None, &running).await.map(drop);
        let now = if published.is_ok() { generation } else { before };
        assert_eq!(find(&database, &early).await.generation, now);
        let touched = database.sandboxes().touch(&early, noon(), None).await;
        for error in [inserted, published, touched].into_iter().filter_map(Result::err) {
            assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
            refused += 1;
        }
    }
    assert!(refused > 3, "{refused}");

    bed.disk.free();
    let news = database.news();
    let late = insert(&database, new_sandbox()).await.id;
    assert!(news.has_changed().unwrap());
    find(&database, &late).await;
    for (id, generation, state) in
        [(&early, 9, SandboxState::Running), (&late, 9, SandboxState::Error)]
    {
        let published = database.sandboxes().publish(id, generation, None, &change(state)).await;
        assert_eq!(published.unwrap(), Publish::Written);
        assert_eq!(find(&database, id).await.state, state);
        assert_eq!(states(&bed.location(), id).await, [state.as_str()]);
    }
    let filter = nestbox::entity::events::EventFilter {
        sandbox_id: Some(late.clone()),
        ..Default::default()
    };
    let limit = NonZeroU32::new(10).unwrap();
    let events = database.events().list(&filter, Page::Newest, limit).await.unwrap().events;
    assert_eq!(events.len(), 2, "{events:?}");
    database.close().await.unwrap();
    let again = Database::open(&bed.location()).await.unwrap();
    find(&again, &late).await;
    again.close().await.unwrap();
}

/// So many pieces of a file, as the daemon keeps them.
struct Pieces {
    path: PathBuf,
    left: AtomicUsize,
}

impl Pieces {
    const SIZE: usize = 512 << 10;

    fn keep(path: PathBuf, pieces: usize) -> Arc<Self> {
        std::fs::write(&path, vec![1; pieces * Self::SIZE]).unwrap();
        Arc::new(Self { path, left: AtomicUsize::new(pieces) })
    }

    fn left(&self) -> usize {
        self.left.load(Ordering::SeqCst)
    }
}

impl Spare for Pieces {
    fn give(&self) -> bool {
        let Some(left) = self.left().checked_sub(1) else { return false };
        self.left.store(left, Ordering::SeqCst);
        let file = std::fs::File::options().write(true).open(&self.path).unwrap();
        file.set_len((left * Self::SIZE) as u64).unwrap();
        true
    }

    fn is_full(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_a_full_disk_it_opens_and_takes_what_makes_an_end_and_nothing_new() {
    let bed = Bed::make();
    let spare = Pieces::keep(bed.path("spare"), 4);
    let with_spare = || Some(spare.clone() as Arc<dyn Spare>);
    let database = Database::open_with(&bed.location(), with_spare()).await.unwrap();
    database.hosts().register(&host(HOST)).await.unwrap();
    let id = insert(&database, new_sandbox()).await.id;
    bed.fill(&database).await;
    assert_eq!(spare.left(), 4, "nothing new takes what is kept back");
    let published =
        database.sandboxes().publish(&id, 1, None, &change(SandboxState::Stopping)).await;
    assert_eq!(published.unwrap(), Publish::Written);
    assert_eq!(spare.left(), 3, "one piece is enough");
    // In order, so that the log and its index are gone, and have to be made again.
    bed.disk.free();
    database.close().await.unwrap();
    bed.disk.fill();
    assert!(!bed.path("nestbox.db-shm").exists());

    let database = Database::open_with(&bed.location(), with_spare()).await.unwrap();
    assert!(spare.left() < 3, "opening takes room");
    bed.disk.fill();
    let published =
        database.sandboxes().publish(&id, 2, None, &change(SandboxState::Stopped)).await;
    assert_eq!(published.unwrap(), Publish::Written);
    assert_eq!(states(&bed.location(), &id).await, ["stopped"]);
    database.close().await.unwrap();

    while spare.give() {}
    bed.disk.free();
    Database::open(&bed.location()).await.unwrap().close().await.unwrap();
    bed.disk.fill();
    let error = Database::open_with(&bed.location(), with_spare()).await.err().unwrap();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert!(error.to_string().contains("make room"), "{error}");
}
