//! A small store, the keys of a repository, and what both must still be afterwards. What a snapshot should hold is asked of
//! PostgreSQL itself, through a COPY that shares no code with Restante.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::TryStreamExt;
#[cfg(feature = "failpoints")]
use jiff::SignedDuration;
use restante::monitor::{SharedMonitor, Silent};
use restante::postgres::reading::ReadingOptions;
#[cfg(feature = "failpoints")]
use restante::repository::forgotten;
#[cfg(feature = "failpoints")]
use restante::repository::prune::{PruneOptions, prune};
use restante::repository::readers::KeyHolder;
use restante::repository::rotate::{RotateOptions, rotate};
use restante::repository::secrets::WriterKey;
use restante::repository::snapshots::{self, Snapshot, SnapshotReader};
use restante::repository::table_rows::TableRows;
use restante::repository::{Access, InitOptions, Repository, RepositoryError, init, ring};
use restante::snapshot::{SEGMENT_BYTES, SnapshotError, SnapshotOptions, take};
use restante::storage::{PutMode, Storage};
use restante::verify::{FindingKind, Level, Report, VerifyOptions, verify};

use super::memory::{Memory, Objects, copy_of};
use crate::postgres::support::{dsn, reading_role};
use crate::server::{TestDatabase, TestServer};

/// Tables, their rows in the order of the heap, each field as the server sends it.
pub type Rows = BTreeMap<String, Vec<Vec<Option<Vec<u8>>>>>;

pub const TABLES: [&str; 3] = ["accounts", "messages", "keywords"];

/// What compresses badly (bodies of attachments), in `64 KiB` steps, so that the packs of a small store are several.
pub async fn store(server: &Arc<TestServer>, messages: u32, large: u32) -> (TestDatabase, String) {
    let database = server.database(None).await;
    database
        .execute(&format!(
            "CREATE TABLE accounts (id serial PRIMARY KEY, address text UNIQUE NOT NULL, quota bigint);
             CREATE TABLE messages (id bigserial PRIMARY KEY, account int REFERENCES accounts, received timestamptz,
                                    subject text, body bytea NOT NULL, token uuid);
             CREATE TABLE keywords (message bigint REFERENCES messages, keyword text, PRIMARY KEY (message, keyword));
             INSERT INTO accounts (address, quota) SELECT 'user' || i || '@example.org', i * 1000 FROM generate_series(1, 5) i;
             INSERT INTO messages (account, received, subject, body, token)
               SELECT 1 + i % 5, timestamptz '2014-08-10 12:00Z' + i * interval '1 minute',
                      CASE WHEN i % 7 > 0 THEN 'subject ' || i END,
                      convert_to('From: a@example.org' || chr(10) || chr(10) || repeat(md5(i::text), i % 60), 'UTF8'),
                      md5(i::text)::uuid
               FROM generate_series(1, {messages}) i;
             INSERT INTO messages (account, received, subject, body)
               SELECT 1 + i % 5, 'infinity', 'large ' || i,
                      (SELECT string_agg(decode(md5(i || ':' || j), 'hex'), '' ORDER BY j) FROM generate_series(1, 4096) j)
               FROM generate_series(1, {large}) i;
             INSERT INTO keywords SELECT id, 'keyword' || id % 3 FROM messages WHERE id % 2 = 0"
        ))
        .await;
    let role = reading_role(&database).await;
    (database, role)
}

/// What the server says is in the store.
pub async fn rows_of(database: &TestDatabase) -> Rows {
    let client = database.superuser().await;
    client.batch_execute("SET synchronize_seqscans = off").await.unwrap();
    let mut rows = Rows::new();
    for table in TABLES {
        let stream = client.copy_out(&format!("COPY {table} TO STDOUT (FORMAT binary)")).await.unwrap();
        let bytes: Vec<u8> = stream.try_collect::<Vec<_>>().await.unwrap().concat();
        rows.insert(format!("public.{table}"), copied(&bytes));
    }
    rows
}

