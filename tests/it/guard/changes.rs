//! What the comparison finds after a change, and what it does not call a finding.

use std::collections::BTreeMap;

use serde_json::Value;

use super::scene::{Scene, server};
use crate::server::TestServer;
use crate::snapshot::support::text;

/// Runs SQL as a change and gives what became of the tables.
fn ended(scene: &Scene, wanted: i32, id: &str, mode: &str, sql: &str, tables: &[(&str, &str)], more: &[&str]) -> Value {
    let declared: String =
        tables.iter().map(|(name, may)| format!("[[table]]\nname = \"public.{name}\"\nmay = {may}\n")).collect();
    let change = scene.sql(id, mode, sql, &declared);
    scene.approve(&change, &["ada"]);
    scene.json(wanted, "guard_ended", &[&["guard", "run", &change, "--jobs", "1"], more].concat())
}

fn findings(ended: &Value) -> BTreeMap<String, String> {
    let tables = ended["comparison"]["tables"].as_array().unwrap();
    let found = tables.iter().filter(|table| table["finding"].is_string());
    found
        .map(|table| (table["table"].as_str().unwrap().to_owned(), table["finding"].as_str().unwrap().to_owned()))
        .collect()
}

/// As many tables as damages, each like `messages`, with its parts.
fn copies(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| {
            format!("CREATE TABLE {name} (LIKE messages INCLUDING ALL); INSERT INTO {name} SELECT * FROM messages;")
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_bad_change_is_a_finding() {
    let scene = Scene::new(&TestServer::shared()).await;
    let client = scene.database.connect_as(&scene.role).await;
    let names = [
        "emptied",
        "updated",
        "recreated",
        "hour",
        "swapped",
        "renamed",
        "narrowed",
        "dropped",
        "few",
        "many",
        "declared",
        "altered",
        "rekeyed",
        "replaced",
    ];
    client.batch_execute(&copies(&names)).await.unwrap();
    drop(client);
    let reader = scene.place.path("reader.key");
    let bad = ended(
        &scene,
        3,
        "BAD",
        "exclusive",
        "DELETE FROM emptied;
         UPDATE updated SET seen = NOT seen WHERE mailbox = 3;
         DROP TABLE recreated; CREATE TABLE recreated (LIKE messages INCLUDING ALL);
         DELETE FROM hour WHERE at >= '2026-11-02 10:00Z' AND at < '2026-11-02 11:00Z';
         UPDATE notes SET a = b, b = a;
         ALTER TABLE swapped ADD extra text; UPDATE swapped SET body = extra WHERE id = 17 RETURNING 1;
         ALTER TABLE renamed RENAME mailbox TO x; ALTER TABLE renamed RENAME id TO mailbox; ALTER TABLE renamed RENAME x TO id;
         ALTER TABLE narrowed ALTER body TYPE varchar(20) USING left(body, 20);
         DROP TABLE dropped;
         DELETE FROM few WHERE id <= 3;
         UPDATE many SET mailbox = 9 WHERE id <= 11;
         ALTER TABLE altered ADD extra int;
         TRUNCATE parts;
         UPDATE rekeyed SET id = id + 1000 WHERE id <= 4;
         DELETE FROM replaced WHERE id <= 5; INSERT INTO replaced SELECT id + 1000, mailbox, at, seen, body FROM replaced WHERE id <= 10;
         INSERT INTO declared SELECT id + 1000, mailbox, at, seen, body FROM declared WHERE id < 3;"
            .replace("body = extra WHERE id = 17 RETURNING 1", "seen = NOT seen WHERE id = 17")
            .as_str(),
        &[
            ("recreated", "\"schema\""),
            ("swapped", "\"schema\""),
            ("renamed", "\"schema\""),
            ("narrowed", "\"schema\""),
            ("dropped", "\"schema\""),
            ("few", "\"rows\"\nmost_removed = 2"),
            ("many", "\"rows\"\nmost_changed = 10"),
            ("rekeyed", "\"rows\""),
            ("replaced", "\"rows\"\nmost_removed = 4"),
        ],
        &["-i", reader.to_str().unwrap()],
    );
    let found = findings(&bad);
    let mut wanted: BTreeMap<String, &str> = BTreeMap::new();
    for (table, why) in [
        ("emptied", "600 of 600 rows are gone"),
        ("updated", "120 rows were changed"),
        ("recreated", "600 of 600 rows are gone"),
        ("hour", "6 of 600 rows are gone"),
        ("notes", "50 rows were changed"),
        ("swapped", "1 rows were changed"),
        ("renamed", "rows were"),
        ("narrowed", "columns of another type now: body: text → character varying(20)"),
        ("dropped", "it is gone, with 600 rows"),
        ("few", "3 keys are gone, and the change declares 2 at most"),
        ("many", "11 rows were changed, and the change declares 10 at most"),
        ("altered", "its columns were changed, and the change does not declare it"),
        ("parts", "300 of 300 rows are gone"),
        ("declared", "2 rows came that were not there before"),
        // As many rows as before, and other ones.
        ("rekeyed", "4 keys are gone, and the change declares 0 at most"),
        ("replaced", "5 keys are gone, and the change declares 4 at most"),
    ] {
        wanted.insert(format!("public.{table}"), why);
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (table, why) in wanted {
        assert!(found[&table].contains(why), "{table}: {why:?} is not in {:?}", found[&table]);
    }
    let of = |name: &str| {
        let mut tables = bad["comparison"]["tables"].as_array().unwrap().iter();
        tables.find(|table| table["table"] == format!("public.{name}")).unwrap().clone()
    };
    let replaced = of("replaced");
    assert_eq!((&replaced["keys_gone"], &replaced["keys_new"]), (&5.into(), &5.into()), "{replaced}");
    // A reader's identity names the columns.
    let tables = bad["comparison"]["tables"].as_array().unwrap();
    let columns =
        |name: &str| tables.iter().find(|table| table["table"] == format!("public.{name}")).unwrap()["columns"].clone();
    assert_eq!(
        (columns("updated"), columns("many"), columns("emptied")),
        (serde_json::json!(["seen"]), serde_json::json!(["mailbox"]), serde_json::json!([]))
    );
    // The snapshot is held, and a table that no profile knows comes back beside the live one.
    let snapshot = bad["snapshot"].as_str().unwrap();
    assert!(scene.run(4, &["forget", "-y", snapshot]).contains("held"));
    let commands: Vec<&str> =
        bad["commands"].as_array().unwrap().iter().map(|command| command.as_str().unwrap()).collect();
    let command = commands
        .iter()
        .find(|command| command.contains("public.emptied"))
        .unwrap()
        .replace("DSN", &scene.store.replace(' ', "\\ "));
    let words = shlex::split(&command).unwrap();
    let words: Vec<&str> = words[1..].iter().map(String::as_str).collect();
    scene.run(0, &words);
    let client = scene.database.superuser().await;
    let row = client
        .query_one("SELECT count(*) FROM (SELECT * FROM rescue.emptied EXCEPT SELECT * FROM messages) x", &[])
        .await
        .unwrap();
    assert_eq!(row.get::<_, i64>(0), 0);
    let row = client.query_one("SELECT count(*) FROM rescue.emptied", &[]).await.unwrap();
    assert_eq!(row.get::<_, i64>(0), 600);
    assert!(scene.is_open().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn harmless_changes_are_no_finding() {
    let scene = Scene::new(&TestServer::shared()).await;
    let client = scene.database.connect_as(&scene.role).await;
    let names = [
        "packed",
        "clustered",
        "added",
        "filled",
        "widened",
        "partial",
        "toasted",
        "tuned",
        "settled",
        "moved",
        "cleaned",
        "kept",
        "wide",
    ];
    client.batch_execute(&copies(&names)).await.unwrap();
    client.batch_execute("CREATE TABLE loose AS SELECT * FROM notes").await.unwrap();
    // A table with dead rows, so that VACUUM has something to move.
    client.batch_execute("INSERT INTO packed SELECT id + 1000, mailbox, at, seen, body FROM messages; DELETE FROM packed WHERE id > 1000").await.unwrap();
    drop(client);
    let quiet = ended(
        &scene,
        0,
        "GOOD",
        "exclusive",
        "CREATE INDEX ON messages (at);                                      -- 1
         VACUUM FULL packed;                                                  -- 2
         CLUSTER clustered USING clustered_pkey;                             -- 3
         ALTER TABLE added ADD note text;                                    -- 4
         ALTER TABLE filled ADD folder int NOT NULL DEFAULT 7;               -- 5
         ALTER TABLE widened ALTER id TYPE bigint, ALTER mailbox TYPE int8;  -- 6, 7
         ALTER TABLE partial ALTER body TYPE varchar(4000);                  -- 8
         ALTER TABLE toasted ALTER body SET STORAGE EXTERNAL;                -- 9
         ALTER TABLE tuned SET (fillfactor = 70, autovacuum_enabled = off);  -- 10
         ALTER TABLE settled ALTER seen DROP DEFAULT, ALTER at SET DEFAULT now(); -- 11
         ALTER TABLE moved ADD CONSTRAINT positive CHECK (id > 0);           -- 12
         VACUUM (FREEZE, ANALYZE) messages;                                  -- 13
         ALTER TABLE notes ADD id serial PRIMARY KEY;                        -- 14
         REINDEX TABLE parts;                                                -- 15
         CREATE TABLE fresh AS SELECT * FROM messages;                       -- 16
         CREATE VIEW recent AS SELECT * FROM messages;                       -- 17
         DELETE FROM cleaned WHERE id <= 5;                                  -- 18
         UPDATE kept SET seen = true WHERE id <= 5;                          -- 19
         CREATE STATISTICS s ON mailbox, seen FROM messages; COMMENT ON TABLE messages IS 'mail'; -- 20
         ALTER TABLE wide ALTER id TYPE bigint; UPDATE wide SET seen = true WHERE id <= 5; -- 21, with its keys
         ALTER TABLE notes REPLICA IDENTITY FULL; ALTER TABLE notes ENABLE ROW LEVEL SECURITY; GRANT SELECT ON notes TO PUBLIC; -- 22
         ALTER INDEX parts_pkey RENAME TO parts_key; ANALYZE;                -- 23
         CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; CREATE TRIGGER f BEFORE INSERT ON messages FOR EACH ROW EXECUTE FUNCTION f(); -- 24
         UPDATE loose SET b = a WHERE a = 'a1'                               -- 25, without keys",
        &[
            ("added", "\"schema\""),
            ("filled", "\"schema\""),
            ("widened", "\"schema\""),
            ("partial", "\"schema\""),
            ("notes", "\"schema\""),
            ("clustered", "\"schema\""),
            ("cleaned", "\"rows\"\nmost_removed = 5\nmost_changed = 0"),
            ("kept", "\"rows\"\nmost_changed = 5"),
            ("wide", "\"rows\"\nmost_changed = 5"),
            ("loose", "\"rows\""),
        ],
        &[],
    );
    assert_eq!(findings(&quiet), BTreeMap::new());
    assert!(quiet.to_string().contains("not told apart: it has no primary key"), "{quiet}");
    // Mail comes and goes on while an online change runs; old mail that is lost is found all the same.
    let client = scene.database.connect_as(&scene.role).await;
    let deliver = tokio::spawn(async move {
        for number in 0..400 {
            let sql =
                format!("INSERT INTO messages SELECT {}, 1, now(), false, 'delivered meanwhile'", 10_000 + number);
            client.batch_execute(&sql).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    });
    let sql = "CREATE INDEX CONCURRENTLY later ON messages (mailbox)";
    let quiet = ended(&scene, 0, "ONLINE", "online", sql, &[], &[]);
    assert_eq!(findings(&quiet), BTreeMap::new());
    let messages = quiet["comparison"]["tables"]
        .as_array()
        .unwrap()
        .iter()
        .find(|table| table["table"] == "public.messages")
        .unwrap()
        .clone();
    assert!(messages["added"].as_u64() > Some(0), "mail came meanwhile: {messages}");
    let bad = ended(&scene, 3, "ONLINE-2", "online", "DELETE FROM messages WHERE id BETWEEN 10 AND 12", &[], &[]);
    assert!(
        findings(&bad)["public.messages"].contains("3 rows were lost or changed")
            || findings(&bad)["public.messages"].contains("3 of"),
        "{bad}"
    );
    deliver.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_change_that_fails_in_the_middle_keeps_applications_out_until_somebody_decides() {
    let scene = Scene::new(&TestServer::shared()).await;
    let application = crate::server::connect(&scene.database.dsn_as(&scene.application())).await;
    let sql = "DELETE FROM messages WHERE id < 10; SELECT 1/0;";
    let change = scene.sql("HALF", "exclusive", sql, "[[table]]\nname = \"public.messages\"\nmay = \"schema\"\n");
    scene.approve(&change, &["ada"]);
    let said = scene.run(1, &["guard", "run", &change, "--jobs", "1"]);
    assert!(said.contains("command 1 (psql) failed") && said.contains("output.log"), "{said}");
    assert!(!said.contains("division by zero"), "what a command says may hold mail");
    assert!(application.simple_query("SELECT 1").await.is_err(), "its session was ended");
    assert!(!scene.is_open().await);
    let status = scene.run(3, &["guard", "status"]);
    assert!(
        status.contains("are kept out")
            && status.contains("data may be in between")
            && status.contains("psql -f back.sql"),
        "{status}"
    );
    let log = scene.place.path("writer.key.guard");
    let log = std::fs::read_dir(&log)
        .unwrap()
        .flatten()
        .find(|entry| entry.file_name().to_string_lossy().starts_with("HALF-"))
        .unwrap();
    assert!(std::fs::read_to_string(log.path().join("output.log")).unwrap().contains("division by zero"));
    assert!(scene.run(0, &["guard", "log", "HALF"]).contains("failed"));
    // What was half done is found.
    let said = scene.run(3, &["guard", "release", "--half-done", "--jobs", "1"]);
    assert!(said.contains("9 of 600 rows are gone") && said.contains("restante restore"), "{said}");
    assert!(scene.is_open().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_stay_out_until_the_comparison_is_made_or_somebody_goes_without() {
    let scene = Scene::new(&TestServer::shared()).await;
    let (here, away) = (scene.place.path("repository"), scene.place.path("away"));
    for (id, without) in [("AWAY-1", false), ("AWAY-2", true)] {
        let commands = format!("[[\"mv\", \"{}\", \"{}\"]]", here.display(), away.display());
        let change = scene.change(&super::scene::Asked { id, mode: "exclusive", commands: &commands, more: "" });
        scene.approve(&change, &["ada"]);
        let output = scene.output(&["guard", "run", &change, "--jobs", "1"]);
        assert!(!output.status.success(), "{}", text(&output));
        let status = scene.status();
        assert_eq!(
            (&status["step"], &status["closed"], &status["half_done"]),
            (&"comparing".into(), &true.into(), &false.into())
        );
        assert!(!scene.is_open().await);
        let said = scene.run(1, &["guard", "release", "--jobs", "1"]);
        assert!(said.contains("--without-comparison"), "{said}");
        if without {
            assert!(scene.run(3, &["guard", "release", "--without-comparison"]).contains("not compared"));
            std::fs::rename(&away, &here).unwrap();
        } else {
            std::fs::rename(&away, &here).unwrap();
            scene.run(0, &["guard", "release", "--jobs", "1"]);
        }
        assert!(scene.is_open().await);
    }
}

/// As `pg_upgrade` does: the commands start the server themselves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_is_handed_over_may_be_started_by_the_commands_alone() {
    let server = server();
    let scene = Scene::new(&server).await;
    let (name, port) = (scene.database.name(), server.port());
    let socket = server.socket_directory().display().to_string();
    let work = format!(
        "[[\"sh\", \"-c\", \"\\\"$PGBIN/pg_ctl\\\" -D \\\"$PGDATA\\\" -l /dev/null -w start && psql -h {socket} -p {port} -U {} -d {name} -c 'CREATE INDEX ON messages (at)' && \\\"$PGBIN/pg_ctl\\\" -D \\\"$PGDATA\\\" -m fast -w stop\"]]",
        scene.role
    );
    let asked = super::scene::Asked { id: "UPGRADE", mode: "offline", commands: &work, more: "hand_over = true\n" };
    let change = scene.change(&asked);
    scene.approve(&change, &["ada"]);
    scene.run(0, &["guard", "run", &change, "--jobs", "1"]);
    let indexes = "SELECT count(*) FROM pg_indexes WHERE tablename = 'messages'";
    assert_eq!(scene.database.superuser().await.query_one(indexes, &[]).await.unwrap().get::<_, i64>(0), 2);
    // Another one is seen and stopped.
    let asked = super::scene::Asked {
        id: "UPGRADE-2",
        mode: "offline",
        commands: "[[\"sleep\", \"300\"]]",
        more: "hand_over = true\n",
    };
    let change = scene.change(&asked);
    scene.approve(&change, &["ada"]);
    let guard = scene.spawn(&["guard", "run", &change, "--jobs", "1"]);
    while scene.status()["commands_running"].as_array().is_none_or(Vec::is_empty) {
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    scene.pg_ctl(&["-w", "-t", "10", "start"]);
    let output = guard.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    assert!(text(&output).contains("was started in"), "{}", text(&output));
    assert_eq!(scene.status()["server_running"], false);
    scene.run(0, &["guard", "release", "--half-done", "--jobs", "1"]);
}
