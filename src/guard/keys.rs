//! Primary keys of tables whose rows may change, kept before the commands and held against the live table after them: a row that is gone
//! and another that came in its place have equal counts, and row maps, which have a digest of the whole row, cannot tell the two from one
//! that was changed. Read from the live server, so that no reader's identity is needed.
//!
//! Kept in the folder of the run: a line of JSON with the columns, then 16 bytes for each key, hashed as text, so that a wider type is the
//! same key.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::PathBuf;

use super::change::{May, Unbound};
use super::error::GuardError;
use super::state::{Folder, State};
use crate::compare::{CompareError, live};
use crate::postgres::catalog::{self, Catalog};
use crate::postgres::session::Session;
use crate::postgres::sql;

type Key = [u8; 16];

/// Keys that are not there any more, and new ones.
pub struct Moved {
    pub gone: u64,
    pub new: u64,
}

/// The keys of a run.
pub struct Keys {
    folder: PathBuf,
}

impl Keys {
    pub fn of(folder: &Folder, state: &State) -> Self {
        Self { folder: folder.run_folder(state).join("keys") }
    }

    fn path(&self, table: &str) -> PathBuf {
        self.folder.join(blake3::hash(table.as_bytes()).to_hex().as_str())
    }

    /// Keeps the keys of every declared table that has some. `encoding`: the server's own.
    pub async fn keep(&self, change: &Unbound, session: &Session, encoding: &str) -> Result<(), GuardError> {
        let declared: Vec<&str> =
            change.tables.iter().filter(|table| table.may == May::Rows).map(|table| table.name.as_str()).collect();
        if declared.is_empty() {
            return Ok(());
        }
        std::fs::create_dir_all(&self.folder).map_err(|e| GuardError::file(&self.folder, e))?;
        let catalog = catalog::read(session).await?;
        session.carry(encoding);
        for name in declared {
            let Some((schema, table)) = name.split_once('.') else { continue };
            let key = catalog.table(schema, table).and_then(|table| table.primary_key());
            let Some(columns) = key.map(|key| key.columns.clone()) else { continue };
            let path = self.path(name);
            let fail = |e: std::io::Error| GuardError::file(&path, e);
            let mut file = BufWriter::new(File::create(&path).map_err(fail)?);
            let header = serde_json::to_string(&columns).map_err(|e| GuardError::file(&path, e))?;
            let mut written = writeln!(file, "{header}");
            read(session, schema, table, &columns, &mut |key| {
                if written.is_ok() {
                    written = file.write_all(&key);
                }
            })
            .await?;
            written.and_then(|()| file.flush()).and_then(|()| file.get_ref().sync_all()).map_err(fail)?;
        }
        Ok(())
    }

    /// What became of the keys of a table; the error inside says why that cannot be told.
    pub async fn moved(
        &self,
        table: &str,
        session: &Session,
        catalog: &Catalog,
    ) -> Result<Result<Moved, String>, GuardError> {
        let path = self.path(table);
        let fail = |e: std::io::Error| GuardError::file(&path, e);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Err("it has no primary key".into())),
            Err(e) => return Err(fail(e)),
        };
        let mut file = BufReader::new(file);
        let mut header = String::new();
        file.read_line(&mut header).map_err(fail)?;
        let columns: Vec<String> = serde_json::from_str(&header).map_err(|e| GuardError::file(&path, e))?;
        let Some((schema, name)) = table.split_once('.') else { return Ok(Err("it has no schema".into())) };
        let now = catalog.table(schema, name);
        let gone =
            columns.iter().find(|column| now.is_none_or(|now| now.columns.iter().all(|one| one.name != **column)));
        if let Some(column) = gone {
            return Ok(Err(format!("the key's column {column} is gone")));
        }
        let mut keys: HashSet<Key> = HashSet::new();
        let mut key = [0; 16];
        while !file.fill_buf().map_err(fail)?.is_empty() {
            file.read_exact(&mut key).map_err(fail)?;
            keys.insert(key);
        }
        let mut new = 0;
        read(session, schema, name, &columns, &mut |key| {
            if !keys.remove(&key) {
                new += 1;
            }
        })
        .await?;
        Ok(Ok(Moved { gone: keys.len() as u64, new }))
    }

    /// After the comparison.
    pub fn forget(&self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

async fn read(
    session: &Session,
    schema: &str,
    table: &str,
    columns: &[String],
    sink: &mut (dyn FnMut(Key) + Send),
) -> Result<(), GuardError> {
    let texts: Vec<String> = columns.iter().map(|column| format!("{}::text", sql::identifier(column))).collect();
    let select = format!("SELECT {} FROM ONLY {}", texts.join(", "), sql::qualified(schema, table));
    let mut take = |cells: &[Option<&[u8]>]| {
        let mut hasher = blake3::Hasher::new();
        for cell in cells {
            let value = cell.unwrap_or_default();
            hasher.update(&(value.len() as u64).to_le_bytes()).update(value);
        }
        let mut key = [0; 16];
        key.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        sink(key);
        Ok(())
    };
    match live::copy(session, "reading the keys of a declared table", &select, columns.len(), &mut take).await {
        Ok(()) => Ok(()),
        Err(CompareError::Postgres(e)) => Err(e.into()),
        Err(e) => Err(GuardError::Server(e.to_string())),
    }
}
