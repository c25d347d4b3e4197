//! `resume`.

use std::process::ExitCode;

use anyhow::Result;

use super::batch::{SeveralArgs, change};
use super::client::Client;
use super::output::Format;

pub(super) async fn run(client: &Client, format: Format, args: SeveralArgs) -> Result<ExitCode> {
    let resume = |id: String, tracing| async move { client.resume(&id, tracing).await };
    change(client, format, args, "cannot resume", resume).await
}
