//! `mcp`: the Model Context Protocol on standard input and output, for agents that are to run code
//! somewhere else than here. One more client of the API: an agent can do what its key can do.
//!
//! Architecture invariant: nothing but the protocol goes to standard output.

mod arguments;
mod shown;
mod tools;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use rmcp::ServiceExt;
use rmcp::service::ServerInitializeError;
use rmcp::transport::stdio;

use super::client::Client;
use super::exit;
use super::lease::LeaseArgs;
use super::signals::Signals;
use tools::Tools;

/// How long the end of a session waits for what cancelled calls have to take away.
const TIDY_LIMIT: Duration = Duration::from_secs(10);

/// Arguments of `mcp`.
#[derive(Debug, Args)]
#[command(after_help = "\
An MCP client starts it itself. In its settings:

  {\"mcpServers\": {\"nestbox\": {\"command\": \"nestbox\", \"args\": [\"mcp\"]}}}

and with \"env\": {\"NESTBOX_URL\": \"...\", \"NESTBOX_API_KEY\": \"...\"} for a daemon elsewhere.")]
pub struct McpArgs {
    #[command(flatten)]
    lease: LeaseArgs,
}

/// Serves one client, until it closes our standard input or asks us to end. What it has created stays,
/// until it times out; what a call under way has made for itself does not, and neither does anything if
/// we are killed.
pub(super) async fn run(client: Client, args: McpArgs) -> Result<ExitCode> {
    let mut signals = Signals::listen()?;
    let tools = Tools::new(client, args.lease.lease_sec);
    let (tidying, kept) = (tools.tidying(), tools.clone());
    let code = tokio::select! {
        ended = session(tools) => ended.map(|()| ExitCode::SUCCESS),
        // Calls under way are cancelled with the session.
        signal = signals.next() => Ok(ExitCode::from(exit::of_signal(signal))),
    };
    tidying.close();
    // What is left of a sandbox after that has a timeout of its own.
    let _ = tokio::time::timeout(TIDY_LIMIT, tidying.wait()).await;
    let _ = tokio::time::timeout(TIDY_LIMIT, kept.give_leases_up()).await;
    code
}

async fn session(tools: Tools) -> Result<()> {
    match tools.serve(stdio()).await {
        Ok(service) => service.waiting().await.map(drop).context("the session broke"),
        // A client that only looked whether we start.
        Err(ServerInitializeError::ConnectionClosed(_)) => Ok(()),
        Err(error) => Err(error).context("the session could not begin"),
    }
}
