use std::sync::Arc;
use std::time::Duration;

use restante::monitor::SharedMonitor;
use restante::postgres::PostgresError;
use restante::postgres::catalog::TableName;
use restante::postgres::reading::{ReadingOptions, ReadingSet};

use super::support::{Heard, count, dsn, open, reading_role};
use crate::server::{ServerOptions, TestDatabase, TestServer};

/// Waits until a session waits for a lock on a table: the server's word, not the clock's.
async fn until_somebody_waits(database: &TestDatabase) {
    let admin = database.superuser().await;
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND database = \
         (SELECT oid FROM pg_database WHERE datname = current_database())";
    while admin.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn all_readers_see_the_same_rows_while_others_write() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE TABLE t (a int, b text); INSERT INTO t SELECT g, repeat('x', 3000) FROM generate_series(1, 500) g",
        )
        .await;
    let role = reading_role(&database).await;
    let set = open(&database, &role, 3, ReadingOptions::default()).await.unwrap();
    assert_eq!(set.readers.len(), 3);
    database.execute("DELETE FROM t WHERE a < 100; INSERT INTO t VALUES (1000, '')").await;
    for reader in &set.readers {
        assert_eq!(count(&set, reader, "t").await, 500);
    }
    assert!(set.visibility.xmin <= set.visibility.xmax);
    assert!(set.taken_at.ends_with('Z') && !set.exported.is_empty());
}

#[tokio::test]
async fn no_rewrite_by_others_can_empty_a_table_that_the_set_reads() {
    // Every command here wants a lock that ours forbids; after the set is open each must wait, and the rows are all there.
    for change in [
        "TRUNCATE t",
        "ALTER TABLE t ALTER a TYPE bigint",
        "DROP TABLE t",
        "ALTER TABLE t RENAME TO u",
        "CLUSTER t USING t_pkey",
    ] {
        let database = TestServer::shared().database(None).await;
        database.execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 50)").await;
        let role = reading_role(&database).await;
        let set = open(&database, &role, 2, ReadingOptions { yield_after: None, ..Default::default() }).await.unwrap();
        let other = database.superuser().await;
        let changing = tokio::spawn(async move { other.batch_execute(change).await });
        until_somebody_waits(&database).await;
        for reader in &set.readers {
            assert_eq!(count(&set, reader, "t").await, 50, "{change}");
        }
        drop(set);
        changing.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_set_opened_among_tables_that_come_and_go_holds_exactly_what_it_locked() {
    let database = TestServer::shared().database(None).await;
    database
        .execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1); CREATE TABLE p (a int) PARTITION BY LIST (a)")
        .await;
    let role = reading_role(&database).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (halt, other) = (stop.clone(), database.superuser().await);
    let grant = format!("GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}");
    let churn = tokio::spawn(async move {
        while !halt.load(std::sync::atomic::Ordering::Relaxed) {
            let swap = format!(
                "BEGIN; CREATE TABLE n (a int); INSERT INTO n VALUES (1); {grant}; DROP TABLE t; ALTER TABLE n RENAME TO t; COMMIT;
                 CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1); INSERT INTO p VALUES (1); {grant};
                 ALTER TABLE p DETACH PARTITION p1; DROP TABLE p1;"
            );
            other.batch_execute(&swap).await.unwrap();
        }
    });
    for _ in 0..5 {
        match open(&database, &role, 2, ReadingOptions { attempts: 1000, yield_after: None, ..Default::default() })
            .await
        {
            Ok(set) => {
                for reader in &set.readers {
                    assert_eq!(count(&set, reader, "t").await, 1);
                    for table in set.catalog.tables.iter().filter(|table| table.name.name == "p1" && table.readable) {
                        assert!(count(&set, reader, &table.name.name).await <= 1);
                    }
                }
            }
            Err(error) => {
                assert!(matches!(error, PostgresError::LockTimeout { .. } | PostgresError::Unstable { .. }), "{error}")
            }
        }
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    churn.await.unwrap();
}

#[tokio::test]
async fn a_set_gives_way_to_a_waiting_alter_and_says_to_whom() {
    let database = TestServer::shared().database(None).await;
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let role = reading_role(&database).await;
    let options = ReadingOptions { yield_after: Some(Duration::from_millis(50)), ..Default::default() };
    let set = open(&database, &role, 2, options).await.unwrap();
    let other = database.superuser().await;
    // The ALTER ends although nobody drops the set.
    other.batch_execute("SET application_name = 'migration'; ALTER TABLE t ADD b int").await.unwrap();
    let error = set.must_end().await;
    let PostgresError::Yielded { waiting } = &error else { panic!("{error}") };
    assert!(waiting[0].application == "migration" && waiting[0].mode == "AccessExclusiveLock", "{waiting:?}");
    let table = TableName { schema: "public".into(), name: "t".into() };
    let late = set.readers[1].copy_range(&table, &[], restante::postgres::copy::BlockRange::ALL).await.err().unwrap();
    assert!(matches!(late, PostgresError::Yielded { .. }), "{late}");
    assert!(late.is_retryable());
}

