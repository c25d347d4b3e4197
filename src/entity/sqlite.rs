//! SQLite's connections: every pragma is here and nowhere else.
//!
//! One connection writes and several read. SQLite has one write lock a file, so a second writer of
//! ours could only wait for the first, and would wait in SQLite's polling busy handler instead of
//! in a fair queue.

use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use sea_orm::sqlx;
use sea_orm::sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};
use sea_orm::sqlx::{ConnectOptions, Connection};
use sea_orm::{DatabaseConnection, SqlxSqliteConnector};

use super::error::{Cause, StoreError};
use super::retry::Retries;

/// How long SQLite itself polls for a lock before it says busy; `retry` asks again after that.
const BUSY_TIMEOUT: Duration = Duration::from_secs(1);
/// Connections that read. Each is a thread and a page cache of up to 2 MiB.
const READERS: u32 = 4;
/// How long a statement queues for a connection before it fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);
/// Size to which the write-ahead log is cut back after a burst, in bytes.
const JOURNAL_SIZE_LIMIT: &str = "16777216";

/// Opens the file, creating it if there is none, and gives the writer and the readers.
///
/// # Errors
///
/// [`StoreError::OpenFile`] when the file cannot be created or is no database, [`StoreError::Full`]
/// when the disk has no room for the index of the log, which opening makes.
pub(super) async fn open(
    path: &Path,
    retries: &Retries,
) -> Result<(DatabaseConnection, DatabaseConnection), StoreError> {
    let failed = |source| StoreError::OpenFile { path: path.to_owned(), source };
    create_private(path).map_err(|error| failed(Cause::new(error)))?;
    let (writer, readers) = loop {
        match connect(options(path)).await {
            Ok(both) => break both,
            Err(error) if retries.is_full(&error) => {
                if !retries.give() {
                    let operation = "open its file";
                    return Err(StoreError::Full { operation, source: Cause::new(error) });
                }
            }
            Err(error) => return Err(failed(Cause::new(error))),
        }
    };
    let wrap = SqlxSqliteConnector::from_sqlx_sqlite_pool;
    Ok((wrap(writer), wrap(readers)))
}

async fn connect(options: SqliteConnectOptions) -> sqlx::Result<(SqlitePool, SqlitePool)> {
    let writer = pool(1).connect_with(options.clone()).await?;
    let readers = pool(READERS).connect_with(options.pragma("query_only", "ON")).await?;
    Ok((writer, readers))
}

/// Creates the file with mode 0600 if it is missing: it holds the sandboxes' environments. SQLite
/// gives the mode of the database to its `-wal` and `-shm` files. Also, an error of the operating
/// system says more than SQLite's "unable to open database file".
fn create_private(path: &Path) -> std::io::Result<()> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    options.open(path).map(drop)
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .busy_timeout(BUSY_TIMEOUT)
        // Readers go on while the writer writes.
        .journal_mode(SqliteJournalMode::Wal)
        // No fsync a commit. A crash of Nestbox loses nothing; a power cut can lose the last
        // commits but never the file's integrity, and the VMs are gone then as well.
        .synchronous(SqliteSynchronous::Normal)
        .foreign_keys(true)
        // What is deleted is overwritten: a stolen file does not hold what is in no table any more.
        .pragma("secure_delete", "ON")
        .pragma("temp_store", "MEMORY")
        .pragma("journal_size_limit", JOURNAL_SIZE_LIMIT)
        .disable_statement_logging()
}

fn pool(connections: u32) -> SqlitePoolOptions {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        // A file does not hang up: a ping before every statement would only cost a thread switch.
        .test_before_acquire(false)
        .max_lifetime(None)
        // The log stays where it is, and with it the room that it has on the disk.
        .idle_timeout(None)
        .after_release(|connection, _| Box::pin(is_at_rest(connection)))
}

/// Whether a connection that is given back is outside of any transaction. Of some errors (a full disk,
/// an I/O error, no memory) SQLite rolls back by itself; the library's own rollback fails after that, and
/// it takes itself to be inside a transaction from then on: it would make savepoints of further ones,
/// which nobody ever commits. Such a connection is closed, and the next statement gets a new one.
async fn is_at_rest(connection: &mut SqliteConnection) -> sqlx::Result<bool> {
    // What was queued is done by then, such as a rollback.
    connection.ping().await?;
    let at_rest = !connection.is_in_transaction();
    if !at_rest {
        tracing::warn!("a connection to the database is replaced after a failed transaction");
    }
    Ok(at_rest)
}
