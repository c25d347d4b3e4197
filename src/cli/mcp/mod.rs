//! `mcp`: the Model Context Protocol on standard input and output, for agents that are to run code
//! somewhere else than here. One more client of the API: an agent can do what its key can do.
//!
//! Architecture invariant: nothing but the protocol goes to standard output.

mod arguments;
mod tools;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Args;
use rmcp::ServiceExt;
use rmcp::service::ServerInitializeError;
use rmcp::transport::stdio;

use super::client::Client;
use tools::Tools;

/// Arguments of `mcp`: none.
#[derive(Debug, Args)]
#[command(after_help = "\
An MCP client starts it itself. In its settings:

  {\"mcpServers\": {\"nestbox\": {\"command\": \"nestbox\", \"args\": [\"mcp\"]}}}

and with \"env\": {\"NESTBOX_URL\": \"...\", \"NESTBOX_API_KEY\": \"...\"} for a daemon elsewhere.")]
pub struct McpArgs {}

/// Serves one client, until it closes our standard input.
pub(super) async fn run(client: Client, _: McpArgs) -> Result<ExitCode> {
    match Tools::new(client).serve(stdio()).await {
        Ok(service) => {
            service.waiting().await.context("the session broke")?;
            Ok(ExitCode::SUCCESS)
        }
        // A client that only looked whether we start.
        Err(ServerInitializeError::ConnectionClosed(_)) => Ok(ExitCode::SUCCESS),
        Err(error) => Err(error).context("the session could not begin"),
    }
}
