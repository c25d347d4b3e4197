//! `events`: what happened to sandboxes and snapshots, in the order in which it happened.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, text, text_null, timestamp_with_time_zone};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(table()).await?;
        manager.create_index(by_sandbox()).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("events").to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}

fn table() -> TableCreateStatement {
    Table::create()
        .table("events")
        // In both databases a number is never given out again, also if its row was deleted.
        .col(big_integer("id").auto_increment().primary_key())
        .col(timestamp_with_time_zone("at"))
        .col(text("type"))
        // No foreign keys: an event outlives what it is about.
        .col(text_null("sandbox_id"))
        .col(text_null("snapshot"))
        .col(text_null("state"))
        .col(text_null("previous"))
        .col(text_null("reason"))
        .to_owned()
}

fn by_sandbox() -> IndexCreateStatement {
    Index::create().name("events_sandbox_id").table("events").col("sandbox_id").col("id").to_owned()
}
