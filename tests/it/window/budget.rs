//! What a window restore fetches from the storage, in bytes and requests.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use restante::compare::source::{RepositorySource, Source};
use restante::compare::{self, Window, choose};
use restante::monitor::Silent;
use restante::postgres::catalog;
use restante::postgres::session::{Session, SessionOptions};
use restante::profile::Profile;
use restante::repository::id::ChunkId;
use restante::repository::pack::Entry;
use restante::repository::rows::Field;
use restante::repository::snapshots::{self, Snapshot, SnapshotReader};
use restante::restore::{Apply, ApplyOptions, Plan, PlanOptions, ReplayReport};
use restante::snapshot::SnapshotOptions;
use restante::storage::{Capabilities, ObjectMeta, ObjectName, PutMode, Retention, Storage, StorageError};
use restante_fixtures::{load, store};
use tokio_postgres::Client;

use crate::server::{TestDatabase, TestServer};
use crate::snapshot::support::{Place, dsn, options, snapshot, snapshot_role};

/// What one request read of an object.
#[derive(Debug)]
struct Read {
    name: ObjectName,
    bytes: u64,
}

/// Remembers what was read of which object.
#[derive(Debug)]
struct Recording {
    inner: Arc<dyn Storage>,
    reads: Mutex<Vec<Read>>,
}

impl Recording {
    fn over(inner: Arc<dyn Storage>) -> Arc<Self> {
        Arc::new(Self { inner, reads: Mutex::default() })
    }

    fn read(&self, name: &ObjectName, bytes: &Bytes) {
        let read = Read { name: name.clone(), bytes: bytes.len() as u64 };
        self.reads.lock().unwrap().push(read);
    }

    fn take(&self) -> Vec<Read> {
        std::mem::take(&mut self.reads.lock().unwrap())
    }
}

#[async_trait]
impl Storage for Recording {
    fn address(&self) -> String {
        self.inner.address()
    }

    async fn put(
        &self,
        name: &ObjectName,
        bytes: Bytes,
        mode: PutMode,
        retention: Option<Retention>,
    ) -> Result<(), StorageError> {
        self.inner.put(name, bytes, mode, retention).await
    }

    async fn get(&self, name: &ObjectName) -> Result<Bytes, StorageError> {
        self.inner.get(name).await.inspect(|bytes| self.read(name, bytes))
    }

    async fn get_range(&self, name: &ObjectName, range: Range<u64>) -> Result<Bytes, StorageError> {
        self.inner.get_range(name, range).await.inspect(|bytes| self.read(name, bytes))
    }

    async fn head(&self, name: &ObjectName) -> Result<Option<ObjectMeta>, StorageError> {
        self.inner.head(name).await
    }

    fn list(&self, prefix: &str) -> BoxStream<'_, Result<ObjectMeta, StorageError>> {
        self.inner.list(prefix)
    }

    async fn delete(&self, name: &ObjectName) -> Result<(), StorageError> {
        self.inner.delete(name).await
    }

    async fn probe(&self) -> Result<Capabilities, StorageError> {
        self.inner.probe().await
    }
}

/// Thirty days of mail in segments of 8 MiB, and a snapshot of them.
struct Month {
    place: Place,
    database: TestDatabase,
    client: Client,
    snapshot: Snapshot,
    options: SnapshotOptions,
    profile: Profile,
}

impl Month {
    async fn new() -> Self {
        let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
        let client = database.superuser().await;
        store::create(&client).await.unwrap();
        let month = load::Options { messages: 16_000, accounts: 10, max_size: 300_000, ..Default::default() };
        load::load(&client, &month).await.unwrap();
        // PostgreSQL 18 puts some of the mail into blocks that earlier mail left room in, so that hours lie all over the table.
        let in_order =
            "CREATE INDEX in_order ON messages (saved_at); CLUSTER messages USING in_order; DROP INDEX in_order";
        client.batch_execute(in_order).await.unwrap();
        let role = snapshot_role(&database).await;
        let options = SnapshotOptions { segment_bytes: 8 << 20, ..options() };
        let snapshot = snapshot(&place, &database.dsn_as(&role), &options).await.unwrap();
        let profile = Profile::builtin("reference").unwrap().unwrap();
        Self { place, database, client, snapshot, options, profile }
    }

