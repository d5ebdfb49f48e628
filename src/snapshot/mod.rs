//! Live store → repository. A snapshot takes every table of the database at one instant, without knowing what they mean.
//!
//! ```text
//! readers (async)            a thread each (CPU)                              uploads (async)
//! COPY BINARY of a segment → split, cut, hash, compress, seal, into packs → put, fetch back and open, index
//! ```
//! Where an earlier snapshot, or a run that was cut short, can be believed (`base`), segments are compared with it by the places of their rows
//! (`compare`, `changes`) and only rows that came are read.
//!
//! Bounded on the way: two batches of 1 MiB between a reader and its thread, a few packs between threads and uploads.
//!
//! Uses `postgres` for reading and `repository` for writing; `cli` calls [`take`].

mod base;
mod changes;
mod compare;
mod gaps;
mod layout;
pub mod live;
mod pipeline;
mod progress;
mod schema;
mod segment;
mod suspect;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::monitor::SharedMonitor;
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Catalog, TableKind};
use crate::postgres::dsn::Dsn;
use crate::postgres::marker::{self, Marker};
use crate::postgres::reading::{Leave, ReadingOptions, ReadingSet};
use crate::postgres::session::ServerFacts;
use crate::repository::checkpoint::{self, Checkpoint, CheckpointWriter};
use crate::repository::manifest::{
    Manifest, NotCovered, ReadWhole, Schema, ServerSummary, StoreIdentity, Table, Totals,
};
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::writer::{PACKS_IN_MEMORY, PACKS_KEPT, RepositoryWriter};
use crate::repository::{Repository, RepositoryError};
use crate::storage::layers::Listed;

use base::{Bases, Lineage};
use pipeline::{Finished, Pace};
use progress::{Done, Progress};

pub use layout::{InvalidPattern, SEGMENT_BYTES, TablePattern};

/// A pack in an unbounded budget.
const LARGEST_PACK: usize = 16 << 20;
const SMALLEST_PACK: usize = 1 << 20;

#[derive(Debug, Clone)]
pub struct SnapshotOptions {
    /// Readers, each with a connection and a thread.
    pub jobs: usize,
    /// Bytes that buffers may take; values larger than that come on top.
    pub memory: usize,
    pub tags: Vec<String>,
    /// What a segment of a table that is new to the repository shall hold, with its TOAST.
    pub segment_bytes: u64,
    /// Tables that are left out on purpose: they do not make the snapshot incomplete.
    pub exclude: Vec<TablePattern>,
    pub reading: ReadingOptions,
    /// `pg_dump` to call for the schema.
    pub pg_dump: PathBuf,
    /// The last snapshot of each store that this writer remembers; an older newest one means that the storage was rolled back.
    pub heads: Vec<Head>,
    /// Rows that may vanish from a table, in percent, before a snapshot is suspect.
    pub suspect_percent: u8,
    /// Somebody says that what is gone was removed on purpose: nothing is suspect.
    pub accept_loss: bool,
    /// Bytes of rows that all readers together may read in a second.
    pub rate_limit: Option<u64>,
    /// How often finished segments are written down, for the run that comes after one that was cut short.
    pub checkpoint_every: Duration,
    /// Make none where everything is as the last one has it.
    pub skip_if_unchanged: bool,
    /// Read every row, whatever earlier snapshots know.
    pub full: bool,
    /// Where no marker can be left: somebody says that the server was not set back to an earlier state since the last snapshot.
    pub trust_history: bool,
}

/// The number of a store's newest snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    pub store: StoreIdentity,
    pub sequence: u64,
}

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error("pg_dump could not save the schema: {message}")]
    PgDump { message: String },
    #[error(
        "{0} readers and packs of 1 MiB do not fit into {1} bytes of memory: give more `--memory` or fewer `--jobs`"
    )]
    Memory(usize, usize),
    #[error("the work was interrupted; chunks that were stored are found again by the next run")]
    Interrupted,
}

