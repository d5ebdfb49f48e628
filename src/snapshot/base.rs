//! What an earlier snapshot, or one that was cut short, knows that can be taken over, and every condition under which it can.
//!
//! `(ctid, xmin)` names one version of a row within one history of one file of one cluster, until 32 bits of transaction ids come round.
//! So all of this must be as it was: system identifier and timeline (a promotion or a recovery to a point in time issues ids again), the
//! marker (a data directory that was set back), the file and the meaning of its columns. What `docs/architecture.md` says of it in
//! full was tried on real servers.

use std::collections::HashMap;

use jiff::Timestamp;

use crate::postgres::catalog;
use crate::postgres::marker::{Marker, Token};
use crate::postgres::reading::ReadingSet;
use crate::repository::RepositoryError;
use crate::repository::checkpoint::{CheckpointTable, Run};
use crate::repository::manifest::{Column, Manifest, ServerSummary, StoreIdentity, Table, Wire};
use crate::repository::reader::ChunkReader;
use crate::repository::segment::SegmentEntry;
use crate::repository::snapshots::{Snapshot, segments_of};

/// Where history stands: what the marker, or a person, proves.
#[derive(Default)]
pub struct Lineage<'a> {
    /// The snapshot that is believed.
    pub parent: Option<&'a Snapshot>,
    /// The run after it that was cut short.
    pub run: Option<&'a Run>,
    /// Why there is neither.
    pub reason: Option<String>,
}

impl<'a> Lineage<'a> {
    /// `snapshots`: those of the store that may be relied on, oldest first. `marker`: or why there is none. `vouched`: a person says that no history was set back.
    pub fn find(
        snapshots: &[&'a Snapshot],
        runs: &'a [Run],
        store: &StoreIdentity,
        marker: Result<&Marker, &str>,
        vouched: bool,
    ) -> Self {
        let why_not = |reason: String| Self { reason: Some(reason), ..Self::default() };
        let found = match marker {
            Ok(marker) => &marker.found,
            Err(_) if vouched => return Self { parent: snapshots.last().copied(), ..Self::default() },
            Err(why) => return why_not(format!("no marker can be left: {why}")),
        };
        let Some(last) = found.first() else { return why_not("there was no marker yet".to_owned()) };
        let by =
            |token: &Token| snapshots.iter().copied().rfind(|snapshot| snapshot.manifest.server.marker == Some(*token));
        let left = |run: &&Run| {
            run.checkpoints.first().is_some_and(|first| first.store == *store && first.server.marker == Some(*last))
        };
        // The last attempt may have failed; it had believed the other token.
        let parent = found.iter().find_map(by);
        let run = runs.iter().find(left).filter(|_| by(last).is_none());
        let why = "the marker does not show what the last snapshot left: the server was set back to an earlier state, or \
                   somebody changed the marker";
        let reason = (parent.is_none() && run.is_none()).then(|| why.to_owned());
        Self { parent, run, reason }
    }
}

/// One state of the store whose segments may be taken over.
pub struct Base {
    pub server: ServerSummary,
    taken: Timestamp,
    tables: HashMap<u32, BaseTable>,
    /// From a manifest: its chunks are safe as long as the snapshot is kept.
    pub is_kept: bool,
}

struct BaseTable {
    table: Table,
    entries: HashMap<u32, SegmentEntry>,
    /// The number of the last one, which is open.
    last: u32,
}

/// A segment as it was.
#[derive(Clone, Copy)]
pub struct BaseSegment<'a> {
    pub base: &'a Base,
    pub entry: &'a SegmentEntry,
    /// It reached to the end of the table.
    pub is_open: bool,
}

/// The states that can be gone back to, the newest first.
#[derive(Default)]
pub struct Bases {
    found: Vec<Base>,
    reason: Option<String>,
    /// Every pack that the repository should have is there.
    pub is_sound: bool,
}

