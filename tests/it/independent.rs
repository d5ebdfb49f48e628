//! Format 1 read by a program that shares nothing with Restante: `tests/reader`, in Python, written from
//! `docs/format.md` alone. What it dumps is held against what `COPY` says of the live store, value by value.
//!
//! Its packages come from `scripts/install test`.

mod rewrite;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use futures_util::TryStreamExt;
use tokio_postgres::Client;

use crate::server::{TestDatabase, TestServer, binaries};

const STORE: &str = include_str!("independent/store.sql");

/// A store, a repository of it, and both programs.
struct Trial {
    database: TestDatabase,
    folder: tempfile::TempDir,
}

impl Trial {
    async fn new(schema: &str) -> Trial {
        let database = TestServer::shared().database(None).await;
        database.execute(schema).await;
        Trial { database, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn repository(&self) -> PathBuf {
        self.path("repository")
    }

    /// Makes an identity and gives its recipient.
    fn identity(&self, name: &str) -> String {
        self.restante(&["key", "generate", "--output", self.path(name).to_str().unwrap()]);
        let text = fs::read_to_string(self.path(name)).unwrap();
        let start = text.find("age1").unwrap();
        text[start..].split_whitespace().next().unwrap().to_owned()
    }

    /// Runs Restante with the writer key and, where it is there, the identity `a`.
    fn restante(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_restante"));
        command.arg("--repo").arg(self.repository()).arg("--key").arg(self.path("writer.key"));
        if self.path("a").exists() {
            command.arg("--identity").arg(self.path("a"));
        }
        // This server's pg_dump; the system's may be older.
        let path = format!("{}:{}", binaries().display(), std::env::var("PATH").unwrap_or_default());
        let output = command.env("PATH", path).args(arguments).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Takes a snapshot and gives its id.
    fn snapshot(&self) -> String {
        let before = self.snapshots();
        self.restante(&["snapshot", "--quiet", "--store", &self.database.superuser_dsn()]);
        self.snapshots().into_iter().find(|id| !before.contains(id)).unwrap()
    }

    fn snapshots(&self) -> Vec<String> {
        let names = objects(&self.repository().join("snapshots"));
        names.iter().map(|path| path.to_str().unwrap().rsplit_once('-').unwrap().1.to_owned()).collect()
    }

    fn read(&self, identity: &Path, arguments: &[&str]) -> Output {
        reader(Command::new("python3"), &[&["--identity", identity.to_str().unwrap()], arguments].concat())
    }

    /// Everything is as the document says; the summary by its words.
    fn check(&self, identity: &Path) -> HashMap<String, u64> {
        let output = self.read(identity, &["check", self.repository().to_str().unwrap()]);
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let numbers = text.lines().filter_map(|line| {
            let (what, number) = line.rsplit_once(' ')?;
            Some((what.trim().to_owned(), number.parse().ok()?))
        });
        numbers.collect()
    }

    /// What the reader found wrong.
    fn damage(&self, identity: &Path) -> String {
        let output = self.read(identity, &["check", self.repository().to_str().unwrap()]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    }

    /// The rows of every table of a snapshot, in COPY BINARY, and its columns that came as text.
    fn export(&self, identity: &Path, snapshot: &str) -> HashMap<(String, String), Exported> {
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap();
        let into = folder.path().to_str().unwrap();
        let output = self.read(identity, &["export", self.repository().to_str().unwrap(), snapshot, into]);
        assert!(output.status.success(), "{output:?}");
        let list = fs::read(folder.path().join("tables.json")).unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_slice(&list).unwrap();
        let exported = list.iter().map(|table| {
            let text = |key: &str| table[key].as_str().unwrap().to_owned();
            let columns = table["columns"].as_array().unwrap().iter();
            let columns = columns.map(|c| (c["name"].as_str().unwrap().to_owned(), c["wire"] == "text")).collect();
            (
                (text("schema"), text("name")),
                Exported { columns, rows: fs::read(folder.path().join(text("file"))).unwrap() },
            )
        });
        exported.collect()
    }

    /// Every value of every table, as the live server sends it.
    async fn assert_same_as_live(&self, exported: &HashMap<(String, String), Exported>) {
        let client = self.database.superuser().await;
        client.batch_execute("SET search_path = ''").await.unwrap();
        let tables = "SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c
            JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
            WHERE c.relkind = 'r' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\\_%'";
        let tables = client.query(tables, &[]).await.unwrap();
        assert_eq!(tables.len(), exported.len());
        for table in tables {
            let name: (String, String) = (table.get(0), table.get(1));
            let stored = &exported[&name];
            assert!(stored.rows == live(&client, &name, &stored.columns).await, "{name:?} differs");
        }
    }
}

#[derive(PartialEq)]
struct Exported {
    /// Names, and whether the values came as text.
    columns: Vec<(String, bool)>,
    rows: Vec<u8>,
}

async fn live(client: &Client, (schema, name): &(String, String), columns: &[(String, bool)]) -> Vec<u8> {
    let quoted = |name: &str| format!("\"{}\"", name.replace('"', "\"\""));
    let fields = columns.iter().map(|(name, text)| quoted(name) + if *text { "::pg_catalog.text" } else { "" });
    let fields = fields.collect::<Vec<_>>().join(", ");
    let from = format!("{}.{}", quoted(schema), quoted(name));
    let copy = format!("COPY (SELECT {fields} FROM ONLY {from} ORDER BY ctid) TO STDOUT (FORMAT binary)");
    let stream = client.copy_out(&copy).await.unwrap();
    stream.map_ok(|bytes| bytes.to_vec()).try_concat().await.unwrap()
}

/// Every object below a folder, in order.
fn objects(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(objects(&path)) } else { found.push(path) }
    }
    found.sort();
    found
}

fn reader(mut python: Command, arguments: &[&str]) -> Output {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    // …/target/ci/deps/it-… → …/target/tools/python
    let packages = std::env::current_exe().unwrap().ancestors().nth(3).unwrap().join("tools/python");
    assert!(packages.exists(), "{} is missing: run scripts/install test", packages.display());
    python.env("PYTHONPATH", packages).arg(root.join("tests/reader/restante_reader.py"));
    python.args(arguments).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn the_documents_vectors_come_out_in_a_program_written_from_it() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/format.md");
    let output = reader(Command::new("python3"), &["vectors", page.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}

#[tokio::test]
async fn a_program_written_from_the_document_reads_every_value_through_every_rotation() {
    let trial = Trial::new(STORE).await;
    let client = restante_fixtures::store::connect(&trial.database.superuser_dsn()).await.unwrap();
    restante_fixtures::store::create(&client).await.unwrap();
    let options =
        restante_fixtures::load::Options { accounts: 3, messages: 60, max_size: 400_000, ..Default::default() };
    restante_fixtures::load::load(&client, &options).await.unwrap();

    // A reader with an age identity, and one with an SSH key.
    let (a, b) = (trial.path("a"), trial.path("b"));
    let ssh = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/repository/tests/ssh_ed25519");
    let ssh_public = fs::read_to_string(ssh.with_extension("pub")).unwrap().trim().to_owned();
    let readers = (trial.identity("a"), trial.identity("b"));
    trial.restante(&["init", "--reader", &readers.0, "--reader", &ssh_public]);
    let one = trial.snapshot();
    let rows_of_one = trial.export(&a, &one);
    trial.assert_same_as_live(&rows_of_one).await;
    let kinds = &rows_of_one[&("public".into(), "kinds".into())];
    let text = kinds.columns.iter().filter(|(_, text)| *text).map(|(name, _)| name.as_str()).collect::<Vec<_>>();
    assert_eq!(text, ["c_tsq", "c_class", "c_acl", "c_acls"]);

    trial
        .database
        .execute("UPDATE messages SET seen = NOT seen WHERE id % 5 = 0; DELETE FROM log WHERE what = ''")
        .await;
    let two = trial.snapshot();
    trial.assert_same_as_live(&trial.export(&ssh, &two)).await;
    let seen = trial.check(&a);
    assert_eq!((seen["epoch"], seen["snapshots"], seen["snapshots not used"]), (1, 2, 0));
    for what in ["tables of several segments", "zones", "absent keys tried", "NULLs", "large values"] {
        assert!(seen[what] > 0, "no {what}");
    }

    // Another epoch with other secrets, without the SSH key: that keeps what it had and gets nothing more.
    trial.restante(&["key", "rotate", "--new-ids", "--remove", &ssh_public]);
    trial
        .database
        .execute("UPDATE messages SET flagged = NOT flagged WHERE id % 3 = 0; INSERT INTO no_columns DEFAULT VALUES")
        .await;
    let three = trial.snapshot();
    let rows_of_three = trial.export(&a, &three);
    trial.assert_same_as_live(&rows_of_three).await;
    assert!(trial.export(&ssh, &one) == rows_of_one);
    assert!(
        !trial.read(&ssh, &["dump", trial.repository().to_str().unwrap(), &three, "public.messages"]).status.success()
    );
    assert!(trial.damage(&b).contains("no ring that these identities open"));

    // A reader who comes late opens everything.
    trial.restante(&["key", "add", &readers.1]);
    assert!(trial.export(&b, &one) == rows_of_one);
    let seen = trial.check(&b);
    assert_eq!((seen["epochs in the ring"], seen["snapshots"], seen["snapshots not used"]), (2, 3, 0));

    // Segments of two increments of different epochs, with dead rows in both.
    let four = rewrite::two_increments(&trial, &two, &three).await;
    assert!(trial.export(&b, &four) == rows_of_three);
    let seen = trial.check(&b);
    assert!(seen["segments of several increments"] > 1 && seen["dead rows"] > 1, "{seen:?}");

    // Packs with the slots of several packs, as a pruner leaves them behind; what they were made of is gone.
    rewrite::gather_packs(&trial).await;
    let seen = trial.check(&b);
    assert_eq!((seen["packs"], seen["packs with several key slots"], seen["packs of several epochs"]), (3, 3, 3));
    assert!(trial.export(&b, &one) == rows_of_one);
    assert!(trial.export(&b, &four) == rows_of_three);
    // Restante itself sees it so too.
    trial.restante(&["verify", "--data"]);
}

const SMALL: &str = "CREATE TABLE t (id int PRIMARY KEY, name text UNIQUE, body bytea);
    INSERT INTO t SELECT g, 'name ' || g, decode(repeat(md5(g::text), 40), 'hex') FROM generate_series(1, 9) g";

#[tokio::test]
async fn a_flipped_bit_in_any_kind_of_object_is_refused() {
    let trial = Trial::new(SMALL).await;
    let a = trial.path("a");
    let reader = trial.identity("a");
    trial.restante(&["init", "--single-reader", "--reader", &reader]);
    trial.snapshot();
    trial.restante(&["key", "rotate"]);
    trial.snapshot();
    trial.check(&a);
    let mut kinds = Vec::new();
    for path in objects(&trial.repository()) {
        let name = path.strip_prefix(trial.repository()).unwrap().to_str().unwrap().to_owned();
        let kind = name.split('/').next().unwrap().to_owned();
        // One of a kind, and two packs and two rings.
        if kinds.iter().filter(|known| **known == kind).count() > usize::from(kind == "packs" || kind == "keys") {
            continue;
        }
        kinds.push(kind);
        let whole = fs::read(&path).unwrap();
        let mut bytes = whole.clone();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&path, bytes).unwrap();
        assert!(trial.damage(&a).contains(&name), "{name}");
        fs::write(&path, whole).unwrap();
    }
    kinds.dedup();
    assert_eq!(kinds, ["certificates", "config", "index", "keys", "packs", "repository.json", "snapshots"]);
    trial.check(&a);
}

#[tokio::test]
async fn a_lie_that_is_properly_signed_and_sealed_is_found() {
    let trial = Trial::new(SMALL).await;
    let a = trial.path("a");
    let reader = trial.identity("a");
    trial.restante(&["init", "--single-reader", "--reader", &reader]);
    let honest = trial.snapshot();
    let lies = rewrite::lies(&trial, &honest).await;
    let damage = trial.damage(&a);
    for (id, what) in &lies {
        let found = damage.lines().find(|line| line.contains(id.as_str()));
        match what {
            Some(what) => assert!(found.is_some_and(|line| line.contains(what)), "{what}: {found:?}"),
            None => assert_eq!(found, None),
        }
    }
    assert!(!damage.contains(&honest), "{damage}");
    assert_eq!(damage.lines().count(), lies.iter().filter(|(_, what)| what.is_some()).count(), "{damage}");
}
