//! One open database, of either kind.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use chrono::{DateTime, Utc};
use migration::{Migrator, MigratorTrait};
use sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, DbErr, Statement, TransactionTrait};
use tokio::sync::watch;

use super::api_keys::{ApiKeys, LastUses};
use super::disk_reserve::{Room, Spare};
use super::error::{Cause, StoreError};
use super::events::{Events, Recording};
use super::hosts::Hosts;
use super::retry::Retries;
use super::sandboxes::Sandboxes;
use super::snapshots::Snapshots;
use super::{postgres, sqlite};

/// An open database with the current schema. Cheap to clone; clones share the connections.
#[derive(Clone)]
pub struct Database {
    inner: Arc<Inner>,
}

struct Inner {
    writer: DatabaseConnection,
    readers: DatabaseConnection,
    retries: Retries,
    last_uses: LastUses,
    /// Changes whenever events were written here.
    news: watch::Sender<()>,
}

/// Which database a setting names.
#[derive(Debug, PartialEq, Eq)]
enum Location {
    Postgres(String),
    Sqlite(PathBuf),
}

impl Database {
    /// Opens the database that `location` names and brings its schema up to date: a `postgres://`
    /// URL, or the path of an SQLite file (`sqlite://PATH` as well), which is created if missing.
    ///
    /// # Errors
    ///
    /// [`StoreError::UnsupportedScheme`], [`StoreError::ReadUrl`] for a bad URL;
    /// [`StoreError::OpenFile`], [`StoreError::Connect`], [`StoreError::ConnectTimeout`] when it
    /// cannot be reached; [`StoreError::Migrate`], [`StoreError::SchemaTooNew`],
    /// [`StoreError::Busy`] when its schema cannot be brought up to date.
    pub async fn open(location: &str) -> Result<Self, StoreError> {
        Self::open_with(location, None).await
    }

    /// The same, with room that is kept back for it on the disk of an SQLite file.
    ///
    /// # Errors
    ///
    /// Those of [`Database::open`]; [`StoreError::Full`] when no room is left.
    pub async fn open_with(
        location: &str,
        spare: Option<Arc<dyn Spare>>,
    ) -> Result<Self, StoreError> {
        let location = Location::parse(location)?;
        let retries = Retries::new(spare.filter(|_| matches!(location, Location::Sqlite(_))));
        let (writer, readers) = match location {
            Location::Sqlite(path) => sqlite::open(&path, &retries).await?,
            Location::Postgres(url) => {
                let pool = postgres::open(&url).await?;
                (pool.clone(), pool)
            }
        };
        let database = Self {
            inner: Arc::new(Inner {
                writer,
                readers,
                retries,
                last_uses: LastUses::default(),
                news: watch::Sender::new(()),
            }),
        };
        database.migrate().await?;
        Ok(database)
    }

