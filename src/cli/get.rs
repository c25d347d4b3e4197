//! `get`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use super::client::{Client, Sandbox};
use super::output::{Format, printable};
use super::resolve::resolve;

/// Arguments of `get`.
#[derive(Debug, Args)]
pub struct GetArgs {
    /// The sandbox's id, or a beginning of it that no other has
    id: String,
}

pub(super) async fn run(client: &Client, format: Format, args: GetArgs) -> Result<ExitCode> {
    let id = resolve(client, &args.id).await?;
    let sandbox = client.get(&id).await?;
    format.print(&sandbox, || describe(&sandbox))?;
    Ok(ExitCode::SUCCESS)
}

/// One line a field; fields without a value are left out.
fn describe(sandbox: &Sandbox) -> String {
    let mut lines = vec![
        ("id", sandbox.id.clone()),
        ("template", sandbox.template.clone()),
        ("state", sandbox.state.clone()),
        ("shape", format!("{} vCPU, {} MiB", sandbox.vcpus, sandbox.memory_mb)),
        ("created_at", sandbox.created_at.to_rfc3339()),
    ];
    for (name, value) in &sandbox.rest {
        match value {
            Value::Null => {}
            Value::String(text) => lines.push((name, text.clone())),
            Value::Object(map) if map.is_empty() => {}
            Value::Object(map) => {
                let pair = |(key, value): (&String, &Value)| match value {
                    Value::String(text) => format!("{key}={text}"),
                    other => format!("{key}={other}"),
                };
                lines.push((name, map.iter().map(pair).collect::<Vec<_>>().join(", ")));
            }
            other => lines.push((name, other.to_string())),
        }
    }
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    lines
        .into_iter()
        .map(|(name, value)| {
            let name = format!("{name}:");
            format!("{name:width$} {}\n", printable(&value).replace('\n', " "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_has_a_line_for_what_is_known() {
        let sandbox: Sandbox = serde_json::from_value(serde_json::json!({
            "id": "abc", "template": "debian", "state": "running", "reason": null,
            "vcpus": 1, "memory_mb": 512, "timeout_sec": 300, "created_at": "2026-11-23T00:00:00Z",
            "metadata": {"team": "birds", "odd": "a\x1bb\nc"}, "hypervisor": "qemu",
        }))
        .unwrap();
        let want = "\
id:          abc
template:    debian
state:       running
shape:       1 vCPU, 512 MiB
created_at:  2026-11-23T00:00:00+00:00
hypervisor:  qemu
metadata:    odd=a\u{fffd}b c, team=birds
timeout_sec: 300
";
        assert_eq!(describe(&sandbox), want);
    }
}
