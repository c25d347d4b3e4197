//! What Nestbox remembers: one table a file, with the queries beside it.
//!
//! Owns the connections to SQLite or PostgreSQL, the rows and every statement. Knows of Nestbox
//! only the values of `domain`; actors and HTTP get plain structs and never a type of the
//! database library.
//!
//! ```text
//! Database::open --> sandboxes() | snapshots() | events() | api_keys() | hosts()    a handle a table
//!        |                     |
//!        |                 retry.rs                  a busy SQLite is asked again, and one whose
//!        |                     |                     disk is full gets what spare.rs kept back
//!        v                     v
//!  sqlite.rs: 1 writer + n readers | postgres.rs: one pool
//! ```

pub mod api_keys;
mod columns;
mod cursor;
mod database;
mod disk_reserve;
mod error;
pub mod events;
pub mod hosts;
mod postgres;
mod retry;
pub mod sandboxes;
pub mod snapshots;
mod sqlite;

pub use cursor::{Cursor, InvalidCursor};
pub use database::{Database, directory_of};
pub use disk_reserve::Spare;
pub use error::{Cause, StoreError};
