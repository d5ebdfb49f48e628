//! Readers take segments from one list, largest tables first, and hand rows to a thread each.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{TryStreamExt, stream::FuturesUnordered};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::SnapshotError;
use super::layout::{Layout, TableLayout};
use super::segment::{BuiltSegment, SegmentBuilder};
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::catalog;
use crate::postgres::copy::{BlockRange, FieldBounds, Tid};
use crate::postgres::reading::{Reader, ReadingSet};
use crate::repository::cbor;
use crate::repository::chunk::ChunkKind;
use crate::repository::id::ChunkId;
use crate::repository::manifest::{Column, Table, Wire};
use crate::repository::reader::run_blocking;
use crate::repository::rows::{MultisetDigest, RowHasher};
use crate::repository::segment::{PAGE_SEGMENTS, Page, TupleId};
use crate::repository::writer::{ChunkSink, RepositoryWriter};
use crate::repository::{Repository, RepositoryError};

/// Bytes of rows that go to a thread at a time.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ROWS: usize = 4096;
/// Batches between a reader and its thread.
const QUEUE: usize = 2;
/// Bytes between a reader and its thread, the batch in work included. Rows of 20 MB would otherwise queue up three deep.
const QUEUE_BYTES: usize = (QUEUE + 2) * BATCH_BYTES;

/// Rows with the bounds of their fields, one after the other.
#[derive(Default)]
struct Batch {
    rows: Vec<(Tid, u32, Bytes)>,
    bounds: Vec<FieldBounds>,
    bytes: usize,
    /// Its share of [`QUEUE_BYTES`]; a larger batch has all of it.
    room: Option<OwnedSemaphorePermit>,
}

struct Task<'a> {
    layout: &'a TableLayout,
    position: usize,
    segment: u32,
}

/// Reads all tables of the layout and stores their segments and pages.
pub async fn read_tables(
    set: &ReadingSet,
    layout: &Layout,
    repository: &Repository,
    writer: &RepositoryWriter,
    monitor: &SharedMonitor,
) -> Result<Vec<Table>, SnapshotError> {
    let epoch = repository.writer_key()?.epoch;
    let id_secret = repository.secrets.epoch(epoch)?.id.as_ref().ok_or(RepositoryError::WriterNeeded)?;
    let hasher = RowHasher::new(id_secret);
    let mut order: Vec<usize> = (0..layout.tables.len()).collect();
    order.sort_by_key(|position| std::cmp::Reverse(layout.tables[*position].bytes));
    let tasks: Vec<Task<'_>> = order
        .into_iter()
        .flat_map(|position| {
            let layout = &layout.tables[position];
            (0..layout.segments()).map(move |segment| Task { layout, position, segment })
        })
        .collect();
    monitor.stage("reading", Unit::Bytes, Some(layout.tables.iter().map(|t| t.bytes).sum()));

    let next = AtomicUsize::new(0);
    let (tasks, next, hasher) = (&tasks, &next, &hasher);
    let readers: FuturesUnordered<_> = set
        .readers
        .iter()
        .map(|reader| async move {
            let mut built = Vec::new();
            while let Some(task) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) {
                let table = &set.catalog.tables[task.layout.table];
                let builder = SegmentBuilder::new(writer.sink(), hasher.clone(), epoch, &task.layout.zones);
                let segment = read_segment(reader, table, task, builder, monitor).await?;
                built.push((task.position, task.segment, segment));
            }
            Ok::<_, SnapshotError>(built)
        })
        .collect();
    let mut segments: Vec<Vec<(u32, BuiltSegment)>> = layout.tables.iter().map(|_| Vec::new()).collect();
    for (position, number, built) in readers.try_concat().await? {
        segments[position].push((number, built));
    }

    let mut tables = Vec::with_capacity(layout.tables.len());
    for (table_layout, mut built) in layout.tables.iter().zip(segments) {
        built.sort_by_key(|(number, _)| *number);
        let table = &set.catalog.tables[table_layout.table];
        let built = built.into_iter().map(|(_, segment)| segment).collect();
        tables.push(finish_table(&set.catalog, table, table_layout, layout.block_size, built, writer.sink()).await?);
    }
    Ok(tables)
}

