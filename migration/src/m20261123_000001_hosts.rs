//! `hosts`: the machines that run sandboxes.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, text, timestamp_with_time_zone, timestamp_with_time_zone_null,
};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::create()
            .table("hosts")
            .col(text("id").primary_key())
            .col(text("name"))
            .col(text("state"))
            .col(text("hypervisor"))
            .col(big_integer("vcpus"))
            .col(big_integer("memory_mib"))
            .col(text("version"))
            .col(timestamp_with_time_zone_null("last_heartbeat_at"))
            .col(timestamp_with_time_zone("created_at"))
            .to_owned();
        manager.create_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("hosts").to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}
