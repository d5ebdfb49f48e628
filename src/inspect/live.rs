//! A description of a live store, read in one read-only transaction.

use super::description::{Description, Kind, SAMPLE_ROWS, START_BYTES, Table, Value};
use crate::compare::{CompareError, live};
use crate::postgres::PostgresError;
use crate::postgres::catalog::{self, Catalog};
use crate::postgres::session::Session;
use crate::postgres::sql;

/// The catalog of a live store and what was seen in its tables.
pub async fn describe(session: &Session) -> Result<(Catalog, Description), CompareError> {
    live::begin(session).await?;
    let mut read = catalog::read(session).await?;
    catalog::read_sequence_values(session, &mut read.sequences).await?;
    let mut description = Description::of_catalog(&read);
    let mut missed = Vec::new();
    for table in &mut description.tables {
        let Some(facts) = read.table(&table.name.schema, &table.name.name) else { continue };
        if !facts.readable || facts.row_security_applies {
            let reason = if facts.readable { "row security would hide rows" } else { "no right to read it" };
            missed.push((table.name.clone(), reason));
            continue;
        }
        let estimate = facts.live_estimate.unwrap_or(0).max(facts.tuples as i64).max(0).unsigned_abs();
        let estimate = if facts.kind == catalog::TableKind::Partitioned { 0 } else { estimate };
        look(session, table, estimate).await?;
    }
    // As it was before this session set its own.
    let zone = "SELECT reset_val FROM pg_settings WHERE name = 'TimeZone'";
    let failed = PostgresError::server("asking for the time zone");
    description.zone = session.client().query_opt(zone, &[]).await.map_err(failed)?.and_then(|row| row.get(0));
    live::end(session).await?;
    for (table, reason) in missed {
        description.miss(&table, reason);
    }
    Ok((read, description))
}

/// Takes a sample: all rows of a small table, of a large one those of blocks here and there.
async fn look(session: &Session, table: &mut Table, estimate: u64) -> Result<(), CompareError> {
    let rows = SAMPLE_ROWS as u64;
    if table.columns.is_empty() {
        return Ok(());
    }
    if estimate > 2 * rows {
        let percent = 130.0 * rows as f64 / estimate as f64;
        table.rows = Some(estimate);
        table.sample = rows_of(session, table, &format!(" TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)")).await?;
    }
    if table.sample.is_empty() {
        table.sample = rows_of(session, table, "").await?;
        table.whole = table.sample.len() <= SAMPLE_ROWS;
        if table.whole {
            table.rows = Some(table.sample.len() as u64);
        }
    }
    table.sample.truncate(SAMPLE_ROWS);
    Ok(())
}

async fn rows_of(session: &Session, table: &Table, sampled: &str) -> Result<Vec<Vec<Value>>, CompareError> {
    let (mut list, mut fields) = (Vec::new(), 0);
    for column in &table.columns {
        let name = sql::identifier(&column.name);
        // A value is never sent whole: its length and its beginning.
        let (length, start) = match column.kind {
            Kind::Integer | Kind::Boolean | Kind::Instant | Kind::Timestamp => {
                list.push(name);
                fields += 1;
                continue;
            }
            Kind::Bytes => (format!("octet_length({name})"), format!("substring({name}, 1, {START_BYTES})")),
            _ => (format!("octet_length({name}::text)"), format!("left({name}::text, {START_BYTES})")),
        };
        list.extend([length, start]);
        fields += 2;
    }
    let select = format!("SELECT {} FROM {}{sampled} LIMIT {}", list.join(", "), table.name.quoted(), SAMPLE_ROWS + 1);
    let mut rows = Vec::new();
    live::copy(session, "looking at a table", &select, fields, &mut |cells| {
        let mut cells = cells.iter();
        let mut next = || cells.next().copied().flatten();
        let mut row = Vec::with_capacity(table.columns.len());
        for column in &table.columns {
            let first = next();
            row.push(match column.kind {
                Kind::Integer | Kind::Boolean | Kind::Instant | Kind::Timestamp => {
                    first.map_or(Value::Null, |bytes| Value::of_binary(column.kind, &column.type_name, bytes))
                }
                _ => match (first.and_then(|length| length.try_into().ok()), next()) {
                    (Some(length), Some(start)) => Value::of_start(u64::from(u32::from_be_bytes(length)), start),
                    _ => Value::Null,
                },
            });
        }
        rows.push(row);
        Ok(())
    })
    .await?;
    Ok(rows)
}
