//! Readers take segments from one list, largest tables first, and hand rows to a thread each. Where there is an earlier state, a window
//! of segments is compared with it first, and only what changed is read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

use super::SnapshotError;
use super::base::{BaseSegment, Bases};
use super::changes::{Change, KnownValues};
use super::compare::{Work, compare};
use super::gaps::{self, Detour, Gap, RELEASE, ROLL_BACK, SAVEPOINT};
use super::layout::{Layout, TableLayout};
use super::segment::{BuiltSegment, SegmentBuilder};
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::PostgresError;
use crate::postgres::catalog;
use crate::postgres::copy::{CopiedRow, CopyRows, FieldBounds, Tid};
use crate::postgres::reading::{Reader, ReadingSet};
use crate::repository::cbor;
use crate::repository::chunk::ChunkKind;
use crate::repository::id::{ChunkId, Epoch};
use crate::repository::manifest::{Column, NotCovered, ReadWhole, ServerSummary, Table, Wire};
use crate::repository::reader::{ChunkReader, run_blocking};
use crate::repository::rows::{MultisetDigest, RowHasher};
use crate::repository::segment::{PAGE_SEGMENTS, Page, SegmentEntry, TupleId};
use crate::repository::writer::{ChunkSink, RepositoryWriter};
use crate::repository::{Repository, RepositoryError};
use crate::storage::buffer::Buffer;

/// Bytes of rows that go to a thread at a time.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS: usize = 4096;
/// A row of more bytes goes on as it came: two of them would be a lot of memory.
const LARGE_ROW: usize = 4 << 20;
/// Batches between a reader and its thread.
const QUEUE: usize = 2;
/// Bytes between a reader and its thread, the batch in work included. Rows of 20 MB would otherwise queue up three deep.
const QUEUE_BYTES: usize = (QUEUE + 2) * BATCH_BYTES;
/// Rows that one statement reads by their places.
const PLACES: usize = 2000;
/// Segments that are compared before they are read: values that moved from one to another are found within.
const WINDOW_SEGMENTS: usize = 256;
/// Rows in them by the last count: their places lie in memory, 12 bytes each, and their maps, 26.
pub(super) const WINDOW_ROWS: u64 = 512 << 10;

/// Rows with the bounds of their fields, one after the other.
#[derive(Default)]
struct Batch {
    /// Place, `xmin`, and where the row ends in `bytes`.
    rows: Vec<(Tid, u32, usize)>,
    bounds: Vec<FieldBounds>,
    bytes: Bytes,
    /// Its share of [`QUEUE_BYTES`]; a larger batch has all of it.
    room: Option<OwnedSemaphorePermit>,
}

/// What goes to the thread.
enum Part {
    Rows(Batch),
    /// All rows came. Without this word a segment is not finished: its reader failed.
    End,
}

/// The way to the thread, bounded by batches and by bytes.
struct Queue<'a> {
    sender: mpsc::Sender<Part>,
    room: Arc<Semaphore>,
    batch: Batch,
    /// The bytes of the batch. Copied, so that the connection's buffer is free again at once: a copy costs less than fresh pages for the next.
    bytes: Buffer,
    /// Hears of bytes that were read.
    monitor: Option<&'a SharedMonitor>,
    pace: &'a Pace,
}

impl Queue<'_> {
    /// `false`: the thread stopped with an error of its own, which it tells itself.
    async fn push(&mut self, row: CopiedRow, bounds: &mut Vec<FieldBounds>) -> bool {
        let is_large = row.bytes.len() > LARGE_ROW;
        let has_room = self.bytes.len() + row.bytes.len() <= self.bytes.capacity();
        // A large row is a batch of its own.
        if (is_large || !has_room) && !self.batch.rows.is_empty() && !self.flush().await {
            return false;
        }
        self.batch.bounds.append(bounds);
        if is_large {
            self.batch.rows.push((row.tid, row.xmin, row.bytes.len()));
            return self.send(row.bytes).await;
        }
        if self.batch.rows.is_empty() {
            self.bytes = Buffer::with_capacity(row.bytes.len().max(BATCH_BYTES));
        }
        self.bytes.extend_from_slice(&row.bytes);
        self.batch.rows.push((row.tid, row.xmin, self.bytes.len()));
        if self.bytes.len() >= BATCH_BYTES || self.batch.rows.len() >= BATCH_ROWS { self.flush().await } else { true }
    }

    async fn flush(&mut self) -> bool {
        let bytes = std::mem::take(&mut self.bytes).freeze();
        self.send(bytes).await
    }

    async fn send(&mut self, bytes: Bytes) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        batch.bytes = bytes;
        let bytes = batch.bytes.len();
        if let Some(monitor) = self.monitor {
            monitor.advance(bytes as u64);
        }
        self.pace.wait(bytes as u64).await;
        batch.room = self.room.clone().acquire_many_owned(bytes.min(QUEUE_BYTES) as u32).await.ok();
        self.sender.send(Part::Rows(batch)).await.is_ok()
    }
}

