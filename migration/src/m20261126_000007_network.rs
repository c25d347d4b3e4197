//! `sandboxes`: what each may reach. Those that were there before reach everything.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::json_binary;

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let open = json_binary("network").default("{}").to_owned();
        let table = Table::alter().table("sandboxes").add_column(open).to_owned();
        manager.alter_table(table).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let table = Table::alter().table("sandboxes").drop_column("network").to_owned();
        manager.alter_table(table).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}