/// PostgreSQL's manual, "COPY", "Binary Format".
fn copied(bytes: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
    let mut rest = &bytes[19..];
    let mut take = |n: usize| {
        let (taken, after) = rest.split_at(n);
        rest = after;
        taken
    };
    let mut rows = Vec::new();
    loop {
        let fields = i16::from_be_bytes(take(2).try_into().unwrap());
        if fields < 0 {
            return rows;
        }
        let mut row = Vec::new();
        for _ in 0..fields {
            let length = i32::from_be_bytes(take(4).try_into().unwrap());
            row.push((length >= 0).then(|| take(length as usize).to_vec()));
        }
        rows.push(row);
    }
}

/// The key files of a repository, and a `pg_dump` that costs no time.
pub struct Keys {
    folder: tempfile::TempDir,
}

impl Keys {
    /// Makes a repository for one reader.
    pub async fn init(storage: &dyn Storage) -> Self {
        let keys = Self { folder: tempfile::tempdir().unwrap() };
        let reader = ring::generate_identity(&keys.reader()).unwrap();
        let made = init(storage, InitOptions { readers: vec![reader], created: jiff::Timestamp::now() }).await.unwrap();
        made.writer_key.save(&keys.writer(), false).unwrap();
        let script =
            "#!/bin/sh\ncase $1 in --version) echo 'pg_dump (PostgreSQL) 99.0';; *) echo 'no real schema';; esac\n";
        std::fs::write(keys.pg_dump(), script).unwrap();
        std::fs::set_permissions(keys.pg_dump(), std::fs::Permissions::from_mode(0o755)).unwrap();
        keys
    }

    /// Those that lie in a folder.
    pub fn stored(folder: &Path) -> Self {
        let keys = Self { folder: tempfile::tempdir().unwrap() };
        std::fs::copy(folder.join("writer.key"), keys.writer()).unwrap();
        std::fs::copy(folder.join("reader.key"), keys.reader()).unwrap();
        keys
    }

    pub fn writer(&self) -> PathBuf {
        self.folder.path().join("writer.key")
    }

    pub fn reader(&self) -> PathBuf {
        self.folder.path().join("reader.key")
    }

    pub fn pg_dump(&self) -> PathBuf {
        self.folder.path().join("pg_dump")
    }

    pub fn key(&self) -> WriterKey {
        WriterKey::load(&self.writer()).unwrap()
    }

    /// One more reader: a second key ring.
    pub async fn add_reader(&self, storage: &Arc<dyn Storage>) {
        let another = ring::generate_identity(&self.folder.path().join("second.key")).unwrap();
        let holder = KeyHolder::open(storage.clone(), self.key(), &[self.reader()]).await.unwrap();
        holder.add_reader(&another).await.unwrap().save(&self.writer(), true).unwrap();
    }

    /// A new epoch: a second configuration and one more key ring.
    pub async fn rotate(&self, storage: &Arc<dyn Storage>) {
        let holder = KeyHolder::open(storage.clone(), self.key(), &[self.reader()]).await.unwrap();
        let readers = holder.readers().to_vec();
        let rotation = rotate(holder, RotateOptions { readers, new_id_secret: true }).await.unwrap();
        rotation.writer_key.save(&self.writer(), true).unwrap();
        rotation.commit().await.unwrap();
    }

    pub async fn as_writer(&self, storage: &Arc<dyn Storage>) -> Result<Repository, RepositoryError> {
        Repository::open(storage.clone(), Access::Writer(self.key()), None).await
    }

    pub async fn as_reader(&self, storage: &Arc<dyn Storage>) -> Result<Repository, RepositoryError> {
        let fingerprint = self.key().fingerprint;
        Repository::open(storage.clone(), Access::Reader(vec![self.reader()]), Some(fingerprint)).await
    }

