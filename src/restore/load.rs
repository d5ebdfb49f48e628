//! Rows of a snapshot into a table by COPY.

use tokio_util::sync::CancellationToken;

use super::RestoreError;
use crate::monitor::SharedMonitor;
use crate::postgres::PostgresError;
use crate::postgres::catalog::TableName;
use crate::postgres::copy::CopyInWriter;
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::repository::manifest::{Column, Table, Wire};
use crate::repository::snapshots::SnapshotReader;
use crate::repository::table_rows::TableRows;

/// Copies all rows of `table` into `target`, leaving out the columns that `skip` names (generated ones). Columns that were
/// read as text go through a temporary table and the server's own cast.
pub async fn load_table(
    session: &Session,
    reader: &SnapshotReader,
    table: &Table,
    target: &TableName,
    skip: &[String],
    monitor: &SharedMonitor,
    cancel: &CancellationToken,
) -> Result<u64, RestoreError> {
    let kept: Vec<(usize, &Column)> =
        table.columns.iter().enumerate().filter(|(_, column)| !skip.contains(&column.name)).collect();
    let names: Vec<&str> = kept.iter().map(|(_, column)| column.name.as_str()).collect();
    let staged = kept.iter().any(|(_, column)| column.wire == Wire::Text);
    let doing = format!("restoring {target}");
    let into = if staged {
        let columns: Vec<String> = kept
            .iter()
            .map(|(_, column)| {
                let kind = if column.wire == Wire::Text { "text" } else { &column.type_name };
                format!("{} {kind}", sql::identifier(&column.name))
            })
            .collect();
        session.execute(&doing, &format!("CREATE TEMP TABLE restante_stage ({})", columns.join(", "))).await?;
        TableName { schema: "pg_temp".into(), name: "restante_stage".into() }
    } else {
        target.clone()
    };

    // Text comes as it was stored in the snapshot's server: the server converts it, or says that it cannot.
    let encoding = match reader.manifest().server.encoding.as_str() {
        "" => "UTF8",
        encoding => encoding,
    };
    let mut rows = TableRows::open(reader, table).await?;
    let mut writer = CopyInWriter::begin_encoded(session.client(), &into, &names, encoding).await?;
    while let Some(batch) = rows.next_batch().await? {
        if cancel.is_cancelled() {
            return Err(RestoreError::Interrupted);
        }
        for row in &batch {
            writer.row(kept.iter().map(|(at, _)| row.fields[*at].as_deref())).await?;
        }
        monitor.advance(batch.len() as u64);
    }
    let mut written = writer.finish().await?;
    if encoding != "UTF8" {
        session.execute("setting the encoding back", "SET client_encoding = 'UTF8'").await?;
    }

    if staged {
        let list = names.iter().map(|name| sql::identifier(name)).collect::<Vec<_>>().join(", ");
        let values: Vec<String> = kept
            .iter()
            .map(|(_, column)| {
                let cast = if column.wire == Wire::Text { format!("::{}", column.type_name) } else { String::new() };
                format!("{}{cast}", sql::identifier(&column.name))
            })
            .collect();
        let insert = format!(
            "INSERT INTO {} ({list}) OVERRIDING SYSTEM VALUE SELECT {} FROM pg_temp.restante_stage",
            target.quoted(),
            values.join(", ")
        );
        written =
            session.client().execute(&insert, &[]).await.map_err(|source| PostgresError::Server { doing, source })?;
        session.execute("tidying up", "DROP TABLE pg_temp.restante_stage").await?;
    }
    if written == table.rows {
        Ok(written)
    } else {
        Err(RestoreError::RowCount { table: target.to_string(), found: written, wanted: table.rows })
    }
}
