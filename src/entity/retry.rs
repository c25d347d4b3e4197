//! Asks a busy SQLite again, and one whose disk is full.
//!
//! Nestbox has one writer, so "busy" means another process: a backup, or a person with `sqlite3`.
//! Such a lock goes away; a sandbox's state that was not written does not come back. On a full disk
//! that state gets the room that was kept back for it, a piece at a time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use sea_orm::sqlx;
use sea_orm::sqlx::sqlite::SqliteError;
use sea_orm::{DbErr, RuntimeErr};

use super::disk_reserve::{Room, Spare};
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
const SQLITE_IOERR: u32 = 10;
const SQLITE_FULL: u32 = 13;
const SQLITE_CANTOPEN: u32 = 14;
/// The index of the log could not be made as large as it has to be.
const SQLITE_IOERR_SHMSIZE: u32 = SQLITE_IOERR | (19 << 8);
/// PostgreSQL's `disk_full` (appendix A of its documentation).
const POSTGRES_DISK_FULL: &str = "53100";

/// Counts how often the database was busy and was asked again.
#[derive(Default)]
pub(super) struct Retries {
    busy: AtomicU64,
    spare: Option<Arc<dyn Spare>>,
}

impl Retries {
    /// With what is kept back on the disk, if anything is.
    pub(super) fn new(spare: Option<Arc<dyn Spare>>) -> Self {
        Self { busy: AtomicU64::new(0), spare }
    }

    /// How often so far.
    pub(super) fn count(&self) -> u64 {
        self.busy.load(Ordering::Relaxed)
    }

    /// Gives the disk some of what is kept back.
    pub(super) fn give(&self) -> bool {
        self.spare.as_ref().is_some_and(|spare| spare.give())
    }

    /// Whether the disk had no room for it.
    pub(super) fn is_full(&self, error: &sqlx::Error) -> bool {
        let Some(error) = error.as_database_error() else { return false };
        let Some(code) = error.code() else { return false };
        if error.try_downcast_ref::<SqliteError>().is_none() {
            return code == POSTGRES_DISK_FULL;
        }
        match code.parse::<u32>() {
            Ok(SQLITE_IOERR_SHMSIZE) => true,
            Ok(code) => match code & 0xff {
                SQLITE_FULL => true,
                // A quota, or no inode for the log: the disk itself has to be asked.
                SQLITE_IOERR | SQLITE_CANTOPEN => {
                    self.spare.as_ref().is_some_and(|spare| spare.is_full())
                }
                _ => false,
            },
            Err(_) => false,
        }
    }

    /// Runs `attempt` until it succeeds, fails for another reason than a lock, or has been kept
    /// waiting for [`GIVE_UP_AFTER`]. `operation` completes "the database failed to ...".
    ///
    /// # Errors
    ///
    /// [`StoreError::Busy`], [`StoreError::Full`] or [`StoreError::Query`].
    pub(super) async fn run<T, F>(
        &self,
        operation: &'static str,
        attempt: impl Fn() -> F,
    ) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, DbErr>>,
    {
        self.run_in(Room::Free, operation, attempt).await
    }

    /// The same, with as much of the room that is kept back as it may take.
    pub(super) async fn run_in<T, F>(
        &self,
        room: Room,
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
            if sqlx_error(&error).is_some_and(|error| self.is_full(error)) {
                // Somebody else may take it first: there is more than one piece.
                if room == Room::Spare && self.give() {
                    tracing::warn!(
                        operation,
                        "the disk is full: some of the room kept back is used"
                    );
                    continue;
                }
                return Err(StoreError::Full { operation, source: Cause::new(error) });
            }
            if !is_busy(&error) {
                return Err(StoreError::Query { operation, source: Cause::new(error) });
            }
            let waited = begun.elapsed();
            if waited >= GIVE_UP_AFTER {
                return Err(StoreError::Busy { operation, waited });
            }
            self.busy.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(operation, ?waited, "the database is locked by another process");
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }
}

/// Whether SQLite refused because of someone else's lock.
pub(super) fn is_busy(error: &DbErr) -> bool {
    sqlx_error(error)
        .and_then(|error| error.as_database_error())
        .filter(|error| error.try_downcast_ref::<SqliteError>().is_some())
        .and_then(|error| error.code())
        .and_then(|code| code.parse::<u32>().ok())
        .is_some_and(|code| matches!(code & 0xff, SQLITE_BUSY | SQLITE_LOCKED))
}

fn sqlx_error(error: &DbErr) -> Option<&sqlx::Error> {
    match error {
        DbErr::Conn(inner) | DbErr::Exec(inner) | DbErr::Query(inner) => match inner {
            RuntimeErr::SqlxError(error) => Some(error),
            _ => None,
        },
        _ => None,
    }
}
