//! `get`.

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use super::client::{Client, Sandbox, Storage};
use super::output::{Format, mebibytes, printable};
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
        if let ("storage", Ok(storage)) = (name.as_str(), Storage::deserialize(value)) {
            lines.push((name, on_disk(storage)));
            continue;
        }
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

/// What it takes on its host's disk. Deleting it frees all but what is shared.
fn on_disk(storage: Storage) -> String {
    let generations = match storage.memory_generations {
        1 => "1 generation".to_owned(),
        number => format!("{number} generations"),
    };
    format!(
        "memory {} in {generations}, disk {}, of both {} shared",
        mebibytes(storage.memory_bytes),
        mebibytes(storage.disk_bytes),
        mebibytes(storage.shared_bytes),
    )
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
metadata:    odd=a\\u{1b}b c, team=birds
timeout_sec: 300
";
        assert_eq!(describe(&sandbox), want);
    }

    #[test]
    fn storage_is_told_in_units_that_people_read() {
        let describe = |storage: Value| {
            let sandbox = serde_json::json!({
                "id": "abc", "template": "debian", "state": "paused", "vcpus": 1,
                "memory_mb": 512, "created_at": "2026-11-23T00:00:00Z", "storage": storage,
            });
            let text = describe(&serde_json::from_value(sandbox).unwrap());
            text.lines().find_map(|line| line.strip_prefix("storage:")).map(str::to_owned)
        };
        let storage = |generations| {
            serde_json::json!({
                "memory_bytes": 13_526_630, "memory_generations": generations,
                "disk_bytes": 450 << 20, "shared_bytes": 461_373_440,
            })
        };
        let rest = "disk 450.0 MiB, of both 440.0 MiB shared";
        for (generations, want) in [(1, "1 generation"), (2, "2 generations")] {
            let want = format!("    memory 12.9 MiB in {want}, {rest}");
            assert_eq!(describe(storage(generations)), Some(want));
        }
        assert_eq!(describe(Value::Null), None);
        let newer = serde_json::json!({ "blocks": 7 });
        assert_eq!(describe(newer).as_deref(), Some("    blocks=7"));
    }
}