    /// Destroys messages, nobody's trigger sees it; and attachments that no other message has. Gives the keys of both.
    async fn lose(&self, which: &str) -> (HashSet<Vec<u8>>, HashSet<Vec<u8>>) {
        let sql = format!(
            "SET session_replication_role = replica;
             CREATE TEMP TABLE gone AS SELECT id FROM messages WHERE {which};
             CREATE TEMP TABLE parts AS SELECT DISTINCT hash FROM message_attachments a WHERE message_id IN (SELECT id FROM gone)
                 AND NOT EXISTS (SELECT FROM message_attachments b WHERE b.hash = a.hash AND message_id NOT IN (SELECT id FROM gone));
             DELETE FROM keywords WHERE message_id IN (SELECT id FROM gone);
             DELETE FROM message_attachments WHERE message_id IN (SELECT id FROM gone);
             DELETE FROM messages WHERE id IN (SELECT id FROM gone);
             DELETE FROM attachments WHERE hash IN (SELECT hash FROM parts);
             RESET session_replication_role"
        );
        self.client.batch_execute(&sql).await.unwrap();
        let messages = self.client.query("SELECT int8send(id) FROM gone", &[]).await.unwrap();
        let parts = self.client.query("SELECT hash FROM parts", &[]).await.unwrap();
        let keys = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get(0)).collect();
        (keys(messages), keys(parts))
    }

    /// As superuser: what a role of its own may do is shown elsewhere, here bytes are counted.
    async fn session(&self) -> Session {
        Session::connect(&dsn(&self.database.superuser_dsn()), SessionOptions::default()).await.unwrap()
    }

    /// Opens the repository and restores a window, as the command does. What was put back, and what was read for it.
    async fn restore(&self, window: Window) -> (ReplayReport, u64, Vec<Read>) {
        let recording = Recording::over(self.place.storage.clone());
        let repository = self.place.reader_over(recording.clone()).await;
        let (all, _) = snapshots::list(&repository).await.unwrap();
        let chosen = all.iter().find(|one| one.id == self.snapshot.id).unwrap();
        let source = RepositorySource::open(SnapshotReader::open(&repository, chosen).await.unwrap()).await.unwrap();
        let session = self.session().await;
        let options = compare::Options { window, ..Default::default() };
        let comparison = compare::compare(&session, &source, &self.profile, &options).await.unwrap();
        let not_compared = comparison.not_compared;
        let plan = Plan::new(comparison, &PlanOptions { window, ..Default::default() });
        let apply = Apply::new(plan, ApplyOptions::default());
        let report = apply.run(&session, &source, &self.profile, &Silent).await.unwrap();
        (report, not_compared, recording.take())
    }

    /// What lies in the repository of rows whose key, in a column, is one of those given.
    async fn stored(&self, table: &str, column: &str, keys: &HashSet<Vec<u8>>) -> Stored {
        let reader = SnapshotReader::open(&self.place.reader().await, &self.snapshot).await.unwrap();
        let table = self.snapshot.manifest.table("public", table).unwrap();
        let (at, _) = table.column(column).unwrap();
        let mut stored = Stored::default();
        for segment in reader.segments(table).await.unwrap() {
            for increment in reader.descriptor(&segment).await.unwrap().increments {
                let rows = reader.fields(&increment, table.columns.len()).await.unwrap();
                let mut ordinals = Vec::new();
                let mut holds = false;
                rows.for_each::<restante::repository::RepositoryError>(|_, fields| {
                    if matches!(fields[at], Field::Inline(key) if keys.contains(key)) {
                        holds = true;
                        ordinals.extend(fields.iter().filter_map(|field| match field {
                            Field::Large(ordinal) => Some(*ordinal as usize),
                            _ => None,
                        }));
                    }
                    Ok(())
                })
                .unwrap();
                if holds {
                    let length = |id: &ChunkId| u64::from(reader.chunks.locate(id).unwrap().1.stored_length);
                    stored.row_chunks += increment.row_chunks.iter().map(|chunk| length(&chunk.id)).sum::<u64>();
                    stored.segments += 1;
                }
                if ordinals.is_empty() {
                    continue;
                }
                let map = reader.value_map(&increment).await.unwrap();
                for operation in ordinals.iter().flat_map(|ordinal| &map[*ordinal].recipe.operations) {
                    let id = increment.payload_chunk(operation.chunk).unwrap();
                    let (_, entry) = reader.chunks.locate(&id).unwrap();
                    stored.pieces.insert((id, operation.offset, operation.length));
                    stored.chunks.insert(id, *entry);
                }
            }
        }
        stored
    }

    /// How much of `reads` was of packs with mail in them: bytes and requests.
    async fn of_payload(&self, reads: &[Read]) -> (u64, usize) {
        let reader = SnapshotReader::open(&self.place.reader().await, &self.snapshot).await.unwrap();
        let packs: HashSet<String> = reader
            .chunks
            .index()
            .packs()
            .filter(|pack| pack.kind == restante::repository::chunk::ChunkKind::Payload)
            .map(|pack| pack.id.to_hex())
            .collect();
        let of_mail: Vec<u64> =
            reads.iter().filter(|read| packs.contains(read.name.file_name())).map(|read| read.bytes).collect();
        (of_mail.iter().sum(), of_mail.len())
    }
}

