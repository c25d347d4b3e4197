//! What is found in a stolen database: nothing that opens anything.

use migration::{Migrator, MigratorTrait};
use nestbox::domain::id::SandboxId;
use sea_orm::{ConnectionTrait, Database as Plain};

use super::*;

/// Migrations that there were when tokens were in the database.
const BEFORE: u32 = 7;

const ACCESS: &str = "a11ce55a11ce55a11ce55a11ce55a11ce55a11ce55a11ce55a11ce55a11ce550";
const PORTS: &str = "b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7b0a7";

on_both_databases! {
    an_older_database_loses_its_tokens_and_knows_those_that_were_given,
}

fn url(location: &str) -> String {
    match location.starts_with("postgres") {
        true => location.to_owned(),
        false => format!("sqlite://{location}?mode=rwc"),
    }
}

/// A database as the last version has left it, with two sandboxes, of which one has a token for its
/// ports.
async fn older(location: &str) -> [SandboxId; 2] {
    let connection = Plain::connect(url(location)).await.unwrap();
    Migrator::up(&connection, Some(BEFORE)).await.unwrap();
    let host = "INSERT INTO hosts (id, name, state, hypervisor, vcpus, memory_mib, version, \
        created_at) VALUES ('here', 'h', 'ready', 'simulated', 4, 8192, '0', '2026-01-01 00:00:00+00:00')";
    connection.execute_unprepared(host).await.unwrap();
    let ids = [SandboxId::random(), SandboxId::random()];
    for (id, ports) in ids.iter().zip([format!("'{PORTS}'"), "NULL".to_owned()]) {
        let at = "'2026-01-01 00:00:00+00:00'";
        let sql = format!(
            "INSERT INTO sandboxes (id, host_id, template, vcpus, memory_mib, envs, metadata, state, \
             generation, hypervisor, access_token, api_key_id, created_at, updated_at, \
             last_active_at, ports_token, public_ports, network) VALUES ('{id}', 'here', 'debian', 1, \
             128, '{{}}', '{{}}', 'running', 1, 'simulated', '{ACCESS}', 'key-1', {at}, {at}, {at}, \
             {ports}, '[]', '{{}}')"
        );
        connection.execute_unprepared(&sql).await.unwrap();
    }
    connection.close().await.unwrap();
    ids
}

async fn an_older_database_loses_its_tokens_and_knows_those_that_were_given(location: &str) {
    let [given, not_given] = older(location).await;
    let database = open(location).await;
    let digest = find(&database, &given).await.ports_token_digest.unwrap();
    assert_eq!(digest.len(), 64);
    assert_ne!(digest, PORTS);
    assert_eq!(find(&database, &not_given).await.ports_token_digest, None);
    if location.starts_with("postgres") {
        let rows = raw::all_text(location, "SELECT sandboxes::text FROM sandboxes").await;
        assert_eq!(rows.len(), 2);
        assert!(!rows.concat().contains(ACCESS) && !rows.concat().contains(PORTS), "{rows:?}");
    } else {
        // While it is open, as a backup would take it, log and all.
        assert!(!is_in_files(location, ACCESS) && !is_in_files(location, PORTS));
    }
}

/// Whether a text is anywhere in the files of an SQLite database, used or not.
fn is_in_files(path: &str, text: &str) -> bool {
    let files = ["", "-wal", "-shm", "-journal"].map(|end| std::fs::read(format!("{path}{end}")));
    let files: Vec<Vec<u8>> = files.into_iter().filter_map(Result::ok).collect();
    assert!(!files.is_empty());
    files.iter().any(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
}

#[tokio::test]
async fn what_is_looked_for_in_the_files_would_be_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nestbox.db");
    let path = path.to_str().unwrap();
    older(path).await;
    assert!(is_in_files(path, ACCESS) && is_in_files(path, PORTS));
}
