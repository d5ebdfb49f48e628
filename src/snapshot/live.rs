//! The live store held against its last snapshot: a row version that nobody replaced must say what it said. One that says something else was not changed by
//! anybody who went through the server: a disk, a file system or memory did it, and the next snapshot would take it over without reading it.
//!
//! What makes a version the same is what lets a snapshot take it over (`base`). In memory: the maps of one segment, about 50 bytes a row.

use std::collections::HashMap;

use serde::Serialize;

use super::base::{BaseSegment, Bases, Issued, Lineage};
use super::{METADATA_KEPT, SnapshotError, enough, identity, is_of_these_keys, layout, pipeline, server};
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::catalog::{Column, TableName};
use crate::postgres::copy::{BlockRange, Tid};
use crate::postgres::dsn::Dsn;
use crate::postgres::marker::Marker;
use crate::postgres::reading::{Reader, ReadingOptions, ReadingSet};
use crate::repository::Repository;
use crate::repository::id::{Digest, ObjectId};
use crate::repository::reader::ChunkReader;
use crate::repository::rows::RowHasher;
use crate::repository::segment::Descriptor;
use crate::repository::snapshots::{self, Snapshot, SnapshotReader};

/// How much of the live store is read.
#[derive(Debug, Clone)]
pub struct LiveOptions {
    pub reading: ReadingOptions,
    /// Of the segments of each table, as they come by chance; one at least.
    pub percent: u8,
    /// Where no marker can be left: somebody says that the server was not set back to an earlier state since the last snapshot.
    pub trust_history: bool,
}

/// What the live store shows.
#[derive(Debug, Default, Serialize)]
pub struct LiveReport {
    /// With which snapshot it was compared; `None`: with none, for `reason`.
    pub snapshot: Option<ObjectId>,
    pub reason: Option<String>,
    pub tables: Vec<LiveTable>,
}

#[derive(Debug, Default, Serialize)]
pub struct LiveTable {
    /// `schema.table`. Hostile text.
    pub table: String,
    /// Rows that are as they were.
    pub same: u64,
    /// Rows that came or were changed since; nothing can be said of them.
    pub changed: u64,
    /// Rows that are not what they were, though nobody changed them.
    pub damaged: u64,
    /// The first of these: `(block,line)`.
    pub places: Vec<String>,
    /// Why rows could not be compared: nothing wrong, unless `unreadable` is set.
    pub not_compared: Option<String>,
    /// What the server said when it could not read the table.
    pub unreadable: Option<String>,
}

/// So many places are told.
const MOST_PLACES: usize = 20;

