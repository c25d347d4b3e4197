//! `snapshot`.

use std::process::ExitCode;

use anyhow::Result;
use chrono::{DateTime, Utc};
use clap::{Args, Subcommand};

use super::batch::each;
use super::client::{Client, Snapshot, SnapshotRequest};
use super::output::{Format, age, mebibytes, printable, table};
use super::resolve::resolve;
use crate::domain::name::TemplateName;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep a sandbox as it is now, under a name to create others from
    Create(CreateArgs),
    /// List the snapshots
    Ls,
    /// Remove snapshots; sandboxes made from them stay
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<TemplateName>,
    },
}

/// Arguments of `snapshot create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
    /// The sandbox's id, or a beginning of it that no other has; it may be paused
    id: String,
    /// What to call the snapshot
    name: TemplateName,
    /// Replace a snapshot of that name
    #[arg(long)]
    overwrite: bool,
}

impl CreateArgs {
    /// The request for the sandbox of this whole id.
    pub(super) fn into_request(self, sandbox_id: String) -> SnapshotRequest {
        let name = self.name.to_string();
        SnapshotRequest { sandbox_id, name, overwrite: self.overwrite }
    }
}

pub(super) async fn run(
    client: &Client,
    format: Format,
    command: SnapshotCommand,
) -> Result<ExitCode> {
    match command {
        SnapshotCommand::Create(args) => {
            let id = resolve(client, &args.id).await?;
            let snapshot = client.create_snapshot(&args.into_request(id)).await?;
            format.print(&snapshot, || format!("{}\n", snapshot.name))?;
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Ls => {
            let snapshots = client.snapshots().await?;
            let json = serde_json::json!({ "snapshots": snapshots });
            format.print(&json, || list(&snapshots, Utc::now()))?;
            Ok(ExitCode::SUCCESS)
        }
        SnapshotCommand::Rm { names } => remove(client, format, names).await,
    }
}

fn list(snapshots: &[Snapshot], now: DateTime<Utc>) -> String {
    let rows: Vec<_> = snapshots
        .iter()
        .map(|snapshot| {
            let storage = snapshot.storage;
            [
                printable(&snapshot.name),
                printable(&snapshot.image),
                snapshot.vcpus.to_string(),
                format!("{} MiB", snapshot.memory_mb),
                mebibytes(storage.memory_bytes.saturating_add(storage.disk_bytes)),
                mebibytes(storage.shared_bytes),
                format!("{} ago", age(snapshot.created_at, now)),
            ]
        })
        .collect();
    table(["NAME", "IMAGE", "VCPUS", "MEMORY", "ON DISK", "SHARED", "CREATED"], &rows)
}

async fn remove(client: &Client, format: Format, names: Vec<TemplateName>) -> Result<ExitCode> {
    let mut different: Vec<String> = Vec::new();
    for name in names {
        if !different.iter().any(|other| other == name.as_str()) {
            different.push(name.into());
        }
    }
    let (removed, code) = each(different, "cannot remove the snapshot", |name| async move {
        client.remove_snapshot(&name).await.map(|()| name)
    })
    .await;
    format.print(&serde_json::json!({ "removed": removed }), || {
        removed.iter().map(|name| format!("{name}\n")).collect()
    })?;
    Ok(code)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn a_list_says_what_snapshots_take_and_share() {
        let now: DateTime<Utc> = "2026-11-23T12:00:00Z".parse().unwrap();
        let snapshot = |name: &str, memory_bytes: u64, minutes| -> Snapshot {
            serde_json::from_value(serde_json::json!({
                "name": name, "sandbox_id": "k3v9x1p0qzt7m2c8rw5b", "image": "debian", "vcpus": 2,
                "memory_mb": 512, "hypervisor": "qemu", "memory_bytes": memory_bytes,
                "memory_generations": 2, "disk_bytes": 451_936_256, "shared_bytes": 450_887_680,
                "created_at": now - TimeDelta::minutes(minutes),
            }))
            .unwrap()
        };
        let want = "\
NAME  IMAGE   VCPUS  MEMORY   ON DISK    SHARED     CREATED
py3   debian  2      512 MiB  432.0 MiB  430.0 MiB  5m ago
a     debian  2      512 MiB  431.0 MiB  430.0 MiB  2h ago
";
        assert_eq!(list(&[snapshot("py3", 1 << 20, 5), snapshot("a", 0, 120)], now), want);
    }

    #[test]
    fn a_list_without_snapshots_has_its_heading() {
        assert!(list(&[], Utc::now()).starts_with("NAME  IMAGE  VCPUS"));
    }

    #[test]
    fn json_shows_what_the_daemon_said() {
        let said = serde_json::json!({
            "name": "py3", "sandbox_id": "k3v9x1p0qzt7m2c8rw5b", "image": "debian", "vcpus": 1,
            "memory_mb": 512, "hypervisor": "qemu", "memory_bytes": 1, "memory_generations": 2,
            "disk_bytes": 3, "shared_bytes": 4, "created_at": "2026-11-23T00:00:00Z", "new": null,
        });
        let snapshot: Snapshot = serde_json::from_value(said.clone()).unwrap();
        assert_eq!(serde_json::to_value(snapshot).unwrap(), said);
    }
}
