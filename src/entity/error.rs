//! What can go wrong with the database, in words for the person who runs Nestbox.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// A database could not be opened, or a statement did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL names a database that Nestbox has no driver for.
    #[error(
        "no driver for a database url with scheme {scheme:?}: use postgres:// or a path for sqlite"
    )]
    UnsupportedScheme { scheme: String },
    /// The URL cannot be taken apart. It is not repeated here, for it may hold a password.
    #[error("the database url cannot be read")]
    ReadUrl(#[source] Cause),
    /// SQLite's file cannot be created, read or written.
    #[error("cannot open the database file {}", path.display())]
    OpenFile { path: PathBuf, source: Cause },
    /// The PostgreSQL server does not answer or refuses; `server` is without the password.
    #[error("cannot connect to the database at {server}")]
    Connect { server: String, source: Cause },
    /// The PostgreSQL server did not answer within the time.
    #[error("the database at {server} did not answer within {} s", waited.as_secs())]
    ConnectTimeout { server: String, waited: Duration },
    /// A newer Nestbox has used this database.
    #[error("the database was made by a newer version of nestbox")]
    SchemaTooNew(#[source] Cause),
    /// The schema could not be brought up to date.
    #[error("cannot bring the database's schema up to date")]
    Migrate(#[source] Cause),
    /// Another process kept SQLite's write lock for too long.
    #[error("the database stayed locked by another process for {} s, gave up: {operation}", waited.as_secs())]
    Busy { operation: &'static str, waited: Duration },
    /// The disk that has the database is full.
    #[error("the disk that has the database is full, so it failed to {operation}: make room there")]
    Full { operation: &'static str, source: Cause },
    /// A statement failed.
    #[error("the database failed to {operation}")]
    Query { operation: &'static str, source: Cause },
    /// A row holds something that this version cannot have written.
    #[error("the database's row {table}/{id} has a bad {column}")]
    CorruptRow { table: &'static str, id: String, column: &'static str },
    /// PostgreSQL has no way to keep a NUL in a text, so neither database is given one.
    #[error("{column} holds a NUL character")]
    NulCharacter { column: &'static str },
}

/// The database library's own words for what failed.
pub struct Cause(Box<dyn Error + Send + Sync>);

impl Cause {
    pub(super) fn new(error: impl Error + Send + Sync + 'static) -> Self {
        Self(Box::new(error))
    }

    /// Whether the cause is a `T` that `matches` says yes to.
    pub(super) fn is<T: Error + 'static>(&self, matches: impl Fn(&T) -> bool) -> bool {
        self.0.downcast_ref::<T>().is_some_and(matches)
    }
}

// The library's errors print their own causes, so a cause shows no further source: a chain would
// say everything three times.
impl Error for Cause {}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
