//! One table of a snapshot into a schema of its own, beside the live tables: to look at, to compare, to take rows from by hand.

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::RestoreError;
use super::load::load_table;
use crate::failpoint;
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::PostgresError;
use crate::postgres::catalog::{TableName, TypeFacts, TypeKind};
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
    pub used: String,
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
    let types = reader.catalog().await?.types;
    for column in &table.columns {
        let used = match substitute(&session, column, &types).await? {
            None => column.type_name.clone(),
            Some(used) => {
                substituted.push(Substitution {
                    column: column.name.clone(),
                    wanted: column.type_name.clone(),
                    used: used.clone(),
                });
                used
            }
        };
        columns.push(format!("{} {used}", sql::identifier(&column.name)));
    }
    // One transaction: an interrupted rescue leaves nothing half filled.
    session.execute("beginning", "BEGIN").await?;
    let doing = format!("making {target}");
    let known = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
    let known = session.client().query_one(known, &[&schema]).await.map_err(PostgresError::server(&*doing))?;
    // `IF NOT EXISTS` asks for the right to create schemas even where there is nothing to create.
    if !known.get::<_, bool>(0) {
        session.execute(&doing, &format!("CREATE SCHEMA {}", sql::identifier(schema))).await?;
    }
    session.execute(&doing, &format!("CREATE TABLE {} ({})", target.quoted(), columns.join(", "))).await?;
    monitor.stage("rows", Unit::Rows, Some(table.rows));
    // Every column has a type that takes the bytes as they are.
    let as_sent = Table {
        columns: table.columns.iter().map(|c| Column { wire: Wire::Binary, ..c.clone() }).collect(),
        ..table.clone()
    };
    let rows = load_table(&session, reader, &as_sent, &target, &[], monitor, cancel).await?;
    failpoint::committing(session.execute("committing", "COMMIT")).await?;
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

/// What takes the bytes of a column in place of its type: `text` for what was read as text; for types that the database does
/// not know the type beneath them, where the bytes mean the same, else `bytea`.
async fn substitute(session: &Session, column: &Column, types: &[TypeFacts]) -> Result<Option<String>, RestoreError> {
    if column.wire == Wire::Text {
        return Ok(Some("text".into()));
    }
    if known(session, &column.type_name).await? {
        return Ok(None);
    }
    // `format_type` writes an array as its element and `[]`.
    let element = column.type_name.strip_suffix("[]");
    let mut name = element.unwrap_or(&column.type_name).to_owned();
    // Domains may stand on domains; they cannot stand on themselves, but a damaged catalog could say so.
    for _ in 0..types.len() {
        let facts = types.iter().find(|facts| sql::qualified(&facts.schema, &facts.name) == quoted(&name));
        name = match facts {
            Some(TypeFacts { kind: TypeKind::Enum, .. }) => "text".to_owned(),
            Some(TypeFacts { kind: TypeKind::Domain, base_type: Some(base), .. }) => base.clone(),
            _ => break,
        };
        let used = if element.is_some() { format!("{name}[]") } else { name.clone() };
        if known(session, &used).await? {
            return Ok(Some(used));
        }
    }
    Ok(Some("bytea".into()))
}

/// `format_type` quotes only where it must.
fn quoted(name: &str) -> String {
    let parts = name.split_once('.').unwrap_or(("", name));
    let unquote =
        |part: &str| part.strip_prefix('"').and_then(|p| p.strip_suffix('"')).unwrap_or(part).replace("\"\"", "\"");
    sql::qualified(&unquote(parts.0), &unquote(parts.1))
}

async fn known(session: &Session, type_name: &str) -> Result<bool, RestoreError> {
    let doing = format!("looking for the type {type_name}");
    let row = session.client().query_one("SELECT to_regtype($1) IS NOT NULL", &[&type_name]).await;
    Ok(row.map_err(PostgresError::server(doing))?.get(0))
}
