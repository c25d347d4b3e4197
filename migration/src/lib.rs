//! The database's schema as a list of migrations, the same for SQLite and PostgreSQL.
//!
//! Owns the tables, their indexes and the order in which they came. Knows nothing of Nestbox's own
//! types: a migration says what the schema was on the day it was written, whatever the code is now.
//! A migration that has been released is never edited; a change is a new file.

mod m20261123_000001_hosts;
mod m20261123_000002_api_keys;
mod m20261123_000003_sandboxes;
mod m20261123_000004_snapshots;
mod m20261125_000005_ports;
mod m20261125_000006_events;
mod m20261126_000007_network;
mod m20261130_000008_tokens;
mod m20261130_000009_rates;
mod m20261130_000010_epochs;

pub use sea_orm_migration::MigratorTrait;
use sea_orm_migration::prelude::*;

/// Brings a database from any earlier schema to the current one.
pub struct Migrator;

#[async_trait::async_trait]
impl MigratorTrait for Migrator {
    fn migrations() -> Vec<Box<dyn MigrationTrait>> {
        vec![
            Box::new(m20261123_000001_hosts::Migration),
            Box::new(m20261123_000002_api_keys::Migration),
            Box::new(m20261123_000003_sandboxes::Migration),
            Box::new(m20261123_000004_snapshots::Migration),
            Box::new(m20261125_000005_ports::Migration),
            Box::new(m20261125_000006_events::Migration),
            Box::new(m20261126_000007_network::Migration),
            Box::new(m20261130_000008_tokens::Migration),
            Box::new(m20261130_000009_rates::Migration),
            Box::new(m20261130_000010_epochs::Migration),
        ]
    }
}