async fn read_segment(
    reader: &Reader,
    table: &catalog::Table,
    task: &Task<'_>,
    builder: SegmentBuilder,
    monitor: &SharedMonitor,
) -> Result<BuiltSegment, SnapshotError> {
    let first = task.segment * task.layout.blocks_per_segment;
    let end = (task.segment + 1 < task.layout.segments()).then(|| first + task.layout.blocks_per_segment);
    let columns: Vec<&catalog::Column> = task.layout.columns.iter().collect();
    let (sender, receiver) = mpsc::channel(QUEUE);
    let worker = tokio::spawn(run_blocking(move || build(builder, receiver, first, end)));
    let room = Arc::new(Semaphore::new(QUEUE_BYTES));

    let pumped = async {
        let mut rows = reader.copy_range(&table.name, &columns, BlockRange { from: first, to: end }).await?;
        let (mut batch, mut bounds) = (Batch::default(), Vec::with_capacity(columns.len()));
        while let Some(row) = rows.next(&mut bounds).await? {
            batch.bytes += row.bytes.len();
            batch.rows.push((row.tid, row.xmin, row.bytes));
            batch.bounds.append(&mut bounds);
            if batch.bytes >= BATCH_BYTES || batch.rows.len() >= BATCH_ROWS {
                monitor.advance(batch.bytes as u64);
                batch.room = room.clone().acquire_many_owned(batch.bytes.min(QUEUE_BYTES) as u32).await.ok();
                if sender.send(std::mem::take(&mut batch)).await.is_err() {
                    // The thread stopped with an error of its own, which is told below.
                    rows.cancel().await;
                    return Ok(());
                }
            }
        }
        monitor.advance(batch.bytes as u64);
        let _ = sender.send(batch).await;
        Ok::<_, SnapshotError>(())
    };
    let pumped = pumped.await;
    drop(sender);
    if pumped.is_err() {
        worker.abort();
    }
    pumped?;
    Ok(worker.await.map_err(|_| RepositoryError::Interrupted)??)
}

/// The thread's part.
fn build(
    mut builder: SegmentBuilder,
    mut receiver: mpsc::Receiver<Batch>,
    first: u32,
    end: Option<u32>,
) -> Result<BuiltSegment, RepositoryError> {
    while let Some(batch) = receiver.blocking_recv() {
        let columns = batch.bounds.len().checked_div(batch.rows.len()).unwrap_or(0);
        let mut bounds = batch.bounds.chunks(columns.max(1));
        for (tid, xmin, bytes) in &batch.rows {
            let place = TupleId { block: tid.block, offset: tid.offset };
            let fields = bounds.next().unwrap_or_default();
            builder.row(place, *xmin, fields.iter().map(|field| field.of(bytes)))?;
        }
    }
    builder.finish(first, end)
}

/// Stores the pages of a table and describes it for the manifest.
async fn finish_table(
    catalog: &catalog::Catalog,
    table: &catalog::Table,
    layout: &TableLayout,
    block_size: u32,
    segments: Vec<BuiltSegment>,
    sink: ChunkSink,
) -> Result<Table, SnapshotError> {
    let rows = segments.iter().map(|segment| segment.entry.rows).sum();
    let value_bytes = segments.iter().map(|segment| segment.value_bytes).sum();
    let mut digest = MultisetDigest::default();
    segments.iter().for_each(|segment| digest.combine(segment.entry.digest));
    let count = segments.len() as u64;
    let pages: Vec<ChunkId> = run_blocking(move || {
        let entries: Vec<_> = segments.into_iter().map(|segment| segment.entry).collect();
        entries
            .chunks(PAGE_SEGMENTS)
            .map(|segments| {
                let page = Page { segments: segments.to_vec() };
                sink.store(ChunkKind::Meta, &cbor::encode("page", &page)?)
            })
            .collect()
    })
    .await?;
    let parent = table.partition_of.as_ref().and_then(|name| catalog.table(&name.schema, &name.name));
    Ok(Table {
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
        pages,
        segments: count,
        rows,
        value_bytes,
        digest: digest.finish(),
        updated: table.updated.and_then(|n| n.try_into().ok()),
        deleted: table.deleted.and_then(|n| n.try_into().ok()),
    })
}

fn column(column: &catalog::Column) -> Column {
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
