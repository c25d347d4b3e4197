//! `api_keys`: who may use the API. Only a digest of a key is kept.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{text, timestamp_with_time_zone, timestamp_with_time_zone_null};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table("api_keys")
            .col(text("id").primary_key())
            .col(text("name"))
            .col(text("digest").unique_key())
            .col(text("prefix"))
            .col(timestamp_with_time_zone("created_at"))
            .col(timestamp_with_time_zone_null("last_used_at"))
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("api_keys").to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}
