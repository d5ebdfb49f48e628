//! Every kind of column, table and name comes back as it was.

use restante::repository::snapshots::Snapshot;
use restante::snapshot::SnapshotOptions;

use super::support::{Oracle, Place, everything, options, restored, same, snapshot, snapshot_role};
use crate::server::{TestDatabase, TestServer, binaries};

/// Takes a snapshot with the oracle, compares, restores, compares again. The snapshot, and where it was restored.
async fn comes_back(database: &TestDatabase, skip: &[&str], into: &str) -> (Snapshot, TestDatabase) {
    let place = Place::new().await;
    let role = snapshot_role(database).await;
    let oracle = Oracle::new("", skip);
    let options = SnapshotOptions { pg_dump: oracle.program(), ..options() };
    let snapshot = snapshot(&place, &database.dsn_as(&role), &options).await.unwrap();
    assert!(snapshot.manifest.complete, "{:?}", snapshot.manifest.not_covered);
    oracle.compare(&place, &snapshot).await;
    let target = TestServer::shared().database_with(into).await;
    let report = restored(&place, &snapshot, &target).await;
    assert_eq!(report.problems, Vec::<String>::new());
    same(&everything(database).await, &everything(&target).await);
    (snapshot, target)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_of_every_type_come_back_as_they_were() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            r#"CREATE EXTENSION seg; CREATE EXTENSION hstore; CREATE EXTENSION citext; CREATE EXTENSION ltree;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"', 'é');
CREATE DOMAIN positive AS int CHECK (value > 0);
CREATE DOMAIN small AS positive CHECK (value < 100) NOT NULL;
CREATE TYPE inner_pair AS (a small, m mood, t text[]);
CREATE TYPE outer_pair AS (p inner_pair, q inner_pair[], r numrange);
CREATE TYPE float_span AS RANGE (subtype = float8);
CREATE DOMAIN pair_domain AS inner_pair;
CREATE TABLE numbers (id int PRIMARY KEY, i2 int2, i4 int4, i8 int8, f4 float4, f8 float8, n numeric, n2 numeric(30,10), m money, o oid,
  b boolean, bi bit(13), vb bit varying, x xid, l pg_lsn);
INSERT INTO numbers VALUES (1, -32768, -2147483648, -9223372036854775808, 'NaN', '-Infinity', 'NaN', 'NaN', '-1234.56', 4294967295, true,
  B'1010101010101', B'', '7', '16/B374D848'), (2, 1, 2, 3, 1e-37, 1e-307, 'Infinity', 0.0000000001, 0, 0, false, B'0000000000000', B'1', '0', '0/0'),
  (3, NULL, NULL, NULL, -0.0, 'Infinity', '-Infinity', -1, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
  (4, 0, 0, 0, 3.4028235e38, 1.7976931348623157e308, ('1' || repeat('0', 130000) || '.' || repeat('7', 16000))::numeric, NULL, NULL, 1, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE times (d date, t time, tz timetz, ts timestamp, tstz timestamptz, iv interval);
INSERT INTO times VALUES ('infinity', '24:00:00', '23:59:59.999999+15:59', '-infinity', 'infinity', '-178000000 years'),
  ('4713-01-01 BC', '00:00', '00:00-12', '4713-01-01 00:00:00 BC', '294276-12-31 23:59:59.999999+00', '1 mon -1 day 00:00:00.000001'), (NULL, NULL, NULL, NULL, NULL, NULL);
CREATE TABLE texts (t text, v varchar(10), c char(10), n name, q "char", ci citext, h hstore, lt ltree, by bytea, u uuid, j json, jb jsonb, xm xml,
  tv tsvector, jp jsonpath);
INSERT INTO texts VALUES ('', 'ü', 'x', 'n', 'c', 'CaSe', 'a=>1, b=>NULL', 'Top.Science', '\x00ff00', gen_random_uuid(), '{"a" : 1,  "a":2}', '{"a": [1, null, "\u00e9"]}',
  '<a>&amp;<!-- c --></a>', 'fat:2A cat:3B'::tsvector, '$.a[*] ? (@ > 1)'),
  (repeat('long ', 5000), NULL, NULL, NULL, NULL, NULL, NULL, NULL, decode(repeat('00', 100000), 'hex'), NULL, NULL, to_jsonb(repeat('j', 70000)), NULL, NULL, NULL),
  (E'tab\t, back\\slash, \\N, newline\n, cr\r, quote"''', E'\\.', '  ', '', '', '', '', '', '', NULL, '[]', '[]', '', '', NULL);
CREATE TABLE places (i inet, c cidr, m macaddr, m8 macaddr8, p point, l line, s lseg, b box, pa path, po polygon, ci circle);
INSERT INTO places VALUES ('::1/64', '10.0.0.0/8', '08:00:2b:01:02:03', '08:00:2b:01:02:03:04:05', '(NaN,Infinity)', '{1,2,3}', '[(0,0),(1,1)]', '(1,1),(0,0)', '[(0,0),(1,1)]', '((0,0),(1,1),(1,0))', '<(0,0),1>');
CREATE TABLE spans (r int4range, r8 int8range, n numrange, ts tsrange, tz tstzrange, d daterange, f float_span, mr int4multirange, mf float_span_multirange);
INSERT INTO spans VALUES ('empty', '[1,)', '(,1.5]', '(-infinity,infinity)', '[2014-08-10 14:00+00, 2014-08-11 10:00+00)', '(,)', '[1.5,2.5)', '{[1,3),[5,7)}', '{}');
CREATE TABLE made (e mood, ea mood[], s small, sa positive[], p outer_pair, pd pair_domain, pa outer_pair[], nested int[][], based int[], ta text[]);
INSERT INTO made VALUES ('it''s "fine"', '{sad,NULL,é}', 1, '{1,NULL,3}', ROW(ROW(5, 'ok', '{a,NULL,"b c"}')::inner_pair, ARRAY[ROW(7, NULL, '{}')::inner_pair], '[1,2)')::outer_pair,
  ROW(9, 'é', NULL)::inner_pair, ARRAY[NULL, ROW(NULL, NULL, NULL)::outer_pair], '{{1,2},{3,4}}', '[-1:1]={7,8,9}', '{}'), ('sad', '{}', 2, NULL, NULL, NULL, NULL, '{}', NULL, NULL);
CREATE TABLE textual (id int PRIMARY KEY, a aclitem, aa aclitem[], s seg, g regclass, p regprocedure, ty regtype, snap pg_snapshot, tq tsquery);
INSERT INTO textual VALUES (1, 'postgres=arwdDxt/postgres', '{postgres=r/postgres}', '1.5 .. 2.5', 'numbers', 'lower(text)', 'mood[]', '10:20:10,14', 'fat & !cat:A'), (2, NULL, NULL, '~5', NULL, NULL, NULL, NULL, '');"#,
        )
        .await;
    comes_back(&database, &["textual"], "TEMPLATE template0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn columns_that_are_computed_numbered_dropped_or_added_come_back() {
    let database = TestServer::shared().database(None).await;
    database
        .execute(
            "CREATE TABLE numbered (id bigint GENERATED ALWAYS AS IDENTITY (START 100 INCREMENT 7) PRIMARY KEY,
               other int GENERATED BY DEFAULT AS IDENTITY, third serial, twice bigint GENERATED ALWAYS AS (other * 2) STORED, a text);
             INSERT INTO numbered (a) SELECT g::text FROM generate_series(1, 50) g;
             CREATE TABLE only_computed (one int GENERATED ALWAYS AS (1) STORED);
             INSERT INTO only_computed DEFAULT VALUES; INSERT INTO only_computed DEFAULT VALUES;
             CREATE TABLE changed (a int, gone text, b text);
             INSERT INTO changed SELECT g, 'secret', 'b' FROM generate_series(1, 20) g;
             ALTER TABLE changed DROP COLUMN gone; ALTER TABLE changed ADD COLUMN late int DEFAULT 42;
             ALTER TABLE changed ADD COLUMN later timestamptz NOT NULL DEFAULT '2014-08-10 14:00Z';
             ALTER TABLE changed ALTER late SET DEFAULT 43; INSERT INTO changed (a) VALUES (21);
             CREATE TABLE aware (id int PRIMARY KEY, s text DEFAULT 'x', CHECK (id > 0));
             INSERT INTO aware VALUES (1), (2);
             CREATE TABLE refers (a int REFERENCES aware DEFERRABLE INITIALLY DEFERRED, n int);
             INSERT INTO refers VALUES (1, 1), (NULL, 2);
             CREATE FUNCTION forbid() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
             CREATE TRIGGER never BEFORE INSERT OR UPDATE ON refers FOR EACH ROW EXECUTE FUNCTION forbid();
             CREATE RULE silent AS ON INSERT TO aware DO INSTEAD NOTHING;
             CREATE SEQUENCE fresh MINVALUE -10 START -5; CREATE SEQUENCE used; SELECT nextval('used'), nextval('used');",
        )
        .await;
    comes_back(&database, &[], "TEMPLATE template0").await;
}

/// Reading such a column computes it, so a single row where that fails would keep the whole table out of a snapshot.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_virtual_column_comes_back_as_its_definition_even_where_no_value_can_be_computed() {
    let database = TestServer::shared().database(None).await;
    let tables =
        "CREATE TABLE shares (id int PRIMARY KEY, parts int, share int GENERATED ALWAYS AS (100 / parts) VIRTUAL,
             stored int GENERATED ALWAYS AS (parts + 1) STORED, label aclitem);
         CREATE TABLE by_id (share int GENERATED ALWAYS AS (100 / id), id int) PARTITION BY RANGE (id);
         CREATE TABLE by_id_0 PARTITION OF by_id FOR VALUES FROM (0) TO (10);
         CREATE TABLE nothing_stored (one int GENERATED ALWAYS AS (1));";
    if database.server().version_num() < 180_000 {
        // There is nothing to keep: until 17 every generated column is stored, and must say so.
        assert_eq!(database.superuser().await.batch_execute(tables).await.unwrap_err().code().unwrap().code(), "42601");
        return;
    }
    database.execute(tables).await;
    database
        .execute(
            "INSERT INTO shares (id, parts, label) VALUES (1, 4, 'postgres=r/postgres'), (2, 0, NULL), (3, NULL, NULL);
             INSERT INTO by_id (id) VALUES (0), (5); INSERT INTO nothing_stored DEFAULT VALUES",
        )
        .await;
    let (snapshot, target) = comes_back(&database, &["shares"], "TEMPLATE template0").await;
    let columns = |table: &str| {
        let table = snapshot.manifest.table("public", table).unwrap();
        table.columns.iter().map(|column| column.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!(columns("shares"), ["id", "parts", "stored", "label"]);
    assert_eq!(columns("by_id_0"), ["id"]);
    assert!(columns("nothing_stored").is_empty());
    let client = target.superuser().await;
    let row = client.query_one("SELECT share, stored FROM shares WHERE id = 1", &[]).await.unwrap();
    assert_eq!((row.get::<_, i32>(0), row.get::<_, i32>(1)), (25, 5));
    assert_eq!(client.query_one("SELECT sum(one) FROM nothing_stored", &[]).await.unwrap().get::<_, i64>(0), 1);
    let failed = client.query_one("SELECT share FROM by_id WHERE id = 0", &[]).await.unwrap_err();
    assert_eq!(failed.code().unwrap().code(), "22012");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tables_of_every_kind_come_back() {
    let database = TestServer::shared().database(None).await;
    // For each default `pg_dump` asks the server, which then names all columns.
    let wide = (0..1500).map(|n| if n % 100 == 0 { format!("c{n} int DEFAULT {n}") } else { format!("c{n} int") });
    let wide: Vec<String> = wide.collect();
    database
        .execute(&format!(
            "CREATE TABLE nothing (); INSERT INTO nothing DEFAULT VALUES; INSERT INTO nothing DEFAULT VALUES;
             CREATE TABLE empty (a int, b text);
             CREATE TABLE wide ({}); INSERT INTO wide DEFAULT VALUES; INSERT INTO wide (c0) VALUES (NULL), (7);
             CREATE UNLOGGED TABLE unlogged (a int); INSERT INTO unlogged VALUES (1);
             CREATE TABLE parent (a int); CREATE TABLE child (b text) INHERITS (parent); CREATE TABLE grandchild () INHERITS (child);
             INSERT INTO parent VALUES (1); INSERT INTO child VALUES (2, 'c'); INSERT INTO grandchild VALUES (3, 'g');
             CREATE TABLE top (k int, l int, v text) PARTITION BY RANGE (k);
             CREATE TABLE low PARTITION OF top FOR VALUES FROM (0) TO (10) PARTITION BY LIST (l);
             CREATE TABLE low_a (v text, l int, k int); ALTER TABLE low ATTACH PARTITION low_a FOR VALUES IN (1, 2);
             CREATE TABLE rest PARTITION OF top DEFAULT;
             INSERT INTO top VALUES (1, 1, 'a'), (2, 2, 'b'), (99, 0, 'rest'), (NULL, NULL, NULL);
             CREATE MATERIALIZED VIEW second AS SELECT 1 AS x; CREATE MATERIALIZED VIEW a_first AS SELECT x + 1 AS y FROM second;
             CREATE UNIQUE INDEX ON a_first (y); CREATE VIEW seen AS SELECT * FROM parent;
             CREATE SCHEMA other; CREATE TABLE other.empty (z int); INSERT INTO other.empty VALUES (26);",
            wide.join(", ")
        ))
        .await;
    comes_back(&database, &[], "TEMPLATE template0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_attack_are_only_names() {
    let database = TestServer::shared().database(None).await;
    let long = "ü".repeat(31) + "x";
    let names = [
        "\"; DROP TABLE victim; --",
        "quote\"and'quote",
        "new\nline",
        "tab\tand\\back",
        "\u{1b}[31mred",
        "dotted.name",
        "select",
        "%s{}$1",
        " ",
        "*",
        &long,
        "\u{202e}reversed",
    ];
    let mut sql = String::from("CREATE TABLE victim (a int); INSERT INTO victim VALUES (1);");
    for (number, name) in names.iter().enumerate() {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        sql += &format!(
            "CREATE SCHEMA {quoted}; CREATE TYPE {quoted}.{kind} AS ENUM ({label});
             CREATE TABLE {quoted}.{quoted} ({quoted} serial PRIMARY KEY, \"kind \"\"\" {quoted}.{kind}, \"as text\" aclitem);
             INSERT INTO {quoted}.{quoted} VALUES ({number}, {label}, 'postgres=r/postgres');
             CREATE INDEX {quoted} ON victim (a);\n",
            kind = format!("\"{}!\"", name.chars().take(20).collect::<String>().replace('"', "\"\"")),
            label = format!("'{}'", name.replace('\'', "''"))
        );
        sql += &format!("ALTER INDEX {quoted} RENAME TO i{number};");
    }
    database.execute(&sql).await;
    let named: Vec<&str> = names.to_vec();
    // The oracle's script cannot name these; the comparison after the restore can.
    let place = Place::new().await;
    let role = snapshot_role(&database).await;
    let snapshot = snapshot(&place, &database.dsn_as(&role), &options()).await.unwrap();
    assert!(snapshot.manifest.complete, "{:?}", snapshot.manifest.not_covered);
    assert_eq!(snapshot.manifest.tables.len(), named.len() + 1);
    let target = TestServer::shared().database(None).await;
    assert_eq!(restored(&place, &snapshot, &target).await.problems, Vec::<String>::new());
    same(&everything(&database).await, &everything(&target).await);
    // On the terminal they are inert, and each can be asked for by its name.
    let output = place.program(&database.dsn_as(&role)).arg("show").output().unwrap();
    assert!(output.status.success());
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(shown.chars().all(|c| c == '\n' || !(c.is_control() || c == '\u{202e}')), "{shown:?}");
    for name in names {
        let label = format!("{name}.{name}");
        let dump = place.program("").args(["dump", "latest", &label, "-i"]).arg(place.path("reader.key")).output();
        let dump = dump.unwrap();
        assert!(dump.status.success(), "{name:?}: {}", String::from_utf8_lossy(&dump.stderr));
        assert_eq!(super::support::binary_rows(&dump.stdout).len(), 1, "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_of_old_databases_comes_back_byte_by_byte() {
    // é as one byte, and bytes that are no character at all.
    for (encoding, bytes) in [("SQL_ASCII", r"\xe9\xff\x80"), ("LATIN1", r"\xe9\xff\xa4")] {
        let options = format!("TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'");
        let database = TestServer::shared().database_with(&options).await;
        database
            .execute(&format!(
                "CREATE TABLE t (id int PRIMARY KEY, v text, a text[], p aclitem);
                 SET client_encoding = '{encoding}';
                 INSERT INTO t VALUES (1, E'{bytes}', ARRAY[E'{bytes}'], NULL), (2, repeat(E'{bytes}', 1000), NULL, 'postgres=r/postgres')"
            ))
            .await;
        comes_back(&database, &["t"], &options).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn latin1_text_is_converted_for_a_utf8_database_and_bytes_that_are_no_text_are_refused() {
    for (encoding, bytes, converts) in [("LATIN1", r"\xe9", true), ("SQL_ASCII", r"\xe9", false)] {
        let (place, server) = (Place::new().await, TestServer::shared());
        let database = server
            .database_with(&format!("TEMPLATE template0 ENCODING '{encoding}' LC_COLLATE 'C' LC_CTYPE 'C'"))
            .await;
        database
            .execute(&format!(
                "SET client_encoding = '{encoding}'; CREATE TABLE t (v text); INSERT INTO t VALUES (E'{bytes}')"
            ))
            .await;
        let snapshot = super::support::snapshot_of(&place, &database).await;
        let target = server.database_with("TEMPLATE template0 ENCODING 'UTF8'").await;
        let done = super::support::restore_into(&place, &snapshot, &target.superuser_dsn()).await;
        assert_eq!(done.is_ok(), converts, "{encoding}: {done:?}");
        if converts {
            let row = target.superuser().await.query_one("SELECT v FROM t", &[]).await.unwrap();
            assert_eq!(row.get::<_, String>(0), "é");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_table_is_rescued_beside_the_live_ones_even_where_its_types_are_unknown() {
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database
        .execute(
            "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN positive AS int CHECK (value > 0); CREATE DOMAIN tiny AS positive;
             CREATE TYPE pair AS (a int, b mood);
             CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, m mood, ma mood[], d tiny, p pair, acl aclitem, v varchar(5), n numeric(5,2));
             INSERT INTO t (m, ma, d, p, acl, v, n) VALUES ('sad', '{ok,sad}', 5, ROW(1, 'ok'), 'postgres=r/postgres', 'abc', 1.50)",
        )
        .await;
    let snapshot = super::support::snapshot_of(&place, &database).await;
    let target = TestServer::shared().database(None).await;
    for (into, shown) in [
        (&database, "1|sad|{ok,sad}|5|(1,ok)|postgres=r/postgres|abc|1.50"),
        (&target, "1|sad|{ok,sad}|5||postgres=r/postgres|abc|1.50"),
    ] {
        let output = place
            .program("")
            .args([
                "restore",
                snapshot.short().as_str(),
                "--table",
                "t",
                "--schema",
                "the rescue",
                "--into",
                &into.superuser_dsn(),
                "-i",
            ])
            .arg(place.path("reader.key"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", super::support::text(&output));
        let what = if into.name() == database.name() { "p::text" } else { "NULL::text" };
        let select =
            format!("SELECT concat_ws('|', id, m, ma::text, d, coalesce({what}, ''), acl, v, n) FROM \"the rescue\".t");
        let row = into.superuser().await.query_one(&select, &[]).await.unwrap();
        assert_eq!(row.get::<_, String>(0), shown);
        // Never twice into the same table.
        let again = place
            .program("")
            .args([
                "restore",
                "latest",
                "--table",
                "public.t",
                "--schema",
                "the rescue",
                "--into",
                &into.superuser_dsn(),
                "-i",
            ])
            .arg(place.path("reader.key"))
            .output()
            .unwrap();
        assert_eq!(again.status.code(), Some(1), "{}", super::support::text(&again));
    }
    // The columns that took the bytes as they are.
    let copied = std::process::Command::new(binaries().join("psql"))
        .args([
            "-XAtq",
            "-d",
            &target.superuser_dsn(),
            "-c",
            "SELECT pg_typeof(p) || ' ' || pg_typeof(m) || ' ' || pg_typeof(d) FROM \"the rescue\".t",
        ])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&copied.stdout).trim(), "bytea text integer");
}

/// From 17 on pg_restore sets `transaction_timeout` first, which an older server refuses.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pg_restore_newer_than_the_server_is_no_hindrance_and_any_other_error_is_one() {
    use std::os::unix::fs::PermissionsExt;
    let (place, database) = (Place::new().await, TestServer::shared().database(None).await);
    database.execute("CREATE TABLE t (a int PRIMARY KEY); INSERT INTO t VALUES (1)").await;
    let snapshot = super::support::snapshot_of(&place, &database).await;
    for (parameter, counts) in [("transaction_timeout", database.server().version_num() >= 170_000), ("other", true)] {
        // A newer one is not at hand, so this server's own is followed by what a newer one says.
        let script = format!(
            "#!/bin/sh\n'{}/pg_restore' \"$@\" || exit $?\n\
             echo 'pg_restore: error: could not execute query: ERROR:  unrecognized configuration parameter \"{parameter}\"' >&2\n\
             echo 'Command was: SET {parameter} = 0;' >&2\necho 'pg_restore: warning: errors ignored on restore: 1' >&2\nexit 1\n",
            binaries().display()
        );
        let program = place.path("newer");
        std::fs::write(&program, script).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let target = TestServer::shared().database(None).await;
        let done = super::support::restore_by(program, &place, &snapshot, &target.superuser_dsn()).await;
        assert_eq!(done.is_err(), counts, "{parameter}: {done:?}");
        if let Ok(report) = done {
            assert_eq!(report.problems, Vec::<String>::new());
            same(&everything(&database).await, &everything(&target).await);
        }
    }
}