    /// A snapshot with one reader and the smallest packs.
    pub async fn snapshot(&self, storage: &Arc<dyn Storage>, dsn_text: &str) -> Result<Snapshot, SnapshotError> {
        let repository = self.as_writer(storage).await?;
        let options = SnapshotOptions {
            jobs: 1,
            memory: 16 << 20,
            segment_bytes: SEGMENT_BYTES,
            tags: Vec::new(),
            exclude: Vec::new(),
            reading: ReadingOptions::default(),
            pg_dump: self.pg_dump(),
            suspect_percent: 20,
            heads: Vec::new(),
            accept_loss: false,
            skip_if_unchanged: false,
            full: false,
            trust_history: false,
            rate_limit: None,
            checkpoint_every: std::time::Duration::from_secs(60),
        };
        take(&repository, &dsn(dsn_text), &options, &monitor()).await
    }

    pub async fn verify(
        &self,
        storage: &Arc<dyn Storage>,
        reader: bool,
        level: Level,
    ) -> Result<Report, RepositoryError> {
        let repository = if reader { self.as_reader(storage).await? } else { self.as_writer(storage).await? };
        verify(&repository, &VerifyOptions::new(level), &monitor()).await
    }

    /// All rows of a snapshot, as a restore gets them; also what was left out when snapshots were listed.
    pub async fn read(
        &self,
        storage: &Arc<dyn Storage>,
        wanted: &str,
    ) -> Result<(Rows, Vec<RepositoryError>), (RepositoryError, Vec<RepositoryError>)> {
        let alone = |e: RepositoryError| (e, Vec::new());
        let mut repository = self.as_reader(storage).await.map_err(alone)?;
        let (all, mut problems) = snapshots::list(&repository).await.map_err(alone)?;
        problems.extend(std::mem::take(&mut repository.passed_over).into_iter().map(|(name, e)| {
            let message = format!("it was passed over: {e}");
            RepositoryError::Damaged { name, message }
        }));
        let rows = async {
            let snapshot = snapshots::select(&all, wanted)?;
            let reader = SnapshotReader::open(&repository, snapshot).await?;
            let schema = &reader.manifest().schema;
            reader.chunks.fetch_all(&[schema.catalog.as_slice(), &schema.dump].concat()).await?;
            let mut rows = Rows::new();
            for table in &reader.manifest().tables {
                let mut read = Vec::new();
                let mut table_rows = TableRows::open(&reader, table).await?;
                while let Some(batch) = table_rows.next_batch().await? {
                    let fields = batch.into_iter().map(|row| row.fields);
                    read.extend(fields.map(|row| row.into_iter().map(|f| f.map(|b| b.to_vec())).collect()));
                }
                rows.insert(table.label(), read);
            }
            Ok(rows)
        };
        match rows.await {
            Ok(rows) => Ok((rows, problems)),
            Err(e) => Err((e, problems)),
        }
    }
}

pub fn monitor() -> SharedMonitor {
    Arc::new(Silent)
}

/// A store that was snapshotted once and has changed since, and copies of the repository to try things on.
pub struct Scene {
    pub database: TestDatabase,
    pub dsn: String,
    pub keys: Keys,
    pub objects: Objects,
    /// What the first snapshot holds, and what the next one must.
    pub before: (String, Rows),
    pub after: Rows,
}

impl Scene {
    pub async fn new(server: &Arc<TestServer>, messages: u32, large: u32) -> Self {
        let (database, role) = store(server, messages, large).await;
        let dsn = database.dsn_as(&role);
        let storage: Arc<dyn Storage> = Memory::of(Objects::new());
        let keys = Keys::init(&*storage).await;
        let first = keys.snapshot(&storage, &dsn).await.unwrap();
        let before = (first.id.to_hex(), rows_of(&database).await);
        database
            .execute(&format!(
                "UPDATE messages SET subject = 'changed', body = body || 'x' WHERE id % 3 = 0; \
                 DELETE FROM keywords WHERE message = 2; INSERT INTO accounts (address) VALUES ('late@example.org'); \
                 INSERT INTO messages (account, body) SELECT 2, body FROM messages WHERE id > {messages} LIMIT 3"
            ))
            .await;
        let after = rows_of(&database).await;
        let objects = copy_of(&*storage).await;
        Self { database, dsn, keys, objects, before, after }
    }

