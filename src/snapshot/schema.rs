//! The schema of the store: the catalog as Restante read it, and `pg_dump`'s own archive of the schema under the same
//! snapshot, which a full restore hands to `pg_restore`. Readers alone open them: defaults, enum labels and sequence
//! values tell about mail.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::SnapshotError;
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Catalog, OWN_SCHEMA};
use crate::postgres::dsn::Dsn;
use crate::postgres::reading::ReadingSet;
use crate::repository::chunk::ChunkKind;
use crate::repository::id::ChunkId;
use crate::repository::manifest::Schema;
use crate::repository::reader::run_blocking;
use crate::repository::writer::ChunkSink;
use crate::repository::{RepositoryError, cbor};

const PIECE: usize = 1 << 20;

pub struct Dump {
    pub archive: Vec<u8>,
    pub version: Option<String>,
}

/// Runs `pg_dump`. A missing program, or one older than the server, gives an empty dump: the snapshot is then incomplete
/// and says so.
pub async fn dump(
    dsn: &Dsn,
    set: &ReadingSet,
    program: &Path,
    yield_after: Option<Duration>,
) -> Result<Dump, SnapshotError> {
    let none = Dump { archive: Vec::new(), version: None };
    let Ok(output) = Command::new(program).arg("--version").stdin(Stdio::null()).output().await else {
        return Ok(none);
    };
    let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if major(&version).is_none_or(|major| major < set.facts.version_num / 10_000) {
        return Ok(none);
    }
    let Some(reader) = set.readers.first() else { return Ok(none) };
    // An ALTER that waits behind our locks makes pg_dump wait too. The watcher ends that; this only ends a wait that it missed.
    let wait = yield_after.unwrap_or(Duration::from_secs(60)) + Duration::from_secs(5);
    // It cannot lock what the role cannot read, and would give up altogether. The snapshot names those tables.
    let unreadable = set.catalog.unreadable(&set.facts.role);
    let output = Command::new(program)
        .args(["--schema-only", "--format=custom", "--compress=0", "--no-password"])
        .arg(format!("--lock-wait-timeout={}", wait.as_millis()))
        .arg(format!("--snapshot={}", set.exported))
        .arg(format!("--exclude-schema={OWN_SCHEMA}"))
        .args(unreadable.iter().map(|found| format!("--exclude-table={}", found.table.quoted())))
        // Ctrl-C is ours to pass on: its own complaint would come before our answer.
        .process_group(0)
        .envs(dsn.variables(reader.session().endpoint()))
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|e| SnapshotError::PgDump { message: e.to_string() })?;
    if output.status.success() {
        Ok(Dump { archive: output.stdout, version: Some(version) })
    } else {
        let message = String::from_utf8_lossy(&output.stderr);
        if message.contains("lock timeout") {
            return Err(PostgresError::LockTimeout { waited: wait }.into());
        }
        Err(SnapshotError::PgDump { message: message.lines().take(4).collect::<Vec<_>>().join("; ") })
    }
}

/// The major version in `pg_dump (PostgreSQL) 15.18 (Debian …)`.
fn major(version: &str) -> Option<u32> {
    version.split_whitespace().nth(2)?.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

pub async fn store(catalog: &Catalog, dump: Dump, sink: ChunkSink) -> Result<Schema, SnapshotError> {
    let catalog = cbor::encode("catalog", catalog).map_err(RepositoryError::from)?;
    let schema = run_blocking(move || {
        let pieces = |bytes: &[u8]| -> Result<Vec<ChunkId>, RepositoryError> {
            bytes.chunks(PIECE).map(|piece| sink.store(ChunkKind::Row, piece)).collect()
        };
        Ok(Schema { catalog: pieces(&catalog)?, dump: pieces(&dump.archive)?, dump_version: dump.version })
    });
    Ok(schema.await?)
}

#[cfg(test)]
mod tests {
    use super::major;

    #[test]
    fn the_major_version_of_pg_dump_is_found() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("something else"), None);
    }
}