impl Bases {
    /// Loads what the lineage names and leaves out what the server, as it is now, does not fit.
    pub async fn load(
        lineage: &Lineage<'_>,
        set: &ReadingSet,
        now: &ServerSummary,
        reader: &ChunkReader,
        is_sound: bool,
    ) -> Result<Self, RepositoryError> {
        let mut bases = Self { found: Vec::new(), reason: lineage.reason.clone(), is_sound };
        bases.found.extend(lineage.run.and_then(of_run));
        if let Some(parent) = lineage.parent {
            match of_manifest(&parent.manifest, reader).await {
                Ok(base) => bases.found.push(base),
                Err(e) if e.is_about_an_object() => {
                    bases.reason = Some(format!("the last snapshot cannot be taken over: {e}"))
                }
                Err(e) => return Err(e),
            }
        }
        let mut unfit = None;
        bases.found.retain(|base| match misfit(base, set, now) {
            Some(why) => {
                unfit = Some(why);
                false
            }
            None => true,
        });
        if bases.found.is_empty() {
            bases.reason = bases.reason.or(unfit);
        }
        Ok(bases)
    }

    /// Why nothing can be taken over.
    pub fn nothing(&self) -> Option<String> {
        self.found.is_empty().then(|| self.reason.clone().unwrap_or_default())
    }

    /// Does the run rely on the snapshot that it was given?
    pub fn rely_on_a_snapshot(&self) -> bool {
        self.found.iter().any(|base| base.is_kept)
    }

    /// In how many blocks a table was cut, if it is still the same file.
    pub fn blocks_per_segment(&self, table: &catalog::Table, block_size: u32) -> Option<u32> {
        let same =
            |base: &&BaseTable| base.table.relfilenode == table.relfilenode && base.table.block_size == block_size;
        let mut tables = self.found.iter().filter_map(|base| base.tables.get(&table.oid));
        tables.find(same).map(|base| base.table.blocks_per_segment)
    }

    /// What is known of a table that is as it was.
    pub fn of_table(
        &self,
        table: &catalog::Table,
        columns: &[Column],
        block_size: u32,
        blocks_per_segment: u32,
    ) -> TableBases<'_> {
        let (mut fitting, mut misfit) = (Vec::new(), None);
        for base in &self.found {
            let Some(before) = base.tables.get(&table.oid) else { continue };
            match table_misfit(&before.table, table, columns, block_size) {
                Some(why) => misfit = Some(why),
                None if before.table.blocks_per_segment == blocks_per_segment => fitting.push((base, before)),
                None => {}
            }
        }
        TableBases { misfit: misfit.filter(|_| fitting.is_empty()), fitting }
    }
}

/// The states of a table that can be gone back to, the newest first.
pub struct TableBases<'a> {
    fitting: Vec<(&'a Base, &'a BaseTable)>,
    /// Why there is none, though the table was known.
    pub misfit: Option<&'static str>,
}

impl<'a> TableBases<'a> {
    /// The newest that has the segment.
    pub fn segment(&self, number: u32) -> Option<BaseSegment<'a>> {
        self.fitting.iter().find_map(|(base, before)| {
            Some(BaseSegment { base, entry: before.entries.get(&number)?, is_open: number == before.last })
        })
    }
}

async fn of_manifest(manifest: &Manifest, reader: &ChunkReader) -> Result<Base, RepositoryError> {
    let pages: Vec<_> = manifest.tables.iter().flat_map(|table| table.pages.iter().copied()).collect();
    // Of a store that is not large, all of its metadata is one request or two.
    reader.keep_neighbours(&pages).await?;
    let pages = reader.fetch_all(&pages).await?;
    let mut tables = HashMap::with_capacity(manifest.tables.len());
    for table in &manifest.tables {
        let entries: HashMap<u32, SegmentEntry> = (0..).zip(segments_of(table, &pages)?).collect();
        let last = (entries.len() as u32).saturating_sub(1);
        tables.insert(table.oid, BaseTable { table: table.clone(), entries, last });
    }
    Ok(Base { server: manifest.server.clone(), taken: manifest.taken, tables, is_kept: true })
}

