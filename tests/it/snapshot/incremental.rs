//! A snapshot that takes over what an earlier one has is what a full one would be, row by row; and it takes over what it can.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use restante::repository::chunk::ChunkKind;
use restante::repository::readers::KeyHolder;
use restante::repository::rotate::{RotateOptions, rotate};
use restante::repository::secrets::WriterKey;
use restante::repository::snapshots::{Snapshot, SnapshotReader};
use restante::snapshot::{SnapshotOptions, take};
use restante::storage::faults::{Fault, Faulty};
use restante::verify::{Level, VerifyOptions, verify};

use super::repeated::stored;
use super::support::{Oracle, Place, dsn, monitor, options, snapshot, snapshot_role};
use crate::server::{ServerOptions, TestDatabase, TestServer, as_server_user, binaries};

/// A store that is snapshotted again and again.
pub struct Series {
    pub place: Place,
    pub database: TestDatabase,
    pub store: String,
    oracle: Oracle,
    /// Snapshots so far: several in a second are told apart.
    number: AtomicU64,
    pub options: SnapshotOptions,
}

impl Series {
    pub async fn new(database: TestDatabase) -> Self {
        let place = Place::new().await;
        let store = database.dsn_as(&snapshot_role(&database).await);
        let oracle = Oracle::new("", &[]);
        let options = SnapshotOptions { pg_dump: oracle.program(), accept_loss: true, ..options() };
        Self { place, database, store, oracle, number: AtomicU64::new(0), options }
    }

    /// On a server of its own: a transaction of somebody else that is open makes rows be read again.
    async fn with(sql: &str) -> Self {
        let database = TestServer::dedicated(ServerOptions::default()).database(None).await;
        database.execute(sql).await;
        Self::new(database).await
    }

    /// Changes the store, takes a snapshot and holds it against what PostgreSQL showed at that instant.
    pub async fn after(&self, change: &str) -> Taken {
        self.database.execute(change).await;
        let taken = snapshot(&self.place, &self.store, &self.options).await.unwrap_or_else(|e| panic!("{change}: {e}"));
        assert_eq!(taken.manifest.sequence, self.number.fetch_add(1, Ordering::Relaxed) + 1, "{change}");
        let rows = self.oracle.compare(&self.place, &taken).await;
        Taken(taken, rows)
    }
}

pub struct Taken(Snapshot, BTreeMap<String, usize>);

impl Taken {
    pub fn read(&self) -> u64 {
        self.0.manifest.totals.read_rows
    }

    fn is_incremental(&self) -> bool {
        self.0.manifest.parent.is_some()
    }

    /// Why everything, or a table, was read whole.
    fn why(&self) -> String {
        let whole = self.0.manifest.read_whole.iter();
        whole
            .map(|one| format!("{}: {}", one.table.as_deref().unwrap_or("all"), one.reason))
            .collect::<Vec<_>>()
            .join("; ")
    }
}

const MAIL: &str =
    "CREATE TABLE mail (id int PRIMARY KEY, seen bool NOT NULL DEFAULT false, body text) WITH (fillfactor = 70);
     ALTER TABLE mail ALTER body SET STORAGE EXTERNAL;
     INSERT INTO mail SELECT g, false, repeat(md5(g::text), 40) FROM generate_series(1, 1000) g";

