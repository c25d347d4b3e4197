//! Asks a busy SQLite again.
//!
//! Nestbox has one writer, so "busy" means another process: a backup, or a person with `sqlite3`.
//! Such a lock goes away; a sandbox's state that was not written does not come back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{DbErr, RuntimeErr};

use super::error::{Cause, StoreError};

/// First pause before asking again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_millis(200);
/// After this long with a lock that is not released, the caller gets [`StoreError::Busy`].
const GIVE_UP_AFTER: Duration = Duration::from_secs(10);

// Primary result codes of SQLite; an extended code has them in its low byte
// (sqlite.org/rescode.html).
const SQLITE_BUSY: u32 = 5;
const SQLITE_LOCKED: u32 = 6;

/// Counts how often the database was busy and was asked again.
#[derive(Debug, Default)]
pub(super) struct Retries(AtomicU64);

impl Retries {
    /// How often so far.
    pub(super) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Runs `attempt` until it succeeds, fails for another reason than a lock, or has been kept
    /// waiting for [`GIVE_UP_AFTER`]. `operation` completes "the database failed to ...".
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`] or [`StoreError::Query`].
    pub(super) async fn run<T, F>(
        &self,
        operation: &'static str,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, DbErr>>,
    {
        let begun = Instant::now();
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match attempt().await {
                Ok(value) => return Ok(value),
                Err(error) => error,
            };
            if !is_busy(&error) {
                return Err(StoreError::Query { operation, source: Cause::new(error) });
            }
            let waited = begun.elapsed();
            if waited >= GIVE_UP_AFTER {
                return Err(StoreError::Busy { operation, waited });
            }
            self.0.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(operation, ?waited, "the database is locked by another process");
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}

/// Whether SQLite refused because of someone else's lock.
pub(super) fn is_busy(error: &DbErr) -> bool {
    let (DbErr::Conn(inner) | DbErr::Exec(inner) | DbErr::Query(inner)) = error else {
        return false;
    };
    let RuntimeErr::SqlxError(error) = inner else {
        return false;
    };
    error
        .as_database_error()
        .filter(|error| error.try_downcast_ref::<SqliteError>().is_some())
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| matches!(code & 0xff, SQLITE_BUSY | SQLITE_LOCKED))
}
