//! A snapshot is what the store was at the exported instant, whatever others do meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio_postgres::Client;

use super::support::{Oracle, Place, everything, options, restored, same, snapshot, snapshot_role};
use crate::server::{TestDatabase, TestServer};

/// Runs statements round and round until told to stop; counts those that went through.
fn churn(
    client: Client,
    stop: &Arc<AtomicBool>,
    done: &Arc<AtomicU64>,
    statements: impl Fn(u64) -> String + Send + 'static,
) -> tokio::task::JoinHandle<()> {
    let (stop, done) = (stop.clone(), done.clone());
    tokio::spawn(async move {
        client.batch_execute("SET lock_timeout = '100ms'").await.unwrap();
        for round in 0.. {
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match client.batch_execute(&statements(round)).await {
                Ok(()) => _ = done.fetch_add(1, Ordering::Relaxed),
                // Blocked behind the snapshot's locks, as it should be.
                Err(_) => client.batch_execute("ROLLBACK").await.unwrap(),
            }
            // A table made and dropped every few milliseconds by each of six can hardly be locked at all.
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
}

async fn store() -> TestDatabase {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE TABLE busy (id bigserial PRIMARY KEY, a int, b text);
             INSERT INTO busy (a, b) SELECT g, repeat(md5(g::text), g % 50) FROM generate_series(1, 3000) g;
             CREATE TABLE big (id int PRIMARY KEY, body bytea);
             ALTER TABLE big ALTER body SET STORAGE EXTERNAL;
             INSERT INTO big SELECT g, decode(repeat(md5(g::text), 500), 'hex') FROM generate_series(1, 6000) g;
             CREATE TABLE emptied (a int); INSERT INTO emptied SELECT generate_series(1, 100);
             CREATE TABLE rewritten (a int, b text); INSERT INTO rewritten SELECT g, 'x' FROM generate_series(1, 100) g;
             CREATE TABLE swapped (a int); INSERT INTO swapped SELECT generate_series(1, 100);
             CREATE TABLE parts (k int, v text) PARTITION BY RANGE (k);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (100);
             INSERT INTO parts SELECT g, 'v' FROM generate_series(0, 99) g",
        )
        .await;
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_is_what_the_store_was_while_others_truncate_rewrite_swap_attach_and_drop() {
    let (place, database) = (Place::new().await, store().await);
    let role = snapshot_role(&database).await;
    let stop = Arc::new(AtomicBool::new(false));
    let counters: Vec<Arc<AtomicU64>> = (0..6).map(|_| Arc::default()).collect();
    let client = || database.superuser();
    let tasks = vec![
        churn(client().await, &stop, &counters[0], |round| {
            format!(
                "BEGIN; DELETE FROM busy WHERE id % 97 = {0} % 97; UPDATE busy SET a = a + 1 WHERE id % 89 = {0} % 89;
                 INSERT INTO busy (a, b) SELECT g, 'new' FROM generate_series(1, 40) g;
                 UPDATE big SET body = body || '\\x00' WHERE id = {0} % 6000; DELETE FROM big WHERE id = 6000 - {0} % 4000; COMMIT",
                round
            )
        }),
        churn(client().await, &stop, &counters[1], |round| {
            format!(
                "BEGIN; TRUNCATE emptied; INSERT INTO emptied SELECT generate_series({round}, {round} + 99); COMMIT"
            )
        }),
        churn(client().await, &stop, &counters[2], |round| {
            let kind = if round % 2 == 0 { "bigint" } else { "int" };
            format!("ALTER TABLE rewritten ALTER a TYPE {kind}")
        }),
        churn(client().await, &stop, &counters[3], |round| {
            format!(
                "BEGIN; CREATE TABLE swapping (a int); INSERT INTO swapping SELECT generate_series({round}, {round} + 99);
                 DROP TABLE swapped; ALTER TABLE swapping RENAME TO swapped; COMMIT"
            )
        }),
        churn(client().await, &stop, &counters[4], |_| {
            // A round that was blocked halfway is cleared away by the next.
            "DROP TABLE IF EXISTS parts_2; CREATE TABLE parts_2 (k int, v text); INSERT INTO parts_2 VALUES (100, 'a');
             BEGIN; ALTER TABLE parts ATTACH PARTITION parts_2 FOR VALUES FROM (100) TO (200); COMMIT;
             ALTER TABLE parts DETACH PARTITION parts_2; DROP TABLE parts_2"
                .to_owned()
        }),
        churn(client().await, &stop, &counters[5], |_| {
            "CREATE TABLE passing (a int); INSERT INTO passing VALUES (1); DROP TABLE passing".to_owned()
        }),
    ];
    let oracle = Oracle::new("", &[]);
    let options = restante::snapshot::SnapshotOptions { pg_dump: oracle.program(), ..options() };
    let mut taken = 0;
    for _ in 0..60 {
        let snapshot = match snapshot(&place, &database.dsn_as(&role), &options).await {
            Ok(snapshot) => snapshot,
            // Gave way, or tables came and went too fast: it says so, and the next try is as good.
            Err(restante::snapshot::SnapshotError::Postgres(_)) => continue,
            Err(e) => panic!("{e}"),
        };
        assert!(snapshot.manifest.complete, "{:?}", snapshot.manifest.not_covered);
        let counts = oracle.compare(&place, &snapshot).await;
        // These are refilled in the transaction that empties them: no instant has another number.
        for table in ["public.emptied", "public.rewritten", "public.swapped", "public.parts_1"] {
            assert_eq!(counts.get(table), Some(&100), "{table}");
        }
        // At most 4,000 of its 6,000 rows are ever deleted, however fast the rounds are.
        assert!(counts["public.big"] >= 2000);
        taken += 1;
        if taken == 4 {
            break;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(taken, 4);
    let rounds: Vec<u64> = counters.iter().map(|counter| counter.load(Ordering::Relaxed)).collect();
    assert!(rounds.iter().all(|rounds| *rounds >= 4), "{rounds:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_committed_after_the_export_is_not_in_the_snapshot() {
    let (place, database) = (Place::new().await, store().await);
    let role = snapshot_role(&database).await;
    let before = everything(&database).await;
    // Between the export and the first copy of the oracle, under our very locks.
    let change = format!(
        "\"$bin/psql\" -Xq -v ON_ERROR_STOP=1 -d '{}' -c \"DELETE FROM busy WHERE id % 2 = 0\" -c \"DELETE FROM emptied\" \
         -c \"UPDATE swapped SET a = -a\" -c \"CREATE TABLE later (a int)\" -c \"INSERT INTO later VALUES (1)\" \
         -c \"CREATE TABLE parts_9 (k int, v text)\" -c \"ALTER TABLE parts ATTACH PARTITION parts_9 FOR VALUES FROM (900) TO (999)\" \
         -c \"INSERT INTO parts VALUES (900, 'x')\" \
         || exit 1",
        database.superuser_dsn()
    );
    let oracle = Oracle::new(&change, &[]);
    let options = restante::snapshot::SnapshotOptions { pg_dump: oracle.program(), ..options() };
    let snapshot = snapshot(&place, &database.dsn_as(&role), &options).await.unwrap();
    let counts = oracle.compare(&place, &snapshot).await;
    assert_eq!((counts["public.busy"], counts["public.emptied"]), (3000, 100));
    assert_eq!(counts.get("public.later"), None);
    assert!(snapshot.manifest.complete, "{:?}", snapshot.manifest.not_covered);
    let target = TestServer::shared().database(None).await;
    let report = restored(&place, &snapshot, &target).await;
    assert_eq!(report.problems, Vec::<String>::new());
    same(&before, &everything(&target).await);
}