/// Takes a snapshot and certifies it; or, where nothing changed and that was asked for, gives the last one.
pub async fn take(
    repository: &Repository,
    dsn: &Dsn,
    options: &SnapshotOptions,
    monitor: &SharedMonitor,
) -> Result<Snapshot, SnapshotError> {
    let started = Timestamp::now();
    let pack_target = pack_target(options)?;
    let (facts, marker) = Marker::open(dsn, &repository.secrets.repository.to_hex()).await?;
    let store = identity(&facts);
    let marker = marker.as_ref().map_err(String::as_str);
    let listed = Arc::new(Listed::of(repository.storage.clone()).await.map_err(RepositoryError::from)?);
    let repository = &repository.over(listed.clone());
    let (earlier, problems) = snapshots::newest(repository, enough(&store, marker)).await?;
    for problem in problems {
        monitor.warn(&format!("an earlier snapshot is left out of account: {problem}"));
    }
    let of_store: Vec<&Snapshot> = earlier.iter().filter(|s| s.manifest.store == store).collect();
    let found = of_store.iter().map(|s| s.manifest.sequence).max().unwrap_or(0);
    let remembered = options.heads.iter().find(|head| head.store == store).map(|head| head.sequence);
    if let Some(expected) = remembered.filter(|expected| *expected > found) {
        return Err(RepositoryError::RolledBack { expected, found }.into());
    }

    let runs = checkpoint::runs(repository).await?;
    let usable: Vec<&Snapshot> = of_store.iter().copied().filter(|s| s.is_usable()).collect();
    let mut lineage = Lineage::find(&usable, &runs, &store, marker, options.trust_history);
    let believed = lineage.parent.and_then(|parent| parent.manifest.server.marker);
    if let Some(parent) = lineage.parent.filter(|parent| !is_of_these_keys(repository, &parent.manifest)) {
        let reason = format!("the keys of epoch {} were replaced since (key rotate --new-ids)", parent.manifest.epoch);
        lineage = Lineage { reason: Some(reason), ..Lineage::default() };
    }
    if options.full {
        lineage = Lineage { reason: Some("--full was asked for".to_owned()), ..Lineage::default() };
    }
    let leave = marker.ok().map(|marker| Leave { marker, believed });
    let mut set = ReadingSet::open_marked(dsn, options.jobs, options.reading.clone(), leave.as_ref(), monitor).await?;
    let (mut server, taken) = (server(&set), set.taken_at.parse().unwrap_or(started));
    // A standby replays only what it has on disk.
    if !server.durable {
        server.durable = server.standby || marker::flush(dsn).await?;
    }

    let writer = RepositoryWriter::open(repository, pack_target).await?;
    for problem in &writer.problems {
        monitor.warn(&format!("what this index fragment names is stored again: {problem}"));
    }
    let is_sound = lineage.parent.is_none_or(|parent| writer.sink().is_sound(&parent.manifest.fragments));
    let reader = writer.reader(repository).keeping(METADATA_KEPT);
    let bases = match Bases::load(&lineage, &set, &server, &reader, is_sound).await {
        Ok(bases) => bases,
        Err(error) => {
            writer.abandon().await;
            return Err(error.into());
        }
    };
    let layout =
        layout::plan(&set.catalog, &set.facts, &options.exclude, options.segment_bytes, |table, block_size| {
            bases.blocks_per_segment(table, block_size).or_else(|| layout::before(of_store.last()?, table, block_size))
        });
    listed.forget();
    let finished = Finished::default();
    let stop = set.readers.first().map(|reader| reader.stop_token().clone()).unwrap_or_default();
    let pace = Pace::new(options.rate_limit, stop);
    let run = pipeline::Run {
        set: &set,
        server: &server,
        layout: &layout,
        repository,
        writer: &writer,
        reader: &reader,
        bases: &bases,
        memory: options.memory,
        finished: &finished,
        pace: &pace,
        monitor,
    };
    let work = async {
        let dump = schema::dump(dsn, &set, &options.pg_dump, options.reading.yield_after);
        let tables = pipeline::read_tables(&run);
        // The first reader's transaction keeps the exported snapshot alive for both.
        let (dump, tables) = futures_util::try_join!(dump, tables)?;
        let schema = schema::store(&set.catalog, dump, writer.sink()).await?;
        Ok::<_, SnapshotError>((tables, schema))
    };
    let mut progress = Progress {
        writer: CheckpointWriter::new(repository)?,
        next: Checkpoint {
            version: 1,
            store: store.clone(),
            started,
            taken,
            server: server.clone(),
            tables: Vec::new(),
        },
    };
    let done = Done { catalog: &set.catalog, layout: &layout, finished: &finished };
    let sink = writer.sink();
    let worked = tokio::select! {
        worked = work => worked,
        () = progress.keep(options.checkpoint_every, &done, &sink, monitor) => Err(SnapshotError::Interrupted),
    };
    // Gives the locks back, and VACUUM its freedom, before the last uploads.
    set.readers.clear();
    let (read, schema) = match worked {
        Ok(done) => done,
        Err(error) => {
            let upload = writer.abandon().await;
            // The first error counts; without a checkpoint the next run only has more to do.
            let _ = progress.end(&Done { catalog: &set.catalog, layout: &layout, finished: &finished }).await;
            return Err(match (error, upload) {
                // A closed queue is only the consequence of an upload that failed: tell that.
                (SnapshotError::Repository(RepositoryError::Interrupted), Some(cause)) => cause.into(),
                (SnapshotError::Repository(RepositoryError::Interrupted), None) => SnapshotError::Interrupted,
                (error, _) => error,
            });
        }
    };
    let stored = writer.finish_chunks().await?;
    if options.skip_if_unchanged
        && let Some(last) = of_store.last().filter(|last| last.is_usable() && is_same(last, &read.tables, &schema))
    {
        return Ok((*last).clone());
    }

    let mut not_covered = not_covered(&set.catalog, &layout, schema.dump.is_empty());
    not_covered.extend(read.not_covered);
    let mut read_whole = read.read_whole;
    // Of the first one nobody expects anything else.
    let nothing = bases.nothing().filter(|_| !usable.is_empty());
    read_whole.extend(nothing.map(|reason| ReadWhole { table: None, reason }));
    let parent = lineage.parent.filter(|_| bases.rely_on_a_snapshot());
    let mut fragments = stored.fragments.clone();
    let inherited = parent.map(|parent| sink.current(&parent.manifest.fragments));
    fragments.extend(inherited.into_iter().flatten().filter(|fragment| !stored.fragments.contains(fragment)));
    // A suspect one is no measure: the next would call the same hole sound.
    let base = usable.iter().rfind(|s| s.manifest.suspect.is_empty());
    let mut manifest = Manifest {
        version: 1,
        repository: repository.secrets.repository,
        epoch: repository.writer_key()?.epoch,
        features: vec!["rows-1".into()],
        critical: Vec::new(),
        program: concat!("restante ", env!("CARGO_PKG_VERSION")).into(),
        store,
        sequence: found + 1,
        previous: of_store.last().map(|s| s.id),
        parent: parent.map(|parent| parent.id),
        started,
        finished: Timestamp::now(),
        taken,
        server,
        totals: Totals {
            tables: read.tables.len() as u64,
            rows: read.tables.iter().map(|t| t.rows).sum(),
            value_bytes: read.tables.iter().map(|t| t.value_bytes).sum(),
            read_rows: read.rows,
            read_bytes: read.bytes,
            new_chunks: stored.added.chunks,
            new_packs: stored.added.packs,
            stored_bytes: stored.added.stored_bytes,
        },
        tables: read.tables,
        schema,
        complete: not_covered.is_empty(),
        not_covered,
        read_whole,
        suspect: Vec::new(),
        tags: options.tags.clone(),
        fragments,
    };
    if let Some(base) = base.filter(|_| !options.accept_loss) {
        manifest.suspect =
            suspect::findings(dsn, &base.manifest, &manifest, options.suspect_percent, &set.catalog).await?;
    }
    let signer = repository.writer_key()?.signer().map_err(SnapshotError::Repository)?.id();
    let (id, certificate) = stored.commit(&manifest).await?;
    progress.writer.clear(&runs, &manifest.store).await;
    let (manifest, stored) = (manifest.into(), certificate.certified);
    Ok(Snapshot { id, manifest, signer, certificate: Some(certificate), stored, removable: None })
}

