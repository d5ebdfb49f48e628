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
        let mut archive = output.stdout;
        set_date(&mut archive);
        Ok(Dump { archive, version: Some(version) })
    } else {
        let message = String::from_utf8_lossy(&output.stderr);
        if message.contains("lock timeout") {
            return Err(PostgresError::LockTimeout { waited: wait }.into());
        }
        Err(SnapshotError::PgDump { message: message.lines().take(4).collect::<Vec<_>>().join("; ") })
    }
}

/// Writes the first second of the year 2000 where an archive says when it was made, so that the same schema is the same bytes and stored once. One whose
/// header has another form stays as it is. (WriteHead in pg_backup_archiver.c, archive versions 1.14 of PostgreSQL 14 to 1.16 of 18.)
fn set_date(archive: &mut [u8]) {
    // "PGDMP", version, revision, bytes of an integer and of an offset, format 1: custom; then the compression: an integer, since 1.15 a byte.
    let Some([b'P', b'G', b'D', b'M', b'P', 1, minor @ 14..=16, _, 4, 8, 1]) = archive.get(..11) else { return };
    let start = if *minor < 15 { 16 } else { 12 };
    // Second, minute, hour, day, month from 0, years since 1900, summer time: a byte for the sign and four, little endian.
    let date = [0i32, 0, 0, 1, 0, 100, 0];
    let Some(fields) = archive.get_mut(start..start + 5 * date.len()) else { return };
    for (field, value) in fields.chunks_exact_mut(5).zip(date) {
        field[0] = 0;
        field[1..].copy_from_slice(&value.to_le_bytes());
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
    use super::{major, set_date};

    #[test]
    fn what_is_no_archive_of_a_known_version_is_left_alone() {
        for bytes in [&b""[..], b"PGDMP", b"PGDMP\x01\x11\0\x04\x08\x01 ........................................"] {
            let mut archive = bytes.to_vec();
            set_date(&mut archive);
            assert_eq!(archive, bytes);
        }
        let mut short = b"PGDMP\x01\x0e\0\x04\x08\x01 and no more".to_vec();
        set_date(&mut short);
        assert!(short.ends_with(b"and no more"));
    }

    #[test]
    fn the_major_version_of_pg_dump_is_found() {
        assert_eq!(major("pg_dump (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)"), Some(15));
        assert_eq!(major("pg_dump (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(major("something else"), None);
    }
}
