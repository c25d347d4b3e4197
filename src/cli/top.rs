//! `top`: what sandboxes take of the host, now.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::Args;
use console::Term;
use futures::StreamExt;
use serde::Serialize;
use tokio::time::sleep;

use super::client::{Client, ClientError, ListQuery, Sample, Sandbox};
use super::output::{Format, age, mebibytes, printable, table, write};
use crate::domain::lifecycle::SandboxState;

/// Sandboxes that are asked about at a time.
const AT_ONCE: usize = 8;

/// Puts the cursor into the upper left corner.
const HOME: &str = "\x1b[H";
/// Clears the rest of the line, so that a longer one that was there before does not show.
const CLEAR_LINE: &str = "\x1b[K";
/// Clears everything below.
const CLEAR_BELOW: &str = "\x1b[J";

/// Arguments of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(long, value_name = "SECONDS", default_value_t = 2,
        value_parser = clap::value_parser!(u64).range(1..=3600))]
    every: u64,
}

/// A sandbox and what it takes; nothing if its life is over.
#[derive(Serialize)]
struct Row {
    #[serde(flatten)]
    sandbox: Sandbox,
    metrics: Option<Sample>,
}

pub(super) async fn run(client: &Client, format: Format, args: TopArgs) -> Result<ExitCode> {
    let live = format == Format::Text && io::stdout().is_terminal();
    if !live {
        let rows = look(client).await?;
        let json = serde_json::json!({ "sandboxes": rows });
        format.print(&json, || render(&rows, Utc::now()))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut screen = format!("{HOME}{CLEAR_BELOW}");
    // Until ^C, or an error.
    loop {
        let text = render(&look(client).await?, Utc::now());
        let (height, _) = Term::stdout().size();
        screen.push_str(&fit(&text, height.into()));
        write(&mut io::stdout(), screen.as_bytes())?;
        screen = HOME.to_owned();
        sleep(Duration::from_secs(args.every)).await;
    }
}

/// All that live, the busiest first.
async fn look(client: &Client) -> Result<Vec<Row>, ClientError> {
    let query = ListQuery { states: SandboxState::living(), metadata: BTreeMap::new() };
    let sandboxes = client.list(&query).await?;
    let asked = futures::stream::iter(sandboxes).map(|sandbox| async move {
        let metrics = match client.usage(&sandbox.id).await {
            Ok(usage) => Some(usage.now),
            // It has ended since, or had before.
            Err(ClientError::Refused { .. }) => None,
            Err(error) => return Err(error),
        };
        Ok(Row { sandbox, metrics })
    });
    let rows: Vec<_> = asked.buffered(AT_ONCE).collect().await;
    let mut rows: Vec<Row> = rows.into_iter().collect::<Result<_, _>>()?;
    let cpu = |row: &Row| row.metrics.as_ref().map_or(-1.0, |metrics| metrics.cpu_percent);
    rows.sort_by(|one, other| cpu(other).total_cmp(&cpu(one)));
    Ok(rows)
}

fn render(rows: &[Row], now: DateTime<Utc>) -> String {
    let rows: Vec<_> = rows
        .iter()
        .map(|Row { sandbox, metrics }| {
            let of = |show: fn(&Sample) -> String| metrics.as_ref().map_or("-".to_owned(), show);
            [
                printable(&sandbox.id),
                printable(&sandbox.state),
                of(|it| format!("{:.1} %", it.cpu_percent)),
                of(|it| {
                    let total = it.memory_total_bytes >> 20;
                    format!("{} of {total} MiB", mebibytes(it.memory_used_bytes))
                }),
                of(|it| mebibytes(it.disk_used_bytes)),
                age(sandbox.created_at, now),
            ]
        })
        .collect();
    table(["ID", "STATE", "CPU", "MEMORY", "DISK", "AGE"], &rows)
}

/// The lines that a screen of that height has room for, each of which replaces what was there.
fn fit(text: &str, height: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    // One stays free for the cursor.
    let room = height.saturating_sub(1).max(2);
    let left_out = match lines.len() <= room {
        true => 0,
        false => lines.len() - (room - 1),
    };
    let mut shown: Vec<_> =
        lines[..lines.len() - left_out].iter().map(|line| (*line).to_owned()).collect();
    if left_out > 0 {
        shown.push(format!("... and {left_out} more"));
    }
    let shown: String = shown.iter().map(|line| format!("{line}{CLEAR_LINE}\n")).collect();
    format!("{shown}{CLEAR_BELOW}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(id: &str, metrics: serde_json::Value) -> Row {
        let sandbox = serde_json::from_value(serde_json::json!({
            "id": id, "template": "debian", "state": "running", "vcpus": 1, "memory_mb": 512,
            "created_at": "2026-11-25T12:00:00Z",
        }));
        Row { sandbox: sandbox.unwrap(), metrics: serde_json::from_value(metrics).unwrap() }
    }

    #[test]
    fn a_line_says_what_a_sandbox_takes() {
        let metrics = serde_json::json!({
            "at": "2026-11-25T12:00:05Z", "cpu_percent": 12.34, "memory_used_bytes": 39_000_000,
            "memory_total_bytes": 536_870_912, "disk_used_bytes": 471_859_200,
        });
        let rows = [row("abc", metrics), row("d", serde_json::Value::Null)];
        let now = "2026-11-25T12:05:00Z".parse().unwrap();
        let want = "\
ID   STATE    CPU     MEMORY               DISK       AGE
abc  running  12.3 %  37.2 MiB of 512 MiB  450.0 MiB  5m
d    running  -       -                    -          5m
";
        assert_eq!(render(&rows, now), want);
    }

    #[test]
    fn a_screen_that_is_too_small_says_how_many_it_leaves_out() {
        let plain = |text: &str| text.replace(CLEAR_LINE, "").replace(CLEAR_BELOW, "");
        assert_eq!(plain(&fit("a\nb\nc\n", 4)), "a\nb\nc\n");
        assert_eq!(plain(&fit("a\nb\nc\nd\n", 4)), "a\nb\n... and 2 more\n");
        assert_eq!(plain(&fit("a\nb\nc\nd\n", 0)), "a\n... and 3 more\n");
    }
}