#[derive(Default)]
struct Stored {
    /// Of segments that hold one of the rows.
    row_chunks: u64,
    segments: usize,
    /// What the large values are made of: chunk, offset, length.
    pieces: BTreeSet<(ChunkId, u32, u32)>,
    chunks: HashMap<ChunkId, Entry>,
}

impl Stored {
    /// Bytes in the storage, of groups of small values by their share.
    fn payload(&self) -> u64 {
        let share = |(id, _, length): &(ChunkId, u32, u32)| {
            let entry = &self.chunks[id];
            u64::from(entry.stored_length) * u64::from(*length) / u64::from(entry.raw_length)
        };
        self.pieces.iter().map(share).sum()
    }

    /// Of all chunks that hold any of it.
    fn touched(&self) -> u64 {
        self.chunks.values().map(|entry| u64::from(entry.stored_length)).sum()
    }
}

fn total(reads: &[Read]) -> u64 {
    reads.iter().map(|read| read.bytes).sum()
}

async fn hours(client: &Client, from: i32, to: i32) -> Window {
    let sql = "SELECT (max(saved_at) - make_interval(hours => $1))::text, (max(saved_at) - make_interval(hours => $2))::text FROM messages";
    let row = client.query_one(sql, &[&from, &to]).await.unwrap();
    let time = |at: usize| Some(row.get::<_, String>(at).parse().unwrap());
    Window { from: time(0), to: time(1) }
}

