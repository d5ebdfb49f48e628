//! Tables as a reader meets them: several increments, dead rows, values that are not what was recorded.

use std::sync::Arc;

use super::storage::Memory;
use super::whole::{as_reader, as_writer, made, manifest, reader};
use crate::repository::chunk::ChunkKind;
use crate::repository::id::{ChunkId, Digest};
use crate::repository::manifest::{Column, Manifest, Table, Wire};
use crate::repository::recipe::{Operation, Recipe};
use crate::repository::rows::{self, RowHasher};
use crate::repository::segment::{self, Descriptor, Increment, MapRow, MapValue, Page, RowChunk, SegmentEntry};
use crate::repository::segment::{TupleId, ValueMapChunk};
use crate::repository::snapshots::{self, SnapshotReader};
use crate::repository::table_rows::TableRows;
use crate::repository::writer::{ChunkSink, RepositoryWriter};
use crate::repository::{Repository, RepositoryError, cbor};

/// How the writer of a test lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lie {
    None,
    RowsOfTheIncrement,
    RowsOfTheChunk,
    ValuesOfTheChunk,
    /// One too few here, one too many in the next: the sum is right.
    ValuesOfTwoChunks,
    ValueHash,
    RowDigest,
    PayloadList,
    Segments,
    HugeCounts,
}

const BLOCKS: [u32; 2] = [0, 4];

/// Three rows from block `first`: (NULL, a number), (large, a number), (large, a number); the second is dead in the first increment.
fn increment(sink: &ChunkSink, repository: &Repository, first: u32, lie: Lie) -> Result<Increment, RepositoryError> {
    let epoch = repository.writer_key()?.epoch;
    let hasher = RowHasher::new(&repository.writer_key()?.id);
    let (mut chunk, mut map, mut values, mut payload) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for n in 0..3u32 {
        let number = (first + n).to_be_bytes();
        let mut digest = hasher.row();
        if n == 0 {
            rows::put_null(&mut chunk);
            digest.null();
        } else {
            let large = vec![b'a' + (first + n) as u8; 600];
            let hash = hasher.value(&large);
            rows::put_large(&mut chunk);
            digest.large(600, &hash);
            let operation = Operation { chunk: payload.len() as u32, offset: 0, length: 600, base64: None };
            let mut hash = Digest::from_slice(&hash[..16]).unwrap();
            hash.0[0] ^= u8::from(lie == Lie::ValueHash);
            values.push(MapValue { hash, recipe: Recipe { length: 600, operations: vec![operation] } });
            payload.push(sink.store(ChunkKind::Payload, &large)?);
        }
        rows::put_inline(&mut chunk, &number);
        digest.inline(&number);
        let mut digest = digest.finish();
        digest.0[0] ^= u8::from(lie == Lie::RowDigest);
        map.push(MapRow { place: TupleId { block: first + n, offset: 1 }, xmin: 9, digest });
    }
    let huge = lie == Lie::HugeCounts;
    let mut row_chunks = vec![RowChunk {
        id: sink.store(ChunkKind::Row, &chunk)?,
        rows: if huge { u32::MAX } else { 3 - u32::from(lie == Lie::RowsOfTheChunk) },
        values: if huge { u32::MAX } else { 2 + u32::from(lie == Lie::ValuesOfTheChunk) },
    }];
    if lie == Lie::ValuesOfTwoChunks {
        row_chunks[0].values -= 1;
        row_chunks.push(RowChunk { id: sink.store(ChunkKind::Row, &[])?, rows: 0, values: 1 });
    }
    let listed = if lie == Lie::PayloadList { &payload[..1] } else { &payload[..] };
    Ok(Increment {
        epoch,
        rows: if huge { u32::MAX } else { 3 + u32::from(lie == Lie::RowsOfTheIncrement) },
        row_chunks,
        row_map: vec![sink.store(ChunkKind::Meta, &segment::encode_row_map(&map))?],
        value_map: vec![ValueMapChunk {
            id: sink.store(ChunkKind::Meta, &segment::encode_value_map(&values))?,
            values: 2,
        }],
        payload: listed.iter().flat_map(|id| id.0).collect(),
        dead: if first == 0 { vec![0b10] } else { vec![] },
        zone: None,
        value_bytes: 0,
    })
}

fn table(name: &str, columns: &[&str], pages: Vec<ChunkId>, segments: u64, rows: u64) -> Table {
    let columns = (1..).zip(columns).map(|(number, name)| Column {
        number,
        name: (*name).to_owned(),
        type_oid: 17,
        type_name: "bytea".into(),
        wire: Wire::Binary,
    });
    Table {
        oid: 1,
        schema: "public".into(),
        name: name.to_owned(),
        kind: "r".into(),
        relfilenode: None,
        partition_of: None,
        block_size: 8192,
        blocks_per_segment: 8,
        columns: columns.collect(),
        schema_digest: String::new(),
        pages,
        segments,
        rows,
        value_bytes: 0,
        digest: Digest([0; 16]),
        updated: None,
        deleted: None,
    }
}