/// A segment to be taken over, or read in full or in part.
pub(super) struct Task<'a> {
    pub layout: &'a TableLayout,
    position: usize,
    segment: u32,
    /// As an earlier state has it.
    pub before: Option<BaseSegment<'a>>,
}

impl Task<'_> {
    pub fn first_block(&self) -> u32 {
        self.segment * self.layout.blocks_per_segment
    }

    /// One past the last block; `None`: the last segment is open.
    pub fn end_block(&self) -> Option<u32> {
        let is_open = self.segment + 1 >= self.layout.segments();
        (!is_open).then(|| self.first_block() + self.layout.blocks_per_segment)
    }

    /// Bytes on disk, about, for the progress.
    fn bytes(&self) -> u64 {
        self.layout.bytes / u64::from(self.layout.segments())
    }
}

/// What a run reads with, and where to.
pub struct Run<'a> {
    pub set: &'a ReadingSet,
    pub server: &'a ServerSummary,
    pub layout: &'a Layout,
    pub repository: &'a Repository,
    pub writer: &'a RepositoryWriter,
    /// Of earlier states.
    pub reader: &'a ChunkReader,
    pub bases: &'a Bases,
    /// Bytes that buffers may take.
    pub memory: usize,
    pub finished: &'a Finished,
    pub pace: &'a Pace,
    pub monitor: &'a SharedMonitor,
}

/// How many bytes a second all readers together may read.
pub struct Pace {
    rate: Option<u64>,
    /// When the next may be read.
    due: Mutex<Instant>,
    stop: CancellationToken,
}

impl Pace {
    pub fn new(rate: Option<u64>, stop: CancellationToken) -> Self {
        Self { rate, due: Mutex::new(Instant::now()), stop }
    }

    /// After so many bytes were read.
    async fn wait(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let until = {
            let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            *due = (*due).max(Instant::now()) + Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
            *due
        };
        // The reader notices the end itself.
        tokio::select! {
            () = tokio::time::sleep_until(until) => {}
            () = self.stop.cancelled() => {}
        }
    }
}

/// What came of it.
pub struct ReadTables {
    pub tables: Vec<Table>,
    pub not_covered: Vec<NotCovered>,
    pub read_whole: Vec<ReadWhole>,
    pub rows: u64,
    pub bytes: u64,
}

/// Segments that are finished, for checkpoints: the table's position in the layout, the segment's number, its entry.
#[derive(Default)]
pub struct Finished(Mutex<Vec<(usize, u32, SegmentEntry)>>);

impl Finished {
    fn add(&self, task: &Task<'_>, entry: &SegmentEntry) {
        let mut finished = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        finished.push((task.position, task.segment, entry.clone()));
    }

