//! One table of a snapshot into a schema of its own, beside the live tables: to look at, to compare, to take rows from by hand.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::RestoreError;
use super::load::{load_table, use_encoding};
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::PostgresError;
use crate::postgres::catalog::TableName;
use crate::postgres::dsn::Dsn;
use crate::postgres::session::{Session, SessionOptions};
use crate::postgres::sql;
use crate::repository::manifest::{Column, Table, Wire};
use crate::repository::snapshots::SnapshotReader;

#[derive(Debug, Serialize)]
pub struct RescueReport {
    pub table: String,
    pub rows: u64,
    /// Columns whose type the database does not have, and what they became.
    pub substituted: Vec<Substitution>,
}

#[derive(Debug, Serialize)]
pub struct Substitution {
    pub column: String,
    pub wanted: String,
    pub used: &'static str,
}

/// Makes `schema.table` with the columns of the snapshot and copies all its rows; no keys, no defaults, no triggers.
pub async fn rescue(
    reader: &SnapshotReader,
    table: &Table,
    dsn: &Dsn,
    schema: &str,
    monitor: &SharedMonitor,
    cancel: &CancellationToken,
) -> Result<RescueReport, RestoreError> {
    let session = Session::connect(dsn, SessionOptions::default()).await?;
    let target = TableName { schema: schema.to_owned(), name: table.name.clone() };
    if exists(&session, &target).await? {
        return Err(RestoreError::TableExists { schema: target.schema, table: target.name });
    }
    let (mut columns, mut substituted) = (Vec::new(), Vec::new());
    for column in &table.columns {
        let used = match substitute(&session, column).await? {
            None => column.type_name.clone(),
            Some(used) => {
                substituted.push(Substitution { column: column.name.clone(), wanted: column.type_name.clone(), used });
                used.to_owned()
            }
        };
        columns.push(format!("{} {used}", sql::identifier(&column.name)));
    }
    // One transaction: an interrupted rescue leaves nothing half filled.
    session.execute("beginning", "BEGIN").await?;
    let doing = format!("making {target}");
    session.execute(&doing, &format!("CREATE SCHEMA IF NOT EXISTS {}", sql::identifier(schema))).await?;
    session.execute(&doing, &format!("CREATE TABLE {} ({})", target.quoted(), columns.join(", "))).await?;
    use_encoding(&session, &reader.manifest().server.encoding).await?;
    monitor.stage("rows", Unit::Rows, Some(table.rows));
    // Every column has a type that takes the bytes as they are.
    let as_sent = Table {
        columns: table.columns.iter().map(|c| Column { wire: Wire::Binary, ..c.clone() }).collect(),
        ..table.clone()
    };
    let rows = load_table(&session, reader, &as_sent, &target, &[], monitor, cancel).await?;
    session.execute("committing", "COMMIT").await?;
    Ok(RescueReport { table: target.to_string(), rows, substituted })
}

async fn exists(session: &Session, target: &TableName) -> Result<bool, RestoreError> {
    let doing = "looking for the table".to_owned();
    let row = session
        .client()
        .query_one("SELECT to_regclass($1) IS NOT NULL", &[&target.quoted()])
        .await
        .map_err(|source| PostgresError::Server { doing, source })?;
    Ok(row.get(0))
}

/// `text` for what was read as text, `bytea` for types that the database does not know.
async fn substitute(session: &Session, column: &Column) -> Result<Option<&'static str>, RestoreError> {
    if column.wire == Wire::Text {
        return Ok(Some("text"));
    }
    let doing = format!("looking for the type {}", column.type_name);
    let row = session
        .client()
        .query_one("SELECT to_regtype($1) IS NOT NULL", &[&column.type_name])
        .await
        .map_err(|source| PostgresError::Server { doing, source })?;
    Ok(if row.get(0) { None } else { Some("bytea") })
}
