//! All rows of a table, whole: small fields from row chunks, large values from the payload, each row checked against its
//! digest. For what reads a table from end to end: full restores, dumps, drills.

use std::collections::VecDeque;

use bytes::Bytes;

use super::error::RepositoryError;
use super::manifest::Table;
use super::rows::{Field, RowHasher};
use super::segment::{Increment, MapRow, MapValue, SegmentEntry};
use super::snapshots::{IncrementRows, SnapshotReader};

/// Large values of a batch, in bytes: what is in memory at a time, but for a value that is larger itself.
const BATCH_BYTES: u64 = 8 << 20;
const BATCH_ROWS: usize = 4096;

/// A row as the server sent it.
pub struct WholeRow {
    pub map: MapRow,
    pub fields: Vec<Option<Bytes>>,
}

/// Goes through a table in the order of its blocks.
pub struct TableRows {
    reader: SnapshotReader,
    columns: usize,
    segments: VecDeque<SegmentEntry>,
    increments: VecDeque<Increment>,
    current: Option<Current>,
}

struct Current {
    increment: Increment,
    rows: VecDeque<Pending>,
    values: Vec<MapValue>,
}

struct Pending {
    map: MapRow,
    fields: Vec<PendingField>,
    large_bytes: u64,
}

enum PendingField {
    Null,
    Inline(Bytes),
    Large(u32),
}

impl TableRows {
    pub async fn open(reader: &SnapshotReader, table: &Table) -> Result<Self, RepositoryError> {
        Ok(Self::of_segments(reader, table, reader.segments(table).await?.into()))
    }

    /// The rows of one segment only.
    pub fn of_segment(reader: &SnapshotReader, table: &Table, segment: SegmentEntry) -> Self {
        Self::of_segments(reader, table, VecDeque::from([segment]))
    }

    fn of_segments(reader: &SnapshotReader, table: &Table, segments: VecDeque<SegmentEntry>) -> Self {
        let (reader, columns) = (reader.clone(), table.columns.len());
        Self { reader, columns, segments, increments: VecDeque::new(), current: None }
    }

    /// The next rows; `None` after the last.
    pub async fn next_batch(&mut self) -> Result<Option<Vec<WholeRow>>, RepositoryError> {
        loop {
            if let Some(current) = self.current.as_mut().filter(|current| !current.rows.is_empty()) {
                let (mut batch, mut bytes) = (Vec::new(), 0);
                while let Some(row) = current.rows.front() {
                    if batch.len() >= BATCH_ROWS || (!batch.is_empty() && bytes + row.large_bytes > BATCH_BYTES) {
                        break;
                    }
                    bytes += row.large_bytes;
                    batch.extend(current.rows.pop_front());
                }
                return Ok(Some(complete(&self.reader, &current.increment, &current.values, batch).await?));
            }
            if let Some(increment) = self.increments.pop_front() {
                let rows = self.reader.rows(&increment, self.columns).await?;
                let values = self.reader.value_map(&increment).await?;
                let rows = pending(&rows, &values)?;
                self.current = Some(Current { increment, rows, values });
            } else if let Some(segment) = self.segments.pop_front() {
                self.increments = self.reader.descriptor(&segment).await?.increments.into();
            } else {
                return Ok(None);
            }
        }
    }
}

fn pending(rows: &IncrementRows, values: &[MapValue]) -> Result<VecDeque<Pending>, RepositoryError> {
    let mut pending = VecDeque::with_capacity(rows.map.len());
    rows.for_each(|_, map, fields| {
        let mut large_bytes = 0;
        let fields = fields
            .iter()
            .map(|field| match field {
                Field::Null => PendingField::Null,
                Field::Inline(bytes) => PendingField::Inline(rows.fields.share(bytes)),
                Field::Large(ordinal) => {
                    large_bytes += values.get(*ordinal as usize).map_or(0, |value| value.recipe.length);
                    PendingField::Large(*ordinal)
                }
            })
            .collect();
        pending.push_back(Pending { map: *map, fields, large_bytes });
        Ok::<_, RepositoryError>(())
    })?;
    Ok(pending)
}

async fn complete(
    reader: &SnapshotReader,
    increment: &Increment,
    values: &[MapValue],
    batch: Vec<Pending>,
) -> Result<Vec<WholeRow>, RepositoryError> {
    let ordinals = batch.iter().flat_map(|row| &row.fields).filter_map(|field| match field {
        PendingField::Large(ordinal) => Some(*ordinal),
        _ => None,
    });
    let wanted = ordinals
        .map(|ordinal| {
            values.get(ordinal as usize).ok_or_else(|| RepositoryError::malformed("row chunk", "a value is missing"))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut large = reader.values(increment, &wanted).await?.into_iter();
    let hasher: &RowHasher = reader.hasher(increment)?;
    batch
        .into_iter()
        .map(|row| {
            let mut digest = hasher.row();
            let mut fields = Vec::with_capacity(row.fields.len());
            for field in row.fields {
                fields.push(match field {
                    PendingField::Null => {
                        digest.null();
                        None
                    }
                    PendingField::Inline(bytes) => {
                        digest.inline(&bytes);
                        Some(bytes)
                    }
                    PendingField::Large(_) => {
                        let value = large
                            .next()
                            .ok_or_else(|| RepositoryError::malformed("row chunk", "a value is missing"))?;
                        digest.large(value.bytes.len() as u64, &value.hash);
                        Some(value.bytes)
                    }
                });
            }
            if digest.finish() == row.map.digest {
                Ok(WholeRow { map: row.map, fields })
            } else {
                Err(RepositoryError::malformed("row", "its fields do not have the digest that was recorded"))
            }
        })
        .collect()
}