    /// Those since the last call.
    pub fn take(&self) -> Vec<(usize, u32, SegmentEntry)> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads all tables of the layout and stores their segments and pages.
pub async fn read_tables(run: &Run<'_>) -> Result<ReadTables, SnapshotError> {
    let (set, layout) = (run.set, run.layout);
    let mut order: Vec<usize> = (0..layout.tables.len()).collect();
    order.sort_by_key(|position| std::cmp::Reverse(layout.tables[*position].bytes));
    let (mut tasks, mut read_whole) = (Vec::new(), Vec::new());
    for position in order {
        let table_layout = &layout.tables[position];
        let table = &set.catalog.tables[table_layout.table];
        let columns: Vec<Column> = table_layout.columns.iter().map(column).collect();
        let before = run.bases.of_table(table, &columns, layout.block_size, table_layout.blocks_per_segment);
        if let Some(reason) = &before.misfit {
            read_whole.push(ReadWhole { table: Some(table.name.to_string()), reason: (*reason).to_owned() });
        }
        let segments = 0..table_layout.segments();
        tasks.extend(segments.map(|segment| Task {
            layout: table_layout,
            position,
            segment,
            before: before.segment(segment),
        }));
    }
    run.monitor.stage("reading", Unit::Bytes, Some(layout.tables.iter().map(|t| t.bytes).sum()));

    let hashing = Hashing::of(run.repository)?;
    let mut known = KnownValues::default();
    let mut segments: Vec<Vec<(u32, BuiltSegment)>> = layout.tables.iter().map(|_| Vec::new()).collect();
    let mut gaps: BTreeMap<usize, Vec<Gap>> = BTreeMap::new();
    for window in windows(&tasks) {
        let work = compare(run, window, &mut known).await?;
        let values = Arc::new(std::mem::take(&mut known));
        let items: Vec<_> = window.iter().zip(work).collect();
        let done = share_out(set, items, async |reader, (task, work)| {
            let (built, unread) = match work {
                Work::TakeOver(entry) => {
                    run.monitor.advance(task.bytes());
                    (BuiltSegment::from(entry), Vec::new())
                }
                Work::Read(change) => read_segment(run, reader, task, change, &hashing, &values).await?,
            };
            run.finished.add(task, &built.entry);
            Ok((task, built, unread))
        })
        .await?;
        for (task, built, unread) in done {
            segments[task.position].push((task.segment, built));
            if !unread.is_empty() {
                gaps.entry(task.position).or_default().extend(unread);
            }
        }
        known = Arc::try_unwrap(values).unwrap_or_default();
    }
    let not_covered = gaps
        .into_iter()
        .flat_map(|(position, gaps)| gaps::not_covered(&set.catalog.tables[layout.tables[position].table].name, gaps))
        .collect();

    let (mut rows, mut bytes) = (0, 0);
    let mut tables = Vec::with_capacity(layout.tables.len());
    for (table_layout, mut built) in layout.tables.iter().zip(segments) {
        built.sort_by_key(|(number, _)| *number);
        rows += built.iter().map(|(_, segment)| segment.read_rows).sum::<u64>();
        bytes += built.iter().map(|(_, segment)| segment.read_bytes).sum::<u64>();
        let entries = built.into_iter().map(|(_, segment)| segment.entry).collect();
        tables.push(finish_table(&set.catalog, table_layout, layout.block_size, entries, run.writer.sink()).await?);
    }
    Ok(ReadTables { tables, not_covered, read_whole, rows, bytes })
}

/// With which keys values and rows are hashed. What is taken over was hashed with the same.
struct Hashing {
    hasher: RowHasher,
    epoch: Epoch,
}

impl Hashing {
    fn of(repository: &Repository) -> Result<Self, RepositoryError> {
        let epoch = repository.writer_key()?.epoch;
        let secret = repository.secrets.epoch(epoch)?.id.as_ref().ok_or(RepositoryError::WriterNeeded)?;
        Ok(Self { hasher: RowHasher::new(secret), epoch })
    }
}

/// Segments in the order of the list, so many at a time as may be compared; without an earlier state all of them.
fn windows<'a, 'b>(tasks: &'b [Task<'a>]) -> Vec<&'b [Task<'a>]> {
    let (mut windows, mut rest) = (Vec::new(), tasks);
    while !rest.is_empty() {
        let (mut rows, mut compared) = (0, 0);
        let fits = |task: &&Task<'_>| {
            rows += task.before.map_or(0, |before| before.entry.rows);
            compared += usize::from(task.before.is_some());
            compared <= 1 || (compared <= WINDOW_SEGMENTS && rows <= WINDOW_ROWS)
        };
        let length = rest.iter().take_while(fits).count();
        let (window, after) = rest.split_at(length);
        windows.push(window);
        rest = after;
    }
    windows
}

/// Gives each item to the next reader that is free.
pub(super) async fn share_out<T, R>(
    set: &ReadingSet,
    items: Vec<T>,
    work: impl AsyncFn(&Reader, T) -> Result<R, SnapshotError>,
) -> Result<Vec<R>, SnapshotError> {
    let items = Mutex::new(items.into_iter());
    let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
    let (next, work) = (&next, &work);
    let readers: FuturesUnordered<_> = set
        .readers
        .iter()
        .map(|reader| async move {
            let mut done = Vec::new();
            while let Some(item) = next() {
                done.push(work(reader, item).await?);
            }
            Ok::<_, SnapshotError>(done)
        })
        .collect();
    readers.try_concat().await
}

