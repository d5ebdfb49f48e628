//! Live store → repository. A snapshot takes every table of the database at one instant, without knowing what they mean.
//!
//! ```text
//! readers (async)            a thread each (CPU)                              uploads (async)
//! COPY BINARY of a segment → split, cut, hash, compress, seal, into packs → put, fetch back and open, index
//! ```
//! Bounded on the way: two batches of 1 MiB between a reader and its thread, a few packs between threads and uploads.
//!
//! Uses `postgres` for reading and `repository` for writing; `cli` calls [`take`].

mod gaps;
mod layout;
mod pipeline;
mod schema;
mod segment;
mod suspect;

use std::path::PathBuf;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::monitor::SharedMonitor;
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Catalog, TableKind};
use crate::postgres::dsn::Dsn;
use crate::postgres::reading::{ReadingOptions, ReadingSet};
use crate::repository::manifest::{Manifest, NotCovered, ServerSummary, StoreIdentity, Totals};
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::writer::{PACKS_IN_MEMORY, RepositoryWriter};
use crate::repository::{Repository, RepositoryError};

pub use layout::{InvalidPattern, SEGMENT_BYTES, TablePattern};

/// A pack in an unbounded budget.
const LARGEST_PACK: usize = 24 << 20;
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

/// Takes a snapshot and certifies it.
pub async fn take(
    repository: &Repository,
    dsn: &Dsn,
    options: &SnapshotOptions,
    monitor: &SharedMonitor,
) -> Result<Snapshot, SnapshotError> {
    let started = Timestamp::now();
    let pack_target = pack_target(options)?;
    let (earlier, problems) = snapshots::list(repository).await?;
    for problem in problems {
        monitor.warn(&format!("an earlier snapshot is left out of account: {problem}"));
    }

    let mut set = ReadingSet::open(dsn, options.jobs, options.reading.clone(), monitor).await?;
    let store = identity(&set);
    let of_store = || earlier.iter().rev().filter(|s| s.manifest.store == store);
    let previous = of_store().next();
    let layout = layout::plan(&set.catalog, &set.facts, options, previous.map(|s| &*s.manifest));
    let found = previous.map_or(0, |s| s.manifest.sequence);
    let remembered = options.heads.iter().find(|head| head.store == store).map(|head| head.sequence);
    if let Some(expected) = remembered.filter(|expected| *expected > found) {
        return Err(RepositoryError::RolledBack { expected, found }.into());
    }

    let writer = RepositoryWriter::open(repository, pack_target).await?;
    for problem in &writer.problems {
        monitor.warn(&format!("what this index fragment names is stored again: {problem}"));
    }
    let work = async {
        let dump = schema::dump(dsn, &set, &options.pg_dump, options.reading.yield_after);
        let tables = pipeline::read_tables(&set, &layout, repository, &writer, monitor);
        // The first reader's transaction keeps the exported snapshot alive for both.
        let (dump, tables) = futures_util::try_join!(dump, tables)?;
        let schema = schema::store(&set.catalog, dump, writer.sink()).await?;
        Ok::<_, SnapshotError>((tables, schema))
    };
    let worked = work.await;
    // Gives the locks back, and VACUUM its freedom, before the last uploads.
    set.readers.clear();
    let ((tables, unread), schema) = match worked {
        Ok(done) => done,
        Err(error) => {
            let upload = writer.abandon().await;
            return Err(match (error, upload) {
                // A closed queue is only the consequence of an upload that failed: tell that.
                (SnapshotError::Repository(RepositoryError::Interrupted), Some(cause)) => cause.into(),
                (SnapshotError::Repository(RepositoryError::Interrupted), None) => SnapshotError::Interrupted,
                (error, _) => error,
            });
        }
    };
    let stored = writer.finish_chunks().await?;

    let mut not_covered = not_covered(&set.catalog, &layout, schema.dump.is_empty());
    not_covered.extend(unread);
    // A suspect one is no measure: the next would call the same hole sound.
    let base = of_store().find(|s| s.certificate.is_some() && s.manifest.suspect.is_empty());
    let mut manifest = Manifest {
        version: 1,
        repository: repository.secrets.repository,
        epoch: repository.writer_key()?.epoch,
        features: vec!["rows-1".into()],
        critical: Vec::new(),
        program: concat!("restante ", env!("CARGO_PKG_VERSION")).into(),
        store: store.clone(),
        sequence: found + 1,
        previous: previous.map(|s| s.id),
        parent: None,
        started,
        finished: Timestamp::now(),
        taken: set.taken_at.parse().unwrap_or(started),
        server: server(&set),
        totals: Totals {
            tables: tables.len() as u64,
            rows: tables.iter().map(|t| t.rows).sum(),
            value_bytes: tables.iter().map(|t| t.value_bytes).sum(),
            new_chunks: stored.added.chunks,
            new_packs: stored.added.packs,
            stored_bytes: stored.added.stored_bytes,
        },
        tables,
        schema,
        complete: not_covered.is_empty(),
        not_covered,
        suspect: Vec::new(),
        tags: options.tags.clone(),
        fragments: stored.fragments.clone(),
    };
    if let Some(base) = base.filter(|_| !options.accept_loss) {
        manifest.suspect =
            suspect::findings(dsn, &base.manifest, &manifest, options.suspect_percent, &set.catalog).await?;
    }
    let signer = repository.writer_key()?.signer().map_err(SnapshotError::Repository)?.id();
    let (id, certificate) = stored.commit(&manifest).await?;
    Ok(Snapshot { id, manifest: manifest.into(), signer, certificate: Some(certificate) })
}

/// Half of the memory is for packs on their way; each reader takes about 4 MiB of batches, a group and a piece.
fn pack_target(options: &SnapshotOptions) -> Result<usize, SnapshotError> {
    let readers = options.jobs * (6 << 20);
    let target = options.memory.saturating_sub(readers) / PACKS_IN_MEMORY;
    if target < SMALLEST_PACK {
        return Err(SnapshotError::Memory(options.jobs, options.memory));
    }
    Ok(target.min(LARGEST_PACK))
}

fn identity(set: &ReadingSet) -> StoreIdentity {
    StoreIdentity {
        system_identifier: set.facts.system_identifier.as_deref().and_then(|text| text.parse().ok()),
        database: set.facts.database.clone(),
        database_oid: set.facts.database_oid.unwrap_or(0),
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
        marker: None,
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
