//! Statements past Nestbox, as another program would make them.

use sea_orm::sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, Row, SqliteConnection};

pub async fn execute(location: &str, sql: &str) {
    let sql = AssertSqlSafe(sql.to_owned());
    if location.starts_with("postgres") {
        PgConnection::connect(location).await.unwrap().execute(sql).await.unwrap();
    } else {
        sqlite(location).await.execute(sql).await.unwrap();
    }
}

pub async fn sqlite(path: &str) -> SqliteConnection {
    SqliteConnection::connect(&format!("sqlite://{path}")).await.unwrap()
}

pub async fn text(connection: &mut SqliteConnection, sql: &'static str) -> String {
    connection.fetch_one(sql).await.unwrap().get(0)
}

/// The first column of all rows of a query.
pub async fn all_text(location: &str, sql: &'static str) -> Vec<String> {
    let rows = PgConnection::connect(location).await.unwrap().fetch_all(sql).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// The first column of the first row, on either database.
pub async fn one_text(location: &str, sql: &'static str) -> String {
    match location.starts_with("postgres") {
        true => all_text(location, sql).await.remove(0),
        false => text(&mut sqlite(location).await, sql).await,
    }
}