    /// The sandboxes.
    pub fn sandboxes(&self) -> Sandboxes<'_> {
        Sandboxes::new(self)
    }

    /// The named snapshots.
    pub fn snapshots(&self) -> Snapshots<'_> {
        Snapshots::new(self)
    }

    /// What happened.
    pub fn events(&self) -> Events<'_> {
        Events::new(self)
    }

    /// The API keys.
    pub fn api_keys(&self) -> ApiKeys<'_> {
        ApiKeys::new(self)
    }

    /// The hosts.
    pub fn hosts(&self) -> Hosts<'_> {
        Hosts::new(self)
    }

    /// How often a busy SQLite had to be asked again since the database was opened.
    pub fn busy_retries(&self) -> u64 {
        self.inner.retries.count()
    }

    /// Closes the connections once the statements under way are done. Statements that come later,
    /// through any clone, fail.
    ///
    /// # Errors
    ///
    /// [`StoreError::Query`] when a connection does not close in order; nothing is lost then.
    pub async fn close(self) -> Result<(), StoreError> {
        let failed = |error| StoreError::Query { operation: "close", source: Cause::new(error) };
        self.inner.readers.close_by_ref().await.map_err(failed)?;
        self.inner.writer.close_by_ref().await.map_err(failed)
    }

    async fn migrate(&self) -> Result<(), StoreError> {
        let operation = "bring its schema up to date";
        let held_tokens = self.holds_tokens().await;
        self.inner
            .retries
            .run_in(Room::Spare, operation, || async {
                Migrator::up(&self.inner.writer, None).await
            })
            .await
            .map_err(|error| match error {
                StoreError::Query { source, .. } if source.is::<DbErr>(is_unknown_migration) => {
                    StoreError::SchemaTooNew(source)
                }
                StoreError::Query { source, .. } => StoreError::Migrate(source),
                other => other,
            })?;
        if held_tokens {
            self.scrub().await;
        }
        Ok(())
    }

    /// Whether an older version has kept tokens here.
    async fn holds_tokens(&self) -> bool {
        let select = "SELECT access_token FROM sandboxes LIMIT 1";
        let statement = Statement::from_string(self.backend(), select);
        self.inner.writer.query_one_raw(statement).await.is_ok_and(|row| row.is_some())
    }

    /// Writes the tables anew: rows that were changed or deleted stay in the files until then.
    async fn scrub(&self) {
        let all: &[&str] = match self.backend() {
            DbBackend::Postgres => &["VACUUM FULL sandboxes"],
            _ => &["VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"],
        };
        for sql in all {
            let statement = Statement::from_string(self.backend(), *sql);
            if let Err(error) = self.inner.writer.execute_raw(statement).await {
                tracing::warn!(%error, sql, "former tokens may still be in the database's files");
            }
        }
    }

    pub(super) fn backend(&self) -> DbBackend {
        self.inner.writer.get_database_backend()
    }

    /// The connection for `SELECT`s.
    pub(super) fn readers(&self) -> &DatabaseConnection {
        &self.inner.readers
    }

    pub(super) fn retries(&self) -> &Retries {
        &self.inner.retries
    }

    pub(super) fn last_uses(&self) -> &LastUses {
        &self.inner.last_uses
    }

    /// Is told when events were written through this database or a clone of it. Another process may
    /// write some too.
    pub fn news(&self) -> watch::Receiver<()> {
        self.inner.news.subscribe()
    }

    /// How events that happened at `at` are written.
    pub(super) fn recording(&self, at: DateTime<Utc>) -> Recording {
        Recording { backend: self.backend(), at }
    }

    /// Runs statements of which some write events as one transaction, as [`Database::write_all`]
    /// does. Of several such transactions one is done after the other, so that who sees an event has
    /// seen, or can see, all with smaller ids.
    pub(super) async fn write_events(
        &self,
        room: Room,
        operation: &'static str,
        statements: impl IntoIterator<Item = Statement>,
    ) -> Result<Vec<u64>, StoreError> {
        let tell = |inner: &Inner| inner.news.send_replace(());
        self.transact(room, operation, statements, tell).await
    }

    /// Runs statements as one transaction, as [`Database::write_all`] does. Of several such
    /// transactions one is done after the other, so that each sees what the one before has written.
    pub(super) async fn write_in_turn(
        &self,
        room: Room,
        operation: &'static str,
        statements: impl IntoIterator<Item = Statement>,
    ) -> Result<Vec<u64>, StoreError> {
        self.transact(room, operation, statements, |_| {}).await
    }

    /// The same, with `afterwards` once it is written, whether or not the caller still waits.
    async fn transact(
        &self,
        room: Room,
        operation: &'static str,
        statements: impl IntoIterator<Item = Statement>,
        afterwards: impl FnOnce(&Inner) + Send + 'static,
    ) -> Result<Vec<u64>, StoreError> {
        let turn = match self.backend() {
            DbBackend::Postgres => Some(postgres::take_turn()),
            // SQLite has one writer at a time anyway.
            _ => None,
        };
        let before = usize::from(turn.is_some());
        let statements: Vec<_> = turn.into_iter().chain(statements).collect();
        let inner = self.inner.clone();
        to_the_end(operation, async move {
            let touched = inner.write_all(room, operation, &statements).await?.split_off(before);
            afterwards(&inner);
            Ok(touched)
        })
        .await
    }

    /// Runs one statement that writes; gives the number of rows it touched.
    pub(super) async fn write(
        &self,
        room: Room,
        operation: &'static str,
        statement: Statement,
    ) -> Result<u64, StoreError> {
        let inner = self.inner.clone();
        to_the_end(operation, async move {
            let attempt = || inner.writer.execute_raw(statement.clone());
            Ok(inner.retries.run_in(room, operation, attempt).await?.rows_affected())
        })
        .await
    }
}

