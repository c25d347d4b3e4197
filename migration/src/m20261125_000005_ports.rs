//! `sandboxes`: which ports are public, and what opens the others.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::{json_binary, text_null};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        // SQLite adds one column at a time.
        let none = json_binary("public_ports").default("[]").to_owned();
        for column in [none, text_null("ports_token")] {
            let table = Table::alter().table("sandboxes").add_column(column).to_owned();
            manager.alter_table(table).await?;
        }
        Ok(())
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        for column in ["ports_token", "public_ports"] {
            let table = Table::alter().table("sandboxes").drop_column(column).to_owned();
            manager.alter_table(table).await?;
        }
        Ok(())
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}