fn of_run(run: &Run) -> Option<Base> {
    let first = run.checkpoints.first()?;
    let mut tables: HashMap<u32, BaseTable> = HashMap::new();
    for CheckpointTable { table, segments } in run.checkpoints.iter().flat_map(|one| &one.tables) {
        let last = (table.segments as u32).saturating_sub(1);
        let base = tables.entry(table.oid).or_insert_with(|| BaseTable {
            table: table.clone(),
            entries: HashMap::new(),
            last,
        });
        base.entries.extend(segments.iter().cloned());
    }
    Some(Base { server: first.server.clone(), taken: first.taken, tables, is_kept: false })
}

/// Why the server is not the one, or not in the history, that the base was read from.
fn misfit(base: &Base, set: &ReadingSet, now: &ServerSummary) -> Option<String> {
    let before = &base.server;
    let facts = &set.facts;
    if facts.system_identifier.is_none() {
        return Some("the role may not ask for the system identifier (pg_control_system)".to_owned());
    }
    if before.timeline.is_none() || before.timeline != now.timeline {
        return Some(
            "the timeline is another one: a standby was promoted, or the server was recovered to a point in time"
                .to_owned(),
        );
    }
    if before.encoding != now.encoding {
        return Some("the encoding is another one".to_owned());
    }
    if !before.durable {
        return Some("what the last snapshot saw may have been lost in a crash".to_owned());
    }
    let started = facts.started.as_deref().and_then(|at| at.parse::<Timestamp>().ok());
    let fsync = before.fsync == Some(true) && now.fsync == Some(true);
    if !fsync && started.is_none_or(|started| started > base.taken) {
        return Some("the server was started again while fsync was off: it may have lost what it had".to_owned());
    }
    // A standby may be behind its primary.
    if now.xmax < before.xmax && !now.standby && !before.standby {
        return Some("transaction ids went back: the server was set back, or pg_resetwal was run".to_owned());
    }
    (Issued::between(before, now).is_all()).then(|| "transaction ids have come round since".to_owned())
}

fn table_misfit(before: &Table, now: &catalog::Table, columns: &[Column], block_size: u32) -> Option<&'static str> {
    if before.relfilenode.is_none() || before.relfilenode != now.relfilenode {
        return Some("it was rewritten or emptied");
    }
    if before.block_size != block_size {
        return Some("its blocks have another size");
    }
    if before.schema_digest != now.schema_digest || before.columns != columns {
        return Some("its columns or their types were changed");
    }
    // Names of tables and roles, which change while the row does not.
    if columns.iter().any(|column| column.wire == Wire::Text) {
        return Some("it has columns whose text depends on the catalog");
    }
    None
}

/// The transaction ids that may have been issued between two states, as a range of 64-bit ids.
#[derive(Debug, Clone, Copy)]
pub struct Issued {
    low: u64,
    high: u64,
}

/// Below it are ids of bootstrap and of rows that were frozen by force (`pg_surgery`, versions before 9.4): they name no version.
const FIRST_NORMAL: u32 = 3;

impl Issued {
    pub fn between(before: &ServerSummary, now: &ServerSummary) -> Self {
        Self { low: before.xmin.min(now.xmin), high: before.xmax.max(now.xmax) }
    }

    fn is_all(&self) -> bool {
        self.high - self.low >= 1 << 32
    }

    /// May a row with this `xmin` be another one than the row that had the same place and `xmin` before?
    pub fn may_be_another(&self, xmin: u32) -> bool {
        xmin < FIRST_NORMAL || self.is_all() || u64::from(xmin.wrapping_sub(self.low as u32)) < self.high - self.low
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_that_were_issued_since_are_told_by_32_bits_across_the_wrap() {
        let issued = Issued { low: (1 << 32) - 30, high: (1 << 32) + 1207 };
        let another = [3, 1200, 1206, u32::MAX - 29, u32::MAX, 0, 1, 2];
        let same = [1207, 5000, u32::MAX - 30];
        assert!(another.into_iter().all(|xmin| issued.may_be_another(xmin)));
        assert!(!same.into_iter().any(|xmin| issued.may_be_another(xmin)));
        assert!(Issued { low: 100, high: 100 + (1 << 32) }.may_be_another(99));
        assert!(!Issued { low: 100, high: 100 }.may_be_another(100));
    }
}
