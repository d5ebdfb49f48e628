//! Manifests and certificates: one snapshot, told by what a writer may know. A manifest says what was stored; the certificate says
//! that all of it was read back. A snapshot without a certificate is never `latest` and never kept in place of one that has it.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::error::RepositoryError;
use super::id::{ChunkId, Digest, Epoch, ObjectId, RepositoryId};
use super::name::NameKind;
use crate::storage::ObjectName;

/// What this program can read. A manifest that needs another feature is refused by name.
pub const FEATURES: &[&str] = &["rows-1"];
/// Keys of a manifest that may be declared critical and that this program understands.
const CRITICAL: &[&str] = &[];

/// The body of a manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    pub version: u32,
    pub repository: RepositoryId,
    pub epoch: Epoch,
    /// What a reader must know to read this snapshot.
    pub features: Vec<String>,
    /// Keys that must not be ignored by a reader that does not know them.
    pub critical: Vec<String>,
    pub program: String,
    pub store: StoreIdentity,
    /// Counts the snapshots of this store by this writer, from 1.
    pub sequence: u64,
    pub previous: Option<ObjectId>,
    /// The snapshot whose segments were taken over, if any.
    pub parent: Option<ObjectId>,
    /// When the run began and ended, by the host's clock.
    pub started: Timestamp,
    pub finished: Timestamp,
    /// The instant that the snapshot shows, by the server's clock.
    pub taken: Timestamp,
    pub server: ServerSummary,
    pub tables: Vec<Table>,
    pub schema: Schema,
    pub totals: Totals,
    /// Everything that the database holds is in the snapshot.
    pub complete: bool,
    pub not_covered: Vec<NotCovered>,
    /// What was read whole though there was an earlier snapshot, and why nothing could be taken over.
    pub read_whole: Vec<ReadWhole>,
    /// Why this snapshot may show damage rather than mail: rows that vanished without a DELETE. Empty: nothing suspect.
    pub suspect: Vec<String>,
    pub tags: Vec<String>,
    /// Index fragments that name every pack it needs, so that a restore does not load the whole index.
    pub fragments: Vec<ObjectId>,
}

/// Which store it is: the same for all snapshots of one database of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreIdentity {
    /// As `pg_control_system()` tells it, if the role may ask.
    pub system_identifier: Option<u64>,
    pub database: String,
    pub database_oid: u32,
}

/// `<system identifier>/<database>`
impl fmt::Display for StoreIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.system_identifier {
            Some(id) => write!(f, "{id}/{}", self.database),
            None => write!(f, "unknown/{}", self.database),
        }
    }
}

/// The server, and what makes its row versions comparable with a later snapshot's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerSummary {
    pub version_num: u32,
    pub encoding: String,
    pub timeline: Option<u32>,
    pub standby: bool,
    pub data_checksums: Option<bool>,
    /// `pg_current_snapshot()`: 64-bit transaction ids.
    pub xmin: u64,
    pub xmax: u64,
    /// Transactions between the two that were still open: not visible.
    pub in_progress: Vec<u64>,
    /// The token that was left at the marker right after the export, committed.
    pub marker: Option<i64>,
    /// Nothing that the snapshot sees could be lost in a crash any more.
    pub durable: bool,
    pub fsync: Option<bool>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    pub oid: u32,
    pub schema: String,
    pub name: String,
    /// `relkind`: r, p, m; only leaves have segments.
    pub kind: String,
    pub relfilenode: Option<u32>,
    pub partition_of: Option<u32>,
    pub block_size: u32,
    pub blocks_per_segment: u32,
    pub columns: Vec<Column>,
    pub schema_digest: String,
    pub pages: Vec<ChunkId>,
    pub segments: u64,
    pub rows: u64,
    pub value_bytes: u64,
    pub digest: Digest,
    /// `pg_stat`: rows updated and deleted since the statistics were reset, to tell a shrunk table from a damaged one.
    pub updated: Option<u64>,
    pub deleted: Option<u64>,
}

impl Table {
    /// `schema.name`, for people.
    pub fn label(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    pub fn column(&self, name: &str) -> Option<(usize, &Column)> {
        self.columns.iter().enumerate().find(|(_, column)| column.name == name)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// `attnum`.
    pub number: i16,
    pub name: String,
    pub type_oid: u32,
    /// As `format_type` writes it.
    pub type_name: String,
    pub wire: Wire,
}

/// In which of PostgreSQL's forms the fields of a column were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wire {
    /// The type's send function.
    Binary,
    /// The type's output function, in the server's encoding: the type has no send function.
    Text,
}

/// Where the schema lies. Row class: defaults, enum labels and sequence values are nobody's business on the database host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Schema {
    /// The catalog as CBOR, in pieces.
    pub catalog: Vec<ChunkId>,
    /// `pg_dump --schema-only --format=custom` under the same snapshot, in pieces; empty if there was none.
    pub dump: Vec<ChunkId>,
    pub dump_version: Option<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    pub tables: u64,
    pub rows: u64,
    /// Bytes of values as the server sent them.
    pub value_bytes: u64,
    /// Rows and bytes of values that were read; the others were taken over from earlier snapshots.
    pub read_rows: u64,
    pub read_bytes: u64,
    /// Chunks and bytes that this snapshot added to the storage.
    pub new_chunks: u64,
    pub new_packs: u64,
    pub stored_bytes: u64,
}

/// Something of the database that is not in the snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotCovered {
    pub object: String,
    pub reason: String,
}

/// Tables of which every row was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadWhole {
    /// `schema.name`; absent: all of them.
    pub table: Option<String>,
    pub reason: String,
}

impl Manifest {
    /// Refuses what this program would read wrongly.
    pub fn check_readable(&self) -> Result<(), RepositoryError> {
        let unknown = self
            .features
            .iter()
            .find(|feature| !FEATURES.contains(&feature.as_str()))
            .or_else(|| self.critical.iter().find(|key| !CRITICAL.contains(&key.as_str())));
        match (self.version, unknown) {
            (1, None) => Ok(()),
            (format, feature) => Err(RepositoryError::Unsupported {
                format,
                feature: feature.cloned().unwrap_or_default(),
                operation: "read the snapshot",
            }),
        }
    }

    pub fn table(&self, schema: &str, name: &str) -> Option<&Table> {
        self.tables.iter().find(|table| table.schema == schema && table.name == name)
    }
}

/// The body of a certificate.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Certificate {
    pub version: u32,
    pub snapshot: ObjectId,
    pub certified: Timestamp,
    pub complete: bool,
    pub suspect: bool,
    /// Packs that were fetched back and opened, and packs of earlier snapshots that were found present.
    pub packs_read_back: u64,
    pub packs_present: u64,
}

/// `snapshots/<time>-<id>`: the time sorts, the id proves.
pub fn manifest_name(taken: Timestamp, id: &ObjectId) -> Result<ObjectName, RepositoryError> {
    NameKind::Manifest.dated(taken, id)
}
