//! Two snapshots of a store held against each other, table by table, without opening a single row: row maps have a keyed digest of each
//! row, so a writer can do it. An updated row counts as one removed and one added.
//!
//! Segments with equal digests have equal rows and are not read. Memory: about 40 bytes for each row of the others.

use std::collections::{HashMap, HashSet};

use serde::Serialize;

use crate::repository::RepositoryError;
use crate::repository::id::{Digest, Epoch};
use crate::repository::manifest::Table;
use crate::repository::segment::SegmentEntry;
use crate::repository::snapshots::SnapshotReader;

/// What became of a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TableDiff {
    /// `schema.name`. Hostile text.
    pub table: String,
    /// Absent: there was no such table.
    pub rows_before: Option<u64>,
    pub rows_after: Option<u64>,
    /// Absent where the two cannot be compared row by row: see `note`.
    pub removed: Option<u64>,
    pub added: Option<u64>,
    pub note: Option<&'static str>,
}

impl TableDiff {
    pub fn is_same(&self) -> bool {
        self.rows_before == self.rows_after && self.removed == Some(0) && self.added == Some(0)
    }
}

/// All tables of both, by name.
pub async fn tables(before: &SnapshotReader, after: &SnapshotReader) -> Result<Vec<TableDiff>, RepositoryError> {
    let leaves = |reader: &SnapshotReader| -> Vec<Table> {
        reader.manifest().tables.iter().filter(|table| table.kind != "p").cloned().collect()
    };
    let (olds, news) = (leaves(before), leaves(after));
    let mut diffs = Vec::new();
    for old in &olds {
        let new = after.manifest().table(&old.schema, &old.name);
        let mut diff = TableDiff {
            table: old.label(),
            rows_before: Some(old.rows),
            rows_after: new.map(|table| table.rows),
            removed: None,
            added: None,
            note: None,
        };
        match new {
            None => diff.note = Some("gone"),
            Some(new) if new.columns != old.columns => diff.note = Some("its columns were changed"),
            Some(new) => match changes(before, old, after, new).await? {
                Some((removed, added)) => (diff.removed, diff.added) = (Some(removed), Some(added)),
                None => diff.note = Some("the writer's keys were renewed between the two"),
            },
        }
        diffs.push(diff);
    }
    for new in news.iter().filter(|new| before.manifest().table(&new.schema, &new.name).is_none()) {
        diffs.push(TableDiff {
            table: new.label(),
            rows_before: None,
            rows_after: Some(new.rows),
            removed: None,
            added: None,
            note: Some("new"),
        });
    }
    diffs.sort_by(|one, other| one.table.cmp(&other.table));
    Ok(diffs)
}

/// Rows removed and added; `None`: they were hashed with different keys.
async fn changes(
    before: &SnapshotReader,
    old: &Table,
    after: &SnapshotReader,
    new: &Table,
) -> Result<Option<(u64, u64)>, RepositoryError> {
    let (olds, news) = (before.segments(old).await?, after.segments(new).await?);
    let digests = |entries: &[SegmentEntry]| entries.iter().map(|entry| entry.digest).collect::<HashSet<Digest>>();
    let common = &digests(&olds) & &digests(&news);
    let mut epochs: HashSet<Epoch> = HashSet::new();
    let mut rows: HashMap<Digest, i64> = HashMap::new();
    for (reader, entries, sign) in [(before, &olds, 1), (after, &news, -1)] {
        for entry in entries.iter().filter(|entry| !common.contains(&entry.digest)) {
            for increment in reader.descriptor(entry).await?.increments {
                epochs.insert(increment.epoch);
                let map = reader.row_map(&increment).await?;
                for (_, row) in (0..).zip(map).filter(|(ordinal, _)| !increment.is_dead(*ordinal)) {
                    *rows.entry(row.digest).or_default() += sign;
                }
            }
        }
    }
    if epochs.len() > 1 {
        return Ok(None);
    }
    let sum = |sign: i64| rows.values().map(|count| (count * sign).max(0) as u64).sum();
    Ok(Some((sum(1), sum(-1))))
}
