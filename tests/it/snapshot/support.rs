//! What these tests share: a repository, a role with exactly what `grants` prints, and an oracle.
//!
//! The oracle is a `pg_dump` of ours: Restante calls it under the snapshot that it exported, and before it calls the
//! real one it lets `psql` copy every table under that same snapshot. So what Restante stored is compared with what
//! PostgreSQL itself showed at that instant, row by row, with `ctid` and `xmin`.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use jiff::Timestamp;
use restante::monitor::{SharedMonitor, Silent};
use restante::postgres::dsn::{Dsn, Environment};
use restante::postgres::grants::{self, GrantsFor, Purpose};
use restante::postgres::session::{Session, SessionOptions};
use restante::repository::snapshots::{Snapshot, SnapshotReader};
use restante::repository::table_rows::TableRows;
use restante::repository::{Access, InitOptions, Repository, init, ring, secrets::WriterKey};
use restante::restore::full::{FullOptions, FullReport, restore};
use restante::snapshot::{SEGMENT_BYTES, SnapshotError, SnapshotOptions, take};
use restante::storage::{Storage, location};
use restante_fixtures::{load, store};

use crate::server::{TestDatabase, TestServer, binaries};

/// A connection string without this process's environment.
pub fn dsn(text: &str) -> Dsn {
    let environment = Environment { account: Some("nobody".to_owned()), ..Environment::default() };
    Dsn::parse(text, &environment).unwrap()
}

pub fn monitor() -> SharedMonitor {
    Arc::new(Silent)
}

/// A new repository in a directory, with its writer key and one reader.
pub struct Place {
    folder: tempfile::TempDir,
    pub storage: Arc<dyn Storage>,
}

impl Place {
    pub async fn new() -> Self {
        Self::within(&std::env::temp_dir()).await
    }

    /// Where flushing costs nothing, if there is such a place.
    pub async fn in_memory() -> Self {
        let memory = Path::new("/dev/shm");
        Self::within(if memory.is_dir() { memory } else { Path::new("/tmp") }).await
    }

    async fn within(parent: &Path) -> Self {
        let folder = tempfile::tempdir_in(parent).unwrap();
        let recipient = ring::generate_identity(&folder.path().join("reader.key")).unwrap();
        let storage = open_storage(&folder.path().join("repository")).await;
        let options = InitOptions { readers: vec![recipient], created: Timestamp::now() };
        init(&*storage, options).await.unwrap().writer_key.save(&folder.path().join("writer.key"), false).unwrap();
        Self { folder, storage }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub async fn writer(&self) -> Repository {
        self.writer_over(self.storage.clone()).await
    }

    pub async fn writer_over(&self, storage: Arc<dyn Storage>) -> Repository {
        let key = WriterKey::load(&self.path("writer.key")).unwrap();
        Repository::open(storage, Access::Writer(key), None).await.unwrap()
    }

    pub async fn reader(&self) -> Repository {
        self.reader_over(self.storage.clone()).await
    }

    pub async fn reader_over(&self, storage: Arc<dyn Storage>) -> Repository {
        Repository::open(storage, Access::Reader(vec![self.path("reader.key")]), None).await.unwrap()
    }

    /// The program with this repository, its key and nothing of our environment.
    pub fn program(&self, store: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_restante"));
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy().into_owned();
            if name.starts_with("PG") || name.starts_with("RESTANTE_") {
                command.env_remove(name);
            }
        }
        let path = format!("{}:{}", binaries().display(), std::env::var("PATH").unwrap_or_default());
        command
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("HOME", self.folder.path())
            .env("RESTANTE_REPO", self.path("repository"))
            .env("RESTANTE_KEY", self.path("writer.key"))
            .env("RESTANTE_STORE", store);
        command
    }

    /// Every object with its bytes; what a running program takes away meanwhile is not among them.
    pub fn objects(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(folder: &Path, base: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, base, found);
                } else {
                    let name = path.strip_prefix(base).unwrap().to_string_lossy().into_owned();
                    match fs::read(&path) {
                        Ok(bytes) => _ = found.insert(name, bytes),
                        Err(error) if error.kind() == ErrorKind::NotFound => {}
                        Err(error) => panic!("{name}: {error}"),
                    }
                }
            }
        }
        let mut found = BTreeMap::new();
        let base = self.path("repository");
        walk(&base, &base, &mut found);
        found
    }
}

