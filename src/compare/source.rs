//! The rows and large values of a snapshot.
//!
//! Planning reads row chunks alone; large values are fetched for the candidates that need them. Memory: the row chunks of one
//! increment at a time, and the value maps of the last few increments.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::error::CompareError;
use super::keys::{Keys, width};
use super::layout::in_zone;
use super::row::{Cell, LargeValue};
use crate::postgres::catalog::{Catalog, TableName};
use crate::repository::id::Digest;
use crate::repository::manifest::{StoreIdentity, Wire};
use crate::repository::rows::Field;
use crate::repository::segment::{Increment, MapValue, SegmentEntry};
use crate::repository::snapshots::{CheckedValue, SnapshotReader};
use crate::repository::zone::{self, Zone};
use crate::repository::{RepositoryError, cbor};

/// What a snapshot says of itself.
#[derive(Debug, Clone)]
pub struct Facts {
    /// In hexadecimal digits.
    pub repository: String,
    pub snapshot: String,
    pub store: StoreIdentity,
    /// The instant that it shows, by the server's clock.
    pub taken: Timestamp,
    pub tables: Vec<SourceTable>,
    /// Of its text, as the server names it.
    pub encoding: String,
    /// The value that each sequence had issued last.
    pub sequences: HashMap<TableName, i64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceTable {
    pub name: TableName,
    pub columns: Vec<SourceColumn>,
    /// Leaves of a partitioned table: those that hold its rows. Of any other table: itself.
    pub leaves: Vec<TableName>,
    pub rows: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceColumn {
    /// `attnum`.
    pub number: i16,
    pub name: String,
    /// As `format_type` writes it.
    pub type_name: String,
    pub wire: Wire,
    /// It is read as of another type.
    pub widened: Option<Widened>,
}

/// What the type of a column has become in the live store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Widened {
    /// An integer of so many bytes.
    Integer(usize),
    /// A time with a zone; until then it was meant in this one.
    Zone(TimeZone),
    /// An integer that is a key, or refers to one: the keys are others now.
    Keys(Arc<Keys>),
}

impl Widened {
    /// `None`: it refers to nothing that there was.
    fn widen<'a>(&'a self, field: &'a [u8]) -> Option<Cow<'a, [u8]>> {
        let wide = match self {
            Self::Integer(width) => {
                zone::integer(field, false).map(|number| number.to_be_bytes()[8 - width..].to_vec())
            }
            Self::Zone(zone) => {
                zone::integer(field, true).and_then(|local| in_zone(local, zone)).map(|at| at.to_be_bytes().to_vec())
            }
            Self::Keys(keys) => return keys.now(field).map(Cow::Borrowed),
        };
        // Infinities are the same in both types.
        Some(wide.map_or(Cow::Borrowed(field), Cow::Owned))
    }
}

impl Facts {
    pub fn table(&self, name: &TableName) -> Option<&SourceTable> {
        self.tables.iter().find(|table| table.name == *name)
    }
}

/// Which rows of a table.
#[derive(Clone, Copy)]
pub enum Pick<'a> {
    All,
    /// Those whose field in `column` is one of `keys`. Segments that cannot have any are not read.
    Keys {
        column: usize,
        keys: &'a HashSet<Vec<u8>>,
    },
    /// Those of the segments at these places among [`Source::segments`].
    Segments(&'a BTreeSet<usize>),
}

impl Pick<'_> {
    pub fn holds(&self, row: &[Cell<'_>]) -> bool {
        match self {
            Self::Keys { column, keys } => {
                matches!(row.get(*column), Some(Cell::Bytes(bytes)) if keys.contains(*bytes))
            }
            Self::All | Self::Segments(_) => true,
        }
    }
}

/// What is known of a segment without reading its rows.
#[derive(Debug, Clone)]
pub struct SegmentFacts {
    pub rows: u64,
    /// Two segments of one table with the same digest have the same rows.
    pub digest: Digest,
    /// For each column of the table the numbers that it has there; `None`: nothing is known.
    pub columns: Vec<Option<Numbers>>,
}

/// Integers and times of a column, as [`zone::integer`] reads them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Numbers {
    /// NULLs or infinities.
    pub has_nulls: bool,
    /// Closed.
    pub intervals: Vec<(i64, i64)>,
}

/// Takes one row after the other.
pub type RowSink<'a> = dyn FnMut(&[Cell<'_>]) -> Result<(), CompareError> + Send + 'a;

