//! `sandboxes`: every sandbox that was asked for, until retention deletes it.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{
    big_integer, big_integer_null, json_binary, text, text_null, timestamp_with_time_zone,
    timestamp_with_time_zone_null,
};

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
        manager.drop_table(Table::drop().table("sandboxes").to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}

fn table() -> TableCreateStatement {
    Table::create()
        .table("sandboxes")
        .col(text("id").primary_key())
        .col(text("host_id"))
        .col(text("template"))
        .col(big_integer("vcpus"))
        .col(big_integer("memory_mib"))
        .col(big_integer_null("timeout_sec"))
        .col(json_binary("envs"))
        .col(json_binary("metadata"))
        .col(text("state"))
        .col(text_null("reason"))
        .col(big_integer("generation"))
        .col(big_integer_null("slot"))
        .col(text("hypervisor"))
        .col(text("access_token"))
        // No foreign key: a key may be revoked while the sandboxes it made go on, and a request
        // that is repeated later must still find its sandbox.
        .col(text("api_key_id"))
        .col(text_null("idempotency_key"))
        .col(text_null("request_digest"))
        .col(timestamp_with_time_zone("created_at"))
        .col(timestamp_with_time_zone("updated_at"))
        .col(timestamp_with_time_zone("last_active_at"))
        .col(timestamp_with_time_zone_null("expires_at"))
        .col(timestamp_with_time_zone_null("stopped_at"))
        .foreign_key(
            ForeignKey::create()
                .name("sandboxes_host_id")
                .from("sandboxes", "host_id")
                .to("hosts", "id"),
        )
        .to_owned()
}

fn indexes() -> [IndexCreateStatement; 3] {
    // Rows without an idempotency key do not collide: in both databases one NULL is distinct from
    // another in a unique index.
    let idempotency = Index::create()
        .name("sandboxes_idempotency")
        .table("sandboxes")
        .col("api_key_id")
        .col("idempotency_key")
        .unique()
        .to_owned();
    let newest_first = Index::create()
        .name("sandboxes_created_at")
        .table("sandboxes")
        .col("created_at")
        .col("id")
        .to_owned();
    let by_host = Index::create()
        .name("sandboxes_host_state")
        .table("sandboxes")
        .col("host_id")
        .col("state")
        .to_owned();
    [idempotency, newest_first, by_host]
}