async fn read_segment(
    run: &Run<'_>,
    reader: &Reader,
    task: &Task<'_>,
    change: Change,
    hashing: &Hashing,
    known: &Arc<KnownValues>,
) -> Result<(BuiltSegment, Vec<Gap>), SnapshotError> {
    let table = &run.set.catalog.tables[task.layout.table];
    let (first, end) = (task.first_block(), task.end_block());
    let columns: Vec<&catalog::Column> = task.layout.columns.iter().collect();
    let known = if change.is_anew { Arc::default() } else { known.clone() };
    let (hasher, zones) = (hashing.hasher.clone(), &task.layout.zones);
    let builder = SegmentBuilder::new(run.writer.sink(), hasher, hashing.epoch, zones, change.kept, known);
    let (sender, receiver) = mpsc::channel(QUEUE);
    let worker = tokio::spawn(run_blocking(move || build(builder, receiver, first, end)));
    let room = Arc::new(Semaphore::new(QUEUE_BYTES));
    let monitor = change.read.is_none().then_some(run.monitor);
    let mut queue = Queue { sender, room, batch: Batch::default(), bytes: Buffer::default(), monitor, pace: run.pace };

    let mut gaps = Vec::new();
    reader.session().execute("reading", SAVEPOINT).await.map_err(|e| reader.explain(e))?;
    if let Some(places) = &change.read {
        for places in places.chunks(PLACES) {
            gaps.extend(pump_places(reader, table, &columns, places, &mut queue).await?);
        }
        run.monitor.advance(task.bytes());
    } else {
        let mut from = Tid { block: first, offset: 0 };
        let mut detour = Detour::new(reader, table, &columns, end);
        while let Err(error) = pump_range(reader, table, &columns, &mut from, end, &mut queue).await {
            if !error.is_about_data() {
                return Err(error.into());
            }
            let (unread, next) = detour.around(from, error).await?;
            gaps.extend(unread);
            from = next;
        }
    }
    queue.flush().await;
    reader.session().execute("reading", RELEASE).await.map_err(|e| reader.explain(e))?;
    // Closed: the thread stopped with an error of its own, which is told below.
    let _ = queue.sender.send(Part::End).await;
    let built = worker.await.map_err(|_| RepositoryError::Interrupted)??;
    Ok((built, gaps))
}

/// Hands the rows from `from` on to the thread and moves `from` behind the last that was handed on.
async fn pump_range(
    reader: &Reader,
    table: &catalog::Table,
    columns: &[&catalog::Column],
    from: &mut Tid,
    end: Option<u32>,
    queue: &mut Queue<'_>,
) -> Result<(), PostgresError> {
    let rows = reader.copy_from(&table.name, columns, *from, end).await?;
    pump(rows, queue, |tid| *from = gaps::after(tid)).await
}

/// Hands the rows at these places on; those that cannot be read are told.
async fn pump_places(
    reader: &Reader,
    table: &catalog::Table,
    columns: &[&catalog::Column],
    places: &[Tid],
    queue: &mut Queue<'_>,
) -> Result<Vec<Gap>, PostgresError> {
    let (mut gaps, mut done) = (Vec::new(), None);
    let rows = reader.copy_tids(&table.name, columns, places).await;
    let all = match rows {
        Ok(rows) => pump(rows, queue, |tid| done = Some(tid)).await,
        Err(error) => Err(error),
    };
    let Err(error) = all else { return Ok(gaps) };
    if !error.is_about_data() {
        return Err(error);
    }
    // One by one then, behind the last that came.
    for place in places.iter().filter(|place| done.is_none_or(|done| **place > done)) {
        reader.session().execute("going on behind an error", ROLL_BACK).await.map_err(|e| reader.explain(e))?;
        let one = match reader.copy_tids(&table.name, columns, &[*place]).await {
            Ok(rows) => pump(rows, queue, |_| {}).await,
            Err(error) => Err(error),
        };
        match one {
            Ok(()) => {}
            Err(error) if error.is_about_data() => gaps.push(Gap::Row(*place, error.to_string())),
            Err(error) => return Err(error),
        }
    }
    reader.session().execute("going on behind an error", ROLL_BACK).await.map_err(|e| reader.explain(e))?;
    Ok(gaps)
}

async fn pump(mut rows: CopyRows<'_>, queue: &mut Queue<'_>, mut done: impl FnMut(Tid)) -> Result<(), PostgresError> {
    let mut bounds = Vec::new();
    while let Some(row) = rows.next(&mut bounds).await? {
        done(row.tid);
        if !queue.push(row, &mut bounds).await {
            rows.cancel().await;
            return Ok(());
        }
    }
    Ok(())
}