/// A snapshot to read. Tests have one in memory.
#[async_trait]
pub trait Source: Send + Sync {
    fn facts(&self) -> &Facts;

    /// Gives the rows of a table that were asked for, in no order that counts, as they were stored.
    async fn scan_stored(
        &self,
        table: &SourceTable,
        pick: Pick<'_>,
        sink: &mut RowSink<'_>,
    ) -> Result<(), CompareError>;

    /// The segments of a table, as they were stored.
    async fn stored_segments(&self, table: &SourceTable) -> Result<Vec<SegmentFacts>, CompareError>;

    /// Gives the rows of a table that were asked for, in no order that counts, with columns that are wider or lead to other keys now as they
    /// would be now.
    async fn scan(&self, table: &SourceTable, pick: Pick<'_>, sink: &mut RowSink<'_>) -> Result<(), CompareError> {
        if table.columns.iter().all(|column| column.widened.is_none()) {
            return self.scan_stored(table, pick, sink).await;
        }
        let mut narrow = HashSet::new();
        let stored = match pick {
            Pick::Keys { column, keys } => {
                match table.columns.get(column).map(|one| (one.widened.as_ref(), &*one.type_name)) {
                    Some((Some(Widened::Zone(_)), _)) => Pick::All,
                    Some((Some(widened), kind)) => {
                        let width = width(kind);
                        let numbers = match widened {
                            Widened::Keys(of) => of.before(keys),
                            _ => keys.iter().filter_map(|key| zone::integer(key, false)).collect(),
                        };
                        // A number that was too large for the column was not in it.
                        narrow.extend(numbers.into_iter().filter_map(|number| {
                            let field = number.to_be_bytes()[8 - width..].to_vec();
                            (zone::integer(&field, false) == Some(number)).then_some(field)
                        }));
                        Pick::Keys { column, keys: &narrow }
                    }
                    _ => pick,
                }
            }
            pick => pick,
        };
        self.scan_stored(table, stored, &mut |cells| {
            let fields: Vec<Option<Cow<'_, [u8]>>> = table
                .columns
                .iter()
                .zip(cells)
                .map(|(column, cell)| column.widened.as_ref()?.widen(cell.bytes()?))
                .collect();
            let wide = table.columns.iter().zip(&fields).zip(cells).map(|((column, field), cell)| match field {
                Some(field) => Cell::Bytes(field),
                None if column.widened.is_some() => Cell::Null,
                None => *cell,
            });
            let wide: Vec<Cell<'_>> = wide.collect();
            if pick.holds(&wide) { sink(&wide) } else { Ok(()) }
        })
        .await
    }

    /// The segments of a table; of times that have a zone now, and of keys that became others, nothing is known.
    async fn segments(&self, table: &SourceTable) -> Result<Vec<SegmentFacts>, CompareError> {
        let mut segments = self.stored_segments(table).await?;
        for segment in &mut segments {
            for (known, column) in segment.columns.iter_mut().zip(&table.columns) {
                if matches!(column.widened, Some(Widened::Zone(_) | Widened::Keys(_))) {
                    *known = None;
                }
            }
        }
        Ok(segments)
    }

    /// How long large values are, in bytes; nothing of the payload is fetched.
    async fn lengths(&self, wanted: &[LargeValue]) -> Result<Vec<u64>, CompareError>;

    /// Are these the bytes of a large value? Nothing of the payload is fetched.
    async fn is(&self, value: LargeValue, bytes: &[u8]) -> Result<bool, CompareError>;

    /// Large values, each checked against its hash. The caller bounds how many bytes he asks for.
    async fn values(&self, wanted: &[LargeValue]) -> Result<Vec<Bytes>, CompareError>;
}

/// Neighbouring batches take their small values from the same groups.
const KEPT_CHUNKS: usize = 32 << 20;
/// Bytes of what tells of segments that are fetched before anybody asks, and in how many segments at most.
const WARM: usize = 1 << 20;
const WARM_SEGMENTS: u64 = 2000;
/// Segments, or increments, that are asked for at a time.
const AHEAD: usize = 16;
/// Value maps kept for the next question; the values of one batch come from few increments.
const KEPT_VALUE_MAPS: usize = 16;

