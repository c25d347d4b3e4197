//! `ls`.

use std::process::ExitCode;

use anyhow::Result;
use chrono::Utc;
use clap::Args;

use super::client::{Client, ListQuery};
use super::output::{Format, age, printable, table};
use super::pairs::{map, pair};
use super::resolve::live_states;
use crate::domain::sandbox::SandboxState;

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only sandboxes in this state; may be given more than once
    #[arg(long, short, value_name = "STATE", value_delimiter = ',', conflicts_with = "all")]
    state: Vec<SandboxState>,
    /// Only sandboxes with this label; may be given more than once
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Also sandboxes that are stopped
    #[arg(long, short)]
    all: bool,
}

impl LsArgs {
    fn query(self) -> ListQuery {
        let states = match (self.state.is_empty(), self.all) {
            (_, true) => SandboxState::ALL.to_vec(),
            (true, false) => live_states(),
            (false, false) => self.state,
        };
        ListQuery { states, metadata: map(self.metadata) }
    }
}

pub(super) async fn run(client: &Client, format: Format, args: LsArgs) -> Result<ExitCode> {
    let sandboxes = client.list(&args.query()).await?;
    let now = Utc::now();
    format.print(&serde_json::json!({ "sandboxes": sandboxes }), || {
        let rows: Vec<_> = sandboxes
            .iter()
            .map(|sandbox| {
                [
                    printable(&sandbox.id),
                    printable(&sandbox.template),
                    printable(&sandbox.state),
                    age(sandbox.created_at, now),
                    format!("{} vCPU, {} MiB", sandbox.vcpus, sandbox.memory_mb),
                ]
            })
            .collect();
        table(["ID", "TEMPLATE", "STATE", "AGE", "SHAPE"], &rows)
    })?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stopped_sandboxes_are_listed_only_when_asked_for() {
        let states = |state: &[SandboxState], all| {
            LsArgs { state: state.to_vec(), metadata: Vec::new(), all }.query().states
        };
        assert!(!states(&[], false).contains(&SandboxState::Stopped));
        assert!(states(&[], false).contains(&SandboxState::Error));
        assert_eq!(states(&[SandboxState::Stopped], false), [SandboxState::Stopped]);
        assert_eq!(states(&[], true), SandboxState::ALL);
    }
}