/// The thread's part.
fn build(
    mut builder: SegmentBuilder,
    mut receiver: mpsc::Receiver<Part>,
    first: u32,
    end: Option<u32>,
) -> Result<BuiltSegment, RepositoryError> {
    while let Some(part) = receiver.blocking_recv() {
        let Part::Rows(batch) = part else { return builder.finish(first, end) };
        // A table without columns has rows all the same.
        let columns = batch.bounds.len().checked_div(batch.rows.len()).unwrap_or(0);
        let mut bounds = batch.bounds.chunks(columns.max(1));
        let mut start = 0;
        for (tid, xmin, end) in &batch.rows {
            let bytes = batch.bytes.get(start..*end).unwrap_or_default();
            start = *end;
            let place = TupleId { block: tid.block, offset: tid.offset };
            let fields = bounds.next().unwrap_or_default();
            builder.row(place, *xmin, fields.iter().map(|field| field.of(bytes)))?;
        }
    }
    Err(RepositoryError::Interrupted)
}

/// Stores the pages of a table and describes it for the manifest.
async fn finish_table(
    catalog: &catalog::Catalog,
    layout: &TableLayout,
    block_size: u32,
    entries: Vec<SegmentEntry>,
    sink: ChunkSink,
) -> Result<Table, SnapshotError> {
    let empty = describe(catalog, layout, block_size);
    let rows = entries.iter().map(|entry| entry.rows).sum();
    let value_bytes = entries.iter().map(|entry| entry.value_bytes).sum();
    let mut digest = MultisetDigest::default();
    entries.iter().for_each(|entry| digest.combine(entry.digest));
    let pages: Vec<ChunkId> = run_blocking(move || {
        entries
            .chunks(PAGE_SEGMENTS)
            .map(|segments| {
                let page = Page { segments: segments.to_vec() };
                sink.store(ChunkKind::Meta, &cbor::encode("page", &page)?)
            })
            .collect()
    })
    .await?;
    Ok(Table { pages, rows, value_bytes, digest: digest.finish(), ..empty })
}

/// A table for the manifest, without rows.
pub(super) fn describe(catalog: &catalog::Catalog, layout: &TableLayout, block_size: u32) -> Table {
    let table = &catalog.tables[layout.table];
    let parent = table.partition_of.as_ref().and_then(|name| catalog.table(&name.schema, &name.name));
    Table {
        oid: table.oid,
        schema: table.name.schema.clone(),
        name: table.name.name.clone(),
        kind: "r".into(),
        relfilenode: table.relfilenode,
        partition_of: parent.map(|parent| parent.oid),
        block_size,
        blocks_per_segment: layout.blocks_per_segment,
        columns: layout.columns.iter().map(column).collect(),
        schema_digest: table.schema_digest.clone(),
        pages: Vec::new(),
        segments: u64::from(layout.segments()),
        rows: 0,
        value_bytes: 0,
        digest: MultisetDigest::default().finish(),
        updated: table.updated.and_then(|n| n.try_into().ok()),
        deleted: table.deleted.and_then(|n| n.try_into().ok()),
    }
}

pub(super) fn column(column: &catalog::Column) -> Column {
    Column {
        number: column.number,
        name: column.name.clone(),
        type_oid: column.type_oid,
        type_name: column.type_name.clone(),
        wire: match column.wire {
            catalog::Wire::Binary => Wire::Binary,
            catalog::Wire::Text => Wire::Text,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn rows_of_any_size_come_to_the_thread_as_they_were() {
        let (sender, mut receiver) = mpsc::channel(64);
        let pace = Pace::new(None, CancellationToken::new());
        let room = Arc::new(Semaphore::new(64 << 20));
        let (batch, bytes) = (Batch::default(), Buffer::default());
        let mut queue = Queue { sender, room, batch, bytes, monitor: None, pace: &pace };
        let sizes = [10, 20, LARGE_ROW + 5, 30, BATCH_BYTES, 40, LARGE_ROW, 50, LARGE_ROW + 1, LARGE_ROW + 2, 0, 60];
        let row = |number: usize| Bytes::from(vec![number as u8 + 1; sizes[number]]);
        for number in 0..sizes.len() {
            let tid = Tid { block: number as u32, offset: 1 };
            assert!(queue.push(CopiedRow { tid, xmin: 7, bytes: row(number) }, &mut Vec::new()).await);
            // As large as one that a pack had.
            queue.bytes.reserve(20 << 20);
        }
        assert!(queue.flush().await);
        drop(queue);
        let mut came = Vec::new();
        while let Some(Part::Rows(batch)) = receiver.recv().await {
            let mut start = 0;
            for (tid, _, end) in &batch.rows {
                came.push((tid.block as usize, batch.bytes.slice(start..*end)));
                start = *end;
            }
            assert_eq!(start, batch.bytes.len());
        }
        assert!(came == (0..sizes.len()).map(|number| (number, row(number))).collect::<Vec<_>>());
    }
}