/// A snapshot in a repository.
pub struct RepositorySource {
    reader: SnapshotReader,
    facts: Facts,
    increments: Mutex<Vec<Arc<Increment>>>,
    maps: Mutex<Vec<(u32, Arc<Vec<MapValue>>)>>,
}

impl RepositorySource {
    pub async fn open(reader: SnapshotReader) -> Result<Self, CompareError> {
        Self::keeping(reader, KEPT_CHUNKS).await
    }

    /// `kept`: bytes of chunks that are kept for the next question.
    pub async fn keeping(mut reader: SnapshotReader, kept: usize) -> Result<Self, CompareError> {
        reader.chunks = reader.chunks.keeping(kept);
        warm(&reader).await?;
        let manifest = reader.manifest();
        let catalog = catalog(&reader).await?;
        let sequences = catalog
            .sequences
            .iter()
            .filter_map(|sequence| {
                let value = sequence.value?;
                let issued = if value.is_called { value.last_value } else { value.last_value - sequence.increment };
                Some((sequence.name.clone(), issued))
            })
            .collect();
        let name = |table: &crate::repository::manifest::Table| TableName {
            schema: table.schema.clone(),
            name: table.name.clone(),
        };
        let tables = manifest
            .tables
            .iter()
            .map(|table| SourceTable {
                name: name(table),
                columns: table
                    .columns
                    .iter()
                    .map(|column| SourceColumn {
                        number: column.number,
                        name: column.name.clone(),
                        type_name: column.type_name.clone(),
                        wire: column.wire,
                        widened: None,
                    })
                    .collect(),
                leaves: leaves(&manifest.tables, table.oid).into_iter().map(name).collect(),
                rows: table.rows,
            })
            .collect();
        let facts = Facts {
            repository: manifest.repository.to_hex(),
            snapshot: reader.snapshot.id.to_hex(),
            store: manifest.store.clone(),
            taken: manifest.taken,
            encoding: manifest.server.encoding.clone(),
            tables,
            sequences,
        };
        Ok(Self { reader, facts, increments: Mutex::default(), maps: Mutex::default() })
    }

    /// The leaves of a table, each with where the table's columns stand in it: a partition's may stand in another order.
    fn stored<'a>(
        &'a self,
        table: &'a SourceTable,
    ) -> impl Iterator<Item = (&'a crate::repository::manifest::Table, Vec<Option<usize>>)> {
        table.leaves.iter().filter_map(|leaf| {
            let stored = self.reader.manifest().table(&leaf.schema, &leaf.name)?;
            let places = table.columns.iter().map(|column| stored.column(&column.name).map(|(at, _)| at)).collect();
            Some((stored, places))
        })
    }

    fn remember(&self, increment: &Increment) -> u32 {
        let mut increments = self.increments.lock().unwrap_or_else(PoisonError::into_inner);
        increments.push(Arc::new(increment.clone()));
        // A snapshot has less than 2³² increments: each is at least one object's entry.
        increments.len() as u32 - 1
    }

    fn increment(&self, number: u32) -> Result<Arc<Increment>, CompareError> {
        let increments = self.increments.lock().unwrap_or_else(PoisonError::into_inner);
        let found = increments.get(number as usize).cloned();
        Ok(found.ok_or_else(|| RepositoryError::malformed("increment", "it was never read"))?)
    }

    /// Fetches the value maps that these need, all at once.
    async fn warm_maps(&self, wanted: &[LargeValue]) -> Result<(), CompareError> {
        let numbers: BTreeSet<u32> = wanted.iter().map(|value| value.increment).collect();
        let mut chunks = Vec::new();
        for number in numbers {
            chunks.extend(self.increment(number)?.value_map.iter().map(|chunk| chunk.id));
        }
        Ok(self.reader.chunks.warm(chunks, usize::MAX).await?)
    }

    /// Of those at these places, which are of one increment.
    async fn values_of(
        &self,
        number: u32,
        places: Vec<usize>,
        wanted: &[LargeValue],
    ) -> Result<(Vec<usize>, Vec<CheckedValue>), CompareError> {
        let map = self.value_map(number).await?;
        let entries = places.iter().map(|at| entry(&map, wanted[*at].ordinal)).collect::<Result<Vec<_>, _>>()?;
        let found = self.reader.values(&*self.increment(number)?, &entries).await?;
        Ok((places, found))
    }

    async fn value_map(&self, number: u32) -> Result<Arc<Vec<MapValue>>, CompareError> {
        let kept = {
            let maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
            maps.iter().find(|(of, _)| *of == number).map(|(_, map)| map.clone())
        };
        if let Some(map) = kept {
            return Ok(map);
        }
        let map = Arc::new(self.reader.value_map(&*self.increment(number)?).await?);
        let mut maps = self.maps.lock().unwrap_or_else(PoisonError::into_inner);
        if maps.len() >= KEPT_VALUE_MAPS {
            maps.remove(0);
        }
        maps.push((number, map.clone()));
        Ok(map)
    }
}