impl Inner {
    /// Runs statements that write as one transaction, all or none; gives the number of rows that
    /// each one touched. The first must write: one that reads could lose SQLite's lock to another
    /// process before the second.
    async fn write_all(
        &self,
        room: Room,
        operation: &'static str,
        statements: &[Statement],
    ) -> Result<Vec<u64>, StoreError> {
        let attempt = || async {
            let transaction = self.writer.begin().await?;
            let mut touched = Vec::with_capacity(statements.len());
            for statement in statements {
                touched.push(transaction.execute_raw(statement.clone()).await?.rows_affected());
            }
            transaction.commit().await?;
            Ok(touched)
        };
        self.retries.run_in(room, operation, attempt).await
    }
}

/// Runs `work` to its end, even if nobody waits for it any more. A transaction that is given up
/// between two statements has its connection roll it back, which PostgreSQL's does not notice if that
/// was while it began; and of events that were written, someone has to tell.
async fn to_the_end<T: Send + 'static>(
    operation: &'static str,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // The daemon ends.
        Err(error) => Err(StoreError::Query { operation, source: Cause::new(error) }),
    }
}

/// The library's only error of this kind while migrating: an applied migration that it has not.
fn is_unknown_migration(error: &DbErr) -> bool {
    matches!(error, DbErr::Custom(_))
}

/// The directory with the file that `location` names; none if it names no file.
pub fn directory_of(location: &str) -> Option<PathBuf> {
    match Location::parse(location) {
        // Of a bare name that is the empty path, which is no directory.
        Ok(Location::Sqlite(path)) => std::path::absolute(path).ok()?.parent().map(Path::to_owned),
        Ok(Location::Postgres(_)) | Err(_) => None,
    }
}

impl Location {
    fn parse(text: &str) -> Result<Self, StoreError> {
        let Some((scheme, rest)) = text.split_once(':') else {
            return Ok(Self::Sqlite(PathBuf::from(text)));
        };
        match scheme {
            "postgres" | "postgresql" => Ok(Self::Postgres(text.to_owned())),
            "sqlite" => Ok(Self::Sqlite(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest)))),
            // A path may hold a colon; a URL of another database has `://`.
            _ if !rest.starts_with("//") => Ok(Self::Sqlite(Path::new(text).to_owned())),
            _ => Err(StoreError::UnsupportedScheme { scheme: scheme.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_path_unless_it_is_a_url() {
        let path = |text: &str| Location::Sqlite(PathBuf::from(text));
        for (text, want) in [
            ("/var/lib/nestbox/nestbox.db", path("/var/lib/nestbox/nestbox.db")),
            ("odd:name.db", path("odd:name.db")),
            ("sqlite:nestbox.db", path("nestbox.db")),
            ("sqlite:///var/nestbox.db", path("/var/nestbox.db")),
            ("postgresql://db/x", Location::Postgres("postgresql://db/x".to_owned())),
        ] {
            assert_eq!(Location::parse(text).unwrap(), want, "{text}");
        }
    }

    #[test]
    fn a_url_of_another_database_is_refused_without_its_password() {
        let error = Location::parse("mysql://root:s3cret@db/x").unwrap_err();
        let text = error.to_string();
        assert!(text.contains("\"mysql\"") && !text.contains("s3cret"), "{text}");
    }
}
