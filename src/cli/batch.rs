//! The same for several: a few at a time, told in order.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use futures::StreamExt;

use super::client::{Client, ClientError, Sandbox, Tracing};
use super::exit::{self, NESTBOX_FAILED};
use super::output::{Format, tell};
use super::resolve::resolve_all;
use super::trace::{TraceArgs, tell_trace};

/// Requests under way at a time.
const AT_ONCE: usize = 8;

/// Which sandboxes to change, and whether to tell where the time went.
#[derive(Debug, Args)]
pub struct SeveralArgs {
    /// Ids, or beginnings of ids that no other sandbox has
    #[arg(required = true, value_name = "ID")]
    pub(super) ids: Vec<String>,
    #[command(flatten)]
    pub(super) trace: TraceArgs,
}

/// Does `work` with each; gives what came of those that it was done with. The others are told on
/// stderr, as what `failed` says, and in the exit code.
pub(super) async fn each<T, E, F>(
    names: Vec<String>,
    failed: &str,
    work: impl Fn(String) -> F,
) -> (Vec<T>, ExitCode)
where
    F: Future<Output = Result<T, E>>,
    Result<T, E>: Context<T, E>,
{
    let results = futures::stream::iter(names)
        .map(|name| {
            let work = work(name.clone());
            async move { work.await.with_context(|| format!("{failed} {name}")) }
        })
        // In order, so that the output is.
        .buffered(AT_ONCE)
        .collect::<Vec<_>>()
        .await;
    let mut done = Vec::new();
    let mut code = ExitCode::SUCCESS;
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(error) => {
                exit::failed(&error);
                code = ExitCode::from(NESTBOX_FAILED);
            }
        }
    }
    (done, code)
}

/// Changes the sandboxes and prints the ids of those that were changed.
pub(super) async fn change<F>(
    client: &Client,
    format: Format,
    args: SeveralArgs,
    failed: &str,
    work: impl Fn(String, Tracing) -> F,
) -> Result<ExitCode>
where
    F: Future<Output = Result<Sandbox, ClientError>>,
{
    let ids = resolve_all(client, &args.ids).await?;
    let tracing = args.trace.tracing();
    let (sandboxes, code) = each(ids, failed, |id| work(id, tracing)).await;
    format.print(&serde_json::json!({ "sandboxes": sandboxes }), || {
        sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.id)).collect()
    })?;
    for sandbox in &sandboxes {
        if sandboxes.len() > 1 && format == Format::Text && sandbox.trace.is_some() {
            tell(&format!("\n{}", sandbox.id));
        }
        tell_trace(format, sandbox.trace.as_deref());
    }
    Ok(code)
}
