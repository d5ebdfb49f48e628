use bytes::Bytes;
use restante::postgres::PostgresError;
use restante::postgres::catalog::TableName;
use restante::postgres::copy::{BlockRange, CopyInWriter, Tid};
use restante::postgres::reading::ReadingOptions;
use tokio_util::sync::CancellationToken;

use super::support::{open, reading_role};
use crate::server::TestServer;

fn table(name: &str) -> TableName {
    TableName { schema: "public".into(), name: name.into() }
}

#[tokio::test]
async fn block_ranges_together_give_every_row_once_with_its_place() {
    let database = TestServer::shared().database(None).await;
    database
        .execute("CREATE TABLE t (a int, b text, c aclitem); INSERT INTO t SELECT g, repeat('x', g % 3000), 'postgres=r/postgres' FROM generate_series(1, 2000) g; DELETE FROM t WHERE a % 7 = 0")
        .await;
    let role = reading_role(&database).await;
    let set = open(&database, &role, 1, ReadingOptions::default()).await.unwrap();
    let facts = set.catalog.table("public", "t").unwrap();
    let columns: Vec<_> = facts.live_columns().collect();
    let mut found: Vec<(String, String, i32, Option<String>)> = Vec::new();
    let mut bounds = Vec::new();
    for from in (0..100).step_by(10) {
        let range = BlockRange { from, to: (from < 90).then_some(from + 10) };
        let mut rows = set.readers[0].copy_range(&facts.name, &columns, range).await.unwrap();
        while let Some(row) = rows.next(&mut bounds).await.unwrap() {
            assert!(row.tid.block >= from && range.to.is_none_or(|to| row.tid.block < to));
            let a = i32::from_be_bytes(bounds[0].of(&row.bytes).unwrap().try_into().unwrap());
            // Cast to text, because aclitem has no binary form.
            assert_eq!(bounds[2].of(&row.bytes).unwrap(), b"postgres=r/postgres");
            let b = bounds[1].share(&row.bytes).map(|text: Bytes| String::from_utf8(text.to_vec()).unwrap());
            found.push((row.tid.to_string(), row.xmin.to_string(), a, b));
        }
    }
    let rows = database
        .superuser()
        .await
        .query("SELECT ctid::text, xmin::text, a, b FROM t ORDER BY t.ctid", &[])
        .await
        .unwrap();
    let expected: Vec<_> = rows.iter().map(|row| (row.get(0), row.get(1), row.get(2), row.get(3))).collect();
    assert!(found == expected, "{} rows, {} expected", found.len(), expected.len());

    let tids = [
        Tid { block: 0, offset: 1 },
        Tid { block: 0, offset: 7 },
        Tid { block: 3, offset: 2 },
        Tid { block: 99_999, offset: 1 },
    ];
    let mut rows = set.readers[0].copy_tids(&facts.name, &columns[..1], &tids).await.unwrap();
    let mut places = Vec::new();
    while let Some(row) = rows.next(&mut bounds).await.unwrap() {
        places.push(row.tid);
    }
    assert_eq!(places, [tids[0], tids[2]]);
}

#[tokio::test]
async fn text_of_a_database_without_encoding_comes_byte_by_byte() {
    let server = TestServer::shared();
    let name = format!("latin_{}", std::process::id());
    let admin = crate::server::connect(&server.superuser_dsn("postgres")).await;
    admin
        .batch_execute(&format!("CREATE DATABASE {name} TEMPLATE template0 ENCODING 'LATIN1' LOCALE 'C'"))
        .await
        .unwrap();
    let dsn = super::support::dsn(&server.superuser_dsn(&name));
    let owner = crate::server::connect(&server.superuser_dsn(&name)).await;
    owner.batch_execute("CREATE TABLE \"fäß\" (\"ö\" text); INSERT INTO \"fäß\" VALUES ('é')").await.unwrap();
    let monitor: restante::monitor::SharedMonitor = std::sync::Arc::new(restante::monitor::Silent);
    let set =
        restante::postgres::reading::ReadingSet::open(&dsn, 1, ReadingOptions::default(), &monitor).await.unwrap();
    let facts = &set.catalog.tables[0];
    let columns: Vec<_> = facts.live_columns().collect();
    let mut bounds = Vec::new();
    for _ in 0..2 {
        let mut rows = set.readers[0].copy_range(&facts.name, &columns, BlockRange::ALL).await.unwrap();
        let row = rows.next(&mut bounds).await.unwrap().unwrap();
        assert_eq!(bounds[0].of(&row.bytes), Some(&[0xe9][..]));
        assert!(rows.next(&mut bounds).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn an_interrupted_copy_ends_on_the_server_too() {
    let database = TestServer::shared().database(None).await;
    database
        .execute("CREATE TABLE t (a text); INSERT INTO t SELECT repeat('x', 1000) FROM generate_series(1, 50000)")
        .await;
    let role = reading_role(&database).await;
    let cancel = CancellationToken::new();
    let set = open(&database, &role, 1, ReadingOptions { cancel: cancel.clone(), ..Default::default() }).await.unwrap();
    let facts = set.catalog.table("public", "t").unwrap();
    let columns: Vec<_> = facts.live_columns().collect();
    let mut rows = set.readers[0].copy_range(&facts.name, &columns, BlockRange::ALL).await.unwrap();
    let mut bounds = Vec::new();
    assert!(rows.next(&mut bounds).await.unwrap().is_some());
    cancel.cancel();
    let error = loop {
        match rows.next(&mut bounds).await {
            Ok(row) => assert!(row.is_some(), "the stream ended as if it were whole"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, PostgresError::Cancelled), "{error}");
    let admin = database.superuser().await;
    let busy = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'");
    while admin.query_one(&busy, &[]).await.unwrap().get::<_, i64>(0) > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn rows_written_are_the_rows_read_and_a_dropped_row_is_noticed() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE TABLE t (id int, body bytea, note text); CREATE TABLE u (LIKE t);
             INSERT INTO t SELECT g, decode(repeat(md5(g::text), g % 9000), 'hex'), nullif(g % 3, 0)::text FROM generate_series(1, 300) g",
        )
        .await;
    let role = reading_role(&database).await;
    let set = open(&database, &role, 1, ReadingOptions::default()).await.unwrap();
    let facts = set.catalog.table("public", "t").unwrap();
    let columns: Vec<_> = facts.live_columns().collect();
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let client = database.superuser().await;
    let mut writer = CopyInWriter::begin(&client, &table("u"), &names).await.unwrap();
    let mut rows = set.readers[0].copy_range(&facts.name, &columns, BlockRange::ALL).await.unwrap();
    let mut bounds = Vec::new();
    while let Some(row) = rows.next(&mut bounds).await.unwrap() {
        writer.row(bounds.iter().map(|field| field.of(&row.bytes))).await.unwrap();
    }
    assert_eq!(writer.finish().await.unwrap(), 300);
    let different = "SELECT count(*) FROM (TABLE t EXCEPT TABLE u) d";
    assert_eq!(client.query_one(different, &[]).await.unwrap().get::<_, i64>(0), 0);

    database
        .execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'; CREATE TRIGGER f BEFORE INSERT ON u FOR EACH ROW EXECUTE FUNCTION f()")
        .await;
    let mut writer = CopyInWriter::begin(&client, &table("u"), &["id"]).await.unwrap();
    writer.row([Some(&1_i32.to_be_bytes()[..])]).await.unwrap();
    assert!(writer.finish().await.unwrap_err().to_string().contains("1 rows were sent, 0 arrived"));
}
