//! Which columns of a table changed: rows of two snapshots with the same primary key, held against each other column by column. Opens
//! rows, so it needs a reader's identity. Only segments that differ are read.

use std::collections::{BTreeSet, HashMap};

use bytes::Bytes;

use super::comparison::differing;
use super::error::GuardError;
use crate::repository::manifest::Table;
use crate::repository::snapshots::SnapshotReader;
use crate::repository::table_rows::TableRows;

/// So many rows tell it.
const ENOUGH: usize = 200_000;

/// Names of columns; empty where no row has its old key any more.
pub async fn changed(
    before: &SnapshotReader,
    old: &Table,
    after: &SnapshotReader,
    new: &Table,
) -> Result<Vec<String>, GuardError> {
    let catalog = before.catalog().await?;
    let keys: Vec<String> = catalog
        .table(&old.schema, &old.name)
        .and_then(|table| table.primary_key())
        .map(|key| key.columns.clone())
        .unwrap_or_default();
    let places = |table: &Table| -> Option<Vec<usize>> { keys.iter().map(|key| Some(table.column(key)?.0)).collect() };
    let (Some(old_key), Some(new_key)) = (places(old), places(new)) else { return Ok(Vec::new()) };
    if keys.is_empty() {
        return Ok(Vec::new());
    }
    let mut rows: HashMap<Vec<Option<Bytes>>, Vec<Option<Bytes>>> = HashMap::new();
    read(before, old, after, new, |fields| {
        if rows.len() < ENOUGH {
            rows.insert(old_key.iter().map(|at| fields[*at].clone()).collect(), fields);
        }
    })
    .await?;
    let shared: Vec<(usize, usize, &str)> = old
        .columns
        .iter()
        .enumerate()
        .filter_map(|(at, column)| {
            let (now, other) = new.column(&column.name)?;
            (other.type_name == column.type_name && other.wire == column.wire).then_some((
                at,
                now,
                column.name.as_str(),
            ))
        })
        .collect();
    let mut changed: BTreeSet<&str> = BTreeSet::new();
    read(after, new, before, old, |fields| {
        let key: Vec<Option<Bytes>> = new_key.iter().map(|at| fields[*at].clone()).collect();
        if let Some(then) = rows.get(&key) {
            changed.extend(shared.iter().filter(|(old, new, _)| then[*old] != fields[*new]).map(|(.., name)| *name));
        }
    })
    .await?;
    Ok(old.columns.iter().map(|column| column.name.clone()).filter(|name| changed.contains(name.as_str())).collect())
}

/// The rows of `table` in segments that the other snapshot does not have.
async fn read(
    reader: &SnapshotReader,
    table: &Table,
    other: &SnapshotReader,
    others: &Table,
    mut row: impl FnMut(Vec<Option<Bytes>>),
) -> Result<(), GuardError> {
    let digests = other.segments(others).await?.iter().map(|segment| segment.digest).collect();
    for segment in differing(reader, table, &digests).await? {
        let mut rows = TableRows::of_segment(reader, table, segment);
        while let Some(batch) = rows.next_batch().await? {
            batch.into_iter().for_each(|whole| row(whole.fields));
        }
    }
    Ok(())
}