/// The reference store with so many arrivals of up to 2 MB.
pub async fn filled(messages: u64) -> TestDatabase {
    let database = TestServer::shared().database(None).await;
    let client = database.superuser().await;
    store::create(&client).await.unwrap();
    let options = load::Options { messages, max_size: 2_000_000, ..Default::default() };
    load::load(&client, &options).await.unwrap();
    database
}

pub async fn open_storage(path: &Path) -> Arc<dyn Storage> {
    location::open(&path.to_str().unwrap().parse().unwrap()).await.unwrap()
}

/// A role that has exactly what `restante grants --for snapshot` prints.
pub async fn snapshot_role(database: &TestDatabase) -> String {
    let role = database.ordinary_role().await;
    grant(database, &role).await;
    role
}

pub async fn grant(database: &TestDatabase, role: &str) {
    let session = Session::connect(&dsn(&database.superuser_dsn()), SessionOptions::default()).await.unwrap();
    let (schemas, owners) = grants::schemas_and_owners(&session).await.unwrap();
    let sql = grants::sql(
        Purpose::Snapshot,
        &GrantsFor { role, database: database.name(), schemas: &schemas, owners: &owners, written: &[], journal: "" },
    );
    database.execute(&sql).await;
}

pub fn options() -> SnapshotOptions {
    SnapshotOptions {
        jobs: 2,
        memory: 128 << 20,
        segment_bytes: SEGMENT_BYTES,
        tags: Vec::new(),
        exclude: Vec::new(),
        reading: Default::default(),
        pg_dump: binaries().join("pg_dump"),
        heads: Vec::new(),
        suspect_percent: 20,
        accept_loss: false,
        skip_if_unchanged: false,
        full: false,
        trust_history: false,
        rate_limit: None,
        checkpoint_every: std::time::Duration::from_secs(60),
    }
}

pub async fn snapshot(place: &Place, store: &str, options: &SnapshotOptions) -> Result<Snapshot, SnapshotError> {
    take(&place.writer().await, &dsn(store), options, &monitor()).await
}

/// A snapshot of everything as the ordinary role.
pub async fn snapshot_of(place: &Place, database: &TestDatabase) -> Snapshot {
    let role = snapshot_role(database).await;
    snapshot(place, &database.dsn_as(&role), &options()).await.unwrap()
}

/// What PostgreSQL showed under the exported snapshot.
pub struct Oracle {
    folder: tempfile::TempDir,
}

