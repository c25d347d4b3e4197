//! `key`.

use std::process::ExitCode;

use anyhow::Result;
use chrono::Utc;
use clap::Subcommand;

use super::client::Client;
use super::output::{Format, age, printable, table};

/// What to do with API keys.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// List the keys
    Ls,
    /// Make a key and print it; it is never shown again
    Create {
        /// What to call it
        name: String,
    },
    /// Delete a key
    Rm {
        /// Its id, from `key ls`
        id: String,
    },
}

pub(super) async fn run(client: &Client, format: Format, command: KeyCommand) -> Result<ExitCode> {
    match command {
        KeyCommand::Ls => list(client, format).await?,
        KeyCommand::Create { name } => {
            let key = client.create_key(&name).await?;
            format.print(&key, || format!("{}\n", key.key))?;
        }
        KeyCommand::Rm { id } => {
            client.delete_key(&id).await?;
            format.print(&serde_json::json!({ "removed": [id] }), || format!("{id}\n"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn list(client: &Client, format: Format) -> Result<()> {
    let keys = client.keys().await?;
    let now = Utc::now();
    format.print(&keys, || {
        let rows: Vec<_> = keys
            .api_keys
            .iter()
            .map(|key| {
                [
                    printable(&key.id),
                    printable(&key.name).replace('\n', " "),
                    printable(&key.prefix),
                    age(key.created_at, now),
                    key.last_used_at.map_or("never".to_owned(), |used| age(used, now)),
                ]
            })
            .collect();
        table(["ID", "NAME", "PREFIX", "AGE", "USED"], &rows)
    })?;
    Ok(())
}