/// Equal trees have equal rows; the catalog holds the sequences' values, and the dump what the catalog does not.
fn is_same(last: &Snapshot, tables: &[Table], schema: &Schema) -> bool {
    let roots = |tables: &[Table]| tables.iter().map(|table| (table.oid, table.pages.clone())).collect::<Vec<_>>();
    let before = &last.manifest.schema;
    (&before.catalog, &before.dump) == (&schema.catalog, &schema.dump) && roots(&last.manifest.tables) == roots(tables)
}

/// Bytes of the last snapshot's metadata that are kept in memory; where it has more, it is fetched piece by piece.
const METADATA_KEPT: usize = 16 << 20;
/// So many snapshots of a store are gone through for one that can be believed.
const MOST_EARLIER: usize = 20;

/// Which snapshots of a store a run wants to know of: the newest, the newest that is a measure for losses, and the newest that can be believed.
fn enough<'a>(store: &'a StoreIdentity, marker: Result<&'a Marker, &str>) -> impl FnMut(&Snapshot) -> bool + use<'a> {
    let tokens = marker.map(|marker| marker.found.clone()).unwrap_or_default();
    let (mut seen, mut has_measure, mut has_believed) = (0, false, tokens.is_empty());
    move |snapshot| {
        let manifest = &snapshot.manifest;
        if manifest.store == *store {
            seen += usize::from(!snapshot.is_from_the_future());
            has_measure |= snapshot.is_usable() && manifest.suspect.is_empty();
            has_believed |= snapshot.is_usable() && manifest.server.marker.is_some_and(|token| tokens.contains(&token));
        }
        (has_measure && has_believed) || seen >= MOST_EARLIER
    }
}

