//! `restante drill`: what is restored is what was there, or it says what is not.

use crate::retention::commands::Small;
use crate::server::binaries;

const STORE: &str = "
    CREATE TYPE mood AS ENUM ('fine', 'bad');
    CREATE TABLE accounts (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE, mood mood, dropped int);
    ALTER TABLE accounts DROP COLUMN dropped;
    CREATE TABLE messages (id bigserial PRIMARY KEY, account int NOT NULL REFERENCES accounts, at timestamptz, body bytea,
                           size int GENERATED ALWAYS AS (length(body)) STORED) PARTITION BY RANGE (id);
    CREATE TABLE messages_1 PARTITION OF messages FOR VALUES FROM (1) TO (50);
    CREATE TABLE messages_2 PARTITION OF messages FOR VALUES FROM (50) TO (MAXVALUE);
    CREATE INDEX by_time ON messages (at);
    CREATE VIEW small AS SELECT id FROM messages WHERE size < 100;
    CREATE SEQUENCE tickets START 7;
    SELECT nextval('tickets');
    INSERT INTO accounts (name, mood) SELECT 'user' || g, 'fine' FROM generate_series(1, 5) g;
    INSERT INTO messages (account, at, body) SELECT 1 + g % 5, timestamptz 'epoch' + g * interval '1 h', decode(repeat(md5(g::text), g), 'hex')
      FROM generate_series(1, 90) g;
    INSERT INTO messages (account, at, body) VALUES (1, 'infinity', NULL)";

async fn filled() -> Small {
    Small::with(STORE).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_proves_a_snapshot_and_writes_its_time_down() {
    let small = filled().await;
    let id = small.snapshot(&[]).await;
    let bin = binaries();
    let bin = bin.to_str().unwrap();
    let metrics = small.place.path("drill.prom");
    let drill = ["drill", "-i", "reader.key", "--pg-bin", bin];
    let said = small.run(0, &["drill", "--history"]);
    assert!(said.contains("no drill"), "{said}");
    let check = "psql -Atqc 'SELECT count(*) FROM messages' | grep -qx 91";
    let arguments = ["--check", check, "--metrics", metrics.to_str().unwrap()];
    let drilled = small.lines(0, "drilled", &[&drill[..], &arguments].concat()).remove(0);
    assert_eq!((&drilled["snapshot"], &drilled["differences"]), (&id.as_str().into(), &serde_json::json!([])));
    assert_eq!((&drilled["rows"], &drilled["tables"]), (&98.into(), &4.into()), "{drilled}");
    assert!(drilled["constraints"].as_u64() > Some(4) && drilled["recovery_seconds"].as_f64() > Some(0.0), "{drilled}");
    let text = std::fs::read_to_string(&metrics).unwrap();
    assert!(
        text.contains("restante_drill_recovery_seconds ") && text.contains("restante_drill_differences 0"),
        "{text}"
    );
    let history = small.lines(0, "drill_listed", &["drill", "--history"]);
    assert_eq!(
        history,
        [{
            let mut listed = drilled.clone();
            listed["type"] = "drill_listed".into();
            listed
        }]
    );
    small.run(0, &["verify"]);
    // Nothing of it is left, and who has no writer key keeps no history.
    let left = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten();
    let ours = left.filter(|entry| entry.file_name().to_string_lossy().starts_with("restante-drill-"));
    let mine = |entry: &std::fs::DirEntry| {
        use std::os::unix::fs::MetadataExt;
        entry.metadata().is_ok_and(|meta| meta.uid() == std::fs::metadata(&metrics).unwrap().uid())
    };
    assert_eq!(ours.filter(mine).count(), 0, "files of a drill are left");
    let said = small.run(1, &["drill", "-i", "reader.key", "--pg-bin", "/nowhere"]);
    assert!(said.contains("could not be made"), "{said}");
    small.run(2, &["drill", "-i", "reader.key", "--scratch", "/nowhere"]);
    small.run(2, &["drill"]);
}

/// One byte, row, key or counter that is not as it was; the command of `--check` runs before the comparison.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drill_finds_whatever_is_not_as_it_was() {
    let small = filled().await;
    small.snapshot(&[]).await;
    let bin = binaries();
    let bin = bin.to_str().unwrap();
    let changes = [
        (
            "UPDATE messages SET body = set_byte(body, 0, get_byte(body, 0) # 1) WHERE id = 60",
            "messages_2 has as many rows",
        ),
        ("UPDATE messages SET at = at + interval '1 microsecond' WHERE id = 3", "messages_1 has as many rows"),
        ("DELETE FROM messages WHERE id = 91", "messages_2 has 41 rows, the snapshot 42"),
        ("INSERT INTO t VALUES (99, NULL)", "t has 3 rows, the snapshot 2"),
        ("ALTER TABLE messages DROP CONSTRAINT messages_account_fkey", "constraint messages_account_fkey is missing"),
        ("ALTER TABLE accounts DROP CONSTRAINT accounts_name_key", "constraint accounts_name_key is missing"),
        ("SELECT setval('tickets', 8)", "sequence public.tickets does not stand"),
        ("SELECT setval('messages_id_seq', 91, false)", "sequence public.messages_id_seq does not stand"),
        ("DROP INDEX by_time", "index by_time is missing"),
        ("DROP VIEW small", "public.small is missing"),
        ("ALTER TABLE accounts DROP COLUMN mood", "column mood is missing"),
        ("ALTER TABLE accounts ALTER name DROP NOT NULL", "public.accounts has other columns"),
        ("DROP TABLE messages_2", "table public.messages_2 is missing"),
        (
            "CREATE TRIGGER new BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
            "trigger new was not there",
        ),
        ("ALTER TABLE t ENABLE ROW LEVEL SECURITY", "row security of public.t"),
        ("SELECT 1/0", "the command of `--check` ended with"),
    ];
    for (change, expected) in changes {
        let database = crate::server::TestServer::shared().database(None).await;
        let role = database.ordinary_role().await;
        database
            .execute(&format!(
                "GRANT ALL ON DATABASE {} TO {role}; GRANT ALL ON SCHEMA public TO {role}",
                database.name()
            ))
            .await;
        let into = database.dsn_as(&role);
        let check = format!("psql -qXv ON_ERROR_STOP=1 -c \"{change}\" >/dev/null 2>&1");
        let arguments = ["drill", "-i", "reader.key", "--pg-bin", bin, "--into", &into, "--check", &check];
        let drilled = small.lines(3, "drilled", &arguments).remove(0);
        let differences = drilled["differences"].as_array().unwrap();
        assert!(differences.iter().any(|one| one.as_str().unwrap().contains(expected)), "{change}: {differences:?}");
    }
    let shown = small.run(0, &["drill", "--history"]);
    assert_eq!(shown.lines().filter(|line| line.contains("differences")).count(), changes.len(), "{shown}");
}
