//! Random histories of a store: rows, schema, vacuum, crashes, a data directory that is set back, runs that are cut short. After each piece the next
//! snapshot is what PostgreSQL shows, row by row, whatever it took over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use restante::repository::Repository;
use restante::repository::snapshots::{Snapshot, SnapshotReader};
use restante::repository::table_rows::TableRows;
use restante::snapshot::{SnapshotOptions, take};
use restante::storage::faults::{Fault, Faulty};
use tokio_postgres::Client;

use super::incremental::{check_ranges, copy_files, role_of_dsn};
use super::support::{Place, binary_rows, dsn, grant, monitor, options, snapshot, snapshot_role};
use crate::server::{ServerOptions, TestDatabase, TestServer};

/// What happens between two snapshots.
#[derive(Debug, Clone)]
enum Event {
    Insert(u8),
    Update(u8),
    /// In a transaction with a savepoint that is rolled back.
    UpdateHalf(u8),
    Delete(u8),
    RollBack(u8),
    Truncate,
    Vacuum,
    Freeze,
    Full,
    AddColumn,
    AddColumnWithDefault,
    DropColumn,
    Widen,
    RenameLabel,
    Swap,
    /// Not flushed when it is committed.
    Asynchronous(u8),
    /// Stays open over the next snapshot.
    Open(u8),
    Close,
    Crash,
    /// The data directory is copied away.
    Copy,
    /// And put back.
    SetBack,
    /// A snapshot that dies at this call to the storage.
    CutShort(u8),
}

fn event() -> impl Strategy<Value = Event> {
    use Event::*;
    prop_oneof![
        8 => any::<u8>().prop_map(Insert),
        8 => any::<u8>().prop_map(Update),
        2 => any::<u8>().prop_map(UpdateHalf),
        6 => any::<u8>().prop_map(Delete),
        2 => any::<u8>().prop_map(RollBack),
        1 => Just(Truncate),
        4 => Just(Vacuum),
        2 => Just(Freeze),
        1 => Just(Full),
        1 => Just(AddColumn),
        1 => Just(AddColumnWithDefault),
        1 => Just(DropColumn),
        1 => Just(Widen),
        1 => Just(RenameLabel),
        1 => Just(Swap),
        2 => any::<u8>().prop_map(Asynchronous),
        2 => any::<u8>().prop_map(Open),
        2 => Just(Close),
        1 => Just(Crash),
        1 => Just(Copy),
        1 => Just(SetBack),
        2 => any::<u8>().prop_map(CutShort),
    ]
}

/// Pieces of a history, with a snapshot after each.
fn history() -> impl Strategy<Value = Vec<Vec<Event>>> {
    prop::collection::vec(prop::collection::vec(event(), 0..5), 2..6)
}

struct World {
    server: Arc<TestServer>,
    database: TestDatabase,
    store: String,
    options: SnapshotOptions,
    copied: bool,
    /// Whoever makes the changes; gone with the server.
    client: Option<Client>,
    open: Option<Client>,
    names: u64,
}

const SCHEMA: &str =
    "DROP TABLE IF EXISTS mail, part CASCADE; DROP TYPE IF EXISTS kind; CREATE TYPE kind AS ENUM ('a', 'b');
     CREATE TABLE mail (id serial, seen int NOT NULL DEFAULT 0, k kind DEFAULT 'a', body text);
     ALTER TABLE mail ALTER body SET STORAGE EXTERNAL;
     CREATE TABLE part (id serial, name varchar(30) DEFAULT 'x'); INSERT INTO part (name) VALUES ('one'), ('two');
     INSERT INTO mail (body) SELECT repeat(md5(g::text), g % 40) FROM generate_series(1, 150) g";

impl World {
    async fn new() -> Self {
        let server = TestServer::dedicated(
            ServerOptions { fsync: true, in_memory: true, ..ServerOptions::default() }.set("wal_writer_delay", "10s"),
        );
        let database = server.database(None).await;
        let store = database.dsn_as(&snapshot_role(&database).await);
        // Several segments in a table, and no pg_dump.
        let options = SnapshotOptions {
            segment_bytes: 32 << 10,
            pg_dump: "/nonexistent/pg_dump".into(),
            accept_loss: true,
            memory: 16 << 20,
            jobs: 1,
            ..options()
        };
        Self { server, database, store, options, copied: false, client: None, open: None, names: 0 }
    }

