//! What is special about SQLite.

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
    database.sandboxes().list(&Filter::default(), &window(10)).await.unwrap();
    // Until SQLite itself has given up once and said busy.
    while database.busy_retries() == 0 {
        assert!(!writing.is_finished(), "never busy");
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
