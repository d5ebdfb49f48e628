//! What a snapshot does not hold it names; what looks like damage it calls suspect.

use std::io::{Seek, SeekFrom, Write};

use restante::snapshot::SnapshotOptions;

use super::support::{
    Oracle, Place, everything, grant, options, restored, same, snapshot, snapshot_of, snapshot_role, text,
};
use crate::server::{ServerOptions, TestDatabase, TestServer};

async fn shared() -> TestDatabase {
    TestServer::shared().database(None).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_cannot_be_read_is_named_with_the_grant_that_helps_and_the_rest_is_taken() {
    let (place, database) = (Place::new().await, shared().await);
    database
        .execute(
            "CREATE TABLE open (a int PRIMARY KEY); INSERT INTO open VALUES (1);
             CREATE TABLE closed (id serial PRIMARY KEY, a int REFERENCES open); INSERT INTO closed (a) VALUES (1);
             CREATE TABLE refers (a int REFERENCES closed); INSERT INTO refers VALUES (1);",
        )
        .await;
    let role = snapshot_role(&database).await;
    database
        .execute(&format!("REVOKE SELECT ON closed FROM {role}; REVOKE SELECT ON SEQUENCE closed_id_seq FROM {role}"))
        .await;
    let output = place.program(&database.dsn_as(&role)).arg("snapshot").output().unwrap();
    let said = text(&output);
    assert_eq!(output.status.code(), Some(3), "{said}");
    assert!(said.contains("NOT COVERED  table public.closed"), "{said}");
    let grants = said.split("GRANT SELECT ON \"public\".\"closed\"").count() - 1;
    assert_eq!(grants, 1, "{said}");
    assert!(said.contains("sequence public.closed_id_seq"), "{said}");

    // What is there comes back, and what cannot be made without the rest is told.
    let all = restante::repository::snapshots::list(&place.reader().await).await.unwrap().0;
    assert!(!all[0].manifest.complete);
    let target = shared().await;
    let report = restored(&place, &all[0], &target).await;
    assert_eq!(report.rows, 2);
    assert!(report.problems.iter().any(|problem| problem.contains("closed")), "{:?}", report.problems);

    // The printed statement is the remedy.
    let remedy = said.split("; GRANT USAGE").nth(1).unwrap().split('\n').next().unwrap();
    database.execute(&format!("GRANT USAGE{remedy}; GRANT SELECT ON SEQUENCE closed_id_seq TO {role}")).await;
    let output = place.program(&database.dsn_as(&role)).arg("snapshot").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn row_security_is_named_never_a_silent_part_of_the_rows() {
    let (place, database) = (Place::new().await, shared().await);
    database
        .execute(
            "CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); ALTER TABLE t ENABLE ROW LEVEL SECURITY;
             CREATE POLICY hides ON t USING (a = 1)",
        )
        .await;
    let role = snapshot_role(&database).await;
    let store = database.dsn_as(&role);
    let output = place.program(&store).arg("snapshot").output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    assert!(text(&output).contains("BYPASSRLS"), "{}", text(&output));
    let first = snapshot(&place, &store, &options()).await.unwrap();
    assert!(first.manifest.table("public", "t").is_none());
    database.execute(&format!("ALTER ROLE {role} BYPASSRLS")).await;
    let second = snapshot(&place, &store, &options()).await.unwrap();
    assert!(second.manifest.complete);
    assert_eq!(second.manifest.table("public", "t").unwrap().rows, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_objects_and_foreign_tables_are_named() {
    let (place, database) = (Place::new().await, shared().await);
    database
        .execute(
            "SELECT lo_from_bytea(0, 'x'); CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw;
             CREATE FOREIGN TABLE elsewhere (a text) SERVER files OPTIONS (filename '/dev/null'); CREATE TABLE t (a int)",
        )
        .await;
    let snapshot = snapshot_of(&place, &database).await;
    let objects: Vec<&str> = snapshot.manifest.not_covered.iter().map(|missing| missing.object.as_str()).collect();
    assert_eq!(objects, ["1 large objects", "foreign table public.elsewhere"]);
    assert!(!snapshot.manifest.complete && !snapshot.certificate.unwrap().complete);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_without_pg_dump_says_that_it_has_no_schema_and_still_gives_its_tables() {
    let (place, database) = (Place::new().await, shared().await);
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let role = snapshot_role(&database).await;
    let without = SnapshotOptions { pg_dump: "/nonexistent/pg_dump".into(), ..options() };
    let taken = snapshot(&place, &database.dsn_as(&role), &without).await.unwrap();
    assert_eq!(taken.manifest.not_covered[0].object, "schema dump");
    let target = shared().await;
    assert!(super::support::restore_into(&place, &taken, &target.superuser_dsn()).await.is_err());
    let rescue = place
        .program("")
        .args(["restore", "latest", "--table", "t", "--into", &target.superuser_dsn(), "-i"])
        .arg(place.path("reader.key"))
        .output()
        .unwrap();
    assert!(rescue.status.success(), "{}", text(&rescue));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_excluded_table_is_left_out_and_makes_nothing_suspect() {
    let (place, database) = (Place::new().await, shared().await);
    database.execute("CREATE TABLE t (a int); CREATE TABLE cache_1 (a int); INSERT INTO cache_1 VALUES (1)").await;
    let role = snapshot_role(&database).await;
    let store = database.dsn_as(&role);
    snapshot(&place, &store, &options()).await.unwrap();
    let without = SnapshotOptions { exclude: vec!["public.cache*".parse().unwrap()], ..options() };
    let second = snapshot(&place, &store, &without).await.unwrap();
    assert_eq!(second.manifest.tables.len(), 1);
    assert!(second.manifest.complete && second.manifest.suspect.is_empty(), "{:?}", second.manifest.suspect);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_tables_are_taken_within_the_default_table_of_locks() {
    let server = TestServer::dedicated(ServerOptions::default());
    let (place, database) = (Place::new().await, server.database(None).await);
    for from in [0, 1000] {
        database
            .execute(&format!(
                "DO $$ BEGIN FOR i IN {from} + 1..{from} + 1000 LOOP
                   EXECUTE format('CREATE TABLE t%s (a int); INSERT INTO t%s VALUES (%s)', i, i, i); END LOOP; END $$"
            ))
            .await;
    }
    let snapshot = snapshot_of(&place, &database).await;
    assert!(snapshot.manifest.complete, "{:?}", snapshot.manifest.not_covered);
    assert_eq!((snapshot.manifest.totals.tables, snapshot.manifest.totals.rows), (2000, 2000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_whose_toast_is_lost_is_named_and_every_other_row_is_taken() {
    let (place, database) = (Place::new().await, shared().await);
    database
        .execute(
            "CREATE TABLE t (id int PRIMARY KEY, body text); ALTER TABLE t ALTER body SET STORAGE EXTERNAL;
             INSERT INTO t SELECT g, repeat(md5(g::text), 400) FROM generate_series(1, 500) g;
             CREATE TABLE sound (a int); INSERT INTO sound VALUES (1);",
        )
        .await;
    let role = snapshot_role(&database).await;
    let toast: String = database
        .superuser()
        .await
        .query_one("SELECT reltoastrelid::regclass::text FROM pg_class WHERE relname = 't'", &[])
        .await
        .unwrap()
        .get(0);
    // Places first: the function wants the page for itself.
    let places = format!(
        "SELECT array_agg(ctid)::text FROM {toast} WHERE chunk_id IN (SELECT DISTINCT chunk_id FROM {toast} ORDER BY 1 LIMIT 3 OFFSET 200)"
    );
    let places: String = database.superuser().await.query_one(&places, &[]).await.unwrap().get(0);
    database
        .execute(&format!(
            "CREATE EXTENSION pg_surgery; SELECT heap_force_kill('{toast}', '{places}'::tid[]); DROP EXTENSION pg_surgery"
        ))
        .await;
    let taken = snapshot(&place, &database.dsn_as(&role), &options()).await.unwrap();
    assert!(!taken.manifest.complete);
    let named: Vec<_> = taken.manifest.not_covered.iter().filter(|n| n.object.contains("of table public.t")).collect();
    assert_eq!(named.len(), 3, "{named:?}");
    assert!(named[0].object.starts_with("row (") && named[0].reason.contains("missing chunk"), "{named:?}");
    assert_eq!(taken.manifest.table("public", "t").unwrap().rows, 497);
    assert_eq!(taken.manifest.table("public", "sound").unwrap().rows, 1);
    let target = shared().await;
    assert_eq!(restored(&place, &taken, &target).await.rows, 498);
    let ids = "SELECT count(*) FILTER (WHERE body = repeat(md5(id::text), 400)), string_agg(id::text, '') FILTER (WHERE id IN (201, 202, 203)) FROM t";
    let row = target.superuser().await.query_one(ids, &[]).await.unwrap();
    assert_eq!((row.get::<_, i64>(0), row.get::<_, Option<String>>(1)), (497, None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_row_of_more_than_a_gibibyte_is_named_and_every_other_row_is_taken() {
    let (place, database) = (Place::new().await, shared().await);
    database
        .execute(
            "CREATE TABLE t (id int, a text, b text); ALTER TABLE t ALTER a SET COMPRESSION pglz;
             INSERT INTO t VALUES (1, 'a', 'b'), (2, repeat('x', 540000000), NULL), (3, 'c', 'd');
             UPDATE t SET b = a WHERE id = 2; INSERT INTO t VALUES (4, 'e', 'f')",
        )
        .await;
    let taken = snapshot_of(&place, &database).await;
    let named = &taken.manifest.not_covered;
    assert_eq!(named.len(), 1, "{named:?}");
    assert!(named[0].object.starts_with("row (") && named[0].object.ends_with("of table public.t"), "{named:?}");
    assert_eq!(taken.manifest.table("public", "t").unwrap().rows, 3);
}

/// The file of a table, and how many blocks of rows it has.
async fn file_of(database: &TestDatabase, table: &str) -> std::path::PathBuf {
    let row = database.superuser().await.query_one(&format!("SELECT pg_relation_filepath('{table}')"), &[]).await;
    database.server().data_directory().join(row.unwrap().get::<_, String>(0))
}

async fn with_a_table_on_disk() -> TestDatabase {
    let server = TestServer::dedicated(ServerOptions { fsync: true, ..Default::default() });
    let database = server.database(None).await;
    database
        .execute("CREATE TABLE t (id int, b text); INSERT INTO t SELECT g, repeat('x', 200) FROM generate_series(1, 1000) g; CHECKPOINT")
        .await;
    database
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zeroed_page_and_a_truncated_file_make_a_snapshot_suspect_and_stay_so() {
    for truncate in [false, true] {
        let (place, database) = (Place::new().await, with_a_table_on_disk().await);
        let role = snapshot_role(&database).await;
        let store = database.dsn_as(&role);
        let first = place.program(&store).arg("snapshot").output().unwrap();
        assert_eq!(first.status.code(), Some(0), "{}", text(&first));
        let path = file_of(&database, "t").await;
        database.server().stop();
        let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
        if truncate {
            file.set_len(20 * 8192).unwrap();
        } else {
            file.seek(SeekFrom::Start(3 * 8192)).unwrap();
            file.write_all(&[0; 8192]).unwrap();
        }
        drop(file);
        database.server().start();
        // The server itself sees nothing wrong.
        database.superuser().await.query_one("SELECT count(*) FROM t", &[]).await.unwrap();
        for _ in 0..2 {
            let output = place.program(&store).arg("snapshot").output().unwrap();
            assert_eq!(output.status.code(), Some(3), "{}", text(&output));
            assert!(text(&output).contains("SUSPECT  table public.t lost"), "{}", text(&output));
        }
        let accepted = place.program(&store).args(["snapshot", "--accept-loss"]).output().unwrap();
        assert_eq!(accepted.status.code(), Some(0), "{}", text(&accepted));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_the_server_refuses_is_named_and_the_blocks_around_it_are_taken() {
    let (place, database) = (Place::new().await, with_a_table_on_disk().await);
    let role = snapshot_role(&database).await;
    let path = file_of(&database, "t").await;
    database.server().stop();
    let mut file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(3 * 8192)).unwrap();
    file.write_all(&[0xa5; 64]).unwrap();
    drop(file);
    database.server().start();
    let taken = snapshot(&place, &database.dsn_as(&role), &options()).await.unwrap();
    let named = &taken.manifest.not_covered;
    assert_eq!(named.len(), 1, "{named:?}");
    assert_eq!(named[0].object, "block 3 of table public.t");
    let rows = taken.manifest.table("public", "t").unwrap().rows;
    let in_one_block = 1000 - rows;
    assert!((20..50).contains(&in_one_block), "{rows}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_somebody_deleted_are_no_damage() {
    let (place, database) = (Place::new().await, shared().await);
    database.execute("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 2000)").await;
    let role = snapshot_role(&database).await;
    let store = database.dsn_as(&role);
    snapshot(&place, &store, &options()).await.unwrap();
    database.execute("DELETE FROM t WHERE a % 10 = 0").await;
    let second = snapshot(&place, &store, &options()).await.unwrap();
    assert_eq!(second.manifest.suspect, Vec::<String>::new());
    // TRUNCATE is a mass loss that no statistics explain.
    database.execute("TRUNCATE t").await;
    let third = snapshot(&place, &store, &options()).await.unwrap();
    assert_eq!(third.manifest.suspect.len(), 1, "{:?}", third.manifest.suspect);
    database.execute("DROP TABLE t").await;
    let fourth = snapshot(&place, &store, &options()).await.unwrap();
    assert_eq!(fourth.manifest.suspect, ["table public.t with 1800 rows is gone"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_a_standby_is_taken_like_its_primary() {
    let server = TestServer::dedicated(ServerOptions::default());
    let (place, database) = (Place::new().await, server.database(None).await);
    database
        .execute("CREATE TABLE t (a int); INSERT INTO t SELECT generate_series(1, 100); CREATE UNLOGGED TABLE u (a int); CREATE SEQUENCE s")
        .await;
    let role = snapshot_role(&database).await;
    let standby = server.standby(ServerOptions::default());
    let oracle = Oracle::new("", &["u"]);
    let with_oracle = SnapshotOptions { pg_dump: oracle.program(), ..options() };
    let taken = snapshot(&place, &standby.dsn(&role, database.name()), &with_oracle).await.unwrap();
    assert_eq!(oracle.compare(&place, &taken).await["public.t"], 100);
    let named: Vec<_> = taken.manifest.not_covered.iter().map(|n| n.object.as_str()).collect();
    assert_eq!(named, ["table public.u"]);
    // The same store: a snapshot of the primary continues the count.
    let next = snapshot(&place, &database.dsn_as(&role), &options()).await.unwrap();
    assert_eq!((next.manifest.sequence, next.manifest.previous), (2, Some(taken.id)));
    grant(&database, &role).await;
    let target = shared().await;
    assert_eq!(restored(&place, &next, &target).await.problems, Vec::<String>::new());
    same(&everything(&database).await, &everything(&target).await);
}
