//! Repositories as the program does not yet make them, or never may: through the library, so that nothing of the
//! format is written down a third time.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use restante::repository::chunk::ChunkKind;
use restante::repository::envelope::{self, Author, ObjectKind};
use restante::repository::id::{ChunkId, Digest, ObjectId};
use restante::repository::index::{Fragment, FragmentPack};
use restante::repository::manifest::{Manifest, Table};
use restante::repository::pack::{self, PackInfo, SealedCopy};
use restante::repository::rows::MultisetDigest;
use restante::repository::secrets::WriterKey;
use restante::repository::segment::{self, Descriptor, MapHasher, MapRow, Page, SegmentEntry, ValueMapChunk};
use restante::repository::snapshots::{self, SnapshotReader};
use restante::repository::writer::{ChunkSink, RepositoryWriter};
use restante::repository::zone::{Zone, ZoneBuilder, ZoneColumn};
use restante::repository::{Access, Repository, cbor};
use restante::storage::directory::Directory;

use super::{Trial, objects};

async fn open(trial: &Trial, access: Access) -> Repository {
    let storage = Arc::new(Directory::new(trial.repository()).unwrap());
    Repository::open(storage, access, None).await.unwrap()
}

async fn writing(trial: &Trial) -> Repository {
    open(trial, Access::Writer(WriterKey::load(&trial.path("writer.key")).unwrap())).await
}

async fn reading(trial: &Trial, snapshot: &str) -> SnapshotReader {
    let repository = open(trial, Access::Reader(vec![trial.path("a")])).await;
    let (all, _) = snapshots::list(&repository).await.unwrap();
    SnapshotReader::open(&repository, snapshots::select(&all, snapshot).unwrap()).await.unwrap()
}

fn store<T: serde::Serialize>(sink: &ChunkSink, kind: ChunkKind, what: &T) -> ChunkId {
    sink.store(kind, &cbor::encode("a part of a rewritten snapshot", what).unwrap()).unwrap()
}

/// Puts one segment into the place of a table's own.
fn replace(sink: &ChunkSink, table: &mut Table, entry: &mut SegmentEntry, descriptor: &Descriptor) {
    entry.descriptor = store(sink, ChunkKind::Meta, descriptor);
    table.pages = vec![store(sink, ChunkKind::Meta, &Page { segments: vec![entry.clone()] })];
}

async fn commit(writer: RepositoryWriter, mut manifest: Manifest) -> String {
    let stored = writer.finish_chunks().await.unwrap();
    manifest.fragments.extend(&stored.fragments);
    stored.commit(&manifest).await.unwrap().0.to_hex()
}

/// A snapshot of `later`'s rows whose segments have two increments: that of `earlier`, without what is gone since, and that of
/// `later`, without what `earlier` had already.
pub async fn two_increments(trial: &Trial, earlier: &str, later: &str) -> String {
    let (before, after) = (reading(trial, earlier).await, reading(trial, later).await);
    let writer = RepositoryWriter::open(&writing(trial).await, 1 << 20).await.unwrap();
    let sink = writer.sink();
    let mut manifest = after.manifest().clone();
    manifest.fragments.extend(&before.manifest().fragments);
    for table in &mut manifest.tables {
        let old = before.manifest().table(&table.schema, &table.name).unwrap();
        let (mut entries, old_entries) = (after.segments(table).await.unwrap(), before.segments(old).await.unwrap());
        if entries.len() != 1 {
            continue;
        }
        let (entry, old_entry) = (&mut entries[0], &old_entries[0]);
        let mut descriptor = after.descriptor(entry).await.unwrap();
        let mut increments = before.descriptor(old_entry).await.unwrap().increments;
        if increments.is_empty() || descriptor.increments.is_empty() {
            continue;
        }
        increments.append(&mut descriptor.increments);
        let old_rows = before.rows(&increments[0], old.columns.len()).await.unwrap().map;
        let new_rows = after.rows(&increments[1], table.columns.len()).await.unwrap().map;
        let identity = |row: &MapRow| (row.place, row.xmin);
        let alive: HashSet<_> = new_rows.iter().map(identity).collect();
        let had: HashSet<_> = old_rows.iter().map(identity).collect();
        increments[0].dead = bitmap(old_rows.iter().map(|row| !alive.contains(&identity(row))));
        increments[1].dead = bitmap(new_rows.iter().map(|row| had.contains(&identity(row))));
        let mut live: Vec<_> = old_rows.iter().filter(|row| alive.contains(&identity(row))).collect();
        live.extend(new_rows.iter().filter(|row| !had.contains(&identity(row))));
        // The digests are those of the increment's own epoch, so the sum differs from `later`'s. The map hash has no key.
        let mut digest = MultisetDigest::default();
        live.iter().for_each(|row| digest.add(&row.digest));
        descriptor.digest = digest.finish();
        (entry.digest, table.digest) = (descriptor.digest, descriptor.digest);
        entry.zones = increments.iter().filter_map(|increment| increment.zone).collect();
        table.value_bytes = increments.iter().map(|increment| increment.value_bytes).sum();
        descriptor.increments = increments;
        replace(&sink, table, entry, &descriptor);
    }
    manifest.totals.value_bytes = manifest.tables.iter().map(|table| table.value_bytes).sum();
    drop(sink);
    commit(writer, manifest).await
}

