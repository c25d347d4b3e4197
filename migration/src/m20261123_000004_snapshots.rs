//! `snapshots`: the named snapshots, which sandboxes are created from.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{big_integer, text, timestamp_with_time_zone};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.create_table(table()).await?;
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        manager.drop_table(Table::drop().table("snapshots").to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}

fn table() -> TableCreateStatement {
    Table::create()
        .table("snapshots")
        .col(text("name").primary_key())
        .col(text("host_id"))
        .col(text("build"))
        // No foreign key: a snapshot outlives the sandbox it was taken from.
        .col(text("sandbox_id"))
        .col(text("image"))
        .col(big_integer("vcpus"))
        .col(big_integer("memory_mib"))
        .col(text("hypervisor"))
        .col(big_integer("memory_bytes"))
        .col(big_integer("disk_bytes"))
        .col(big_integer("shared_bytes"))
        .col(big_integer("memory_generations"))
        .col(timestamp_with_time_zone("created_at"))
        .foreign_key(
            ForeignKey::create()
                .name("snapshots_host_id")
                .from("snapshots", "host_id")
                .to("hosts", "id"),
        )
        .to_owned()
}

fn indexes() -> [IndexCreateStatement; 2] {
    let by_host =
        Index::create().name("snapshots_host").table("snapshots").col("host_id").to_owned();
    let newest_first = Index::create()
        .name("snapshots_created_at")
        .table("snapshots")
        .col("created_at")
        .col("name")
        .to_owned();
    [by_host, newest_first]
}
