//! `ls`.

use std::process::ExitCode;

use anyhow::Result;
use chrono::Utc;
use clap::Args;

use super::client::{Client, ListQuery};
use super::output::{Format, age, printable, table};
use super::pairs::{map, pair};
use crate::domain::lifecycle::{SandboxState, UnknownState};

/// Arguments of `ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Only sandboxes in this state, or all that have `ended`; may be given more than once
    #[arg(long, short, value_name = "STATE", value_delimiter = ',', conflicts_with = "all",
        value_parser = group)]
    state: Vec<Group>,
    /// Only sandboxes with this label; may be given more than once
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = pair)]
    metadata: Vec<(String, String)>,
    /// Also sandboxes that have ended
    #[arg(long, short)]
    all: bool,
    /// Print ids only
    #[arg(long, short)]
    quiet: bool,
}

/// States that one word names.
#[derive(Debug, Clone)]
struct Group(Vec<SandboxState>);

fn group(word: &str) -> Result<Group, UnknownState> {
    SandboxState::group(word).map(Group)
}

impl LsArgs {
    fn query(self) -> ListQuery {
        let states = match (self.state.is_empty(), self.all) {
            (_, true) => SandboxState::ALL.to_vec(),
            (true, false) => SandboxState::living(),
            (false, false) => self.state.into_iter().flat_map(|Group(states)| states).collect(),
        };
        ListQuery { states, metadata: map(self.metadata) }
    }
}

pub(super) async fn run(client: &Client, format: Format, args: LsArgs) -> Result<ExitCode> {
    let quiet = args.quiet;
    let sandboxes = client.list(&args.query()).await?;
    let now = Utc::now();
    format.print(&serde_json::json!({ "sandboxes": sandboxes }), || {
        if quiet {
            return sandboxes
                .iter()
                .map(|sandbox| format!("{}\n", printable(&sandbox.id)))
                .collect();
        }
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
    fn sandboxes_that_have_ended_are_listed_only_when_asked_for() {
        let states = |words: &[&str], all| {
            let state = words.iter().map(|word| group(word).unwrap()).collect();
            LsArgs { state, metadata: Vec::new(), all, quiet: false }.query().states
        };
        let living = states(&[], false);
        assert!(!living.contains(&SandboxState::Stopped) && !living.contains(&SandboxState::Error));
        assert_eq!(living.len(), 8);
        assert_eq!(states(&["stopped"], false), [SandboxState::Stopped]);
        assert_eq!(states(&["ended"], false), [SandboxState::Stopped, SandboxState::Error]);
        assert_eq!(states(&[], true), SandboxState::ALL);
        assert!(group("gone").is_err());
    }
}