impl Oracle {
    /// `also`: more shell, run under the snapshot before the tables are copied. Tables in `skip` are not copied: their
    /// columns have no binary form.
    pub fn new(also: &str, skip: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let skipped = skip.iter().map(|name| format!(" AND c.relname <> '{name}'")).collect::<String>();
        let script = format!(
            r#"#!/bin/bash
set -e
bin='{bin}' out='{out}'
for argument in "$@"; do case $argument in
  --version) exec "$bin/pg_dump" --version;;
  --snapshot=*) snapshot=${{argument#--snapshot=}};;
esac; done
under="BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT '$snapshot'; SET row_security = off;"
{also}
rm -rf "$out/tables"; mkdir "$out/tables"
"$bin/psql" -XAtq -v ON_ERROR_STOP=1 >"$out/script" <<SQL
$under
SELECT format(E'COPY (SELECT ctid, xmin%s FROM ONLY %I.%I ORDER BY ctid) TO STDOUT (FORMAT binary) \\\\g ''$out/tables/%s''',
  (SELECT string_agg(format(', %I', a.attname), '' ORDER BY a.attnum) FROM pg_attribute a
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'), n.nspname, c.relname, c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname !~ '^pg_'
AND n.nspname <> 'information_schema' AND has_table_privilege(c.oid, 'SELECT'){skipped};
SQL
(echo "$under"; cat "$out/script") | "$bin/psql" -Xq -v ON_ERROR_STOP=1
exec "$bin/pg_dump" "$@"
"#,
            bin = binaries().display(),
            out = folder.path().display(),
        );
        let path = folder.path().join("pg_dump");
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Self { folder }
    }

    pub fn program(&self) -> PathBuf {
        self.folder.path().join("pg_dump")
    }

    /// Compares every row of every table, field by field; the number of rows of each table.
    pub async fn compare(&self, place: &Place, snapshot: &Snapshot) -> BTreeMap<String, usize> {
        let reader = SnapshotReader::open(&place.reader().await, snapshot).await.unwrap();
        let mut counts = BTreeMap::new();
        let mut compared = 0;
        for table in &snapshot.manifest.tables {
            let mut found: Vec<Vec<Option<Vec<u8>>>> = Vec::new();
            let mut rows = TableRows::open(&reader, table).await.unwrap();
            while let Some(batch) = rows.next_batch().await.unwrap() {
                found.extend(batch.into_iter().map(|row| {
                    let place = [&row.map.place.block.to_be_bytes()[..], &row.map.place.offset.to_be_bytes()].concat();
                    let identity = [Some(place), Some(row.map.xmin.to_be_bytes().to_vec())];
                    identity.into_iter().chain(row.fields.iter().map(|f| f.as_ref().map(|b| b.to_vec()))).collect()
                }));
            }
            // Increments lie one behind the other; the place is the first field.
            found.sort();
            counts.insert(table.label(), found.len());
            let path = self.folder.path().join("tables").join(table.oid.to_string());
            let Ok(copied) = fs::read(path) else { continue };
            compared += 1;
            let wanted = binary_rows(&copied);
            assert_eq!(found.len(), wanted.len(), "{}", table.label());
            for (found, wanted) in found.iter().zip(&wanted) {
                assert!(found == wanted, "{}: a row differs", table.label());
            }
        }
        assert_eq!(compared, fs::read_dir(self.folder.path().join("tables")).unwrap().count());
        counts
    }
}

/// COPY BINARY taken apart without Restante's code.
pub fn binary_rows(bytes: &[u8]) -> Vec<Vec<Option<Vec<u8>>>> {
    let mut rest = &bytes[19..];
    let mut take = |length: usize| {
        let (taken, after) = rest.split_at(length);
        rest = after;
        taken
    };
    let mut rows = Vec::new();
    loop {
        let count = i16::from_be_bytes(take(2).try_into().unwrap());
        if count < 0 {
            return rows;
        }
        let mut row = Vec::new();
        for _ in 0..count {
            let length = i32::from_be_bytes(take(4).try_into().unwrap());
            row.push((length >= 0).then(|| take(length as usize).to_vec()));
        }
        rows.push(row);
    }
}

/// Restores into a database of an ordinary role that owns it, which a full restore needs: it makes the schema.
pub async fn restored(place: &Place, snapshot: &Snapshot, into: &TestDatabase) -> FullReport {
    let role = into.owning_role().await;
    restore_into(place, snapshot, &into.dsn_as(&role)).await.unwrap()
}

pub async fn restore_into(
    place: &Place,
    snapshot: &Snapshot,
    into: &str,
) -> Result<FullReport, restante::restore::RestoreError> {
    restore_by(binaries().join("pg_restore"), place, snapshot, into).await
}

pub async fn restore_by(
    pg_restore: PathBuf,
    place: &Place,
    snapshot: &Snapshot,
    into: &str,
) -> Result<FullReport, restante::restore::RestoreError> {
    let reader = SnapshotReader::open(&place.reader().await, snapshot).await.unwrap();
    let options = FullOptions { pg_restore, owners: false, cancel: Default::default() };
    restore(&reader, &dsn(into), &options, &monitor()).await
}

/// Everything of a database that text can show: rows of all tables and views as text, sequences, definitions.
pub async fn everything(database: &TestDatabase) -> BTreeMap<String, Vec<String>> {
    let program = binaries().join("pg_dump");
    let database = database.superuser_dsn();
    // Bytes, not text: a database may hold what is no UTF-8.
    let output = Command::new(program)
        .args(["--no-owner", "--no-privileges", "--exclude-schema=restante", "-d", &database])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut sections: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut current = String::new();
    for line in output.stdout.split(|b| *b == b'\n') {
        let line = line.escape_ascii().to_string();
        if let Some(name) = line.strip_prefix("-- Name: ") {
            current = name.to_owned();
        } else if let Some(name) = line.strip_prefix("-- Data for Name: ") {
            current = format!("data {name}");
        } else if line.starts_with("\\\\restrict") || line.starts_with("\\\\unrestrict") {
            continue;
        }
        sections.entry(current.clone()).or_default().push(line);
    }
    // The order of rows and of sections means nothing.
    sections.values_mut().for_each(|lines| lines.sort());
    sections
}

#[track_caller]
pub fn same(before: &BTreeMap<String, Vec<String>>, after: &BTreeMap<String, Vec<String>>) {
    for name in before.keys().chain(after.keys()) {
        assert_eq!(before.get(name), after.get(name), "{name}");
    }
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
