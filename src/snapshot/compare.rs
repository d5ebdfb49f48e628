//! A window of segments held against an earlier state: what is taken over, what is read, and which values are known already.

use std::collections::HashMap;

use bytes::Bytes;

use super::SnapshotError;
use super::base::{BaseSegment, Issued};
use super::changes::{self, Change, KnownValues, Version};
use super::gaps::{RELEASE, ROLL_BACK, SAVEPOINT};
use super::pipeline::{Run, Task, WINDOW_ROWS, share_out};
use crate::postgres::PostgresError;
use crate::postgres::copy::BlockRange;
use crate::postgres::reading::Reader;
use crate::repository::cbor;
use crate::repository::id::ChunkId;
use crate::repository::reader::{ChunkReader, run_blocking};
use crate::repository::segment::{Descriptor, Increment, MapHasher, SegmentEntry, TupleId};

/// What is to be done for a segment.
pub enum Work {
    TakeOver(SegmentEntry),
    Read(Change),
}

/// The share of the memory that values may take which are known already.
const KNOWN_SHARE: usize = 8;

impl Work {
    fn whole() -> Self {
        Self::Read(Change { read: None, ..Change::default() })
    }
}

/// A segment whose rows were seen.
struct Seen<'a> {
    /// Position in the window.
    at: usize,
    before: BaseSegment<'a>,
    issued: Issued,
    live: Vec<Version>,
    /// The same rows in the same range.
    is_same: bool,
}

/// Finds out what of each segment is to be read. `known` takes in the values of segments that lost rows.
pub async fn compare(run: &Run<'_>, window: &[Task<'_>], known: &mut KnownValues) -> Result<Vec<Work>, SnapshotError> {
    let mut work: Vec<Work> = window.iter().map(|_| Work::whole()).collect();
    let with_before: Vec<(usize, &Task<'_>, BaseSegment<'_>)> =
        window.iter().enumerate().filter_map(|(at, task)| Some((at, task, task.before?))).collect();
    let seen =
        share_out(run.set, with_before, async |reader, (at, task, before)| see(run, reader, at, task, before).await)
            .await?;
    let (sink, reader) = (run.writer.sink(), run.reader);
    // Of a snapshot that is kept nothing is missing unless something is missing in the repository.
    let is_safe = |one: &Seen<'_>| one.before.base.is_kept && run.bases.is_sound;
    let mut seen: Vec<Seen<'_>> = seen.into_iter().flatten().collect();
    seen.retain(|one| is_safe(one) || sink.rely_on(&one.before.entry.descriptor));
    let needed = seen.iter().filter(|one| !(one.is_same && is_safe(one)));
    let Some(descriptors) = descriptors(reader, needed.map(|one| one.before.entry.descriptor).collect()).await? else {
        return Ok(work);
    };
    let is_there = |one: &Seen<'_>| {
        let chunks = |increment: &Increment| increment.chunks().all(|id| sink.rely_on(&id));
        let rely = |descriptor: &Descriptor| descriptor.increments.iter().all(chunks);
        is_safe(one) || descriptors.get(&one.before.entry.descriptor).is_some_and(rely)
    };
    seen.retain(is_there);
    let (same, changed): (Vec<Seen<'_>>, Vec<Seen<'_>>) = seen.into_iter().partition(|one| one.is_same);
    for one in same {
        work[one.at] = Work::TakeOver(one.before.entry.clone());
    }

    let increments = || {
        changed.iter().filter_map(|one| descriptors.get(&one.before.entry.descriptor)).flat_map(|one| &one.increments)
    };
    let Some(maps) = fetched(reader, increments().flat_map(|one| one.row_map.iter().copied()).collect()).await? else {
        return Ok(work);
    };
    let mut lost: Vec<&Increment> = Vec::new();
    for one in changed {
        let Some(descriptor) = descriptors.get(&one.before.entry.descriptor) else { continue };
        let decoded = descriptor.increments.iter().map(|increment| increment.rows_of(&maps));
        // What does not fit together is no state to go on from.
        let Ok(decoded) = decoded.collect::<Result<Vec<_>, _>>() else { continue };
        let before = descriptor.clone();
        let change = run_blocking(move || Ok(changes::compare(&one.live, before, &decoded, &one.issued))).await?;
        if change.has_lost && !change.is_anew {
            lost.extend(&descriptor.increments);
        }
        work[one.at] = Work::Read(change);
    }
    learn(run, &lost, known).await?;
    Ok(work)
}

/// The places of the rows that the snapshot sees.
async fn see<'a>(
    run: &Run<'_>,
    reader: &Reader,
    at: usize,
    task: &Task<'_>,
    before: BaseSegment<'a>,
) -> Result<Option<Seen<'a>>, SnapshotError> {
    let table = &run.set.catalog.tables[task.layout.table];
    let issued = Issued::between(&before.base.server, run.server);
    let range = BlockRange { from: task.first_block(), to: task.end_block() };
    let mut live: Vec<Version> = Vec::with_capacity(before.entry.rows.min(WINDOW_ROWS) as usize);
    let (mut hasher, mut may_be_others) = (MapHasher::default(), false);
    let read = async {
        let mut bounds = Vec::new();
        let mut rows = reader.copy_range(&table.name, &[], range).await?;
        while let Some(row) = rows.next(&mut bounds).await? {
            let place = TupleId { block: row.tid.block, offset: row.tid.offset };
            may_be_others |= issued.may_be_another(row.xmin);
            hasher.add(place, row.xmin);
            live.push((place, row.xmin));
        }
        Ok::<_, PostgresError>(())
    };
    let execute = async |sql| reader.session().execute("reading", sql).await.map_err(|e| reader.explain(e));
    execute(SAVEPOINT).await?;
    match read.await {
        Ok(()) => execute(RELEASE).await?,
        // Whoever reads it whole finds the way around.
        Err(error) if error.is_about_data() => {
            execute(ROLL_BACK).await?;
            return Ok(None);
        }
        Err(error) => return Err(error.into()),
    }
    let is_open = task.end_block().is_none();
    let is_same = is_open == before.is_open && !may_be_others && hasher.finish() == before.entry.map_hash;
    if is_same {
        live = Vec::new();
    }
    Ok(Some(Seen { at, before, issued, live, is_same }))
}

async fn descriptors(
    reader: &ChunkReader,
    ids: Vec<ChunkId>,
) -> Result<Option<HashMap<ChunkId, Descriptor>>, SnapshotError> {
    let Some(found) = fetched(reader, ids).await? else { return Ok(None) };
    let decoded = found.into_iter().map(|(id, bytes)| Some((id, cbor::decode("descriptor", &bytes).ok()?)));
    Ok(decoded.collect())
}

/// `None` when one of them is gone or damaged: then it is as if there were no earlier state.
async fn fetched(reader: &ChunkReader, ids: Vec<ChunkId>) -> Result<Option<HashMap<ChunkId, Bytes>>, SnapshotError> {
    match reader.fetch_all(&ids).await {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.is_about_an_object() => Ok(None),
        Err(e) => Err(e.into()),
    }
}

async fn learn(run: &Run<'_>, lost: &[&Increment], known: &mut KnownValues) -> Result<(), SnapshotError> {
    let ids = lost.iter().flat_map(|increment| increment.value_map.iter().map(|chunk| chunk.id));
    let Some(maps) = fetched(run.reader, ids.collect()).await? else { return Ok(()) };
    for increment in lost {
        if let Ok(values) = increment.values_of(&maps) {
            known.add(increment, &values, run.memory / KNOWN_SHARE);
        }
    }
    Ok(())
}