    /// The same with a snapshot that is forgotten and its packs marked, and one that was forgotten since for longer: when everything is some
    /// days old there is something of each kind to do.
    #[cfg(feature = "failpoints")]
    pub async fn with_something_to_prune(mut self) -> Self {
        let storage: Arc<dyn Storage> = Memory::of(self.objects.clone());
        let writer = self.keys.as_writer(&storage).await.unwrap();
        for grace in [forgotten::GRACE, forgotten::GRACE * 100] {
            let snapshot = self.keys.snapshot(&storage, &self.dsn).await.unwrap();
            forgotten::forget(&writer, &snapshot.id, grace).await.unwrap();
            if grace == forgotten::GRACE {
                // The clock of this storage stands still.
                let (grace, listing_delay) = (SignedDuration::ZERO, Default::default());
                let options = PruneOptions { grace, listing_delay, repack: 0, dry_run: false };
                let marked = prune(&writer, &options, &monitor()).await.unwrap();
                assert!(marked.marked.packs > 0 && marked.snapshots.is_empty(), "{marked:?}");
            }
            let change = "UPDATE messages SET body = body || 'y' WHERE id % 4 = 0; DELETE FROM messages WHERE id = 7";
            self.database.execute(change).await;
        }
        self.after = rows_of(&self.database).await;
        self.objects = copy_of(&*storage).await;
        self
    }

    /// Puts a copy of the repository into a place.
    #[cfg_attr(not(feature = "s3"), allow(dead_code))]
    pub async fn copy_into(&self, storage: &dyn Storage) {
        for (name, bytes) in &self.objects {
            storage.put(name, bytes.clone(), PutMode::Create, None).await.unwrap();
        }
    }

    /// What must hold after anything: whatever is certified is whole, the next snapshot goes through, and then all is sound.
    pub async fn all_is_well(&self, storage: &Arc<dyn Storage>, what: &str) {
        let report = self.keys.verify(storage, true, Level::Rows).await.unwrap_or_else(|e| panic!("{what}: {e}"));
        let wrong = report.findings.iter().find(|finding| finding.kind != FindingKind::Uncertified);
        assert!(wrong.is_none(), "{what}: {wrong:?}");
        self.certified_is_whole(storage, what).await;
        let again = self.keys.snapshot(storage, &self.dsn).await.unwrap_or_else(|e| panic!("{what}, run again: {e}"));
        assert!(again.certificate.is_some(), "{what}");
        self.certified_is_whole(storage, what).await;
        let report = self.keys.verify(storage, true, Level::Rows).await.unwrap();
        assert!(report.findings.is_empty(), "{what}, run again: {:?}", report.findings);
    }

    /// Every certified snapshot is read back byte for byte; how many there are.
    pub async fn certified_is_whole(&self, storage: &Arc<dyn Storage>, what: &str) -> usize {
        let repository = self.keys.as_reader(storage).await.unwrap();
        let (all, problems) = snapshots::list(&repository).await.unwrap();
        assert!(problems.is_empty(), "{what}: {problems:?}");
        let certified: Vec<_> = all.iter().filter(|snapshot| snapshot.certificate.is_some()).collect();
        assert!(
            certified.iter().any(|snapshot| snapshot.id.to_hex() == self.before.0),
            "{what}: the first one is lost"
        );
        for snapshot in &certified {
            let id = snapshot.id.to_hex();
            let expected = if id == self.before.0 { &self.before.1 } else { &self.after };
            let (rows, _) = self.keys.read(storage, &id).await.unwrap_or_else(|e| panic!("{what}: {}", e.0));
            assert!(rows == *expected, "{what}: snapshot {id} is not what PostgreSQL tells");
        }
        certified.len()
    }
}