/// Whoever stole the keys that were replaced may have made what lies under them.
fn is_of_these_keys(repository: &Repository, manifest: &Manifest) -> bool {
    let id = |epoch| repository.secrets.epoch(epoch).ok()?.id.as_ref();
    let current = repository.writer_key().ok().and_then(|key| id(key.epoch));
    match (current, id(manifest.epoch)) {
        (Some(current), Some(then)) => current.expose() == then.expose(),
        _ => false,
    }
}

/// The memory is for packs on their way and for readers. A reader cannot do with less than 4 MiB of batches, a group and a piece; more than as much again is
/// kept for its next ones, by the program and by malloc: on a busy machine 16 MiB were seen for two.
fn pack_target(options: &SnapshotOptions) -> Result<usize, SnapshotError> {
    let left = |reader: usize| options.memory.saturating_sub(options.jobs * reader);
    if left(6 << 20) / PACKS_IN_MEMORY < SMALLEST_PACK {
        return Err(SnapshotError::Memory(options.jobs, options.memory));
    }
    Ok((left(18 << 20) / (PACKS_IN_MEMORY + PACKS_KEPT)).clamp(SMALLEST_PACK, LARGEST_PACK))
}

fn identity(facts: &ServerFacts) -> StoreIdentity {
    StoreIdentity {
        system_identifier: facts.system_identifier.as_deref().and_then(|text| text.parse().ok()),
        database: facts.database.clone(),
        database_oid: facts.database_oid.unwrap_or(0),
    }
}

fn server(set: &ReadingSet) -> ServerSummary {
    ServerSummary {
        version_num: set.facts.version_num,
        encoding: set.facts.encoding.clone().unwrap_or_default(),
        timeline: set.facts.timeline,
        standby: set.facts.is_in_recovery,
        data_checksums: set.facts.data_checksums,
        xmin: set.visibility.xmin,
        xmax: set.visibility.xmax,
        in_progress: set.visibility.in_progress.clone(),
        marker: set.token,
        // With a marker it is flushed already.
        durable: set.token.is_some(),
        fsync: set.facts.fsync,
    }
}

/// Everything of the database that the snapshot does not hold, with the reason.
fn not_covered(catalog: &Catalog, layout: &layout::Layout, no_dump: bool) -> Vec<NotCovered> {
    let mut list = layout.not_covered.clone();
    if catalog.large_objects > 0 {
        let object = format!("{} large objects", catalog.large_objects);
        list.push(NotCovered { object, reason: "large objects (pg_largeobject) are not read".into() });
    }
    for sequence in catalog.sequences.iter().filter(|sequence| !sequence.readable) {
        let reason = "no right to read the sequence's value".to_owned();
        list.push(NotCovered { object: format!("sequence {}", sequence.name), reason });
    }
    for view in catalog.tables.iter().filter(|table| table.kind == TableKind::Foreign) {
        let reason = "its rows lie on another server".to_owned();
        list.push(NotCovered { object: format!("foreign table {}", view.name), reason });
    }
    if no_dump {
        let reason = "pg_dump is missing or older than the server".to_owned();
        list.push(NotCovered { object: "schema dump".into(), reason });
    }
    list
}