#[tokio::test]
async fn a_set_that_nobody_watches_any_more_ends_with_the_servers_words() {
    let database = TestServer::shared().database(None).await;
    let role = reading_role(&database).await;
    let set = open(&database, &role, 1, ReadingOptions::default()).await.unwrap();
    let reader = set.readers[0].session().client().query_one("SELECT pg_backend_pid()", &[]).await.unwrap();
    let lose = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}' AND pid <> {}",
        reader.get::<_, i32>(0)
    );
    database.execute(&lose).await;
    let error = set.must_end().await;
    assert!(matches!(error, PostgresError::Unwatched { .. }) && error.is_retryable(), "{error:?}");
    let said = error.to_string();
    assert!(said.contains("terminating connection") || said.contains("closed"), "{said}");
}

#[tokio::test]
async fn a_snapshot_ends_at_its_greatest_age() {
    let database = TestServer::shared().database(None).await;
    let role = reading_role(&database).await;
    let options = ReadingOptions { max_snapshot_age: Some(Duration::from_millis(1)), ..Default::default() };
    let set = open(&database, &role, 1, options).await.unwrap();
    assert!(matches!(set.must_end().await, PostgresError::TooOld { .. }));
}

#[tokio::test]
async fn a_table_locked_by_others_is_waited_for_and_then_named_in_an_error() {
    let database = TestServer::shared().database(None).await;
    database.execute("CREATE TABLE t (a int)").await;
    let role = reading_role(&database).await;
    let other = database.superuser().await;
    other.batch_execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let options = ReadingOptions { lock_wait: Duration::ZERO, ..Default::default() };
    let error = open(&database, &role, 2, options).await.unwrap_err();
    assert!(matches!(error, PostgresError::LockTimeout { .. }), "{error}");
}

#[tokio::test]
async fn two_thousand_tables_fit_the_default_settings_with_fewer_readers_and_a_word() {
    let server = TestServer::dedicated(ServerOptions::default());
    let database = server.database(None).await;
    for thousand in 0..2 {
        let create = format!(
            "DO $$ BEGIN FOR i IN 1..1000 LOOP EXECUTE format('CREATE TABLE t%s (a int)', {thousand} * 1000 + i); END LOOP; END $$"
        );
        database.execute(&create).await;
    }
    let role = reading_role(&database).await;
    let heard = Arc::new(Heard::default());
    let monitor: SharedMonitor = heard.clone();
    let set = ReadingSet::open(&dsn(&database.dsn_as(&role)), 4, ReadingOptions::default(), &monitor).await.unwrap();
    assert_eq!((set.readers.len(), set.catalog.tables.len()), (1, 2000));
    assert!(heard.0.lock().unwrap()[0].contains("max_locks_per_transaction"));
    // The applications still have room.
    database.execute("DO $$ BEGIN FOR i IN 1..1500 LOOP EXECUTE format('LOCK TABLE t%s IN ACCESS SHARE MODE', i); END LOOP; END $$").await;
}

#[tokio::test]
async fn row_security_and_a_role_with_timeouts_do_not_hide_rows() {
    let database = TestServer::shared().database(None).await;
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1), (2); ALTER TABLE t ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON t USING (a = 1)").await;
    let role = reading_role(&database).await;
    // Before 17 a transaction as a whole had no limit.
    let limits: &[_] = match database.server().version_num() {
        ..170_000 => &["statement_timeout"],
        _ => &["statement_timeout", "transaction_timeout"],
    };
    for limit in limits {
        database.execute(&format!("ALTER ROLE {role} SET {limit} = '25ms'")).await;
    }
    database.execute(&format!("ALTER ROLE {role} SET row_security = on")).await;
    let set = open(&database, &role, 1, ReadingOptions::default()).await.unwrap();
    for limit in limits {
        let row = set.readers[0].session().client().query_one(&format!("SHOW {limit}"), &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), "0", "{limit}");
    }
    assert_eq!(set.catalog.unreadable(&role).len(), 1);
    let table = set.catalog.table("public", "t").unwrap();
    let columns: Vec<_> = table.live_columns().collect();
    let error = set.readers[0].copy_range(&table.name, &columns, restante::postgres::copy::BlockRange::ALL).await;
    let error = match error {
        Err(error) => error,
        Ok(mut rows) => rows.next(&mut Vec::new()).await.unwrap_err(),
    };
    assert_eq!(error.sqlstate(), Some("42501"));
}

#[tokio::test]
async fn a_standby_is_read_like_a_primary() {
    let server = TestServer::dedicated(ServerOptions::default());
    let database = server.database(None).await;
    database.execute("CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let role = reading_role(&database).await;
    let standby = server.standby(ServerOptions::default().set("max_standby_streaming_delay", "0"));
    let monitor: SharedMonitor = Arc::new(Heard::default());
    let set = ReadingSet::open(&dsn(&standby.dsn(&role, database.name())), 2, ReadingOptions::default(), &monitor)
        .await
        .unwrap();
    assert!(set.facts.is_in_recovery);
    for reader in &set.readers {
        assert_eq!(count(&set, reader, "t").await, 1);
    }
    // A vacuum on the primary conflicts with the standby's snapshot.
    database.execute("DELETE FROM t").await;
    database.execute("VACUUM t").await;
    let error = loop {
        match set.readers[0].session().client().query("SELECT count(*) FROM public.t", &[]).await {
            Ok(_) => tokio::task::yield_now().await,
            Err(error) => break error,
        }
    };
    assert!(error.code().is_some_and(|code| code.code() == "40001") || error.is_closed(), "{error:?}");
}
