//! A description of a store as a snapshot has it, with no server at all.

use std::collections::BTreeSet;

use bytes::Bytes;

use super::description::{Description, SAMPLE_ROWS, Table, Value};
use crate::compare::CompareError;
use crate::compare::row::{self, LargeValue};
use crate::compare::source::{Pick, Source, SourceTable};
use crate::postgres::catalog::Catalog;
use crate::repository::manifest::Wire;

/// Segments of a table that rows are taken from: the first, the last, and between.
const SEGMENTS: usize = 4;
/// Large values of a table that are fetched, and their bytes.
const LARGE_VALUES: usize = 200;
const LARGE_BYTES: u64 = 16 << 20;

/// What was seen in the tables of a snapshot, of which `catalog` is.
pub async fn describe(source: &dyn Source, catalog: &Catalog) -> Result<Description, CompareError> {
    let mut description = Description::of_catalog(catalog);
    let mut missed = Vec::new();
    for table in &mut description.tables {
        match source.facts().table(&table.name) {
            Some(stored) => look(source, table, stored).await?,
            None => missed.push(table.name.clone()),
        }
    }
    for table in missed {
        description.miss(&table, "it is not in the snapshot");
    }
    Ok(description)
}

async fn look(source: &dyn Source, table: &mut Table, stored: &SourceTable) -> Result<(), CompareError> {
    table.rows = Some(stored.rows);
    let segments = source.segments(stored).await?;
    let last = segments.len().saturating_sub(1);
    let chosen: BTreeSet<usize> = (0..SEGMENTS).map(|at| at * last / (SEGMENTS - 1)).collect();
    let rows: u64 = chosen.iter().filter_map(|at| segments.get(*at)).map(|segment| segment.rows).sum();
    table.whole = rows == stored.rows && rows <= SAMPLE_ROWS as u64;
    let step = rows.div_ceil(SAMPLE_ROWS as u64).max(1);
    let mut kept: Vec<Vec<row::Value>> = Vec::new();
    let mut number = 0;
    source
        .scan(stored, Pick::Segments(&chosen), &mut |cells| {
            if number % step == 0 && kept.len() < SAMPLE_ROWS {
                kept.push(cells.iter().map(|cell| cell.keep()).collect());
            }
            number += 1;
            Ok(())
        })
        .await?;
    let large: Vec<LargeValue> = kept
        .iter()
        .flatten()
        .filter_map(|value| if let row::Value::Large(large) = value { Some(*large) } else { None })
        .collect();
    let lengths = source.lengths(&large).await?;
    let (mut wanted, mut bytes) = (Vec::new(), 0);
    for (value, length) in large.iter().zip(&lengths).take(LARGE_VALUES) {
        bytes += length;
        if bytes > LARGE_BYTES {
            break;
        }
        wanted.push(*value);
    }
    let starts = source.values(&wanted).await?;
    let places: Vec<Option<(usize, Wire)>> = table
        .columns
        .iter()
        .map(|column| {
            let at = stored.columns.iter().position(|one| one.name == column.name)?;
            Some((at, stored.columns[at].wire))
        })
        .collect();
    // Large values come in the order of rows and of their fields.
    let mut ordinal = 0;
    for row in &kept {
        let mut fields: Vec<Value> = vec![Value::Null; row.len()];
        for (at, value) in row.iter().enumerate() {
            let column = places.iter().position(|place| place.is_some_and(|(stored, _)| stored == at));
            let Some(column) = column.map(|at| &table.columns[at]) else {
                ordinal += usize::from(matches!(value, row::Value::Large(_)));
                continue;
            };
            fields[at] = match value {
                row::Value::Null => Value::Null,
                row::Value::Bytes(bytes) if stored.columns[at].wire == Wire::Text => {
                    Value::of_start(bytes.len() as u64, bytes)
                }
                row::Value::Bytes(bytes) => Value::of_binary(column.kind, &column.type_name, bytes),
                row::Value::Large(_) => {
                    let length = lengths.get(ordinal).copied().unwrap_or(0);
                    let start = starts.get(ordinal);
                    ordinal += 1;
                    // One that was not fetched equals none.
                    let unknown = Value::Bytes { length, print: ordinal as u64, start: Bytes::new() };
                    start.map_or(unknown, |bytes| Value::of_start(length, bytes))
                }
            };
        }
        let of =
            |place: &Option<(usize, Wire)>| place.and_then(|(at, _)| fields.get(at).cloned()).unwrap_or(Value::Null);
        table.sample.push(places.iter().map(of).collect());
    }
    Ok(())
}
