use restante::postgres::catalog::{self, Catalog, ConstraintKind, SequenceValue, TableKind, Wire};
use restante::postgres::session::{Session, SessionOptions};

use super::support::{dsn, reading_role};
use crate::server::{TestDatabase, TestServer};

async fn read_as(database: &TestDatabase, role: &str) -> Catalog {
    let session = Session::connect(&dsn(&database.dsn_as(role)), SessionOptions::default()).await.unwrap();
    session.execute("test", "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
    let mut catalog = catalog::read(&session).await.unwrap();
    catalog::read_sequence_values(&session, &mut catalog.sequences).await.unwrap();
    catalog
}

#[tokio::test]
async fn the_catalog_tells_all_that_a_restore_needs_and_survives_json() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE SCHEMA restante; CREATE SEQUENCE restante.marker;
             CREATE TYPE colour AS ENUM ('red', 'green');
             CREATE TYPE pair AS (a int, b colour);
             CREATE DOMAIN word AS varchar(10) CHECK (VALUE <> '');
             CREATE TABLE \"Parent\" (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, w word NOT NULL DEFAULT 'x',
                 p pair[], c aclitem, k regclass, nested aclitem[], doubled bigint GENERATED ALWAYS AS (1 + 1) STORED);
             CREATE TABLE child (a int, parent bigint REFERENCES \"Parent\" ON DELETE CASCADE DEFERRABLE, gone int,
                 UNIQUE (parent, a), CHECK (a > 0));
             ALTER TABLE child DROP gone; ALTER TABLE child ADD later int DEFAULT 7;
             CREATE TABLE parts (at timestamptz) PARTITION BY RANGE (at);
             CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
             CREATE SEQUENCE used INCREMENT 5 OWNED BY child.a; SELECT nextval('used'), nextval('used');
             CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
             CREATE TRIGGER tr BEFORE INSERT ON child FOR EACH ROW EXECUTE FUNCTION f(); ALTER TABLE child DISABLE TRIGGER tr;
             CREATE POLICY pol ON child USING (a = 1);
             CREATE VIEW seen AS SELECT 1; CREATE UNLOGGED TABLE quick (); CREATE TEMP TABLE temporary ();
             CREATE PUBLICATION everything FOR ALL TABLES; SELECT lo_create(0);",
        )
        .await;
    let role = reading_role(&database).await;
    let read = read_as(&database, &role).await;
    let names: Vec<&str> = read.tables.iter().map(|table| table.name.name.as_str()).collect();
    assert_eq!(names, ["Parent", "child", "parts", "parts_1", "quick", "seen"]);

    let parent = read.table("public", "Parent").unwrap();
    assert_eq!(parent.primary_key().unwrap().columns, ["id"]);
    let wire = |name: &str| parent.columns.iter().find(|column| column.name == name).unwrap().wire;
    assert_eq!([wire("id"), wire("w"), wire("p")], [Wire::Binary; 3]);
    assert_eq!([wire("c"), wire("k"), wire("nested")], [Wire::Text; 3]);
    assert_eq!(parent.columns[0].identity.as_deref(), Some("a"));
    assert_eq!(parent.columns[6].generated.as_deref(), Some("s"));

    let child = read.table("public", "child").unwrap();
    let foreign = child.constraints.iter().find(|found| found.kind == ConstraintKind::Foreign).unwrap();
    let reference = foreign.references.as_ref().unwrap();
    assert_eq!((reference.table.name.as_str(), reference.on_delete.as_str()), ("Parent", "c"));
    assert!(foreign.deferrable && reference.columns == ["id"] && foreign.columns == ["parent"]);
    assert!(child.columns[2].dropped && child.columns[3].has_missing);
    assert_eq!(child.triggers[0].enabled, "D");
    assert_eq!(child.policies[0].roles, ["public"]);
    assert!(read.sensitive.missing.iter().any(|value| value.column.column == "later" && value.expression == "{7}"));
    assert!(child.readable && !child.row_security_applies && child.relfilenode.is_some());

    let part = read.table("public", "parts_1").unwrap();
    assert_eq!(part.partition_of.as_ref().unwrap().name, "parts");
    let parts = read.table("public", "parts").unwrap();
    assert_eq!((parts.kind, parts.partition_key.as_deref()), (TableKind::Partitioned, Some("RANGE (at)")));

    let used = read.sequences.iter().find(|sequence| sequence.name.name == "used").unwrap();
    assert_eq!(used.value, Some(SequenceValue { last_value: 6, is_called: true }));
    assert_eq!(used.owned_by.as_ref().unwrap().column, "a");
    assert_eq!(read.sequences.len(), 2);
    assert!(read.sequences.iter().any(|sequence| sequence.identity));
    assert!(read.publications[0].all_tables);
    assert_eq!(read.large_objects, 1);
    assert!(
        read.types.iter().any(|found| found.labels.as_deref() == Some(&["red".to_owned(), "green".to_owned()][..]))
    );
    assert!(read.unreadable(&role).is_empty());

    let json = serde_json::to_string(&read).unwrap();
    assert_eq!(serde_json::from_str::<Catalog>(&json).unwrap(), read);
}

#[tokio::test]
async fn whatever_changes_what_old_rows_mean_changes_the_digest() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE TYPE colour AS ENUM ('red'); CREATE TYPE inner_t AS (c colour[]); CREATE DOMAIN dom AS inner_t;
             CREATE TYPE outer_t AS (d dom, x int); CREATE TYPE ran AS RANGE (subtype = int);
             CREATE TABLE t (a int, o outer_t, r ran); CREATE TABLE calm (a int);",
        )
        .await;
    let role = reading_role(&database).await;
    let digest =
        async |name: &str| read_as(&database, &role).await.table("public", name).unwrap().schema_digest.clone();
    let calm = digest("calm").await;
    let mut seen = vec![digest("t").await];
    for change in [
        "ALTER TYPE colour ADD VALUE 'blue'",
        "ALTER TYPE colour RENAME VALUE 'blue' TO 'azure'",
        "ALTER TABLE t ADD late int DEFAULT 1",
        "ALTER TABLE t DROP late",
        "ALTER TABLE t ADD late int DEFAULT 2",
        "ALTER TABLE t RENAME a TO b",
    ] {
        database.execute(change).await;
        let now = digest("t").await;
        assert!(!seen.contains(&now), "{change}");
        seen.push(now);
    }
    assert_eq!(digest("t").await, *seen.last().unwrap());
    assert_eq!(digest("calm").await, calm);
    let copy = TestServer::shared().database(Some(database.name())).await;
    let role = reading_role(&copy).await;
    assert_eq!(read_as(&copy, &role).await.table("public", "t").unwrap().schema_digest, *seen.last().unwrap());
}

#[tokio::test]
async fn what_a_role_cannot_read_comes_with_the_sql_that_helps() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE TABLE open (a int); CREATE TABLE hidden (a int); ALTER TABLE hidden ENABLE ROW LEVEL SECURITY;
             CREATE SCHEMA \"Far\"; CREATE TABLE \"Far\".away (a int); INSERT INTO hidden VALUES (1); INSERT INTO \"Far\".away VALUES (1)",
        )
        .await;
    let role = reading_role(&database).await;
    let unreadable = read_as(&database, &role).await.unreadable(&role);
    let names: Vec<String> = unreadable.iter().map(|found| found.table.to_string()).collect();
    assert_eq!(names, ["Far.away", "public.hidden"]);
    for found in unreadable {
        database.execute(&found.remedy).await;
    }
    assert!(read_as(&database, &role).await.unreadable(&role).is_empty());
}
