//! `rm`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use futures::StreamExt;

use super::client::{Client, ListQuery};
use super::exit::{self, NESTBOX_FAILED};
use super::output::Format;
use super::resolve::{live_states, resolve};

/// Sandboxes destroyed at a time.
const AT_ONCE: usize = 8;

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Ids, or beginnings of ids that no other sandbox has; one that is gone already is no error
    #[arg(required_unless_present = "all", value_name = "ID")]
    ids: Vec<String>,
    /// Destroy every sandbox
    #[arg(long, short, conflicts_with = "ids")]
    all: bool,
}

pub(super) async fn run(client: &Client, format: Format, args: RmArgs) -> Result<ExitCode> {
    let ids = targets(client, args).await?;
    let results = futures::stream::iter(ids)
        .map(|id| async move {
            let result = client.destroy(&id).await;
            (result.with_context(|| format!("cannot destroy {id}")), id)
        })
        // In order, so that the output is.
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut removed = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for (result, id) in results {
        match result {
            Ok(()) => removed.push(id),
            Err(error) => {
                exit::after_error(&error);
                code = ExitCode::from(NESTBOX_FAILED);
            }
        }
    }
    format.print(&serde_json::json!({ "removed": removed }), || {
        removed.iter().map(|id| format!("{id}\n")).collect()
    })?;
    Ok(code)
}

/// The ids to destroy. All are looked up before the first is destroyed: with a mistyped one
/// nothing happens.
async fn targets(client: &Client, args: RmArgs) -> Result<Vec<String>> {
    if args.all {
        let query = ListQuery { states: live_states(), metadata: BTreeMap::new() };
        return Ok(client.list(&query).await?.into_iter().map(|sandbox| sandbox.id).collect());
    }
    let mut ids = Vec::new();
    for text in &args.ids {
        let id = resolve(client, text).await?;
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    Ok(ids)
}