    async fn client(&mut self) -> &Client {
        if self.client.is_none() {
            self.client = Some(self.database.superuser().await);
        }
        self.client.as_ref().unwrap()
    }

    async fn sql(&mut self, sql: &str) {
        self.client().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    async fn happens(&mut self, event: &Event, place: &Place) {
        let few = |n: &u8| format!("id % 37 = {}", n % 37);
        match event {
            Event::Insert(n) => self.sql(&format!("INSERT INTO mail (body) SELECT repeat(md5(({n} * g)::text), {n}) FROM generate_series(1, 1 + {n} % 30) g")).await,
            Event::Update(n) => self.sql(&format!("UPDATE mail SET seen = seen + 1 WHERE {}", few(n))).await,
            Event::UpdateHalf(n) => {
                let sql = format!(
                    "BEGIN; UPDATE mail SET seen = seen + 1 WHERE {0}; SAVEPOINT s; DELETE FROM mail WHERE {0}; ROLLBACK TO s; UPDATE mail SET body = body || 'x' WHERE id = {n}; COMMIT",
                    few(n)
                );
                self.sql(&sql).await;
            }
            Event::Delete(n) => self.sql(&format!("DELETE FROM mail WHERE {}", few(n))).await,
            Event::RollBack(n) => self.sql(&format!("BEGIN; DELETE FROM mail WHERE {}; INSERT INTO mail (body) VALUES ('gone'); ROLLBACK", few(n))).await,
            Event::Vacuum => self.sql("VACUUM mail").await,
            Event::Freeze => self.sql("VACUUM (FREEZE) mail").await,
            Event::Asynchronous(n) => self.sql(&format!("SET synchronous_commit = off; UPDATE mail SET body = 'async' WHERE {}; SET synchronous_commit = on", few(n))).await,
            Event::Open(n) if self.open.is_none() => {
                let client = self.database.superuser().await;
                client.batch_execute(&format!("BEGIN; UPDATE part SET name = name || '!' WHERE id = 1 + {n} % 2; INSERT INTO mail (body) VALUES ('late')")).await.unwrap();
                self.open = Some(client);
            }
            Event::Close => {
                if let Some(open) = self.open.take() {
                    open.batch_execute("COMMIT").await.unwrap();
                }
            }
            Event::Open(_) => {}
            Event::Copy => {
                self.stopped(|server| copy_files(server, "data", "copy"));
                self.copied = true;
            }
            Event::SetBack if self.copied => self.stopped(|server| copy_files(server, "copy", "data")),
            Event::SetBack => {}
            Event::Crash => {
                (self.client, self.open) = (None, None);
                self.server.crash();
                self.server.start();
            }
            Event::CutShort(n) => {
                let faulty = Arc::new(Faulty::new(place.storage.clone()));
                let number = 10 + u64::from(n % 20);
                let repository = place.writer_over(faulty.clone()).await;
                faulty.inject(move |call| call.number == number, Fault::DieBefore);
                let _ = take(&repository, &dsn(&self.store), &self.options, &monitor()).await;
            }
            // These wait for whoever has the table open.
            _ if self.open.is_some() => {}
            Event::Truncate => self.sql("TRUNCATE mail; INSERT INTO mail (body) VALUES ('first')").await,
            Event::Full => self.sql("VACUUM FULL mail").await,
            Event::AddColumn => self.named("ALTER TABLE mail ADD c{} int").await,
            Event::AddColumnWithDefault => self.named("ALTER TABLE mail ADD c{} text DEFAULT 'd'").await,
            Event::DropColumn => self.sql("ALTER TABLE mail DROP IF EXISTS seen; ALTER TABLE mail ADD seen int NOT NULL DEFAULT 0").await,
            Event::Widen => self.named("ALTER TABLE part ALTER name TYPE varchar({}0)").await,
            Event::RenameLabel => self.named("ALTER TYPE kind ADD VALUE 'l{}'").await,
            Event::Swap => self.sql("CREATE TABLE next (id int, name varchar(30)); INSERT INTO next SELECT id, 'swapped' FROM part; DROP TABLE part; ALTER TABLE next RENAME TO part").await,
        }
    }

    async fn named(&mut self, sql: &str) {
        self.names += 1;
        self.sql(&sql.replace("{}", &(self.names + 10).to_string())).await;
    }

    fn stopped(&mut self, work: impl Fn(&Arc<TestServer>)) {
        (self.client, self.open) = (None, None);
        self.server.stop();
        work(&self.server);
        self.server.start();
    }

    /// Holds a snapshot against what a reader sees now; nobody writes meanwhile.
    async fn compare(&mut self, repository: &Repository, taken: &Snapshot) {
        let reader = SnapshotReader::open(repository, taken).await.unwrap();
        check_ranges(&reader).await;
        let client = self.client().await;
        for table in &taken.manifest.tables {
            let columns: Vec<String> = table.columns.iter().map(|column| format!("\"{}\"", column.name)).collect();
            let copy = format!(
                "COPY (SELECT ctid, xmin, {} FROM {} ORDER BY ctid) TO STDOUT (FORMAT binary)",
                columns.join(", "),
                table.label()
            );
            let stream = client.copy_out(&copy).await.unwrap();
            let copied: Vec<bytes::Bytes> = futures_util::TryStreamExt::try_collect(stream).await.unwrap();
            let wanted = binary_rows(&copied.concat());
            let mut found = Vec::new();
            let mut rows = TableRows::open(&reader, table).await.unwrap();
            while let Some(batch) = rows.next_batch().await.unwrap() {
                found.extend(batch.into_iter().map(|row| {
                    let place = [&row.map.place.block.to_be_bytes()[..], &row.map.place.offset.to_be_bytes()].concat();
                    let identity = [Some(place), Some(row.map.xmin.to_be_bytes().to_vec())];
                    identity
                        .into_iter()
                        .chain(row.fields.iter().map(|f| f.as_ref().map(|b| b.to_vec())))
                        .collect::<Vec<_>>()
                }));
            }
            found.sort();
            assert_eq!(found.len(), wanted.len(), "{}", table.label());
            assert!(found == wanted, "{}: a row differs", table.label());
        }
    }
}

/// How many snapshots there were, how many took something over, and how many rows of how many were read.
#[derive(Default)]
struct Seen {
    snapshots: AtomicU64,
    incremental: AtomicU64,
    rows: AtomicU64,
    read: AtomicU64,
}

async fn live(world: &mut World, history: &[Vec<Event>], seen: &Seen) {
    world.open = None;
    world.copied = false;
    world.sql("DROP SCHEMA IF EXISTS restante CASCADE; CREATE SCHEMA restante").await;
    world.sql(SCHEMA).await;
    grant(&world.database, &role_of_dsn(&world.store)).await;
    let place = Place::new().await;
    let reader = place.reader().await;
    for piece in history {
        for event in piece {
            world.happens(event, &place).await;
        }
        let taken = snapshot(&place, &world.store, &world.options).await.unwrap();
        world.compare(&reader, &taken).await;
        let totals = &taken.manifest.totals;
        seen.snapshots.fetch_add(1, Ordering::Relaxed);
        seen.incremental.fetch_add(u64::from(taken.manifest.parent.is_some()), Ordering::Relaxed);
        seen.rows.fetch_add(totals.rows, Ordering::Relaxed);
        seen.read.fetch_add(totals.read_rows, Ordering::Relaxed);
    }
}

#[test]
fn whatever_happened_the_next_snapshot_is_what_the_server_shows() {
    let number = |name: &str, default: u64| std::env::var(name).ok().map_or(default, |text| text.parse().unwrap());
    let (histories, seed) = (
        number("RESTANTE_SNAPSHOT_HISTORIES", if std::env::var_os("RESTANTE_TEST_LONG").is_some() { 5000 } else { 60 }),
        number("RESTANTE_SEED", 1),
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let seen = Seen::default();
    let world = std::cell::RefCell::new(runtime.block_on(World::new()));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config =
        Config { cases: histories as u32, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let run = runner.run(&history(), |history| {
        let lived = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(live(&mut world.borrow_mut(), &history, &seen));
        }));
        lived.map_err(|_| TestCaseError::fail("a snapshot differs from what the server shows"))
    });
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (snapshots, incremental) = (read(&seen.snapshots), read(&seen.incremental));
    println!(
        "{histories} histories from seed {seed}: {snapshots} snapshots, {incremental} took something over; {} of {} rows were read",
        read(&seen.read),
        read(&seen.rows)
    );
    run.unwrap();
    assert!(read(&seen.read) > 0 && incremental * 3 > snapshots, "most snapshots read everything: nothing was tried");
}