/// Compares all, or some, of the live store.
pub async fn check(
    repository: &Repository,
    dsn: &Dsn,
    options: &LiveOptions,
    monitor: &SharedMonitor,
) -> Result<LiveReport, SnapshotError> {
    let (facts, marker) = Marker::open(dsn, &repository.secrets.repository.to_hex()).await?;
    let (store, marker) = (identity(&facts), marker.as_ref().map_err(String::as_str));
    let (earlier, _) = snapshots::newest(repository, enough(&store, marker)).await?;
    let usable: Vec<&Snapshot> = earlier.iter().filter(|s| s.manifest.store == store && s.is_usable()).collect();
    let lineage = Lineage::find(&usable, &[], &store, marker, options.trust_history);
    let because = |reason: String| Ok(LiveReport { reason: Some(reason), ..LiveReport::default() });
    let Some(snapshot) = lineage.parent else {
        return because(lineage.reason.unwrap_or_else(|| "there is no certified snapshot of it".to_owned()));
    };
    if !is_of_these_keys(repository, &snapshot.manifest) {
        return because("the keys were replaced since its last snapshot (key rotate --new-ids)".to_owned());
    }
    let set = ReadingSet::open(dsn, 1, options.reading.clone(), monitor).await?;
    let now = server(&set);
    let chunks = ChunkReader::open(repository, Some(&snapshot.manifest.fragments)).await?.keeping(METADATA_KEPT);
    let bases = Bases::load(&lineage, &set, &now, &chunks, true).await?;
    if let Some(reason) = bases.nothing() {
        return because(reason);
    }
    let layout = layout::plan(&set.catalog, &set.facts, &[], layout::SEGMENT_BYTES, |table, block_size| {
        bases.blocks_per_segment(table, block_size)
    });
    monitor.stage("comparing", Unit::Bytes, Some(layout.tables.iter().map(|table| table.bytes).sum()));
    let mut report = LiveReport { snapshot: Some(snapshot.id), ..LiveReport::default() };
    let maps = SnapshotReader::over(repository, snapshot, chunks);
    let Some(reader) = set.readers.first() else { return Ok(report) };
    for one in &layout.tables {
        let table = &set.catalog.tables[one.table];
        let columns: Vec<_> = one.columns.iter().map(pipeline::column).collect();
        let before = bases.of_table(table, &columns, layout.block_size, one.blocks_per_segment);
        let mut found = LiveTable { table: table.name.to_string(), ..LiveTable::default() };
        if snapshot.manifest.tables.iter().all(|known| known.oid != table.oid) {
            found.not_compared = Some("it is new".to_owned());
        }
        found.not_compared = found.not_compared.or(before.misfit.map(str::to_owned));
        let live: Vec<&Column> = one.columns.iter().collect();
        for number in sample(one.segments(), options.percent) {
            let Some(segment) = before.segment(number) else { continue };
            let from = number * one.blocks_per_segment;
            let to = (number + 1 < one.segments()).then(|| from + one.blocks_per_segment);
            let of = Of { segment, issued: Issued::between(&segment.base.server, &now), maps: &maps };
            match of.compare(reader, &table.name, &live, BlockRange { from, to }, &mut found).await {
                // The transaction is at its end.
                Err(SnapshotError::Postgres(e)) if e.is_about_data() => {
                    found.unreadable = Some(e.to_string());
                    report.tables.push(found);
                    return Ok(report);
                }
                other => other?,
            }
            monitor.advance(one.bytes / u64::from(one.segments()));
        }
        report.tables.push(found);
    }
    Ok(report)
}

/// So many of the numbers below `count`, at least one.
fn sample(count: u32, percent: u8) -> Vec<u32> {
    use std::hash::{BuildHasher, RandomState};
    let dice = RandomState::new();
    let mut numbers: Vec<u32> = (0..count).collect();
    numbers.sort_by_cached_key(|number| dice.hash_one(number));
    numbers.truncate((u64::from(count) * u64::from(percent)).div_ceil(100).max(1) as usize);
    numbers.sort_unstable();
    numbers
}

struct Of<'a> {
    segment: BaseSegment<'a>,
    issued: Issued,
    maps: &'a SnapshotReader,
}

impl Of<'_> {
    async fn compare(
        &self,
        reader: &Reader,
        table: &TableName,
        columns: &[&Column],
        range: BlockRange,
        found: &mut LiveTable,
    ) -> Result<(), SnapshotError> {
        let descriptor: Descriptor = self.maps.descriptor(self.segment.entry).await?;
        let mut known: HashMap<Tid, (u32, Digest, &RowHasher)> = HashMap::new();
        for increment in &descriptor.increments {
            let hasher = self.maps.hasher(increment)?;
            let rows = (0u32..).zip(self.maps.row_map(increment).await?);
            known.extend(rows.filter(|(ordinal, _)| !increment.is_dead(*ordinal)).map(|(_, row)| {
                (Tid { block: row.place.block, offset: row.place.offset }, (row.xmin, row.digest, hasher))
            }));
        }
        let mut rows = reader.copy_range(table, columns, range).await?;
        let mut bounds = Vec::new();
        while let Some(row) = rows.next(&mut bounds).await? {
            let before =
                known.get(&row.tid).filter(|(xmin, ..)| *xmin == row.xmin && !self.issued.may_be_another(*xmin));
            let Some((_, digest, hasher)) = before else {
                found.changed += 1;
                continue;
            };
            if hasher.digest(bounds.iter().map(|field| field.of(&row.bytes))) == *digest {
                found.same += 1;
            } else {
                found.damaged += 1;
                if found.places.len() < MOST_PLACES {
                    found.places.push(row.tid.to_string());
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_something_and_never_too_much() {
        for (count, percent, wanted) in [(1, 1, 1), (10, 1, 1), (10, 25, 3), (10, 100, 10), (0, 50, 0)] {
            let numbers = sample(count, percent);
            assert_eq!(numbers.len(), wanted, "{percent} % of {count}");
            assert!(numbers.is_sorted() && numbers.iter().all(|number| *number < count));
        }
    }
}
