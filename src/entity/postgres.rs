//! PostgreSQL's connections. Errors name the server without the password.

use std::str::FromStr;
use std::time::Duration;

use sea_orm::sqlx::postgres::{PgConnectOptions, PgConnection, PgPoolOptions};
use sea_orm::sqlx::{ConnectOptions, Connection};
use sea_orm::{DatabaseConnection, DbBackend, SqlxPostgresConnector, Statement};

use super::error::{Cause, StoreError};

/// Connections at most; the server's default is 100 for everyone.
const CONNECTIONS: u32 = 10;
/// How long a server may take to let us in when Nestbox starts.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a statement queues for a connection before it fails.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to the server that `url` names.
///
/// # Errors
///
/// [`StoreError::ReadUrl`], [`StoreError::Connect`] when it refuses,
/// [`StoreError::ConnectTimeout`] when it does not answer.
pub(super) async fn open(url: &str) -> Result<DatabaseConnection, StoreError> {
    // The library logs the URL at level trace when it is given one, so it is given options.
    let options =
        PgConnectOptions::from_str(url).map_err(|error| StoreError::ReadUrl(Cause::new(error)))?;
    let options = options.application_name("nestbox").disable_statement_logging();
    probe(&options).await?;
    let server = describe(&options);
    let pool = PgPoolOptions::new()
        .max_connections(CONNECTIONS)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .connect_with(options)
        .await
        .map_err(|error| StoreError::Connect { server, source: Cause::new(error) })?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Number of the advisory lock that transactions take turns by which write events.
const EVENTS_LOCK: i64 = 0x6e65_7374_6576_6e74;

/// Waits until no other transaction writes events, and keeps others from it until this one ends. A
/// sequence gives its numbers out before they are committed: without this, an event could become
/// visible after a later one that somebody has read already.
pub(super) fn take_turn() -> Statement {
    let sql = format!("SELECT pg_advisory_xact_lock({EVENTS_LOCK})");
    Statement::from_string(DbBackend::Postgres, sql)
}

/// Connects once without the pool, which answers every trouble with "timed out" after its timeout.
async fn probe(options: &PgConnectOptions) -> Result<(), StoreError> {
    let attempt = tokio::time::timeout(CONNECT_TIMEOUT, PgConnection::connect_with(options));
    let connection = attempt
        .await
        .map_err(|_| StoreError::ConnectTimeout {
            server: describe(options),
            waited: CONNECT_TIMEOUT,
        })?
        .map_err(|error| StoreError::Connect {
            server: describe(options),
            source: Cause::new(error),
        })?;
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the probing connection to the database did not close");
    }
    Ok(())
}

/// The server as a URL without a password.
fn describe(options: &PgConnectOptions) -> String {
    let user = options.get_username();
    let database = options.get_database().unwrap_or(user);
    match options.get_socket() {
        Some(socket) => format!("postgres://{user}@/{database}?host={}", socket.display()),
        None => {
            let (host, port) = (options.get_host(), options.get_port());
            format!("postgres://{user}@{host}:{port}/{database}")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_described_server_shows_no_password() {
        let options: PgConnectOptions = "postgres://bird:s3cret@db:5433/nest".parse().unwrap();
        assert_eq!(describe(&options), "postgres://bird@db:5433/nest");
    }
}
