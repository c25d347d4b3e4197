//! `rm`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::batch::each;
use super::client::{Client, ListQuery};
use super::output::Format;
use super::resolve::{live_states, resolve_all};

/// Arguments of `rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// Ids, or beginnings of ids that no other sandbox has; one that is gone already is no error
    #[arg(required_unless_present_any = ["all", "ended"], value_name = "ID")]
    ids: Vec<String>,
    /// Destroy every sandbox
    #[arg(long, short, conflicts_with = "ids")]
    all: bool,
    /// Forget the sandboxes that have ended, a week after which they are forgotten anyway
    #[arg(long, conflicts_with_all = ["ids", "all"])]
    ended: bool,
}

pub(super) async fn run(client: &Client, format: Format, args: RmArgs) -> Result<ExitCode> {
    if args.ended {
        let cleared = client.clear().await?;
        format.print(&serde_json::json!({ "cleared": cleared }), || format!("{cleared}\n"))?;
        return Ok(ExitCode::SUCCESS);
    }
    let ids = targets(client, args).await?;
    let (removed, code) =
        each(ids, "cannot destroy", |id| async move { client.destroy(&id).await.map(|()| id) })
            .await;
    format.print(&serde_json::json!({ "removed": removed }), || {
        removed.iter().map(|id| format!("{id}\n")).collect()
    })?;
    Ok(code)
}

/// The ids to destroy.
async fn targets(client: &Client, args: RmArgs) -> Result<Vec<String>> {
    if args.all {
        let query = ListQuery { states: live_states(), metadata: BTreeMap::new() };
        return Ok(client.list(&query).await?.into_iter().map(|sandbox| sandbox.id).collect());
    }
    resolve_all(client, &args.ids).await
}