fn bitmap(dead: impl Iterator<Item = bool>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (row, dead) in dead.enumerate() {
        bytes.resize(row / 8 + 1, 0);
        bytes[row / 8] |= u8::from(dead) << (row % 8);
    }
    bytes
}

/// Copies all packs of a kind into one, says so in one fragment for all, and removes what that replaces.
pub async fn gather_packs(trial: &Trial) {
    let repository = writing(trial).await;
    let key = repository.writer_key().unwrap();
    let old_packs = objects(&trial.repository().join("packs"));
    let old_fragments = objects(&trial.repository().join("index"));
    let packs: Vec<(PackInfo, Vec<u8>)> = old_packs
        .iter()
        .map(|path| {
            let bytes = fs::read(path).unwrap();
            (pack::parse(&repository.secrets, &bytes).unwrap(), bytes)
        })
        .collect();
    let mut gathered = Vec::new();
    for kind in ChunkKind::ALL {
        let (mut known, mut copy) = (HashSet::new(), SealedCopy::new(kind));
        for (info, bytes) in packs.iter().filter(|(info, _)| info.kind == kind) {
            copy.add(info, bytes, |entry| known.insert(entry.id)).unwrap();
        }
        let (info, bytes) = copy.finish(&repository.secrets, key.epoch).unwrap();
        put(trial, &format!("packs/{}/{}", &info.id.to_hex()[..2], info.id.to_hex()), &bytes);
        gathered.push(FragmentPack::from(&info));
    }
    let name = |path: &std::path::PathBuf| path.file_name().unwrap().to_str().unwrap().parse::<ObjectId>().unwrap();
    let supersedes = old_fragments.iter().map(name).collect();
    let fragment = Fragment { version: 1, level: 1, supersedes, packs: gathered };
    let signer = key.signer().unwrap();
    let author = Author {
        repository: repository.config.repository,
        epoch: key.epoch,
        secrets: &repository.secrets,
        signer: &signer,
    };
    let bytes = envelope::write(ObjectKind::Index, &author, &fragment).unwrap();
    put(trial, &format!("index/{}", ObjectId::of(&bytes).to_hex()), &bytes);
    old_packs.iter().chain(&old_fragments).for_each(|path| fs::remove_file(path).unwrap());
}

fn put(trial: &Trial, name: &str, bytes: &Bytes) {
    let path = trial.repository().join(name);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// What a lie may change.
struct Parts<'a> {
    sink: &'a ChunkSink,
    table: &'a mut Table,
    entry: &'a mut SegmentEntry,
    descriptor: &'a mut Descriptor,
    rows: Vec<MapRow>,
}

impl Parts<'_> {
    fn zone(&mut self, column: i16, what: ZoneColumn, values: &[&[u8]]) {
        let mut zone = ZoneBuilder::new(column, what);
        values.iter().for_each(|value| zone.add(value));
        let id = store(self.sink, ChunkKind::Row, &Zone { columns: vec![zone.finish().unwrap()] });
        self.descriptor.increments[0].zone = Some(id);
        self.entry.zones = vec![id];
    }

    fn row_map(&mut self) {
        let id = self.sink.store(ChunkKind::Meta, &segment::encode_row_map(&self.rows)).unwrap();
        self.descriptor.increments[0].row_map = vec![id];
    }
}

type Lie = (Option<&'static str>, fn(&mut Parts<'_>));