/// In a small snapshot what tells of all segments is fetched at once, or each question would wait for the storage.
async fn warm(reader: &SnapshotReader) -> Result<(), CompareError> {
    let manifest = reader.manifest();
    let pages = manifest.tables.iter().flat_map(|table| table.pages.iter().copied());
    reader.chunks.warm(pages.chain(manifest.schema.catalog.iter().copied()).collect(), WARM).await?;
    if manifest.tables.iter().map(|table| table.segments).sum::<u64>() > WARM_SEGMENTS {
        return Ok(());
    }
    let mut chunks = Vec::new();
    for table in &manifest.tables {
        for entry in reader.segments(table).await? {
            chunks.push(entry.descriptor);
            chunks.extend(entry.zones);
        }
    }
    Ok(reader.chunks.warm(chunks, WARM).await?)
}

/// What the database held when the snapshot was taken.
pub async fn catalog(reader: &SnapshotReader) -> Result<Catalog, CompareError> {
    let bytes = reader.chunks.fetch_joined(&reader.manifest().schema.catalog).await?;
    if bytes.is_empty() {
        return Ok(Catalog::default());
    }
    Ok(cbor::decode("catalog", &bytes).map_err(RepositoryError::from)?)
}

/// The numbers of a column in all of a segment's zones.
fn integers(zones: &[Zone], column: i16) -> Option<Numbers> {
    let mut numbers = Numbers::default();
    for zone in zones {
        let zone = zone.column(column).filter(|zone| zone.filter.is_empty())?;
        numbers.has_nulls |= zone.has_nulls;
        numbers.intervals.extend(&zone.intervals);
    }
    (!zones.is_empty()).then_some(numbers)
}

/// The tables below `oid` that hold rows, `oid` itself if it has no partitions.
fn leaves(tables: &[crate::repository::manifest::Table], oid: u32) -> Vec<&crate::repository::manifest::Table> {
    let below: Vec<_> = tables.iter().filter(|table| table.partition_of == Some(oid)).collect();
    if below.is_empty() {
        return tables.iter().filter(|table| table.oid == oid).collect();
    }
    below.into_iter().flat_map(|table| leaves(tables, table.oid)).collect()
}

#[async_trait]
impl Source for RepositorySource {
    fn facts(&self) -> &Facts {
        &self.facts
    }

    async fn scan_stored(
        &self,
        table: &SourceTable,
        pick: Pick<'_>,
        sink: &mut RowSink<'_>,
    ) -> Result<(), CompareError> {
        let mut first = 0;
        for (stored, places) in self.stored(table) {
            let entries = self.reader.segments(stored).await?;
            let wanted: Vec<&SegmentEntry> = match pick {
                Pick::All => entries.iter().collect(),
                Pick::Segments(chosen) => {
                    let chosen = chosen.range(first..first + entries.len());
                    chosen.map(|at| &entries[*at - first]).collect()
                }
                Pick::Keys { column, keys } => {
                    let number = places.get(column).copied().flatten().map(|at| stored.columns[at].number);
                    let holds = |zones: &[Zone]| {
                        let Some(number) = number else { return true };
                        zones.is_empty() || zones.iter().any(|zone| may_hold(zone, number, keys))
                    };
                    let zones = self.reader.zones(&entries).await?;
                    entries.iter().zip(zones).filter(|(_, zones)| holds(zones)).map(|(entry, _)| entry).collect()
                }
            };
            first += entries.len();
            for wanted in wanted.chunks(AHEAD) {
                self.reader.chunks.warm(wanted.iter().map(|entry| entry.descriptor).collect(), usize::MAX).await?;
                let mut increments = Vec::new();
                for entry in wanted {
                    increments.extend(self.reader.descriptor(entry).await?.increments);
                }
                let rows =
                    increments.iter().flat_map(|increment| &increment.row_chunks).map(|chunk| chunk.id).collect();
                self.reader.chunks.warm(rows, usize::MAX).await?;
                for increment in &increments {
                    let number = self.remember(increment);
                    let rows = self.reader.fields(increment, stored.columns.len()).await?;
                    rows.for_each(|_, fields| {
                        let cell = |place: &Option<usize>| match place.and_then(|at| fields.get(at)) {
                            None | Some(Field::Null) => Cell::Null,
                            Some(Field::Inline(bytes)) => Cell::Bytes(bytes),
                            Some(Field::Large(ordinal)) => {
                                Cell::Large(LargeValue { increment: number, ordinal: *ordinal })
                            }
                        };
                        let cells: Vec<Cell<'_>> = places.iter().map(cell).collect();
                        if pick.holds(&cells) { sink(&cells) } else { Ok::<(), CompareError>(()) }
                    })?;
                }
            }
        }
        Ok(())
    }

