//! `fork`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use super::client::Client;
use super::output::Format;
use super::resolve::resolve;
use super::trace::{TraceArgs, tell_trace};

/// Arguments of `fork`.
#[derive(Debug, Args)]
pub struct ForkArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
    /// How many to make, at most 16
    #[arg(long, short, value_name = "N", default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=16))]
    pub(super) count: u32,
    #[command(flatten)]
    pub(super) trace: TraceArgs,
}

pub(super) async fn run(client: &Client, format: Format, args: ForkArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    let forked = client.fork(&id, args.count, None, args.trace.tracing()).await?;
    format.print(&forked, || {
        forked.sandboxes.iter().map(|sandbox| format!("{}\n", sandbox.id)).collect()
    })?;
    tell_trace(format, forked.trace.as_deref());
    Ok(ExitCode::SUCCESS)
}