/// Rows of the table in `postgres-side.md` that tells what `ctid` and `xmin` do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_rows_that_came_are_read() {
    let series = Series::with(MAIL).await;
    let first = series.after("SELECT").await;
    assert!(!first.is_incremental() && first.read() == 1000 && first.why().is_empty(), "{}", first.why());
    let cases = [
        ("SELECT", 0),
        ("UPDATE mail SET seen = true WHERE id % 100 = 1", 10),
        ("BEGIN; UPDATE mail SET seen = true WHERE id = 1; ROLLBACK", 0),
        ("BEGIN; DELETE FROM mail; ROLLBACK", 0),
        (
            "BEGIN; SAVEPOINT a; UPDATE mail SET seen = NOT seen WHERE id = 2; RELEASE a; UPDATE mail SET seen = true WHERE id = 3; COMMIT",
            2,
        ),
        ("SELECT * FROM mail WHERE id < 10 FOR UPDATE", 0),
        ("SELECT * FROM mail WHERE id < 10 FOR SHARE", 0),
        ("DELETE FROM mail WHERE id % 50 = 0", 0),
        ("VACUUM mail", 0),
        ("INSERT INTO mail SELECT g, false, 'new' FROM generate_series(2001, 2010) g", 10),
        ("VACUUM (FREEZE) mail", 0),
        ("UPDATE mail SET body = body || 'x' WHERE id = 5", 1),
        ("ANALYZE mail; CREATE INDEX ON mail (seen)", 0),
    ];
    for (change, read) in cases {
        let taken = series.after(change).await;
        assert!(taken.is_incremental() && taken.why().is_empty(), "{change}: {}", taken.why());
        assert_eq!(taken.read(), read, "{change}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_whose_file_or_meaning_changed_is_read_whole() {
    let series = Series::with(&format!(
        "{MAIL}; CREATE TYPE kind AS ENUM ('a', 'b'); CREATE TYPE place AS (x int, y int); CREATE DOMAIN short AS varchar(20);
         CREATE TABLE typed (id int, k kind, p place, s short, d date); INSERT INTO typed SELECT g, 'a', ROW(g, g)::place, 'x' FROM generate_series(1, 20) g;
         CREATE TABLE other (id int); INSERT INTO other VALUES (1);
         CREATE TABLE parts (k int) PARTITION BY LIST (k); CREATE TABLE one PARTITION OF parts FOR VALUES IN (1); INSERT INTO parts VALUES (1), (1)"
    ))
    .await;
    series.after("SELECT").await;
    let whole = [
        (
            "TRUNCATE mail; INSERT INTO mail SELECT g FROM generate_series(1, 7) g",
            "public.mail: it was rewritten or emptied",
            7,
        ),
        ("CLUSTER mail USING mail_pkey", "public.mail: it was rewritten", 7),
        ("VACUUM FULL mail", "public.mail: it was rewritten", 7),
        ("ALTER TABLE mail ALTER id TYPE bigint", "public.mail: it was rewritten", 7),
        ("ALTER TABLE mail ADD flags int DEFAULT 3", "public.mail: its columns", 7),
        ("ALTER TABLE mail ADD later date", "public.mail: its columns", 7),
        ("ALTER TABLE mail DROP seen", "public.mail: its columns", 7),
        ("ALTER TABLE mail RENAME later TO soon", "public.mail: its columns", 7),
        (
            "BEGIN; TRUNCATE mail; COPY mail (id) FROM '/dev/null' WITH (FREEZE); COMMIT",
            "public.mail: it was rewritten",
            0,
        ),
        ("ALTER TYPE kind RENAME VALUE 'a' TO 'c'", "public.typed: its columns", 20),
        ("ALTER TYPE kind ADD VALUE 'd'", "public.typed: its columns", 20),
        ("ALTER TYPE place ADD ATTRIBUTE z int", "public.typed: its columns", 20),
        ("ALTER TYPE place DROP ATTRIBUTE z, ADD ATTRIBUTE z int", "public.typed: its columns", 20),
        (
            "ALTER DOMAIN short ADD CHECK (value <> 'z'); ALTER TABLE typed ALTER s TYPE text",
            "public.typed: its columns",
            20,
        ),
    ];
    for (change, why, read) in whole {
        let taken = series.after(change).await;
        assert!(taken.is_incremental() && taken.why().starts_with(why), "{change}: {:?}", taken.why());
        assert_eq!(taken.read(), read, "{change}");
    }
    let parts = [
        ("ALTER TABLE other RENAME TO others", 0),
        ("ALTER TABLE others SET SCHEMA public; ALTER TABLE others ADD PRIMARY KEY (id)", 0),
        ("ALTER TABLE parts DETACH PARTITION one", 0),
        ("ALTER TABLE parts ATTACH PARTITION one FOR VALUES IN (1)", 0),
        ("CREATE TABLE two PARTITION OF parts FOR VALUES IN (2); INSERT INTO parts VALUES (2)", 1),
        ("DROP TABLE one", 0),
        ("CREATE TABLE one PARTITION OF parts FOR VALUES IN (1); INSERT INTO parts VALUES (1)", 1),
    ];
    for (change, read) in parts {
        let taken = series.after(change).await;
        assert!(taken.is_incremental(), "{change}: {}", taken.why());
        assert_eq!(taken.read(), read, "{change}: {}", taken.why());
    }
}

/// What `regclass` shows changes with the table's name, and the row does not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_whose_text_depends_on_the_catalog_are_always_read() {
    let place = Place::new().await;
    let database = TestServer::shared().database(None).await;
    database.execute("CREATE TABLE other (id int); CREATE TABLE t (r regclass); INSERT INTO t VALUES ('other')").await;
    let store = database.dsn_as(&snapshot_role(&database).await);
    let read = async |change: &str| {
        database.execute(change).await;
        let taken = snapshot(&place, &store, &options()).await.unwrap();
        let reader =
            restante::repository::snapshots::SnapshotReader::open(&place.reader().await, &taken).await.unwrap();
        let table = taken.manifest.table("public", "t").unwrap();
        let mut rows = restante::repository::table_rows::TableRows::open(&reader, table).await.unwrap();
        let batch = rows.next_batch().await.unwrap().unwrap();
        String::from_utf8(batch[0].fields[0].as_ref().unwrap().to_vec()).unwrap()
    };
    assert_eq!(read("SELECT").await, "public.other");
    assert_eq!(read("ALTER TABLE other RENAME TO another").await, "public.another");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_were_open_are_not_missed() {
    let series = Series::new(
        TestServer::dedicated(ServerOptions::default().set("max_prepared_transactions", "5")).database(None).await,
    )
    .await;
    series.database.execute(MAIL).await;
    super::support::grant(&series.database, &role_of(&series)).await;
    let late = series.database.superuser().await;
    late.batch_execute("BEGIN; UPDATE mail SET seen = true WHERE id = 1; SAVEPOINT s; INSERT INTO mail VALUES (5000); DELETE FROM mail WHERE id = 2")
        .await
        .unwrap();
    series.database.execute("BEGIN; UPDATE mail SET seen = true WHERE id = 3; PREPARE TRANSACTION 'p'").await;
    let before = series.after("INSERT INTO mail VALUES (5001)").await;
    assert_eq!(before.1["public.mail"], 1001);
    late.batch_execute("COMMIT").await.unwrap();
    let after = series.after("COMMIT PREPARED 'p'").await;
    assert!(after.is_incremental() && after.read() >= 3 && after.read() < 20, "{} {}", after.read(), after.why());
    let twice = series.after("SELECT").await;
    assert_eq!(twice.read(), 0, "{}", twice.why());
}

fn role_of(series: &Series) -> String {
    role_of_dsn(&series.store)
}

pub fn role_of_dsn(dsn: &str) -> String {
    dsn.split("user=").nth(1).unwrap().split(' ').next().unwrap().trim_matches('\'').to_owned()
}

/// Copies the server's files, as a snapshot of a file system does, or puts them back.
pub fn copy_files(server: &Arc<TestServer>, from: &str, to: &str) {
    let base = server.data_directory();
    let base = base.parent().unwrap();
    let script = format!("rm -rf '{0}/{to}' && cp -a '{0}/{from}' '{0}/{to}'", base.display());
    assert!(as_server_user(Command::new("sh")).args(["-c", &script]).status().unwrap().success());
}

async fn durable() -> (Arc<TestServer>, Series) {
    let server =
        TestServer::dedicated(ServerOptions { fsync: true, ..ServerOptions::default() }.set("wal_writer_delay", "10s"));
    let database = server.database(None).await;
    database.execute(MAIL).await;
    let series = Series::new(database).await;
    (server, series)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_that_was_set_back_is_noticed() {
    let (server, series) = durable().await;
    let copy = || {
        server.stop();
        copy_files(&server, "data", "copy");
        server.start();
    };
    let set_back = || {
        server.stop();
        copy_files(&server, "copy", "data");
        server.start();
    };
    let swap = |text: &str| format!("DELETE FROM mail WHERE id = 17; INSERT INTO mail VALUES (17, true, '{text}')");
    copy();
    series.after("SELECT").await;
    // A clean restart is no reason to read anything.
    server.stop();
    server.start();
    assert_eq!(series.after("SELECT").await.read(), 0);
    assert_eq!(series.after(&swap("original")).await.read(), 1);
    set_back();
    // The same place and transaction, and another row.
    let back = series.after(&swap("another")).await;
    assert!(!back.is_incremental() && back.why().contains("there was no marker yet"), "{}", back.why());

    let known = series.after("SELECT").await;
    assert_eq!(known.read(), 0);
    copy();
    series.after(&swap("third")).await;
    series.database.execute(&swap("fourth")).await;
    set_back();
    // The snapshot that was taken before the copy is still true.
    let back = series.after(&swap("fifth")).await;
    assert_eq!((back.0.manifest.parent, back.read()), (Some(known.0.id), 1), "{}", back.why());
    series.database.execute("SELECT setval(oid::regclass, 5) FROM pg_class WHERE relkind = 'S' AND relnamespace = 'restante'::regnamespace").await;
    let changed = series.after("SELECT").await;
    assert!(!changed.is_incremental() && changed.why().contains("set back"), "{}", changed.why());
}

/// Somebody saved our own objects before, and loads them into the server that was set back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_marker_that_was_loaded_from_a_dump_is_no_proof() {
    let (server, series) = durable().await;
    server.stop();
    copy_files(&server, "data", "copy");
    server.start();
    series.after("UPDATE mail SET seen = true WHERE id = 17").await;
    let dump = |arguments: &[&str]| {
        let mut command = as_server_user(Command::new(binaries().join("pg_dump")));
        command.args(arguments).arg("-d").arg(series.database.superuser_dsn()).output().unwrap()
    };
    let saved = dump(&["--schema=restante"]);
    assert!(saved.status.success());
    server.stop();
    copy_files(&server, "copy", "data");
    server.start();
    series.database.execute("DROP SCHEMA IF EXISTS restante CASCADE").await;
    let saved: String = String::from_utf8(saved.stdout)
        .unwrap()
        .lines()
        .filter(|line| !line.starts_with('\\'))
        .collect::<Vec<_>>()
        .join("\n");
    series.database.execute(&saved).await;
    let back = series.after("UPDATE mail SET body = 'another' WHERE id = 17").await;
    assert!(!back.is_incremental() && back.why().contains("set back"), "{}", back.why());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crash_that_loses_asynchronous_commits_costs_no_row() {
    let (server, series) = durable().await;
    series.after("SELECT").await;
    // Seen by the snapshot: the marker's COMMIT flushes it, so that the crash cannot lose it.
    let seen = "SET synchronous_commit = off; UPDATE mail SET body = 'seen' WHERE id = 1";
    assert_eq!(series.after(seen).await.read(), 1);
    // Not seen, and lost: what comes in its place has its place and perhaps its transaction id.
    series.database.execute("SET synchronous_commit = off; UPDATE mail SET body = 'lost' WHERE id = 2").await;
    server.crash();
    server.start();
    let found = "SELECT body FROM mail WHERE id = 1";
    assert_eq!(series.database.superuser().await.query_one(found, &[]).await.unwrap().get::<_, &str>(0), "seen");
    let after = series.after("UPDATE mail SET body = 'instead' WHERE id = 2").await;
    assert!(after.is_incremental(), "a crash is no reason to read everything: {}", after.why());
    assert!(after.read() < 10, "{}", after.read());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_without_fsync_voids_what_was_known() {
    let server = TestServer::dedicated(ServerOptions::default());
    let database = server.database(None).await;
    database.execute(MAIL).await;
    let series = Series::new(database).await;
    series.after("SELECT").await;
    server.stop();
    server.start();
    let taken = series.after("SELECT").await;
    assert!(!taken.is_incremental() && taken.why().contains("fsync"), "{}", taken.why());
}

/// Transaction ids come round: a frozen row's place and id are handed out once more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ids_that_come_round_are_not_taken_for_the_same() {
    let (server, series) = durable().await;
    series.database.execute("CREATE TABLE tiny (a text)").await;
    let client = series.database.superuser().await;
    let xid = async || client.query_one("SELECT txid_current()", &[]).await.unwrap().get::<_, i64>(0);
    // The row whose place and transaction will come back.
    let old = xid().await + 200;
    while xid().await < old - 1 {}
    series.database.execute("INSERT INTO tiny VALUES ('old')").await;
    let row = "SELECT ctid::text, xmin::text FROM tiny";
    let shown = client.query_one(row, &[]).await.unwrap();
    let (place, xmin): (String, String) = (shown.get(0), shown.get(1));
    drop(client);
    series.database.execute("VACUUM FREEZE").await;
    for database in ["template1", "postgres"] {
        server.called(database).execute("VACUUM FREEZE").await;
    }
    server.stop();
    // Shortly before the wrap; the status of these transactions is made by hand, as the manual of pg_resetwal says.
    let data = server.data_directory();
    let reset = as_server_user(Command::new(binaries().join("pg_resetwal")))
        .args(["-x", "4294967200", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(reset.status.success(), "{}", String::from_utf8_lossy(&reset.stderr));
    let segment = format!("dd if=/dev/zero of='{}/pg_xact/0FFF' bs=8192 count=32 2>/dev/null", data.display());
    assert!(as_server_user(Command::new("sh")).args(["-c", &segment]).status().unwrap().success());
    server.start();
    let base = series.after("SELECT").await;
    assert_eq!(series.after("SELECT").await.read(), 0);
    series.database.execute("DELETE FROM tiny").await;
    series.database.execute("VACUUM FREEZE tiny").await;
    let client = series.database.superuser().await;
    let target: i64 = (1 << 32) + xmin.parse::<i64>().unwrap();
    let next = async || client.query_one("SELECT txid_current()", &[]).await.unwrap().get::<_, i64>(0);
    while next().await < target - 1 {}
    client.batch_execute("INSERT INTO tiny VALUES ('new')").await.unwrap();
    let shown = client.query_one(row, &[]).await.unwrap();
    assert_eq!((shown.get::<_, String>(0), shown.get::<_, String>(1)), (place, xmin), "the case did not come about");
    let after = series.after("SELECT").await;
    assert!(after.is_incremental() && base.1["public.tiny"] == after.1["public.tiny"], "{}", after.why());
    assert!(after.read() >= 1, "the row that came round was taken for the old one");
}

/// Bodies that nothing compresses and that are too small to be a chunk of their own.
const RANDOM: &str = "CREATE EXTENSION IF NOT EXISTS pgcrypto;
     CREATE TABLE mail (id int PRIMARY KEY, seen bool NOT NULL DEFAULT false, body bytea);
     ALTER TABLE mail ALTER body SET STORAGE EXTERNAL;
     INSERT INTO mail SELECT g, false, gen_random_bytes(1000) || gen_random_bytes(1000) FROM generate_series(1, 3000) g";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_value_that_moves_is_not_stored_again() {
    let series = Series::with(RANDOM).await;
    series.after("SELECT").await;
    let before = stored(&series.place, ChunkKind::Payload).await;
    assert!(before > 6_000_000, "{before}");
    // To the end of the table; half of it, of which no other row is read; and so many that all of the segment is read.
    assert_eq!(series.after("UPDATE mail SET seen = true WHERE id % 30 = 0").await.read(), 100);
    assert_eq!(series.after("UPDATE mail SET seen = false WHERE id % 2 = 0").await.read(), 1500);
    assert_eq!(series.after("UPDATE mail SET seen = false WHERE id % 20 <> 0").await.read(), 3000);
    let after = stored(&series.place, ChunkKind::Payload).await;
    assert_eq!(after, before, "values were stored again");
    // Most of what is stored is dead: what lives is stored anew, so that the old can go.
    let shrunk = series.after("DELETE FROM mail WHERE id > 500").await;
    assert_eq!(shrunk.read(), 500, "{}", shrunk.why());
    let grown = stored(&series.place, ChunkKind::Payload).await - before;
    assert!((1_000_000..1_100_000).contains(&grown), "{grown}");
    let repository = series.place.reader().await;
    let report = verify(&repository, &VerifyOptions::new(Level::Rows), &monitor()).await.unwrap();
    assert!(report.findings.is_empty(), "{:?}", report.findings);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_has_no_more_increments_than_a_restore_likes() {
    let series = Series::with(MAIL).await;
    series.after("SELECT").await;
    let mut most = 0;
    for round in 1..=12 {
        let change = format!(
            "UPDATE mail SET seen = NOT seen WHERE id % 100 = {round}; INSERT INTO mail VALUES (9000 + {round})"
        );
        let taken = series.after(&change).await;
        let reader = SnapshotReader::open(&series.place.reader().await, &taken.0).await.unwrap();
        let table = taken.0.manifest.table("public", "mail").unwrap();
        for entry in reader.segments(table).await.unwrap() {
            most = most.max(reader.descriptor(&entry).await.unwrap().increments.len());
        }
    }
    assert!((4..=8).contains(&most), "{most}");
}

/// The segments of a table follow each other, and only the last is open.
pub async fn check_ranges(reader: &SnapshotReader) {
    for table in &reader.manifest().tables {
        let mut end = Some(0);
        for entry in reader.segments(table).await.unwrap() {
            let descriptor = reader.descriptor(&entry).await.unwrap();
            assert_eq!(end, Some(descriptor.first_block), "{}", table.label());
            end = descriptor.end_block;
        }
        assert_eq!(end, None, "{}", table.label());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_is_no_longer_the_last_is_no_longer_open() {
    // A row fills a block, so the segment stays as it is when the table grows.
    let block = "CREATE TABLE t (id int, body text); ALTER TABLE t ALTER body SET STORAGE PLAIN;
         INSERT INTO t SELECT g, repeat('x', 7000) FROM generate_series(1, 4) g";
    let mut series = Series::with(block).await;
    series.options.segment_bytes = 32 << 10;
    series.after("SELECT").await;
    for (change, read) in [
        ("INSERT INTO t SELECT g, repeat('y', 7000) FROM generate_series(5, 8) g", 4),
        ("DELETE FROM t WHERE id > 4", 0),
        ("VACUUM t", 0),
    ] {
        let taken = series.after(change).await;
        assert_eq!(taken.read(), read, "{change}: {}", taken.why());
        check_ranges(&SnapshotReader::open(&series.place.reader().await, &taken.0).await.unwrap()).await;
    }
}

/// Several segments of a megabyte.
async fn large() -> Series {
    let mut series = Series::with(RANDOM).await;
    series.database.execute("INSERT INTO mail SELECT g, false, gen_random_bytes(1000) || gen_random_bytes(1000) FROM generate_series(3001, 12000) g").await;
    series.options = small_segments(&series);
    series
}

fn small_segments(series: &Series) -> SnapshotOptions {
    SnapshotOptions { segment_bytes: 1 << 20, jobs: 1, memory: 16 << 20, ..series.options.clone() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_where_the_one_before_was_interrupted() {
    let series = large().await;
    let interrupted = async |series: &Series| {
        let faulty = Arc::new(Faulty::new(series.place.storage.clone()));
        let mut options = series.options.clone();
        options.reading.cancel = Default::default();
        let (cancel, packs) = (options.reading.cancel.clone(), AtomicUsize::new(0));
        let counted = move |call: &restante::storage::faults::Call| {
            if call.name.starts_with("packs/") && packs.fetch_add(1, Ordering::Relaxed) == 5 {
                cancel.cancel();
            }
            false
        };
        faulty.inject(counted, Fault::FailBefore);
        let repository = series.place.writer_over(faulty).await;
        take(&repository, &dsn(&series.store), &options, &monitor()).await.unwrap_err();
    };
    let checkpoints = || series.place.objects().keys().filter(|name| name.starts_with("checkpoints/")).count();
    interrupted(&series).await;
    assert_eq!(checkpoints(), 1);
    // Another one that does not get as far; the store has changed meanwhile.
    series.database.execute("UPDATE mail SET seen = true WHERE id = 5; DELETE FROM mail WHERE id = 6").await;
    interrupted(&series).await;
    let done = series.after("UPDATE mail SET seen = true WHERE id = 7").await;
    assert!(!done.is_incremental(), "there is no earlier snapshot");
    assert!((1000..10000).contains(&done.read()), "{} of 11999 rows were read", done.read());
    assert_eq!(checkpoints(), 0);
    assert_eq!(series.after("SELECT").await.read(), 0);
}

/// Nothing that comes after a death is written; what was written down before is gone on with.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_goes_on_where_the_one_before_died() {
    let mut series = large().await;
    series.options.checkpoint_every = Duration::from_millis(20);
    let faulty = Arc::new(Faulty::new(series.place.storage.clone()));
    let packs = AtomicUsize::new(0);
    let in_the_middle = move |call: &restante::storage::faults::Call| {
        call.name.starts_with("packs/") && packs.fetch_add(1, Ordering::Relaxed) == 30
    };
    faulty.inject(in_the_middle, Fault::DieBefore);
    let repository = series.place.writer_over(faulty).await;
    take(&repository, &dsn(&series.store), &series.options, &monitor()).await.unwrap_err();
    let done = series.after("DELETE FROM mail WHERE id = 6").await;
    assert!(done.read() < 11500, "{} of 11999 rows were read", done.read());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_in_the_repository_is_read_again() {
    let mut series = Series::with(RANDOM).await;
    series.options = small_segments(&series);
    series.after("SELECT").await;
    let packs: Vec<String> = series.place.objects().into_keys().filter(|name| name.starts_with("packs/")).collect();
    for kind in [ChunkKind::Payload, ChunkKind::Row, ChunkKind::Meta] {
        let reader = series.place.reader().await;
        let index = restante::repository::reader::load_index(&*reader.storage, &reader.secrets, None).await.unwrap();
        let lost = packs.iter().find(|name| {
            let id = name.rsplit('/').next().unwrap().parse().unwrap();
            index.pack(&id).is_some_and(|pack| pack.kind == kind)
                && series.place.path(&format!("repository/{name}")).exists()
        });
        std::fs::remove_file(series.place.path(&format!("repository/{}", lost.unwrap()))).unwrap();
        let healed = series.after("SELECT").await;
        assert!(healed.read() > 0, "{kind:?}");
        let options = VerifyOptions { only: Some(&healed.0), ..VerifyOptions::new(Level::Rows) };
        let report = verify(&series.place.reader().await, &options, &monitor()).await.unwrap();
        assert!(report.findings.is_empty(), "{kind:?}: {:?}", report.findings);
        assert_eq!(series.after("SELECT").await.read(), 0, "{kind:?}");
    }
}

/// What a thief of the old keys may have written is not carried on under the new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_that_were_replaced_end_what_was_known_and_a_new_epoch_alone_does_not() {
    let series = Series::with(MAIL).await;
    let rotated = async |new_id_secret| {
        let key = WriterKey::load(&series.place.path("writer.key")).unwrap();
        let holder =
            KeyHolder::open(series.place.storage.clone(), key, &[series.place.path("reader.key")]).await.unwrap();
        let readers = holder.readers().to_vec();
        let rotation = rotate(holder, RotateOptions { readers, new_id_secret }).await.unwrap();
        rotation.writer_key.save(&series.place.path("writer.key"), true).unwrap();
        rotation.commit().await.unwrap();
    };
    series.after("SELECT").await;
    rotated(false).await;
    assert_eq!(series.after("UPDATE mail SET seen = true WHERE id = 7").await.read(), 1);
    rotated(true).await;
    let whole = series.after("SELECT").await;
    assert!(!whole.is_incremental() && whole.why().contains("were replaced"), "{}", whole.why());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_marker_everything_is_read_unless_somebody_vouches() {
    let mut series = Series::with(MAIL).await;
    series.database.execute("REVOKE ALL ON SCHEMA restante FROM PUBLIC").await;
    series.database.execute(&format!("REVOKE ALL ON SCHEMA restante FROM {}", role_of(&series))).await;
    series.after("SELECT").await;
    let whole = series.after("SELECT").await;
    assert!(whole.read() == 1000 && whole.why().contains("no marker can be left"), "{}", whole.why());
    series.options.trust_history = true;
    assert_eq!(series.after("UPDATE mail SET seen = true WHERE id = 5").await.read(), 1);
    series.options.full = true;
    let full = series.after("SELECT").await;
    assert!(full.read() == 1000 && full.why().contains("--full"), "{}", full.why());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_standby_goes_on_from_what_its_primary_left_and_a_promoted_one_does_not() {
    let primary = TestServer::dedicated(ServerOptions { fsync: true, ..ServerOptions::default() });
    let database = primary.database(None).await;
    database.execute(MAIL).await;
    let mut series = Series::new(database).await;
    series.after("SELECT").await;
    let standby = primary.standby(ServerOptions::default());
    let role = role_of(&series);
    series.store = standby.dsn(&role, series.database.name());
    let followed = async |sql: &str| {
        series.database.execute(sql).await;
        let at = primary.ask("SELECT pg_current_wal_lsn()");
        while standby.ask(&format!("SELECT pg_last_wal_replay_lsn() >= '{at}'")) == "f" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    followed("UPDATE mail SET seen = true WHERE id = 5").await;
    let whole = series.after("SELECT").await;
    assert!(whole.why().contains("standby"), "{}", whole.why());
    series.options.trust_history = true;
    followed("UPDATE mail SET seen = true WHERE id = 6; DELETE FROM mail WHERE id = 7").await;
    assert_eq!(series.after("SELECT").await.read(), 1);
    standby.ask("SELECT pg_promote()");
    series.options.trust_history = false;
    let promoted = series.after("SELECT").await;
    assert!(!promoted.is_incremental(), "{}", promoted.why());
    assert!(promoted.why().contains("timeline") || promoted.why().contains("set back"), "{}", promoted.why());
}

/// A sequence of ours is no part of a publication.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscriber_of_all_tables_keeps_applying() {
    let server = TestServer::dedicated(ServerOptions::default().set("wal_level", "logical"));
    let (database, copy) = (server.database(None).await, server.database(None).await);
    database.execute(&format!("{MAIL}; CREATE PUBLICATION everything FOR ALL TABLES")).await;
    copy.execute("CREATE TABLE mail (id int PRIMARY KEY, seen bool NOT NULL DEFAULT false, body text)").await;
    let slot = "SELECT pg_create_logical_replication_slot('copying', 'pgoutput')";
    database.execute(slot).await;
    let subscribe = format!(
        "CREATE SUBSCRIPTION copying CONNECTION '{}' PUBLICATION everything WITH (create_slot = false, slot_name = 'copying')",
        database.superuser_dsn().replace('\'', "''")
    );
    copy.superuser().await.batch_execute(&subscribe).await.unwrap();
    let series = Series::new(database).await;
    for round in 1..=3 {
        series.after(&format!("INSERT INTO mail VALUES (5000 + {round})")).await;
        let client = copy.superuser().await;
        let arrived = format!("SELECT count(*) FROM mail WHERE id = 5000 + {round}");
        let mut waited = 0;
        while client.query_one(&arrived, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            waited += 1;
            assert!(waited < 600, "the subscriber stopped: {}", server.log());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    copy.execute("ALTER SUBSCRIPTION copying DISABLE; ALTER SUBSCRIPTION copying SET (slot_name = NONE); DROP SUBSCRIPTION copying").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_of_no_encoding_are_taken_over() {
    let server = TestServer::dedicated(ServerOptions::default());
    let database = server.database_with("TEMPLATE template0 ENCODING 'SQL_ASCII'").await;
    database
        .execute("CREATE TABLE t (a int, b text); INSERT INTO t SELECT g, E'\\xe9\\xff' FROM generate_series(1, 10) g")
        .await;
    let series = Series::new(database).await;
    series.after("SELECT").await;
    assert_eq!(series.after("UPDATE t SET a = 3 WHERE a = 1").await.read(), 1);
}

/// No clock: a reader that may read a byte a second is still there when the others would have been done, and ends at once when it must.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_is_held_back_still_gives_way_at_once() {
    let series = Series::with(MAIL).await;
    let mut options = SnapshotOptions { rate_limit: Some(1), ..series.options.clone() };
    options.reading.cancel = Default::default();
    let (cancel, packs) = (options.reading.cancel.clone(), series.place.storage.clone());
    let repository = series.place.writer_over(packs).await;
    let monitor = monitor();
    let store = dsn(&series.store);
    let mut running = std::pin::pin!(take(&repository, &store, &options, &monitor));
    let reading = async {
        // Until it reads: then its first batch alone would take a day.
        let client = series.database.superuser().await;
        let asked =
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'restante' AND query LIKE 'COPY%body%'";
        while client.query_one(asked, &[]).await.unwrap().get::<_, i64>(0) == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        _ = &mut running => panic!("it was not held back"),
        () = reading => {}
    }
    cancel.cancel();
    running.await.unwrap_err();
}