fn page(sink: &ChunkSink, increments: Vec<Increment>, rows: u64) -> Result<ChunkId, RepositoryError> {
    let digest = Digest([0; 16]);
    let descriptor = Descriptor { first_block: 0, end_block: None, rows, digest, increments };
    let descriptor = sink.store(ChunkKind::Meta, &cbor::encode("descriptor", &descriptor)?)?;
    let entry = SegmentEntry { descriptor, rows, map_hash: [0; 32], digest, value_bytes: 0, zones: vec![] };
    sink.store(ChunkKind::Meta, &cbor::encode("page", &Page { segments: vec![entry] })?)
}

/// The tables `mail` and `bare` (no columns, two rows) as a reader finds them.
async fn stored(storage: &Arc<Memory>, lie: Lie) -> (SnapshotReader, Arc<Manifest>) {
    let reader = reader();
    let key = made(storage, &[&reader]).await;
    let writer = Arc::new(as_writer(storage, &key).await.unwrap());
    let run = RepositoryWriter::open(&writer, 100_000).await.unwrap();
    let (sink, repository) = (run.sink(), writer.clone());
    let tables = tokio::task::spawn_blocking(move || {
        let increments =
            BLOCKS.map(|first| increment(&sink, &repository, first, lie)).into_iter().collect::<Result<_, _>>()?;
        let mail = page(&sink, increments, 5)?;
        let epoch = repository.writer_key()?.epoch;
        let digest = RowHasher::new(&repository.writer_key()?.id).row().finish();
        let map: Vec<_> = [1, 2].map(|offset| MapRow { place: TupleId { block: 0, offset }, xmin: 9, digest }).to_vec();
        let bare = Increment {
            epoch,
            rows: 2,
            row_chunks: vec![RowChunk { id: sink.store(ChunkKind::Row, &[])?, rows: 2, values: 0 }],
            row_map: vec![sink.store(ChunkKind::Meta, &segment::encode_row_map(&map))?],
            value_map: vec![],
            payload: vec![],
            dead: vec![],
            zone: None,
            value_bytes: 0,
        };
        let bare = page(&sink, vec![bare], 2)?;
        let segments = if lie == Lie::Segments { u64::MAX } else { 1 };
        let mail = table("mail", &["body", "id"], vec![mail], segments, 5);
        Ok::<_, RepositoryError>(vec![mail, table("bare", &[], vec![bare], 1, 2)])
    });
    let tables = tables.await.unwrap().unwrap();
    let done = run.finish_chunks().await.unwrap();
    let manifest = Manifest { tables, ..manifest(&writer, done.fragments.clone()) };
    done.commit(&manifest).await.unwrap();
    let repository = as_reader(storage, &reader).await.unwrap();
    let (found, _) = snapshots::list(&repository).await.unwrap();
    let found = SnapshotReader::open(&repository, &found[0]).await.unwrap();
    let manifest = found.snapshot.manifest.clone();
    (found, manifest)
}

async fn all_rows(reader: &SnapshotReader, table: &Table) -> Result<Vec<(u32, Vec<Option<Vec<u8>>>)>, RepositoryError> {
    let (mut rows, mut all) = (TableRows::open(reader, table).await?, Vec::new());
    while let Some(batch) = rows.next_batch().await? {
        all.extend(batch.into_iter().map(|row| {
            (row.map.place.block, row.fields.into_iter().map(|field| field.map(|bytes| bytes.to_vec())).collect())
        }));
    }
    Ok(all)
}

#[tokio::test(flavor = "multi_thread")]
async fn live_rows_of_every_increment_come_back_with_their_values() {
    let (reader, manifest) = stored(&Memory::new(), Lie::None).await;
    let row = |block: u32, large: Option<u8>| {
        (block, vec![large.map(|byte| vec![byte; 600]), Some(block.to_be_bytes().to_vec())])
    };
    let expected = [row(0, None), row(2, Some(b'c')), row(4, None), row(5, Some(b'f')), row(6, Some(b'g'))];
    assert_eq!(all_rows(&reader, &manifest.tables[0]).await.unwrap(), expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_without_columns_are_rows() {
    let (reader, manifest) = stored(&Memory::new(), Lie::None).await;
    assert_eq!(all_rows(&reader, &manifest.tables[1]).await.unwrap(), [(0, vec![]), (0, vec![])]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_add_up_is_an_error_and_no_wrong_row() {
    use Lie::*;
    for lie in [
        RowsOfTheIncrement,
        RowsOfTheChunk,
        ValuesOfTheChunk,
        ValuesOfTwoChunks,
        ValueHash,
        RowDigest,
        PayloadList,
        Segments,
        HugeCounts,
    ] {
        let (reader, manifest) = stored(&Memory::new(), lie).await;
        let refused = all_rows(&reader, &manifest.tables[0]).await;
        assert!(matches!(refused, Err(RepositoryError::Malformed { .. })), "{lie:?}: {refused:?}");
    }
}