fn within(window: &Window) -> String {
    format!("saved_at >= '{}' AND saved_at < '{}'", window.from.unwrap(), window.to.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_hours_of_thirty_days_fetch_what_is_missing_and_the_rows_around_it() {
    let month = Month::new().await;
    let window = hours(&month.client, 220, 200).await;
    let (messages, parts) = month.lose(&within(&window)).await;
    let (report, not_compared, reads) = month.restore(window).await;
    assert_eq!((report.mail.restored, report.outside), (messages.len() as u64, 0));

    let of_messages = month.stored("messages", "id", &messages).await;
    let of_links = month.stored("message_attachments", "message_id", &messages).await;
    let of_keywords = month.stored("keywords", "message_id", &messages).await;
    let of_parts = month.stored("attachments", "hash", &parts).await;
    let missing = of_messages.payload() + of_parts.payload();
    let rows = [&of_messages, &of_links, &of_keywords, &of_parts].iter().map(|of| of.row_chunks).sum::<u64>();
    let (mail, requests) = month.of_payload(&reads).await;
    println!(
        "{} messages missing: {missing} bytes stored, {rows} of row chunks in {} segments; read {} bytes in {} requests, {mail} of mail in {requests}; {not_compared} rows not read",
        messages.len(),
        of_messages.segments,
        total(&reads),
        reads.len()
    );
    assert!(messages.len() > 300 && not_compared > 12_000);
    let chunks = of_messages.chunks.keys().chain(of_parts.chunks.keys()).collect::<HashSet<_>>().len();
    assert!(requests <= chunks, "{requests} requests for {chunks} chunks of mail");
    assert!(total(&reads) * 10 <= missing * 13 + rows * 10, "{} bytes read for {missing} and {rows}", total(&reads));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thirty_scattered_messages_fetch_the_groups_they_touch() {
    let month = Month::new().await;
    let window = hours(&month.client, 400, 100).await;
    let which = format!(
        "id IN (SELECT id FROM (SELECT id, row_number() OVER (ORDER BY saved_at) n, count(*) OVER () c FROM messages
             WHERE mailbox_id = (SELECT mailbox_id FROM messages WHERE {0} GROUP BY 1 ORDER BY count(*) DESC LIMIT 1) AND {0}) x
             WHERE n % (c / 30) = 0 LIMIT 30)",
        within(&window)
    );
    let (messages, parts) = month.lose(&which).await;
    assert_eq!(messages.len(), 30);
    let (report, _, reads) = month.restore(window).await;
    assert_eq!((report.mail.restored, report.outside), (30, 0));
    let of_messages = month.stored("messages", "id", &messages).await;
    let of_parts = month.stored("attachments", "hash", &parts).await;
    let touched = of_messages.touched() + of_parts.touched();
    let chunks = of_messages.chunks.keys().chain(of_parts.chunks.keys()).collect::<HashSet<_>>().len();
    let (mail, requests) = month.of_payload(&reads).await;
    println!(
        "touched {touched} bytes in {chunks} chunks; read {mail} bytes of mail in {requests} requests, {} in all in {}",
        total(&reads),
        reads.len()
    );
    assert!(mail <= touched, "{mail} bytes of mail read, {touched} touched");
    assert!(requests <= chunks, "{requests} requests for {chunks} chunks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn choosing_a_snapshot_reads_only_what_two_have_not_in_common() {
    let month = Month::new().await;
    let window = hours(&month.client, 220, 200).await;
    let (messages, _) = month.lose(&within(&window)).await;
    let role = snapshot_role(&month.database).await;
    let options = SnapshotOptions { accept_loss: true, ..month.options.clone() };
    snapshot(&month.place, &month.database.dsn_as(&role), &options).await.unwrap();
    let recording = Recording::over(month.place.storage.clone());
    let repository = month.place.reader_over(recording.clone()).await;
    let (all, _) = snapshots::list(&repository).await.unwrap();
    let mut sources = Vec::new();
    for snapshot in all.iter().rev() {
        let reader = SnapshotReader::open(&repository, snapshot).await.unwrap();
        sources.push(RepositorySource::open(reader).await.unwrap());
    }
    let before = recording.take();
    let sources: Vec<&dyn Source> = sources.iter().map(|source| source as &dyn Source).collect();
    let catalog = catalog::read(&month.session().await).await.unwrap();
    let held = choose::holdings(&sources, &month.profile, &catalog, &Window::default()).await.unwrap();
    assert_eq!(held, [0, messages.len() as u64]);
    let reads = recording.take();
    let rows = month.stored("messages", "id", &messages).await;
    println!(
        "choosing: {} bytes in {} requests, {} of row chunks; opening both: {} in {}",
        total(&reads),
        reads.len(),
        rows.row_chunks,
        total(&before),
        before.len()
    );
    assert_eq!(month.of_payload(&reads).await, (0, 0));
}