    async fn stored_segments(&self, table: &SourceTable) -> Result<Vec<SegmentFacts>, CompareError> {
        let mut facts = Vec::new();
        for (stored, places) in self.stored(table) {
            let entries = self.reader.segments(stored).await?;
            let zones = self.reader.zones(&entries).await?;
            let numbers: Vec<Option<i16>> = places.iter().map(|at| Some(stored.columns[(*at)?].number)).collect();
            facts.extend(entries.iter().zip(zones).map(|(entry, zones)| SegmentFacts {
                rows: entry.rows,
                digest: entry.digest,
                columns: numbers.iter().map(|number| integers(&zones, (*number)?)).collect(),
            }));
        }
        Ok(facts)
    }

    async fn lengths(&self, wanted: &[LargeValue]) -> Result<Vec<u64>, CompareError> {
        self.warm_maps(wanted).await?;
        let mut lengths = Vec::with_capacity(wanted.len());
        for value in wanted {
            let map = self.value_map(value.increment).await?;
            lengths.push(entry(&map, value.ordinal)?.recipe.length);
        }
        Ok(lengths)
    }

    async fn is(&self, value: LargeValue, bytes: &[u8]) -> Result<bool, CompareError> {
        let map = self.value_map(value.increment).await?;
        let hasher = self.reader.hasher(&*self.increment(value.increment)?)?;
        Ok(hasher.value(bytes)[..16] == entry(&map, value.ordinal)?.hash.0)
    }

    async fn values(&self, wanted: &[LargeValue]) -> Result<Vec<Bytes>, CompareError> {
        let mut by_increment: HashMap<u32, Vec<usize>> = HashMap::new();
        for (at, value) in wanted.iter().enumerate() {
            by_increment.entry(value.increment).or_default().push(at);
        }
        self.warm_maps(wanted).await?;
        let work: Vec<_> = by_increment.into_iter().map(|(n, places)| self.values_of(n, places, wanted)).collect();
        let mut found = stream::iter(work).buffer_unordered(AHEAD);
        let mut values = vec![Bytes::new(); wanted.len()];
        while let Some((places, found)) = found.try_next().await? {
            for (at, value) in places.into_iter().zip(found) {
                values[at] = value.bytes;
            }
        }
        Ok(values)
    }
}

fn entry(map: &[MapValue], ordinal: u32) -> Result<&MapValue, CompareError> {
    let found = map.get(ordinal as usize);
    Ok(found.ok_or_else(|| RepositoryError::malformed("value map", "a row names a value that it does not have"))?)
}

/// Can an increment hold a row whose field is one of `keys`? In doubt yes.
fn may_hold(zone: &Zone, column: i16, keys: &HashSet<Vec<u8>>) -> bool {
    let Some(column) = zone.column(column) else { return true };
    if !column.intervals.is_empty() {
        return keys.iter().any(|key| zone::integer(key, false).is_none_or(|key| column.may_contain_range(key, key)));
    }
    if !column.filter.is_empty() {
        return keys.iter().any(|key| column.may_contain_key(key));
    }
    true
}

/// Keeps whole rows. Large values stay where they are.
pub async fn collect(
    source: &dyn Source,
    table: &SourceTable,
    pick: Pick<'_>,
) -> Result<Vec<super::row::Row>, CompareError> {
    let mut rows = Vec::new();
    source
        .scan(table, pick, &mut |cells| {
            rows.push(cells.iter().map(|cell| cell.keep()).collect());
            Ok(())
        })
        .await?;
    Ok(rows)
}