/// What the reader must say, and what was changed. The first changes nothing, to show that the rewriting itself is sound.
const LIES: &[Lie] = &[
    (None, |_| {}),
    (Some("another number of live rows"), |parts| parts.descriptor.increments[0].dead = vec![1]),
    (Some("another number of segments or rows"), |parts| parts.table.rows += 1),
    (Some("wrong multiset digest"), |parts| {
        let digest = Digest([9; 16]);
        (parts.descriptor.digest, parts.entry.digest, parts.table.digest) = (digest, digest, digest);
    }),
    (Some("wrong map hash"), |parts| parts.entry.map_hash = MapHasher::default().finish()),
    // The sum over the segment stays the same.
    (Some("has another row at (0, 1)"), |parts| {
        (parts.rows[0].digest, parts.rows[1].digest) = (parts.rows[1].digest, parts.rows[0].digest);
        parts.row_map();
    }),
    (Some("does not ascend"), |parts| {
        parts.rows.swap(0, 1);
        parts.row_map();
    }),
    (Some("outside its zone"), |parts| {
        parts.zone(1, ZoneColumn::Integer { time: false }, &[&[0, 0, 0, 1], &[0, 0, 0, 7]])
    }),
    (Some("outside its zone"), |parts| parts.zone(1, ZoneColumn::Integer { time: false }, &[])),
    (Some("key in name that its filter denies"), |parts| parts.zone(2, ZoneColumn::Key, &[b"somebody else"])),
    (Some("zone of a column 4"), |parts| parts.zone(4, ZoneColumn::Key, &[b"name 1"])),
    (Some("other zones than its page says"), |parts| parts.entry.zones.clear()),
    (Some("values of another total length"), |parts| parts.descriptor.increments[0].value_bytes += 1),
    (Some("rows of other blocks"), |parts| parts.descriptor.first_block = 1),
    (Some("chunk that is not in the list"), |parts| parts.descriptor.increments[0].payload.clear()),
    (Some("another number of large values"), |parts| parts.descriptor.increments[0].row_chunks[0].values -= 1),
];

/// Snapshots that say something else than the truth, each properly sealed, signed and certified.
pub async fn lies(trial: &Trial, honest: &str) -> Vec<(String, Option<&'static str>)> {
    let reader = reading(trial, honest).await;
    let mut told = Vec::new();
    for (what, lie) in LIES {
        told.push((one_lie(trial, &reader, lie).await, *what));
    }
    told.push((swapped_values(trial, &reader).await, Some("another hash than its value map says")));
    told
}

async fn one_lie(trial: &Trial, reader: &SnapshotReader, lie: &fn(&mut Parts<'_>)) -> String {
    let writer = RepositoryWriter::open(&writing(trial).await, 1 << 20).await.unwrap();
    let sink = writer.sink();
    let mut manifest = reader.manifest().clone();
    let table = &mut manifest.tables[0];
    let mut entry = reader.segments(table).await.unwrap().remove(0);
    let mut descriptor = reader.descriptor(&entry).await.unwrap();
    let rows = reader.rows(&descriptor.increments[0], table.columns.len()).await.unwrap().map;
    lie(&mut Parts { sink: &sink, table, entry: &mut entry, descriptor: &mut descriptor, rows });
    replace(&sink, table, &mut entry, &descriptor);
    manifest.totals.rows = table.rows;
    drop(sink);
    commit(writer, manifest).await
}

/// Two messages whose bodies were exchanged: every chunk is as it was, only the recipes lie.
async fn swapped_values(trial: &Trial, reader: &SnapshotReader) -> String {
    let writer = RepositoryWriter::open(&writing(trial).await, 1 << 20).await.unwrap();
    let sink = writer.sink();
    let mut manifest = reader.manifest().clone();
    let table = &mut manifest.tables[0];
    let mut entry = reader.segments(table).await.unwrap().remove(0);
    let mut descriptor = reader.descriptor(&entry).await.unwrap();
    let increment = &mut descriptor.increments[0];
    let mut values = reader.value_map(increment).await.unwrap();
    let first = values[0].recipe.clone();
    values[0].recipe = std::mem::replace(&mut values[1].recipe, first);
    let id = sink.store(ChunkKind::Meta, &segment::encode_value_map(&values)).unwrap();
    increment.value_map = vec![ValueMapChunk { id, values: values.len() as u32 }];
    replace(&sink, table, &mut entry, &descriptor);
    drop(sink);
    commit(writer, manifest).await
}
