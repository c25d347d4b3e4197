//! `sandboxes`: no token that opens anything.
//!
//! Nobody read the agents' tokens here; a host keeps them with its machines. Those of ports are made of a
//! secret of the daemon's from now on. Of one that somebody has been given a digest stays, so that what
//! was given goes on opening.

use sea_orm_migration::prelude::*;
use sea_orm_migration::schema::text;
use sea_orm_migration::sea_orm::{ConnectionTrait, Statement};
use sha2::{Digest, Sha256};

#[derive(DeriveMigrationName)]
pub struct Migration;

#[async_trait::async_trait]
impl MigrationTrait for Migration {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let connection = manager.get_connection();
        let backend = connection.get_database_backend();
        let select = "SELECT id, ports_token FROM sandboxes WHERE ports_token IS NOT NULL";
        for row in connection.query_all_raw(Statement::from_string(backend, select)).await? {
            let (id, token): (String, String) =
                (row.try_get("", "id")?, row.try_get("", "ports_token")?);
            let update = Query::update()
                .table("sandboxes")
                .value("ports_token", digest(&token))
                .and_where(Expr::col("id").eq(id))
                .to_owned();
            connection.execute(&update).await?;
        }
        // A database that only forgets a column goes on holding what was in it.
        let blank = Query::update().table("sandboxes").value("access_token", "").to_owned();
        connection.execute(&blank).await?;
        let change = || Table::alter().table("sandboxes").to_owned();
        manager.alter_table(change().drop_column("access_token").to_owned()).await?;
        let renamed = change().rename_column("ports_token", "ports_token_digest").to_owned();
        manager.alter_table(renamed).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let forget = Query::update()
            .table("sandboxes")
            .value("ports_token_digest", None::<String>)
            .to_owned();
        manager.get_connection().execute(&forget).await?;
        let change = || Table::alter().table("sandboxes").to_owned();
        let renamed = change().rename_column("ports_token_digest", "ports_token").to_owned();
        manager.alter_table(renamed).await?;
        let column = text("access_token").default("").to_owned();
        manager.alter_table(change().add_column(column).to_owned()).await
    }

    fn use_transaction(&self) -> Option<bool> {
        // Both databases undo DDL; without this SQLite could be left with half of a migration.
        Some(true)
    }
}

/// In hexadecimal, as API keys are kept.
fn digest(token: &str) -> String {
    Sha256::digest(token.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}
